package archive

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// Window is a stretch of time, any moment of which can be recovered along one
// timeline.
type Window struct {
	Timeline postgres.Timeline // on which it ends
	// Backup is the oldest that can be recovered to the end; From is when it
	// stopped, by the clock of the database host.
	Backup repo.BackupName
	From   time.Time
	// Last is the last segment, LastName its name, and Until when the newest was
	// archived, by the store's clock. It is not before From.
	Last     postgres.Segment
	LastName string
	Until    time.Time
}

// Windows are the stretches of time that can be recovered, by timeline: one for
// each row of segments that a backup serves. Ranges of unfinished segments may
// go further.
func (s *Survey) Windows() ([]Window, error) {
	found := make(map[int]Window)
	for _, b := range s.Backups {
		serves, err := s.Serves(b)
		if err != nil {
			return nil, fmt.Errorf("find the WAL of backup %s: %w", b.Name, err)
		}
		for _, i := range serves {
			if have, ok := found[i]; ok && !b.Stopped.Before(have.From) {
				continue
			}
			r := s.Scan.Ranges[i]
			w := Window{Timeline: r.First.Timeline, Backup: b.Name, From: b.Stopped, Last: r.Last, LastName: r.Last.Name(s.Size), Until: r.Until}
			if w.Until.Before(w.From) {
				w.Until = w.From
			}
			found[i] = w
		}
	}
	all := make([]Window, 0, len(found))
	for _, w := range found {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b Window) int {
		return cmp.Or(cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.Last.Number, b.Last.Number))
	})
	return all, nil
}
