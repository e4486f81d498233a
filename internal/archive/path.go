package archive

import (
	"cmp"
	"maps"
	"slices"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// leg is the part of a recovery that goes along one timeline.
type leg struct {
	timeline postgres.Timeline
	first    uint64 // number of the segment that it begins with
	// until is the segment that must be the last one before the next timeline
	// goes on; only where open is false. It may be first-1: then the next
	// timeline's segment of the same number holds all.
	until uint64
	open  bool // the timeline is followed to its end
}

// paths are the ways that a recovery of the backup can take: along its own
// timeline to the end, and along each descendant that left it behind the end of
// the backup (PostgreSQL: tliOfPointInHistory; a child's first segment begins
// with the parent's WAL).
func (s *Survey) paths(b *repo.Backup) ([][]leg, error) {
	start, err := postgres.ParseSegment(b.StartSegment, s.Size)
	if err != nil {
		return nil, err
	}
	all := [][]leg{{{timeline: b.Timeline, first: start.Number, open: true}}}
	for _, t := range slices.Sorted(maps.Keys(s.Histories)) {
		h := s.Histories[t]
		if at, ok := h.SwitchPoint(b.Timeline); !ok || at < b.StopLSN {
			continue
		}
		var way []leg
		first := start.Number
		for _, e := range h {
			if e.Timeline < b.Timeline {
				continue
			}
			l := leg{timeline: e.Timeline, first: first, open: true}
			if at, ok := h.SwitchPoint(e.Timeline); ok {
				first = at.Segment(s.Size)
				l.until, l.open = max(first, 1)-1, false
			}
			way = append(way, l)
		}
		all = append(all, way)
	}
	return all, nil
}

// needs are the segments that recoveries of the backup may ask for, one span
// for each timeline, by timeline.
func (s *Survey) needs(b *repo.Backup, reach Reach) ([]Span, error) {
	if reach == ToStop || s.alone(b) {
		sp, err := s.ownSpan(b)
		return []Span{sp}, err
	}
	ways, err := s.paths(b)
	if err != nil {
		return nil, err
	}
	stop, err := postgres.ParseSegment(b.StopSegment, s.Size)
	if err != nil {
		return nil, err
	}
	spans := make(map[postgres.Timeline]Span)
	for _, way := range ways {
		for _, l := range way {
			last := l.until
			if l.open {
				n, ok := s.last(l.timeline)
				if !ok || n < l.first {
					if l.timeline != b.Timeline {
						continue // a timeline whose first segment is not full yet
					}
					n = l.first
				}
				last = n
			}
			if l.timeline == b.Timeline {
				last = max(last, stop.Number, s.end(l.timeline, stop.Number))
			}
			if last < l.first {
				continue
			}
			sp := Span{postgres.Segment{Timeline: l.timeline, Number: l.first}, postgres.Segment{Timeline: l.timeline, Number: last}}
			if have, ok := spans[l.timeline]; ok {
				sp.First.Number, sp.Last.Number = min(have.First.Number, sp.First.Number), max(have.Last.Number, sp.Last.Number)
			}
			spans[l.timeline] = sp
		}
	}
	all := slices.Collect(maps.Values(spans))
	slices.SortFunc(all, func(a, b Span) int { return cmp.Compare(a.First.Timeline, b.First.Timeline) })
	return all, nil
}

// ownSpan is what the backup cannot be made consistent without.
func (s *Survey) ownSpan(b *repo.Backup) (Span, error) {
	first, err := postgres.ParseSegment(b.StartSegment, s.Size)
	if err != nil {
		return Span{}, err
	}
	last, err := postgres.ParseSegment(b.StopSegment, s.Size)
	return Span{first, last}, err
}

// Serves are the ranges of all places, by their index in the scan, that a
// recovery of the backup can use: it gets to the end of each. There is none if
// the backup's own WAL is not whole.
func (s *Survey) Serves(b *repo.Backup) ([]int, error) {
	ways, err := s.paths(b)
	if err != nil {
		return nil, err
	}
	stop, err := postgres.ParseSegment(b.StopSegment, s.Size)
	if err != nil {
		return nil, err
	}
	serving := make(map[int]bool)
	for _, way := range ways {
		for n, l := range way {
			if !l.open && l.until < l.first {
				continue
			}
			i := s.holding(postgres.Segment{Timeline: l.timeline, Number: l.first})
			if i < 0 || n == 0 && s.Scan.Ranges[i].Last.Number < stop.Number && (l.open || l.until >= stop.Number) {
				break
			}
			serving[i] = true
			if !l.open && s.Scan.Ranges[i].Last.Number < l.until {
				break
			}
		}
	}
	return slices.Sorted(maps.Keys(serving)), nil
}

// holding is the index of the range with the segment, or -1.
func (s *Survey) holding(seg postgres.Segment) int {
	return slices.IndexFunc(s.Scan.Ranges, func(w repo.WALRange) bool {
		return w.First.Timeline == seg.Timeline && w.First.Number <= seg.Number && seg.Number <= w.Last.Number
	})
}

// Needing are those of the backups that need any of the segments.
func (s *Survey) Needing(backups []*repo.Backup, sp Span, reach Reach) ([]repo.BackupName, error) {
	var names []repo.BackupName
	for _, b := range backups {
		spans, err := s.needs(b, reach)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(spans, func(n Span) bool {
			return n.First.Timeline == sp.First.Timeline && n.First.Number <= sp.Last.Number && sp.First.Number <= n.Last.Number
		}) {
			names = append(names, b.Name)
		}
	}
	return names, nil
}
