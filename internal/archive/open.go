package archive

import (
	"context"
	"slices"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// behind reports whether the backup began behind the dropped segments: on their
// timeline after the last of them, or on a later timeline. Then the server's
// data can be recovered again.
func behind(b *repo.Backup, d repo.DroppedRange) bool {
	t, err := postgres.ParseTimelineHex(d.First[:8])
	if err != nil || b.Timeline != t {
		return err == nil && b.Timeline > t
	}
	return b.StartSegment > d.Last // names of one length sort as segments do
}

// open are those of the dropped rows behind which no backup has begun yet.
func open(dropped []repo.DroppedRange, backups []*repo.Backup) []repo.DroppedRange {
	return slices.DeleteFunc(slices.Clone(dropped), func(d repo.DroppedRange) bool {
		return slices.ContainsFunc(backups, func(b *repo.Backup) bool { return behind(b, d) })
	})
}

// Open are the recorded rows of dropped segments behind which no backup has
// begun yet, and that no other host has archived: what has happened since then
// cannot be recovered. It costs one listing of each place, and the backups are only
// read if there is such a record.
func Open(ctx context.Context, r *repo.Repository, cluster repo.ClusterID) ([]repo.DroppedRange, error) {
	dropped, err := r.DroppedWAL(ctx, cluster)
	if err != nil || len(dropped) == 0 {
		return nil, err
	}
	backups, err := r.Backups(ctx, cluster)
	if errs.KindOf(err) == errs.Damaged || errs.KindOf(err) == errs.Config {
		err = nil // those that cannot be read do not help either
	}
	left := open(dropped, backups)
	if err != nil || len(left) == 0 {
		return left, err
	}
	return lost(ctx, r, cluster, left)
}

// lost are those of the dropped rows of which something is missing: another host
// may have archived the same segments.
func lost(ctx context.Context, r *repo.Repository, cluster repo.ClusterID, dropped []repo.DroppedRange) ([]repo.DroppedRange, error) {
	size, err := segmentSize(ctx, r, cluster)
	if err != nil {
		return nil, err
	}
	var all []repo.DroppedRange
	for _, d := range dropped {
		first, err := postgres.ParseSegment(d.First, size)
		last, lerr := postgres.ParseSegment(d.Last, size)
		missing := d.First
		if err == nil && lerr == nil {
			if missing, err = r.MissingWAL(ctx, cluster, first, last, size); err != nil {
				return nil, err
			}
		}
		if missing != "" {
			all = append(all, d)
		}
	}
	return all, nil
}

// Open are those of the survey.
func (s *Survey) Open() []Span {
	if s.NoBackups {
		return nil // it is not known
	}
	var all []Span
	for _, d := range open(s.Scan.Dropped(), s.Backups) {
		if sp, ok := s.spanOf(d); ok && len(Missing(s.Scan.Ranges, sp)) > 0 {
			all = append(all, sp)
		}
	}
	return all
}
