// Package restore puts a backup back: it chooses the backup that a recovery
// target needs, places every byte once, and leaves a directory that PostgreSQL
// recovers by itself. A restore that did not finish cannot be started.
package restore

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// TargetKind says by what a recovery target is given.
type TargetKind string

// The kinds, named as PostgreSQL's settings recovery_target_*.
const (
	TargetEnd       TargetKind = "" // to the end of the archived WAL
	TargetTime      TargetKind = "time"
	TargetLSN       TargetKind = "lsn"
	TargetXID       TargetKind = "xid"
	TargetName      TargetKind = "name"
	TargetImmediate TargetKind = "immediate" // as soon as the backup is consistent
)

// Target is where recovery ends (PostgreSQL documentation, "Recovery Target").
type Target struct {
	Kind      TargetKind
	Time      time.Time
	LSN       postgres.LSN
	XID       uint32
	Name      string
	Exclusive bool   // stop just before instead of just after
	Action    string // pause, promote, shutdown; empty is PostgreSQL's default, pause
	// Timeline is "" or "latest", "current", or a timeline's number.
	Timeline string
}

// timeLayouts are what --target-time takes. The zone is required: a server's
// and a shell's differ too easily.
var timeLayouts = []string{
	time.RFC3339Nano,
	"2006-01-02 15:04:05.999999999Z07:00",
	"2006-01-02 15:04:05.999999999Z07",
	"2006-01-02 15:04:05.999999999 Z07:00",
	"2006-01-02 15:04:05.999999999 Z07",
	"2006-01-02 15:04:05.999999999 MST",
	"2006-01-02T15:04:05.999999999Z07",
}

// ParseTime reads a target time such as "2026-11-20 14:29:00+00".
func ParseTime(s string) (time.Time, error) {
	for _, layout := range timeLayouts {
		// In UTC, so that it does not depend on this host's zone what is known.
		t, err := time.ParseInLocation(layout, s, time.UTC)
		if err != nil {
			continue
		}
		// Go takes any three letters for a zone and calls unknown ones UTC+0;
		// GMT+3 is east of Greenwich for Go, and west of it for PostgreSQL.
		if name, _ := t.Zone(); name != "" && name != "UTC" && name != "GMT" {
			break
		}
		return t, nil
	}
	return time.Time{}, errs.New(errs.Usage, "Write it with a numeric offset, such as '2026-11-20 14:29:00+00'.",
		"%q is not a time with a time zone", s)
}

// ParseXID reads a transaction id, with or without its epoch.
func ParseXID(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, errs.Wrap(err, errs.Usage, "", "%q is not a transaction id", s)
	}
	return uint32(v), nil
}

// String names the target for messages.
func (t Target) String() string {
	switch t.Kind {
	case TargetTime:
		return "time " + t.Time.UTC().Format("2006-01-02 15:04:05.999999Z07")
	case TargetLSN:
		return "LSN " + t.LSN.String()
	case TargetXID:
		return fmt.Sprintf("transaction %d", t.XID)
	case TargetName:
		return fmt.Sprintf("restore point %q", t.Name)
	case TargetImmediate:
		return "the end of the backup"
	default:
		return "the end of the archived WAL"
	}
}

// reachableFrom reports whether recovery from the backup can stop at the
// target: the backup must have ended before it.
func (t Target) reachableFrom(b *repo.Backup) bool {
	switch t.Kind {
	case TargetTime:
		return !b.Stopped.After(t.Time)
	case TargetLSN:
		return b.StopLSN <= t.LSN
	case TargetXID:
		// Transaction ids go round: compare as PostgreSQL does. One that was
		// not yet given out when the backup stopped commits after it.
		return int32(t.XID-uint32(b.NextXID)) >= 0
	default:
		return true
	}
}

// Choice is the backup to restore and the timeline to follow from it.
type Choice struct {
	Backup   *repo.Backup
	Timeline postgres.Timeline
	// Aside are backups that end later but do not lead to the timeline.
	Aside []*repo.Backup
}

