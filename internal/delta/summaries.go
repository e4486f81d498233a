package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/summary"
)

// Source is where the WAL and what is known of it is found.
type Source struct {
	Repo    *repo.Repository
	Local   *summary.Local // summaries kept on this host
	DataDir string         // whose pg_wal has the newest WAL
}

// ahead is how many summaries are brought at a time.
const ahead = 16

// bySummaries joins our summaries of all segments of the range: kept on this
// host or in the repository, or made now of what lies in pg_wal. The merger
// proves that no record is missing.
func bySummaries(ctx context.Context, src Source, geo Geometry, r Range) (*Changes, error) {
	needed := r.needed()
	if needed <= r.From {
		// Nothing but the header of a segment lies between the two.
		return &Changes{method: BySummaries, geo: geo, table: summary.NewTable()}, nil
	}
	merger := summary.NewMerger()
	segments := r.segments(r.From, needed-1)
	err := inOrder(ctx, segments, ahead, func(ctx context.Context, seg postgres.Segment) (*summary.Summary, error) {
		return src.summary(ctx, r, seg)
	}, merger.Add)
	if err != nil {
		return nil, err
	}
	if end := merger.End(); end < needed {
		return nil, fmt.Errorf("WAL is known up to %s, and not to %s", end, needed)
	}
	return &Changes{method: BySummaries, geo: geo, table: merger.Table()}, nil
}

// inOrder gets an item for each key, several at a time, and uses them one after
// the other in the order of the keys.
func inOrder[K, V any](ctx context.Context, keys []K, most int, get func(context.Context, K) (V, error), use func(V) error) error {
	g, ctx := errgroup.WithContext(ctx)
	slots := make(chan chan V, most)
	g.Go(func() error {
		defer close(slots)
		fetch, ctx := errgroup.WithContext(ctx)
		fetch.SetLimit(most)
		for _, k := range keys {
			slot := make(chan V, 1)
			select {
			case slots <- slot:
			case <-ctx.Done():
				return errors.Join(fetch.Wait(), context.Cause(ctx))
			}
			fetch.Go(func() error {
				v, err := get(ctx, k)
				if err == nil {
					slot <- v
				}
				return err
			})
		}
		return fetch.Wait()
	})
	g.Go(func() error {
		for slot := range slots {
			select {
			case v := <-slot:
				if err := use(v); err != nil {
					return err
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return g.Wait()
}

// summary is that of one segment. The last one of the range may be in the middle
// of being written: how far it goes is the merger's to say.
func (src Source) summary(ctx context.Context, r Range, seg postgres.Segment) (*summary.Summary, error) {
	name := seg.Name(r.SegmentSize)
	var reasons []error
	for _, get := range []func() ([]byte, error){
		func() ([]byte, error) { return src.Local.Get(r.Cluster.String(), name) },
		func() ([]byte, error) { return src.stored(ctx, r, name) },
	} {
		encoded, err := get()
		if err == nil {
			var s *summary.Summary
			if s, err = summary.Decode(encoded); err == nil {
				if err = fitting(s, r, seg); err == nil {
					return s, nil
				}
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, storage.ErrNotExist) {
			reasons = append(reasons, err)
		}
	}
	s, err := src.summarise(name)
	if err == nil {
		if err = fitting(s, r, seg); err == nil {
			return s, nil
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("there is no summary of WAL segment %s, and pg_wal does not have it any more", name)
	}
	return nil, errors.Join(append([]error{err}, reasons...)...)
}

// stored is a summary of the repository. A host that cannot open it goes on
// without.
func (src Source) stored(ctx context.Context, r Range, name string) ([]byte, error) {
	f, err := postgres.ParseWALFile(name)
	if err != nil {
		return nil, err
	}
	if !src.Repo.OpensSummaries() {
		return nil, os.ErrNotExist
	}
	return src.Repo.ReadSummary(ctx, r.Cluster, f)
}

// fitting refuses the summary of another segment than was asked for.
func fitting(s *summary.Summary, r Range, seg postgres.Segment) error {
	switch {
	case s.Version != summary.Version:
		return fmt.Errorf("the summary of %s was made by other rules (version %d)", seg.Name(r.SegmentSize), s.Version)
	case s.SystemID != uint64(r.Cluster) || s.Start != seg.Start(r.SegmentSize) || s.Size != r.SegmentSize || s.Until != seg.Timeline:
		return fmt.Errorf("the summary of %s is of cluster %d, the segment at %s of timeline %d", seg.Name(r.SegmentSize), s.SystemID, s.Start, s.Until)
	}
	return nil
}

// summarise makes the summary of a segment that lies in pg_wal.
func (src Source) summarise(name string) (*summary.Summary, error) {
	f, err := os.Open(filepath.Join(src.DataDir, "pg_wal", name))
	if err != nil {
		return nil, fmt.Errorf("open WAL segment: %w", err)
	}
	defer f.Close()
	builder, sum := summary.NewBuilder(), sha256.New()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			sum.Write(buf[:n])
			if _, err := builder.Write(buf[:n]); err != nil {
				return nil, fmt.Errorf("decode WAL segment %s: %w", name, err)
			}
		}
		if n == 0 || err != nil {
			break
		}
	}
	return builder.Finish([32]byte(sum.Sum(nil)))
}
