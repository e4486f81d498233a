// Package archive says what the archived WAL of a cluster is worth: which
// timelines and rows of segments there are, where something is missing, which
// backups can be recovered how far, and, if asked, whether every object can be
// read and joins the next one.
package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

// Survey is what the repositories hold of a cluster's WAL and what is needed to
// judge it. It is read once and not changed.
type Survey struct {
	Cluster repo.ClusterID
	Size    postgres.SegmentSize
	Scan    *repo.WALScan
	// Backups are those that can be read, unless NoBackups is set; Unread says
	// why others cannot.
	Backups   []*repo.Backup
	NoBackups bool
	Unread    error
	// Histories are those that can be read, Damaged those that cannot.
	Histories map[postgres.Timeline]postgres.History
	Damaged   map[postgres.Timeline]error
	// Expired says for a timeline from which segment on a delete has left all:
	// before it there is only what single backups need, and holes are meant.
	Expired map[postgres.Timeline]uint64
}

// Options say what Take reads.
type Options struct {
	Cluster repo.ClusterID
	// Size is that of the segments, if the caller knows; 0: it is looked up.
	Size postgres.SegmentSize
	// NoBackups leaves out the backups, which cost a small request each.
	NoBackups bool
	// Sure is for who decides by what is not there: a required place that does not
	// tell its histories is an error.
	Sure bool
}

// Take lists the WAL in all places and reads the histories and the backups.
// Memory grows with the number of holes, timelines and backups, not of segments.
// A place that cannot be listed is told in the survey; the error is of what no
// place could answer.
func Take(ctx context.Context, r *repo.Repository, o Options) (*Survey, error) {
	s := &Survey{Cluster: o.Cluster, Size: o.Size, NoBackups: o.NoBackups}
	var err error
	if s.Size == 0 {
		if s.Size, err = segmentSize(ctx, r, o.Cluster); err != nil {
			return nil, err
		}
	}
	if s.Scan, err = r.ScanWAL(ctx, o.Cluster, s.Size); err != nil {
		return nil, err
	}
	if s.unanswered() {
		return s, nil
	}
	histories := r.Histories
	if o.Sure {
		histories = r.AllHistories
	}
	if s.Histories, s.Damaged, err = histories(ctx, o.Cluster); err != nil {
		return nil, err
	}
	if s.Expired, err = r.Horizons(ctx, o.Cluster, s.Size); err != nil {
		return nil, err
	}
	if o.NoBackups {
		return s, nil
	}
	s.Backups, s.Unread = r.Backups(ctx, o.Cluster)
	switch errs.KindOf(s.Unread) {
	case errs.Damaged, errs.Config:
		return s, nil
	default:
		return s, s.Unread
	}
}

// unanswered reports whether no place could be listed.
func (s *Survey) unanswered() bool {
	return !slices.ContainsFunc(s.Scan.Places, func(p repo.WALHeld) bool { return p.Err == nil })
}

// segmentSize is that of a cluster: what cluster.json says, which the first
// backup makes, or else the first segment itself, or else PostgreSQL's default.
func segmentSize(ctx context.Context, r *repo.Repository, cluster repo.ClusterID) (postgres.SegmentSize, error) {
	c, err := r.Cluster(ctx, cluster)
	if err == nil {
		return c.SegmentSize, nil
	}
	if !errors.Is(err, storage.ErrNotExist) {
		return 0, err
	}
	for _, place := range r.Names() {
		for o, err := range r.WALObjects(ctx, place, cluster) {
			if err != nil {
				break // the scan tells it
			}
			if o.File.Kind != postgres.WALSegment {
				continue
			}
			if size, ok := headerSize(ctx, r, place, o.Key); ok {
				return size, nil
			}
			break
		}
	}
	return defaultSize, nil
}

// defaultSize is initdb's.
const defaultSize postgres.SegmentSize = 16 << 20

// headerSize is what a segment says of its size. A segment that is sealed for
// others, or cannot be read, says nothing.
func headerSize(ctx context.Context, r *repo.Repository, place, key string) (size postgres.SegmentSize, ok bool) {
	err := r.ReadWALObject(ctx, place, key, func(raw io.Reader) error {
		head := make([]byte, 64)
		if _, err := io.ReadFull(raw, head); err != nil {
			return fmt.Errorf("read WAL page header: %w", err)
		}
		h, err := postgres.ParsePageHeader(head)
		size = h.SegmentSize
		return err
	})
	return size, err == nil && size.Valid()
}

// Span is a row of segments of one timeline.
type Span struct{ First, Last postgres.Segment }

// Segments is how many there are.
func (s Span) Segments() uint64 { return s.Last.Number - s.First.Number + 1 }

// of are the ranges of a timeline.
func of(ranges []repo.WALRange, t postgres.Timeline) []repo.WALRange {
	from, _ := slices.BinarySearchFunc(ranges, t, func(w repo.WALRange, t postgres.Timeline) int { return cmp.Compare(w.First.Timeline, t) })
	to, _ := slices.BinarySearchFunc(ranges, t, func(w repo.WALRange, t postgres.Timeline) int {
		if w.First.Timeline <= t {
			return -1
		}
		return 1
	})
	return ranges[from:to]
}

