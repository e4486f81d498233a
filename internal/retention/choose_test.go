package retention

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// plain is a backup for a table: of the timeline and at a segment, made at a day
// of 2026 (0 is 1 January) by both clocks.
func plain(name string, t postgres.Timeline, segment uint64, day float64) *repo.Backup {
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(day * 24 * float64(time.Hour)))
	return &repo.Backup{
		Name: repo.BackupName(name), Type: repo.TypeFull, Timeline: t, SegmentSize: worldSegment,
		StartLSN: postgres.LSN(segment * uint64(worldSegment)), StopLSN: postgres.LSN(segment*uint64(worldSegment) + 5),
		Started: at, Stopped: at, Created: at,
	}
}

func incremental(b *repo.Backup, full string) *repo.Backup {
	b.Type, b.Full = repo.TypeIncremental, repo.BackupName(full)
	return b
}

// forked are the histories of timelines that each leave the one before at the
// beginning of a segment.
func forked(at ...uint64) lines {
	l := lines{1: {{Timeline: 1}}}
	for i, n := range at {
		t := postgres.Timeline(i + 1)
		h := append(postgres.History(nil), l[t]...)
		h[len(h)-1].Switch = postgres.LSN(n * uint64(worldSegment))
		l[t+1] = append(h, postgres.HistoryEntry{Timeline: t + 1})
	}
	return l
}

func judged(l lines, day float64, backups ...*repo.Backup) *history {
	now := plain("", 1, 0, day).Created
	h := &history{lines: l, now: now, clock: now, active: make(map[postgres.Timeline]time.Time)}
	for _, item := range l.ordered(backups, now) {
		item.Whole = true
		h.all = append(h.all, &Decision{Item: item})
		if item.At.After(h.active[item.Timeline]) {
			h.active[item.Timeline] = item.At
		}
	}
	return h
}

