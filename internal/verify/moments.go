package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"agent/internal/archive"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Lost is a backup that cannot be restored any more.
type Lost struct {
	Backup repo.BackupName
	Why    string
	// Instead is another backup from which its moments can be recovered, by more
	// WAL; empty: there is none.
	Instead repo.BackupName
}

// Moment is a stretch of WAL to which no recovery leads any more: from From to
// before To.
type Moment struct {
	Timeline postgres.Timeline
	From, To postgres.LSN
	// Since is when the backup ended that was to recover From, Until when that one
	// ended which begins at To, or when the last of the WAL was archived; zero where
	// nothing tells.
	Since, Until time.Time
}

// moments says which backups cannot be restored, lost by now or for their WAL,
// and what that means: positions to which a recovery led before the damage, and
// leads no more.
func (x *run) moments(lost map[repo.BackupName]string) error {
	if x.survey == nil {
		return x.tellLost(lost, nil)
	}
	now := x.survey.Without(x.holes)
	known := !slices.ContainsFunc(now.Scan.Places, func(p repo.WALHeld) bool { return p.Err != nil })
	var all, good []*repo.Backup
	for _, b := range x.backups {
		if b.of == nil || b.gone {
			continue
		}
		all = append(all, b.of)
		if known && b.selected && lost[b.name] == "" {
			lacks, err := now.Lacks(b.of)
			if err != nil {
				return err
			}
			if len(lacks) > 0 {
				lost[b.name] = "no repository has a good copy of its WAL: " + spans(lacks, now.Size)
			}
		}
		if lost[b.name] == "" {
			good = append(good, b.of)
		}
	}
	instead := func(b *repo.Backup) (repo.BackupName, error) { return x.instead(now, good, b) }
	if err := x.tellLost(lost, instead); err != nil || !known {
		return err
	}
	missing, err := x.missing()
	if err != nil {
		return err
	}
	before, err := x.survey.Filled(missing).Recoverable(all)
	if err != nil {
		return err
	}
	after, err := now.Recoverable(good)
	if err != nil {
		return err
	}
	for _, st := range archive.Less(before, after) {
		x.result.Moments = append(x.result.Moments, x.moment(st, all))
	}
	return nil
}

// missing are the segments that were looked for and that no place has.
func (x *run) missing() ([]archive.Span, error) {
	var missing []archive.Span
	if x.ToLatest {
		for _, t := range x.survey.Timelines() {
			for _, gap := range x.survey.Gaps(t) {
				if !gap.Expired { // what a delete took was meant to go
					missing = append(missing, gap.Span)
				}
			}
		}
	}
	for _, b := range x.backups {
		if !b.selected || b.of == nil {
			continue
		}
		lacks, err := x.survey.Lacks(b.of)
		if err != nil {
			return nil, err
		}
		missing = append(missing, lacks...)
	}
	return missing, nil
}

func (x *run) tellLost(lost map[repo.BackupName]string, instead func(*repo.Backup) (repo.BackupName, error)) error {
	for _, b := range x.backups {
		why, ok := lost[b.name]
		if !ok || b.gone {
			continue
		}
		l := Lost{Backup: b.name, Why: why}
		if b.of != nil && instead != nil {
			var err error
			if l.Instead, err = instead(b.of); err != nil {
				return err
			}
		}
		x.result.Lost = append(x.result.Lost, l)
	}
	return nil
}

// instead is the newest of the good backups from which a recovery passes the end
// of another one.
func (x *run) instead(s *archive.Survey, good []*repo.Backup, b *repo.Backup) (repo.BackupName, error) {
	var best *repo.Backup
	for _, g := range good {
		reach, err := s.Recoverable([]*repo.Backup{g})
		if err != nil {
			return "", err
		}
		passes := slices.ContainsFunc(reach, func(st archive.Stretch) bool {
			return st.Timeline == b.Timeline && st.From <= b.StopLSN && b.StopLSN < st.To
		})
		if passes && (best == nil || repo.CompareEnds(g, best) > 0) {
			best = g
		}
	}
	if best == nil {
		return "", nil
	}
	return best.Name, nil
}

// moment finds the times of a stretch.
func (x *run) moment(st archive.Stretch, backups []*repo.Backup) Moment {
	m := Moment{Timeline: st.Timeline, From: st.From, To: st.To}
	for _, b := range backups {
		if b.Timeline != st.Timeline {
			continue
		}
		if b.StopLSN == st.From {
			m.Since = b.Stopped
		}
		if b.StopLSN == st.To {
			m.Until = b.Stopped
		}
	}
	for _, w := range x.survey.Scan.Ranges {
		if w.First.Timeline == st.Timeline && w.Last.End(x.survey.Size) == st.To && m.Until.IsZero() {
			m.Until = w.Until
		}
	}
	return m
}

// spans names segments.
func spans(all []archive.Span, size postgres.SegmentSize) string {
	var parts []string
	for _, s := range all {
		if s.First == s.Last {
			parts = append(parts, s.First.Name(size))
		} else {
			parts = append(parts, fmt.Sprintf("%s to %s", s.First.Name(size), s.Last.Name(size)))
		}
	}
	return strings.Join(parts, ", ")
}
