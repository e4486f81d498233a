package retention

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// stretch is a row of segment numbers of a timeline, both included.
type stretch struct{ first, last uint64 }

const endless = ^uint64(0)

// walPlan says which segments go. A segment is kept if a recovery of a kept
// backup can ask for it; of the others those go that lie before one on its line,
// and those of lines that nobody writes to any more.
type walPlan struct {
	kept map[postgres.Timeline][]stretch // sorted, apart
	// old is the number below which what is not kept goes.
	old map[postgres.Timeline]uint64
	// dead are timelines of which all that is not kept goes.
	dead map[postgres.Timeline]bool
	// since is from when on all WAL stays, for backups that are being made; zero:
	// there is none.
	since time.Time
}

// planWAL decides by the backups that stay.
func planWAL(stay []*Decision, l lines, size postgres.SegmentSize) *walPlan {
	w := &walPlan{
		kept: make(map[postgres.Timeline][]stretch), old: make(map[postgres.Timeline]uint64), dead: make(map[postgres.Timeline]bool),
	}
	for _, d := range stay {
		first, last := d.StartLSN.Segment(size), d.StopLSN.LastSegment(size)
		if !d.Continuous {
			w.kept[d.Timeline] = append(w.kept[d.Timeline], stretch{first, last})
			continue
		}
		w.kept[d.Timeline] = append(w.kept[d.Timeline], stretch{first, endless})
		for t, h := range l {
			if at, ok := h.SwitchPoint(d.Timeline); ok && t != d.Timeline && at >= d.StopLSN {
				w.kept[t] = append(w.kept[t], stretch{0, endless})
			}
		}
		w.old[d.Timeline] = max(w.old[d.Timeline], first)
		for _, e := range l.of(d.Timeline) {
			if e.Timeline != d.Timeline && e.Switch > 0 {
				w.old[e.Timeline] = max(w.old[e.Timeline], (e.Switch-1).Segment(size)+1)
			}
		}
	}
	for t, all := range w.kept {
		w.kept[t] = joined(all)
	}
	return w
}

// keepOwn keeps the WAL of a backup from its start to its stop.
func (w *walPlan) keepOwn(d *Decision, size postgres.SegmentSize) {
	own := stretch{d.StartLSN.Segment(size), d.StopLSN.LastSegment(size)}
	w.kept[d.Timeline] = joined(append(w.kept[d.Timeline], own))
}

// joined merges stretches that touch.
func joined(all []stretch) []stretch {
	slices.SortFunc(all, func(a, b stretch) int { return cmp.Compare(a.first, b.first) })
	var out []stretch
	for _, s := range all {
		if n := len(out); n > 0 && (out[n-1].last == endless || s.first <= out[n-1].last+1) {
			out[n-1].last = max(out[n-1].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}

// keeps reports whether a recovery of a backup that stays can ask for a segment.
func (w *walPlan) keeps(seg postgres.Segment) bool {
	all := w.kept[seg.Timeline]
	i, found := slices.BinarySearchFunc(all, seg.Number, func(s stretch, n uint64) int { return cmp.Compare(s.first, n) })
	if !found {
		i--
	}
	return i >= 0 && seg.Number <= all[i].last
}

// Drops implements repo.WALVerdict.
func (w *walPlan) Drops(seg postgres.Segment, stored time.Time) bool {
	if w.keeps(seg) || !w.since.IsZero() && !stored.Before(w.since) {
		return false
	}
	return w.dead[seg.Timeline] || seg.Number < w.old[seg.Timeline]
}

// End implements repo.WALVerdict.
func (w *walPlan) End(t postgres.Timeline) uint64 {
	if w.dead[t] {
		return endless
	}
	return w.old[t]
}

// bury finds timelines, among those whose history is known, where what no kept
// backup needs has not been added to since the horizon.
func (w *walPlan) bury(ranges []repo.WALRange, l lines, horizon time.Time) {
	last := make(map[postgres.Timeline]time.Time)
	for _, r := range ranges {
		t := r.First.Timeline
		if _, known := l[t]; !known && t != 1 {
			continue
		}
		if w.keepsAll(stretch{r.First.Number, r.Last.Number}, t) || r.Last.Number < w.old[t] {
			continue
		}
		if _, seen := last[t]; !seen || r.Until.After(last[t]) {
			last[t] = r.Until
		}
	}
	for t, at := range last {
		if at.Before(horizon) {
			w.dead[t] = true
		}
	}
}

func (w *walPlan) keepsAll(s stretch, t postgres.Timeline) bool {
	return slices.ContainsFunc(w.kept[t], func(k stretch) bool { return k.first <= s.first && s.last <= k.last })
}

// horizons are the segments from which on all WAL of a timeline stays, of those
// timelines where a backup before it stays with its own.
func (w *walPlan) horizons(stay []*Decision, scan *repo.WALScan, size postgres.SegmentSize) []postgres.Segment {
	from := make(map[postgres.Timeline]uint64)
	for _, d := range stay {
		n := w.old[d.Timeline]
		if w.dead[d.Timeline] {
			for _, r := range scan.Ranges {
				if r.First.Timeline == d.Timeline {
					n = max(n, r.Last.Number+1)
				}
			}
		}
		if all := w.kept[d.Timeline]; len(all) > 0 && all[len(all)-1].last == endless {
			n = all[len(all)-1].first
		}
		if d.Keep() && !d.Continuous && d.StartLSN.Segment(size) < n {
			from[d.Timeline] = n
		}
	}
	var all []postgres.Segment
	for _, t := range slices.Sorted(maps.Keys(from)) {
		all = append(all, postgres.Segment{Timeline: t, Number: from[t]})
	}
	return all
}

// timelines are those that are known: also where no segment goes there may be
// ranges of segments that are whole now.
func (w *walPlan) timelines() []postgres.Timeline {
	all := make(map[postgres.Timeline]bool)
	for t := range w.kept {
		all[t] = true
	}
	for t := range w.old {
		all[t] = true
	}
	maps.Copy(all, w.dead)
	return slices.Sorted(maps.Keys(all))
}