// kept names what stays; those from which WAL goes on have a plus.
func kept(h *history) []string {
	var names []string
	for _, d := range h.all {
		if d.Keep() {
			name := string(d.Name)
			if d.Continuous {
				name += "+"
			}
			names = append(names, name)
		}
	}
	return names
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	daily := func(n int) []*repo.Backup {
		var all []*repo.Backup
		for i := range n {
			all = append(all, plain(fmt.Sprintf("d%02d", i), 1, uint64(10*i), float64(i)))
		}
		return all
	}
	week := []*repo.Backup{
		plain("full0", 1, 10, 0), incremental(plain("inc1", 1, 20, 1), "full0"), incremental(plain("inc2", 1, 30, 2), "full0"),
		plain("full3", 1, 40, 3), incremental(plain("inc4", 1, 50, 4), "full3"),
	}
	for _, c := range []struct {
		name    string
		lines   lines
		backups []*repo.Backup
		day     float64
		rules   Rules
		want    []string
	}{
		{"the newest stays", forked(), daily(3), 3, Rules{Daily: 1}, []string{"d02+"}},
		{"full backups and what follows", forked(), week, 5, Rules{Full: 1}, []string{"full3+", "inc4+"}},
		{"more than there are", forked(), week, 5, Rules{Full: 9}, []string{"full0+", "inc1+", "inc2+", "full3+", "inc4+"}},
		{"a window begins before it", forked(), daily(10), 9.5, Rules{Window: 48 * time.Hour}, []string{"d07+", "d08+", "d09+"}},
		{"a window that all lie in", forked(), daily(3), 3, Rules{Window: 90 * 24 * time.Hour}, []string{"d00+", "d01+", "d02+"}},
		{"counts beside a window keep their own WAL", forked(), daily(10), 9.5, Rules{Window: 24 * time.Hour, Full: 4}, []string{"d06", "d07", "d08+", "d09+"}},
		{"days", forked(), daily(5), 5, Rules{Daily: 3}, []string{"d02", "d03", "d04+"}},
		// 4 January 2026 is a Sunday.
		{"weeks", forked(), daily(12), 12, Rules{Weekly: 2}, []string{"d10", "d11+"}},
		{"months", forked(), daily(40), 40, Rules{Monthly: 2}, []string{"d30", "d39+"}},
		{"years", forked(), append(daily(2), plain("next", 1, 9000, 400)), 401, Rules{Yearly: 2}, []string{"d01", "next+"}},
		{"days without backups do not count", forked(), []*repo.Backup{plain("a", 1, 1, 0), plain("b", 1, 2, 50)}, 51, Rules{Daily: 2}, []string{"a", "b+"}},
		{"at least", forked(), daily(5), 5, Rules{Yearly: 1, Least: 3}, []string{"d02", "d03", "d04+"}},
		{"all rules together", forked(), daily(40), 39.5, Rules{Window: 36 * time.Hour, Daily: 4, Monthly: 2}, []string{"d30", "d36", "d37", "d38+", "d39+"}},
		{
			"a window over a failover", forked(35),
			[]*repo.Backup{plain("a", 1, 10, 0), plain("b", 1, 30, 3), plain("c", 2, 50, 6)},
			6.5,
			Rules{Window: 48 * time.Hour},
			[]string{"b+", "c+"},
		},
		{
			// Timeline 2 left timeline 1 before b: b is not on the way to it.
			"a window on two lines", forked(20),
			[]*repo.Backup{plain("a", 1, 10, 0), plain("b", 1, 30, 3), plain("c", 1, 60, 6), plain("d", 2, 50, 6)},
			6.5,
			Rules{Window: 48 * time.Hour},
			[]string{"a+", "b+", "d+", "c+"},
		},
		{
			"a clone that archives here, too, pushes nothing out", forked(20),
			[]*repo.Backup{plain("a", 1, 10, 0), plain("p1", 1, 30, 1), plain("p2", 1, 40, 2), plain("c1", 2, 22, 2.1), plain("c2", 2, 24, 2.2), plain("c3", 2, 26, 2.3)},
			2.5,
			Rules{Full: 2},
			[]string{"p1+", "p2+", "c2+", "c3+"},
		},
		{
			"higher LSNs of an older timeline are not newer", forked(20),
			[]*repo.Backup{plain("x", 1, 500, 1), plain("y", 2, 30, 90)},
			90.1,
			Rules{Full: 1},
			[]string{"y+"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := judged(c.lines, c.day, c.backups...)
			h.policy(c.rules)
			h.guards()
			if diff := cmp.Diff(c.want, kept(h)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestClocks are clocks that went wrong: what they say takes nothing away that
// stays when they are right.
func TestClocks(t *testing.T) {
	t.Parallel()
	set := func(b *repo.Backup, stopped, created float64) *repo.Backup {
		b.Stopped, b.Created = plain("", 1, 0, stopped).Stopped, plain("", 1, 0, created).Created
		return b
	}
	window := Rules{Window: 48 * time.Hour}
	for _, c := range []struct {
		name  string
		bad   *repo.Backup
		rules Rules
		want  []string
	}{
		{"all is well", plain("bad", 1, 30, 8), window, []string{"b+", "bad+", "c+"}},
		{"the host was set back", set(plain("bad", 1, 30, 8), -9000, 8), window, []string{"b+", "bad+", "c+"}},
		{"the store was set back", set(plain("bad", 1, 30, 8), 8, -9000), window, []string{"b+", "bad+", "c+"}},
		{"the host was ahead", set(plain("bad", 1, 30, 8), 9000, 8), window, []string{"b+", "bad+", "c+"}},
		{"the store was ahead", set(plain("bad", 1, 30, 8), 8, 9000), window, []string{"b+", "bad+", "c+"}},
		{"years by the host's clock that was ahead", set(plain("bad", 1, 30, 8), 9000, 8), Rules{Yearly: 1}, []string{"c+"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := judged(forked(), 9.5, plain("a", 1, 10, 0), plain("b", 1, 20, 7), c.bad, plain("c", 1, 40, 9))
			h.policy(c.rules)
			h.guards()
			if diff := cmp.Diff(c.want, kept(h)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestGuards are what no policy takes.
func TestGuards(t *testing.T) {
	t.Parallel()
	h := judged(forked(), 40, plain("a", 1, 10, 0), plain("b", 1, 20, 1), plain("c", 1, 30, 2), plain("d", 1, 40, 3), plain("e", 1, 50, 4), plain("f", 1, 60, 5))
	h.all[0].Marks.Keep = &repo.Mark{Kind: repo.MarkKeep}
	h.all[1].Marks.Keep = &repo.Mark{Kind: repo.MarkKeep, Until: h.now.Add(-time.Hour)}
	h.all[2].Marks.Unread = fmt.Errorf("damaged")
	h.all[4].BadPages = 3
	h.all[5].Whole = false
	h.policy(Rules{Yearly: 1})
	h.guards()
	if diff := cmp.Diff([]string{"a", "c", "d+", "f+"}, kept(h)); diff != "" {
		t.Error(diff)
	}
	h.claimed(repo.LiveClaims{Named: map[repo.BackupName]repo.BackupName{"b": "new"}})
	h.locked(map[repo.BackupName]time.Time{"e": h.clock.Add(time.Hour)})
	if diff := cmp.Diff([]string{"a", "b+", "c", "d+", "e", "f+"}, kept(h)); diff != "" {
		t.Error(diff)
	}
}

// TestWindowNeedsWhole is that a window begins with a backup whose WAL is there.
func TestWindowNeedsWhole(t *testing.T) {
	t.Parallel()
	h := judged(forked(), 9, plain("a", 1, 10, 0), plain("b", 1, 20, 1), plain("c", 1, 30, 2), plain("d", 1, 40, 8.9))
	h.all[2].Whole = false
	h.policy(Rules{Window: 24 * time.Hour})
	if diff := cmp.Diff([]string{"b+", "c+", "d+"}, kept(h)); diff != "" {
		t.Error(diff)
	}
}

func TestPlanWAL(t *testing.T) {
	t.Parallel()
	l := forked(20, 40)
	decision := func(b *repo.Backup, continuous bool) *Decision {
		return &Decision{Item: &Item{Backup: b}, Continuous: continuous}
	}
	w := planWAL([]*Decision{decision(plain("alone", 1, 5, 0), false), decision(plain("from", 2, 30, 1), true)}, l, worldSegment)
	for _, c := range []struct {
		timeline postgres.Timeline
		number   uint64
		drops    bool
	}{
		{1, 4, true},
		{1, 5, false}, // of the one that is restored to its own end
		{1, 6, true},
		{1, 19, true},
		{1, 20, false}, // timeline 1 went on without timeline 2: it is not known to be of no use
		{2, 20, true},
		{2, 29, true},
		{2, 30, false},
		{2, 39, false},
		{2, 45, false}, // timeline 2 went on, too
		{3, 40, false},
		{4, 1, false}, // of which nothing is known
	} {
		if got := w.Drops(postgres.Segment{Timeline: c.timeline, Number: c.number}, time.Time{}); got != c.drops {
			t.Errorf("timeline %d, segment %d: drops %v", c.timeline, c.number, got)
		}
	}
	if diff := cmp.Diff([]uint64{20, 30, 0}, []uint64{w.End(1), w.End(2), w.End(3)}); diff != "" {
		t.Error(diff)
	}
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	ranges := []repo.WALRange{
		{First: postgres.Segment{Timeline: 1, Number: 1}, Last: postgres.Segment{Timeline: 1, Number: 25}, Until: now.Add(-time.Hour)},
		{First: postgres.Segment{Timeline: 4, Number: 1}, Last: postgres.Segment{Timeline: 4, Number: 25}, Until: now.Add(-time.Hour)},
	}
	w.bury(ranges, l, now.Add(-2*time.Hour))
	if w.dead[1] || w.dead[4] {
		t.Error("a timeline that is in use is dead")
	}
	w.bury(ranges, l, now)
	if !w.dead[1] || w.dead[4] {
		t.Error("timeline 1 is dead, timeline 4 is not known")
	}
	if !w.Drops(postgres.Segment{Timeline: 1, Number: 20}, time.Time{}) || w.Drops(postgres.Segment{Timeline: 1, Number: 5}, time.Time{}) {
		t.Error("what nobody needs of a dead timeline goes, and nothing else")
	}
	w.since = now
	if w.Drops(postgres.Segment{Timeline: 1, Number: 20}, now) {
		t.Error("WAL that came since a running backup began goes")
	}
}
