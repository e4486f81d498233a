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

// Absent asks everything at once that the absence of a segment has to be judged
// by, and proves that the repository is the right one. The ranges are asked for
// if streamed is set. It is asked after the segment was looked for: that nothing
// is behind it may be true no more a moment later.
func (r *Repository) Absent(ctx context.Context, cluster ClusterID, f postgres.WALFile, size postgres.SegmentSize, streamed bool) (Absence, error) {
	r.rest()
	var a Absence
	var unproved, unknown, unlisted error
	var all sync.WaitGroup
	all.Go(func() { unproved = r.Check(ctx) })
	all.Go(func() { a.Gap, unknown = r.Gap(ctx, cluster, f, size) })
	if streamed {
		all.Go(func() {
			var segment postgres.Segment
			if segment, unlisted = f.Segment(size); unlisted == nil {
				a.Streamed, unlisted = r.StreamRanges(ctx, cluster, segment, size)
			}
		})
	}
	all.Wait()
	return a, first(unproved, first(unknown, unlisted))
}
