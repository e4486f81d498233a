package repo

import (
	"context"
	"sync"

	"agent/internal/postgres"
)

// Absence is what the repository says of a segment that it does not have whole.
type Absence struct {
	// Gap is why it must have been there, as Gap tells it; empty: the WAL ends
	// before it.
	Gap string
	// Streamed are the ranges of it that are there, as StreamRanges lists them.
	Streamed []StreamRange
}

// Absent asks at once for all that the absence of a segment has to be judged by;
// for the ranges if streamed is set. It is asked after the segment was looked for:
// that nothing is behind it may be true no more a moment later.
func (r *Repository) Absent(ctx context.Context, cluster ClusterID, f postgres.WALFile, size postgres.SegmentSize, streamed bool) (Absence, error) {
	segment, err := f.Segment(size)
	if err != nil {
		return Absence{}, err
	}
	var a Absence
	var unknown, unlisted error
	var all sync.WaitGroup
	all.Go(func() { a.Gap, unknown = r.Gap(ctx, cluster, f, size) })
	if streamed {
		all.Go(func() { a.Streamed, unlisted = r.StreamRanges(ctx, cluster, segment, size) })
	}
	all.Wait()
	return a, first(unknown, unlisted)
}
