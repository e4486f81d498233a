package archive

import (
	"cmp"
	"slices"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// Stretch is a part of the WAL of one timeline: every position from From to
// before To.
type Stretch struct {
	Timeline postgres.Timeline
	From, To postgres.LSN
}

// Recoverable are the positions to which recoveries of the backups can come, by
// timeline and position, joined where they meet.
func (s *Survey) Recoverable(backups []*repo.Backup) ([]Stretch, error) {
	var all []Stretch
	for _, b := range backups {
		serving, err := s.Serves(b)
		if err != nil {
			return nil, err
		}
		for _, i := range serving {
			w := s.Scan.Ranges[i]
			st := Stretch{w.First.Timeline, w.First.Start(s.Size), w.Last.End(s.Size)}
			switch h := s.Histories[st.Timeline]; {
			case st.Timeline == b.Timeline:
				st.From = max(st.From, b.StopLSN)
			case len(h) > 1:
				st.From = max(st.From, h[len(h)-2].Switch)
			}
			if st.From < st.To {
				all = append(all, st)
			}
		}
	}
	slices.SortFunc(all, func(a, b Stretch) int {
		return cmp.Or(cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.From, b.From))
	})
	var joined []Stretch
	for _, st := range all {
		if n := len(joined); n > 0 && joined[n-1].Timeline == st.Timeline && st.From <= joined[n-1].To {
			joined[n-1].To = max(joined[n-1].To, st.To)
			continue
		}
		joined = append(joined, st)
	}
	return joined, nil
}

// Less is what of the stretches is not in others. Both are as Recoverable gives
// them.
func Less(all, others []Stretch) []Stretch {
	var left []Stretch
	for _, st := range all {
		for _, o := range others {
			if o.Timeline != st.Timeline || o.To <= st.From || o.From >= st.To {
				continue
			}
			if o.From > st.From {
				left = append(left, Stretch{st.Timeline, st.From, o.From})
			}
			st.From = o.To
			if st.From >= st.To {
				break
			}
		}
		if st.From < st.To {
			left = append(left, st)
		}
	}
	return left
}

// Without is the survey as if no place had these segments.
func (s *Survey) Without(holes []Span) *Survey {
	return s.with(func(ranges []repo.WALRange) []repo.WALRange {
		for _, hole := range holes {
			var cut []repo.WALRange
			for _, w := range ranges {
				if w.First.Timeline != hole.First.Timeline || w.Last.Number < hole.First.Number || w.First.Number > hole.Last.Number {
					cut = append(cut, w)
					continue
				}
				if w.First.Number < hole.First.Number {
					before := w
					before.Last.Number = hole.First.Number - 1
					cut = append(cut, before)
				}
				if w.Last.Number > hole.Last.Number {
					after := w
					after.First.Number = hole.Last.Number + 1
					cut = append(cut, after)
				}
			}
			ranges = cut
		}
		return ranges
	})
}

// Filled is the survey as if some place had these segments, too.
func (s *Survey) Filled(spans []Span) *Survey {
	return s.with(func(ranges []repo.WALRange) []repo.WALRange {
		for _, sp := range spans {
			ranges = append(ranges, repo.WALRange{First: sp.First, Last: sp.Last})
		}
		slices.SortFunc(ranges, func(a, b repo.WALRange) int {
			return cmp.Or(cmp.Compare(a.First.Timeline, b.First.Timeline), cmp.Compare(a.First.Number, b.First.Number))
		})
		var joined []repo.WALRange
		for _, w := range ranges {
			n := len(joined)
			if n == 0 || joined[n-1].Last.Timeline != w.First.Timeline || joined[n-1].Last.Number+1 < w.First.Number {
				joined = append(joined, w)
				continue
			}
			last := &joined[n-1]
			last.Last.Number = max(last.Last.Number, w.Last.Number)
		}
		return joined
	})
}

func (s *Survey) with(change func([]repo.WALRange) []repo.WALRange) *Survey {
	other, scan := *s, *s.Scan
	scan.Ranges = change(slices.Clone(scan.Ranges))
	other.Scan = &scan
	return &other
}

// Lacks are the segments without which the backup cannot be restored and that no
// place has.
func (s *Survey) Lacks(b *repo.Backup) ([]Span, error) {
	own, err := s.ownSpan(b)
	if err != nil {
		return nil, err
	}
	return Missing(s.Scan.Ranges, own), nil
}
