// Package retention decides which backups are kept, what keeps them alive, and
// what can go: packs that no manifest names, WAL that no recovery can ask for.
// It orders backups by the lines of timelines and by the store's clock, never by
// a host's.
package retention

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// Item is a backup under consideration.
type Item struct {
	*repo.Backup
	// At is when the store took it. If that was before what its line comes from, a
	// clock was wrong: then it is when the next one on its line was taken, so that
	// nothing looks older than it can be.
	At    time.Time
	Marks repo.Marks
	// Whole is that all WAL from its start to its stop is there.
	Whole bool
}

// recorded is when the backup ended, for calendars: by the host's clock, unless
// the store's says that this lies in the future. Copying a repository changes the
// store's times.
func (i *Item) recorded() time.Time {
	if i.Created.IsZero() || i.Stopped.Before(i.Created) {
		return i.Stopped
	}
	return i.Created
}

// lines are the histories of timelines.
type lines map[postgres.Timeline]postgres.History

// linesOf are the histories, and those of timelines that lack one, as far as their
// descendants tell: a server may have been promoted, and left, before it archived
// anything.
func linesOf(histories map[postgres.Timeline]postgres.History) lines {
	l := lines(maps.Clone(histories))
	for _, t := range slices.Sorted(maps.Keys(histories)) {
		h := histories[t]
		for i, e := range h {
			if _, known := l[e.Timeline]; known || e.Timeline == 1 {
				continue
			}
			own := slices.Clone(h[:i+1])
			own[i].Switch, own[i].Reason = 0, ""
			l[e.Timeline] = own
		}
	}
	return l
}

// of is the history of a timeline; one that is not known is that timeline alone.
func (l lines) of(t postgres.Timeline) postgres.History {
	if h, ok := l[t]; ok {
		return h
	}
	return postgres.History{{Timeline: t}}
}

// on reports whether a server on the line of h has gone through the end of the
// backup.
func on(h postgres.History, b *repo.Backup) bool {
	if n := len(h); n > 0 && h[n-1].Timeline == b.Timeline {
		return true
	}
	at, ok := h.SwitchPoint(b.Timeline)
	return ok && at >= b.StopLSN
}

// ordered gives the backups the oldest first: on a line by how far they go, and
// across lines by when the store took them, as far as its clock can be believed.
// now is the latest that any can be.
func (l lines) ordered(backups []*repo.Backup, now time.Time) []*Item {
	items := make([]*Item, len(backups))
	for i, b := range backups {
		at := b.Created
		if at.IsZero() {
			at = b.Stopped
		}
		if at.After(now) {
			at = now
		}
		items[i] = &Item{Backup: b, At: at}
	}
	// What a line comes from ends at a lower LSN.
	slices.SortStableFunc(items, func(a, b *Item) int { return repo.CompareEnds(a.Backup, b.Backup) })
	doubtful := make([]bool, len(items))
	for i, item := range items {
		h := l.of(item.Timeline)
		for j, before := range items[:i] {
			doubtful[i] = doubtful[i] || !doubtful[j] && before.At.After(item.At) && on(h, before.Backup)
		}
	}
	for i, item := range items {
		if !doubtful[i] {
			continue
		}
		item.At = now
		for j := i + 1; j < len(items); j++ {
			if later := items[j]; !doubtful[j] && later.At.Before(item.At) && on(l.of(later.Timeline), item.Backup) {
				item.At = later.At
			}
		}
	}
	slices.SortStableFunc(items, func(a, b *Item) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return cmp.Or(l.along(a, b), repo.CompareEnds(a.Backup, b.Backup))
	})
	return items
}

// along orders two backups where one lies on the line of the other.
func (l lines) along(a, b *Item) int {
	switch {
	case a.Timeline == b.Timeline:
		return 0 // by their ends
	case on(l.of(b.Timeline), a.Backup):
		return -1
	case on(l.of(a.Timeline), b.Backup):
		return 1
	default:
		return 0
	}
}