// Choose picks the newest backup from which the target can be reached, by
// position on the wanted timeline, never by name or clock. name is a backup's
// name, or "" or "LATEST".
// unreadable are the timelines whose history is damaged: if one of them decides,
// there is no choice.
func Choose(backups []*repo.Backup, histories map[postgres.Timeline]postgres.History, unreadable map[postgres.Timeline]error, t Target, name string) (Choice, error) {
	if len(backups) == 0 {
		return Choice{}, errs.New(errs.NotFound, "Take a backup with: agent backup-push", "there are no backups")
	}
	var named *repo.Backup
	if name != "" && name != "LATEST" {
		i := slices.IndexFunc(backups, func(b *repo.Backup) bool { return string(b.Name) == name })
		if i < 0 {
			return Choice{}, errs.New(errs.NotFound, "See what there is with: agent backup-list", "there is no backup %s", name)
		}
		named = backups[i]
	}
	wanted, err := wantedTimeline(backups, histories, unreadable, t, named)
	if err != nil {
		return Choice{}, err
	}
	if err := unreadable[wanted]; err != nil {
		return Choice{}, errs.Wrap(err, errs.Damaged, "Bring the history file back (a server that was on that timeline has it in pg_wal: agent wal-push), or follow another timeline with --target-timeline.",
			"follow timeline %d", wanted)
	}
	path := lineage{wanted, histories[wanted]}
	if named != nil {
		return chooseNamed(named, path, t)
	}
	choice := Choice{Timeline: wanted}
	for _, b := range backups {
		switch {
		case !t.reachableFrom(b):
		case !path.holds(b):
			choice.Aside = append(choice.Aside, b)
		case choice.Backup == nil || path.later(b, choice.Backup):
			choice.Backup = b
		}
	}
	if choice.Backup == nil {
		return Choice{}, noneBefore(backups, choice.Aside, path, t)
	}
	choice.Aside = slices.DeleteFunc(choice.Aside, func(b *repo.Backup) bool {
		return !b.Stopped.After(choice.Backup.Stopped)
	})
	return choice, nil
}

func chooseNamed(b *repo.Backup, path lineage, t Target) (Choice, error) {
	if !path.holds(b) {
		return Choice{}, errs.New(errs.Usage,
			fmt.Sprintf("Choose another backup, or follow the backup's own timeline with --target-timeline %d.", b.Timeline),
			"backup %s (timeline %d, ends at %s) does not lead to timeline %d", b.Name, b.Timeline, b.StopLSN, path.timeline)
	}
	// Of a transaction id nobody but the WAL knows when it commits: whoever
	// names the backup may know better.
	if t.Kind != TargetXID && !t.reachableFrom(b) {
		return Choice{}, errs.New(errs.Usage,
			"Choose an earlier backup, or leave the name out to have it chosen.",
			"backup %s ends at %s (%s), after the target, %s", b.Name, b.StopLSN, b.Stopped.Format(time.RFC3339), t)
	}
	return Choice{Backup: b, Timeline: path.timeline}, nil
}

func noneBefore(backups, aside []*repo.Backup, path lineage, t Target) error {
	if len(aside) > 0 {
		return errs.New(errs.NotFound,
			fmt.Sprintf("To restore it, follow its own timeline with --target-timeline %d.", aside[0].Timeline),
			"no backup leads to timeline %d; backup %s, which ends at %s, is on timeline %d", path.timeline, aside[0].Name, aside[0].StopLSN, aside[0].Timeline)
	}
	first := slices.MinFunc(backups, func(a, b *repo.Backup) int { return a.Stopped.Compare(b.Stopped) })
	return errs.New(errs.NotFound,
		"A target before the end of the first backup cannot be reached from this repository.",
		"no backup on timeline %d ends before %s; the first backup is %s, which ends at %s (%s, timeline %d)",
		path.timeline, t, first.Name, first.StopLSN, first.Stopped.Format(time.RFC3339), first.Timeline)
}

// wantedTimeline is the timeline that recovery follows.
func wantedTimeline(backups []*repo.Backup, histories map[postgres.Timeline]postgres.History, unreadable map[postgres.Timeline]error, t Target, named *repo.Backup) (postgres.Timeline, error) {
	known := knownTimelines(backups, histories, unreadable)
	switch t.Timeline {
	case "", "latest":
		return slices.Max(slices.Collect(maps.Keys(known))), nil
	case "current":
		if named == nil {
			named = slices.MaxFunc(backups, func(a, b *repo.Backup) int { return a.Stopped.Compare(b.Stopped) })
		}
		return named.Timeline, nil
	}
	wanted, err := postgres.ParseTimeline(t.Timeline)
	if err != nil {
		return 0, errs.Wrap(err, errs.Usage, "It is latest, current or a number.", "read --target-timeline")
	}
	if !known[wanted] {
		return 0, errs.New(errs.NotFound, "See what there is with: agent backup-list", "there is no timeline %d in the repository", wanted)
	}
	return wanted, nil
}

// knownTimelines is the set of all timelines that the repository knows.
func knownTimelines(backups []*repo.Backup, histories map[postgres.Timeline]postgres.History, unreadable map[postgres.Timeline]error) map[postgres.Timeline]bool {
	all := make(map[postgres.Timeline]bool)
	for t := range unreadable {
		all[t] = true
	}
	for t := range histories {
		all[t] = true
	}
	for _, b := range backups {
		all[b.Timeline] = true
	}
	return all
}

// lineage is a timeline with its ancestors.
type lineage struct {
	timeline postgres.Timeline
	history  postgres.History
}

// holds reports whether the backup lies on the timeline or, before the switch
// away from it, on an ancestor.
func (l lineage) holds(b *repo.Backup) bool {
	if b.Timeline == l.timeline {
		return true
	}
	left, ok := l.history.SwitchPoint(b.Timeline)
	return ok && b.StopLSN <= left
}

// later orders two backups of the lineage.
func (l lineage) later(a, b *repo.Backup) bool { return repo.CompareEnds(a, b) > 0 }
