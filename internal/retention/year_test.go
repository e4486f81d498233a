package retention

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"agent/internal/archive"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/restore"
)

// yearStep is how many hours lie between two backups; 1 is what a busy site does.
var yearStep = flag.Int("year-step", 8, "hours between the backups of TestYear")

// yearRules are a policy with every kind of rule.
var yearRules = Rules{Window: 7 * 24 * time.Hour, Full: 2, Daily: 7, Weekly: 4, Monthly: 12, Yearly: 7, Least: 3}

// TestYear is a year of a server: an incremental backup every few hours and a
// full one each week, two failovers, a recovery to an earlier moment, pg_upgrade, and
// a run of the policy every day. After each of these runs every moment of the last
// seven days can be planned, what the calendar promises is there, and some of it is
// restored.
func TestYear(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 7)
	line := postgres.Timeline(1)
	var old *world
	step := *yearStep
	last := repo.BackupName("")
	for hour := 0; hour < 365*24; hour += step {
		day := hour / 24
		w.pass(time.Duration(step) * time.Hour)
		w.switchWAL(line, 1)
		if hour%(7*24) == 0 {
			last = ""
		}
		last = w.backup(line, last)
		if hour%24 != 0 {
			continue
		}
		switch day {
		case 60, 300: // failovers
			line, last = w.fork(line, w.next[line]-1), ""
			w.switchWAL(line, 2)
		case 150: // a recovery to the middle of yesterday
			line, last = w.fork(line, w.next[line]-14), ""
			w.switchWAL(line, 2)
		case 200:
			before := *w
			old = &before
			w.upgrade(w.cluster + 1)
			line, last = 1, ""
			continue
		}
		if _, err := w.run(Request{Verb: Expire}, yearRules, -1); err != nil {
			t.Fatal(err)
		}
		w.promised()
		if old != nil {
			old.now = w.now
			if _, err := old.run(Request{Verb: Expire}, yearRules, -1); err != nil {
				t.Fatal(err)
			}
			if len(old.existing()) == 0 {
				t.Fatal("the backups from before the upgrade are gone")
			}
		}
	}
	w.sound()
	old.sound()
	// Those of the window and a day, and what the calendar keeps.
	if n := len(w.existing()); n > 8*24/step+40 {
		t.Errorf("%d backups were left", n)
	}
}

// promised fails the test unless what the policy promises can be planned.
func (w *world) promised() {
	w.t.Helper()
	ctx := w.t.Context()
	backups, scan := w.existing(), w.held()
	histories, damaged, err := w.repo.Histories(ctx, w.cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	from := w.now.Add(-yearRules.Window)
	for seg, at := range w.archived {
		if !at.After(from) || w.random.IntN(8) > 0 {
			continue
		}
		target := restore.Target{Kind: restore.TargetLSN, LSN: seg.End(worldSegment) - 8, Timeline: fmt.Sprint(uint32(seg.Timeline))}
		choice, err := restore.Choose(backups, histories, damaged, target, "")
		if err != nil {
			if w.before(seg) {
				continue
			}
			w.t.Fatalf("%s, archived %s ago: %v", seg.Name(worldSegment), w.now.Sub(at), err)
		}
		if missing := w.way(scan, choice.Backup, seg); missing != "" {
			w.t.Fatalf("%s, archived %s ago, from backup %s: %s is missing", seg.Name(worldSegment), w.now.Sub(at), choice.Backup.Name, missing)
		}
	}
	days := make(map[string]bool)
	for _, b := range backups {
		days[b.Stopped.Format(time.DateOnly)] = true
		if w.random.IntN(40) == 0 {
			w.restores(b)
		}
	}
	for d := range yearRules.Daily {
		day := w.now.AddDate(0, 0, -d-1)
		if first := w.first(); day.After(first.AddDate(0, 0, 1)) && !days[day.Format(time.DateOnly)] {
			w.t.Fatalf("there is no backup of %s", day.Format(time.DateOnly))
		}
	}
}

// first is when the first backup of the cluster was made.
func (w *world) first() time.Time {
	var first time.Time
	for _, at := range w.archived {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// before reports whether a segment is from before the first backup could end.
func (w *world) before(seg postgres.Segment) bool { return seg.Number <= 4 }

// way names a segment that a recovery from the backup to a segment misses.
func (w *world) way(scan *repo.WALScan, b *repo.Backup, to postgres.Segment) string {
	first := b.StartLSN.Segment(worldSegment)
	for _, e := range w.lines[to.Timeline] {
		if e.Timeline < b.Timeline {
			continue
		}
		last := to.Number
		if e.Timeline != to.Timeline {
			last = e.Switch.Segment(worldSegment) - 1
		}
		if last >= first {
			missing := archive.Missing(scan.Ranges, archive.Span{First: postgres.Segment{Timeline: e.Timeline, Number: first}, Last: postgres.Segment{Timeline: e.Timeline, Number: last}})
			if len(missing) > 0 {
				return missing[0].First.Name(worldSegment)
			}
		}
		first = last + 1
	}
	return ""
}
