package wal

import (
	"context"
	"errors"
	"fmt"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

// evidence is what the absence of a file is judged by.
type evidence struct {
	size postgres.SegmentSize // of a segment that recovery asks for
	repo.Absence
}

// evidence proves that the repository is the right one, and asks what it has
// around a segment that recovery asks for. A standby can stream what the archive
// has lost.
func (f *Fetcher) evidence(ctx context.Context, cluster repo.ClusterID, file postgres.WALFile, dest string, owner *postgres.Control, standby bool) (e evidence, err error) {
	if err = f.Repo.Check(ctx); err != nil || file.Kind != postgres.WALSegment || standby {
		return evidence{}, err
	}
	if e.size, err = f.segmentSize(ctx, cluster, owner); err != nil {
		return evidence{}, err
	}
	// What was streamed is served to a recovery alone (streamed).
	recovers, err := hasSignal(dest, "recovery.signal")
	if err != nil {
		return evidence{}, err
	}
	e.Absence, err = f.Repo.Absent(ctx, cluster, file, e.size, recovers)
	return e, err
}

// judge decides what it means that the repository has no such file, or serves
// what was streamed of it.
func (f *Fetcher) judge(ctx context.Context, cluster repo.ClusterID, file postgres.WALFile, dest string, e evidence) error {
	miss := fmt.Errorf("%s is %w %s", file.Name, ErrNotFound, f.Repo)
	if e.Gap != "" {
		miss = errs.Wrap(errGap, errs.Damaged,
			"Recovery cannot pass it: bring the segment back from another copy or from the old server's pg_wal (agent wal-push). If it is lost for good, add --end-before "+file.Name+" to wal-fetch in restore_command: recovery then ends where the WAL before it ends.",
			"%s is missing from %s, but %s", file.Name, f.Repo, e.Gap)
	}
	if len(e.Streamed) == 0 {
		return miss
	}
	return f.streamed(ctx, cluster, file, dest, e, miss)
}

func (f *Fetcher) segmentSize(ctx context.Context, cluster repo.ClusterID, owner *postgres.Control) (postgres.SegmentSize, error) {
	if owner != nil && owner.WALSegmentSize.Valid() {
		return owner.WALSegmentSize, nil
	}
	c, err := f.Repo.Cluster(ctx, cluster)
	if errors.Is(err, storage.ErrNotExist) {
		return defaultSegmentSize, nil
	}
	return c.SegmentSize, err
}
