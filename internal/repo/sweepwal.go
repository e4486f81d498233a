package repo

import (
	"context"
	"errors"
	"strings"
	"time"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// WALVerdict says which WAL is not wanted any more.
type WALVerdict interface {
	// Drops reports whether a segment goes; stored is when the store took it.
	Drops(seg postgres.Segment, stored time.Time) bool
	// End is the number of the segment of a timeline from which on none goes.
	End(t postgres.Timeline) uint64
}

// WAL removes the segments of some timelines that the verdict drops, with their
// summaries and what belongs to them; ranges of unfinished segments that are
// whole here, or go; and records of dropped rows of which no segment is wanted.
// Timeline histories stay for ever.
func (s *Sweep) WAL(ctx context.Context, timelines []postgres.Timeline, size postgres.SegmentSize, v WALVerdict) error {
	s.begin()
	for _, t := range timelines {
		for _, prefix := range []string{s.cluster.timelinePrefix(t), s.cluster.prefix() + "summary/" + t.String()} {
			if err := s.segments(ctx, prefix, size, v); err != nil {
				return err
			}
		}
		if err := s.streamed(ctx, t, size, v); err != nil {
			return err
		}
	}
	dropped, err := droppedIn(ctx, s.place, s.cluster, 0)
	if err != nil {
		return err
	}
	for _, d := range dropped {
		first, err := postgres.ParseSegment(d.First, size)
		last, lerr := postgres.ParseSegment(d.Last, size)
		if err != nil || lerr != nil || !v.Drops(first, d.At) || !v.Drops(last, d.At) {
			continue
		}
		if err := s.remove(ctx, storage.Info{Key: s.cluster.gapKey(first, last, size), ModTime: d.At}); err != nil {
			return err
		}
	}
	return s.flush(ctx)
}

func (s *Sweep) segments(ctx context.Context, prefix string, size postgres.SegmentSize, v WALVerdict) error {
	for info, err := range s.list(ctx, prefix) {
		if err != nil {
			return err
		}
		seg, ok := segmentOf(info.Key, size)
		if !ok {
			continue
		}
		if seg.Number >= v.End(seg.Timeline) {
			break
		}
		if !v.Drops(seg, info.ModTime) {
			continue
		}
		if err := s.remove(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// streamed removes ranges of unfinished segments. One whose segment is whole
// waits a day: a receiver that goes on from it looks at it.
func (s *Sweep) streamed(ctx context.Context, t postgres.Timeline, size postgres.SegmentSize, v WALVerdict) error {
	var seen postgres.Segment
	var whole bool
	for info, err := range s.list(ctx, s.cluster.streamPrefix(t)) {
		if err != nil {
			return err
		}
		g, ok := parseStreamName(t, strings.TrimPrefix(info.Key, s.cluster.streamPrefix(t)))
		if !ok {
			continue
		}
		seg := postgres.SegmentOf(t, g.Start, size)
		drop := v.Drops(seg, info.ModTime)
		if !drop && s.repo.now().Sub(info.ModTime) > GarbageAge {
			if seg != seen {
				if whole, err = s.holds(ctx, seg, size); err != nil {
					return err
				}
				seen = seg
			}
			drop = whole
		}
		if drop {
			if err := s.remove(ctx, info); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Sweep) holds(ctx context.Context, seg postgres.Segment, size postgres.SegmentSize) (bool, error) {
	f, err := postgres.ParseWALFile(seg.Name(size))
	if err != nil {
		return false, err
	}
	_, err = s.place.Bucket.Stat(ctx, s.cluster.WALKey(f, [32]byte{}))
	s.swept.Requests++
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
