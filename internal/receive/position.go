package receive

import (
	"context"
	"math"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// position is where to begin: always with a segment.
type position struct {
	segment postgres.Segment
	start   postgres.LSN
	known   []repo.StreamRange // what the repository has of the segment, without a hole
}

// at is the position of a segment.
func (r *receiver) at(ctx context.Context, s *server, seg postgres.Segment) (position, error) {
	p := position{segment: seg, start: seg.Start(s.segmentSize)}
	err := r.store.try(ctx, func(repository *repo.Repository) error {
		all, err := repository.StreamRanges(ctx, r.cluster, seg, s.segmentSize)
		p.known, _ = repo.StreamChain(all, p.start)
		return err
	})
	return p, err
}

// position finds where the repository ends on the server's line of descent, or
// where the server begins if there is nothing yet.
func (r *receiver) position(ctx context.Context, s *server) (position, error) {
	var seg postgres.Segment
	found := false
	err := r.store.try(ctx, func(repository *repo.Repository) (err error) {
		seg, found, err = afterLast(ctx, repository, s)
		return err
	})
	if err != nil {
		return position{}, err
	}
	switch {
	case found && r.behind >= seg.End(s.segmentSize):
		seg = s.segmentAt(r.behind)
	case found:
	case s.slot.restart != 0:
		seg = s.segmentAt(s.slot.restart)
	default:
		seg = s.segmentAt(s.flushed)
	}
	return r.at(ctx, s, seg)
}

// segmentAt is the segment of the LSN on the server's line of descent.
func (s *server) segmentAt(at postgres.LSN) postgres.Segment {
	return postgres.SegmentOf(s.path().TimelineAt(at), at, s.segmentSize)
}

// afterLast is the segment behind the last whole one that the repository has on
// the server's line of descent; or the first that it lacks behind the slot's
// position, before which everything was confirmed.
func afterLast(ctx context.Context, repository *repo.Repository, s *server) (seg postgres.Segment, found bool, err error) {
	path := s.path()
	for i := len(path) - 1; i >= 0; i-- {
		t, until := path[i].Timeline, postgres.LSN(math.MaxUint64)
		if at, ok := path.SwitchPoint(t); ok {
			until = at
		}
		// A segment in which the next timeline begins is that one's.
		last := postgres.Segment{Timeline: t, Number: until.Segment(s.segmentSize) - 1}
		if !found {
			if last, found, err = repository.LastWAL(ctx, s.cluster, t, until, s.segmentSize); err != nil {
				return seg, false, err
			}
			if !found {
				continue
			}
			if seg = last.Next(); seg.Start(s.segmentSize) >= until {
				seg = s.segmentAt(until)
			}
		}
		first := postgres.SegmentOf(t, s.slot.restart, s.segmentSize)
		if i > 0 {
			first.Number = max(first.Number, path[i-1].Switch.Segment(s.segmentSize))
		}
		if s.slot.restart == 0 || until <= s.slot.restart || first.Number > last.Number {
			continue
		}
		name, err := repository.MissingWAL(ctx, s.cluster, first, last, s.segmentSize)
		if err != nil {
			return seg, false, err
		}
		// A history that is missing is no segment, and archived by now.
		if hole, err := postgres.ParseSegment(name, s.segmentSize); err == nil {
			seg = hole
		}
	}
	if !found {
		return onlyStreamed(ctx, repository, s)
	}
	return seg, found, nil
}

// onlyStreamed is the segment that was begun, where none is whole yet.
func onlyStreamed(ctx context.Context, repository *repo.Repository, s *server) (seg postgres.Segment, found bool, err error) {
	path := s.path()
	for i := len(path) - 1; i >= 0; i-- {
		until, ok := path.SwitchPoint(path[i].Timeline)
		if !ok {
			until = math.MaxUint64
		}
		seg, found, err = repository.LastStreamed(ctx, s.cluster, path[i].Timeline, until, s.segmentSize)
		if found || err != nil {
			return seg, found, err
		}
	}
	return seg, false, nil
}