// Missing are the parts of a span that the ranges do not hold.
func Missing(ranges []repo.WALRange, want Span) []Span {
	var all []Span
	next := want.First
	for _, w := range of(ranges, want.First.Timeline) {
		if w.Last.Number < next.Number {
			continue
		}
		if w.First.Number > want.Last.Number {
			break
		}
		if w.First.Number > next.Number {
			before := w.First
			before.Number--
			all = append(all, Span{next, before})
		}
		next = w.Last.Next()
	}
	if next.Number <= want.Last.Number {
		all = append(all, Span{next, want.Last})
	}
	return all
}

// last is the last segment of a timeline that any place has, or a record of
// dropped segments names.
func (s *Survey) last(t postgres.Timeline) (number uint64, ok bool) {
	if ranges := of(s.Scan.Ranges, t); len(ranges) > 0 {
		number, ok = ranges[len(ranges)-1].Last.Number, true
	}
	for _, d := range s.dropped(t) {
		number, ok = max(number, d.Last.Number), true
	}
	return number, ok
}

// dropped are the recorded rows of a timeline.
func (s *Survey) dropped(t postgres.Timeline) []Span {
	var all []Span
	for _, d := range s.Scan.Dropped() {
		if sp, ok := s.spanOf(d); ok && sp.First.Timeline == t {
			all = append(all, sp)
		}
	}
	return all
}

func (s *Survey) spanOf(d repo.DroppedRange) (Span, bool) {
	first, err := postgres.ParseSegment(d.First, s.Size)
	last, lerr := postgres.ParseSegment(d.Last, s.Size)
	return Span{first, last}, errors.Join(err, lerr) == nil
}

// end is the last segment that must be there of a timeline which WAL from start
// on is needed of, before: whatever any place has, what is recorded as dropped,
// and what lies before the place where a descendant left it. A descendant that
// left it in the middle of a segment has that segment itself.
func (s *Survey) end(t postgres.Timeline, start uint64) uint64 {
	end := start
	if n, ok := s.last(t); ok {
		end = max(end, n)
	}
	for _, h := range s.Histories {
		if at, ok := h.SwitchPoint(t); ok && at.Segment(s.Size) > 0 {
			end = max(end, at.Segment(s.Size)-1)
		}
	}
	return end
}

// Timelines are all of which there is WAL or a history.
func (s *Survey) Timelines() []postgres.Timeline {
	seen := make(map[postgres.Timeline]bool)
	for _, w := range s.Scan.Ranges {
		seen[w.First.Timeline] = true
	}
	for t := range s.Histories {
		seen[t] = true
	}
	for t := range s.Damaged {
		seen[t] = true
	}
	for _, d := range s.Scan.Dropped() {
		if sp, ok := s.spanOf(d); ok {
			seen[sp.First.Timeline] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// Hole is a row of segments that no place has although it must have been there.
type Hole struct {
	Span
	Dropped bool // it is recorded that they were dropped
	Expired bool // a delete has taken them, which nothing needs any more
	Open    bool // and no backup has begun behind them
}

// Gaps are the holes in a timeline: between its segments, before the place where
// a descendant left it, and what is recorded as dropped.
func (s *Survey) Gaps(t postgres.Timeline) []Hole {
	ranges := of(s.Scan.Ranges, t)
	dropped := s.dropped(t)
	first, found := uint64(0), false
	if len(ranges) > 0 {
		first, found = ranges[0].First.Number, true
	}
	for _, d := range dropped {
		if !found || d.First.Number < first {
			first, found = d.First.Number, true
		}
	}
	if !found {
		return nil
	}
	open := s.Open()
	var all []Hole
	whole := Span{postgres.Segment{Timeline: t, Number: first}, postgres.Segment{Timeline: t, Number: s.end(t, first)}}
	for _, m := range Missing(s.Scan.Ranges, whole) {
		if n := s.Expired[t]; m.First.Number < n {
			gone := Hole{Span: m, Expired: true}
			gone.Last.Number = min(m.Last.Number, n-1)
			all = append(all, gone)
			if m.First.Number = n; m.First.Number > m.Last.Number {
				continue
			}
		}
		all = append(all, split(m, dropped, open)...)
	}
	return all
}

// alone reports whether a delete has left the backup with its own WAL only.
func (s *Survey) alone(b *repo.Backup) bool {
	return b.StartLSN.Segment(s.Size) < s.Expired[b.Timeline]
}

// split cuts a hole where recorded rows begin and end.
func split(m Span, dropped, open []Span) []Hole {
	var all []Hole
	for m.First.Number <= m.Last.Number {
		h := Hole{Span: m}
		for _, d := range dropped {
			switch {
			case d.First.Number <= m.First.Number && m.First.Number <= d.Last.Number:
				h.Dropped, h.Open = true, slices.Contains(open, d)
				h.Last.Number = min(m.Last.Number, d.Last.Number)
			case !h.Dropped && d.First.Number > m.First.Number:
				h.Last.Number = min(h.Last.Number, d.First.Number-1)
			}
			if h.Dropped {
				break
			}
		}
		all = append(all, h)
		m.First = h.Last.Next()
	}
	return all
}
