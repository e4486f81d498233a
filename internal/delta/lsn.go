package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// byPageLSN relies on what the server writes on each page that it changes. What
// it cannot see are databases that were copied, whose pages keep their LSNs:
// whole names those that were made since the parent.
//
// VACUUM marks pages as visible to all. Only where changes of hints are in WAL
// does such a page get an LSN (log_heap_visible in
// src/backend/access/heap/heapam.c); without it the page would be the parent's, and
// its bit in the visibility map never cleared.
//
// The proof that no WAL without LSNs was written meanwhile is the archive, which
// is unbroken; and that this is the server from which the parent's WAL came, that
// the very WAL behind the parent's end was archived from here.
func byPageLSN(ctx context.Context, d Detector, r Range, whole map[database]bool) (*Changes, error) {
	if d.Hints != "" {
		return nil, errors.New(d.Hints)
	}
	if err := unbroken(ctx, d.Source, r); err != nil {
		return nil, err
	}
	if err := d.sameServer(ctx, r); err != nil {
		return nil, err
	}
	return &Changes{method: ByPageLSN, geo: d.Geometry, from: r.From, whole: whole}, nil
}

// unbroken proves that the WAL of the range was archived, or is about to be.
func unbroken(ctx context.Context, src Source, r Range) error {
	needed := r.needed()
	if needed <= r.From {
		return nil
	}
	segments := r.segments(r.From, needed-1)
	waiting := false // from here on it is not archived yet
	for len(segments) > 0 {
		n := 1
		for n < len(segments) && segments[n].Timeline == segments[0].Timeline {
			n++
		}
		first, last := segments[0], segments[n-1]
		segments = segments[n:]
		missing := first.Name(r.SegmentSize)
		if !waiting {
			var err error
			if missing, err = src.Repo.MissingWAL(ctx, r.Cluster, first, last, r.SegmentSize); err != nil {
				return err
			}
			if missing == "" {
				continue
			}
			waiting = true
		}
		for s := first; s.Number <= last.Number; s = s.Next() {
			name := s.Name(r.SegmentSize)
			if name < missing || s.Number == r.To.Segment(r.SegmentSize) {
				continue // archived, or still being written
			}
			if err := src.expected(name); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	// archiverPatience is how long the archiver may take for the WAL behind the
	// parent's end, and archiverPoll how often it is looked at.
	archiverPatience = 10 * time.Second
	archiverPoll     = 50 * time.Millisecond
)

// sameServer proves that this server has archived WAL from behind the parent's
// end: a repository takes no segment from two. Two servers may have gone
// different ways on one timeline, after one of them was set back.
func (d Detector) sameServer(ctx context.Context, r Range) error {
	end := postgres.Segment{Timeline: r.timeline(r.ParentStop.LastSegment(r.SegmentSize)), Number: r.ParentStop.LastSegment(r.SegmentSize)}
	tick := time.NewTicker(archiverPoll)
	defer tick.Stop()
	limit := time.NewTimer(archiverPatience)
	defer limit.Stop()
	for first := true; ; first = false {
		a, err := d.Server.ArchiverStats(ctx)
		if err != nil {
			return err
		}
		if r.archived(a.LastArchivedWAL, end) || first && d.archivedSegment(ctx, r, end) {
			return nil
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return fmt.Errorf("the archiver has not archived WAL segment %s or one behind it, so that this server may not be the one that the parent is of", end.Name(r.SegmentSize))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// archived tells whether the newest file that the archiver has done is a segment
// of the server's line, end or one behind it, or one that belongs to such a
// segment, as backup history files do.
func (r Range) archived(name string, end postgres.Segment) bool {
	const digits = 24
	last, err := postgres.ParseSegment(name[:min(len(name), digits)], r.SegmentSize)
	return err == nil && last.Number >= end.Number && r.timeline(last.Number) == last.Timeline
}

// archivedSegment tells whether a segment in the repository, the parent's last
// one or one behind it, is the very one in pg_wal. That in which the backup
// starts may be whole, too, on a standby; if it is not, it tells nothing.
func (d Detector) archivedSegment(ctx context.Context, r Range, end postgres.Segment) bool {
	newest := r.To.Segment(r.SegmentSize)
	for number := newest + 1; number > end.Number; {
		number--
		s := postgres.Segment{Timeline: r.timeline(number), Number: number}
		f, err := postgres.ParseWALFile(s.Name(r.SegmentSize))
		if err != nil {
			return false
		}
		here, err := hashFile(filepath.Join(d.DataDir, "pg_wal", f.Name))
		if err != nil {
			return false // older ones are gone, too
		}
		stored, err := d.Repo.WALHash(ctx, r.Cluster, f)
		if errors.Is(err, storage.ErrNotExist) || err == nil && number == newest && here != stored {
			continue
		}
		return err == nil && here == stored
	}
	return false
}

// expected tells whether the archiver will archive a segment: one that was
// written while archiving was off is never said to be ready.
func (src Source) expected(name string) error {
	for _, suffix := range []string{".ready", ".done"} {
		_, err := os.Stat(filepath.Join(src.DataDir, "pg_wal", "archive_status", name+suffix))
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("look for WAL that waits to be archived: %w", err)
		}
	}
	return fmt.Errorf("WAL segment %s is not in the repository, and is not waiting to be archived", name)
}

func hashFile(path string) (sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [32]byte(h.Sum(nil)), nil
}

// Databases tells which databases were made or moved since the parent: the
// server writes the PG_VERSION file of a database when it makes its folder
// (CreateDirAndVersionFile, and copydir, in src/backend/commands/dbcommands.c).
type Databases struct{ whole map[database]bool }

// New notes that the folder of a database is not the one that the parent has
// seen. path is that of its PG_VERSION file.
func (d *Databases) New(path string) {
	class := postgres.ClassifyPath(filepath.ToSlash(filepath.Dir(path)) + "/1")
	if !class.Relation {
		return
	}
	if d.whole == nil {
		d.whole = make(map[database]bool)
	}
	d.whole[database{class.Rel.Tablespace, class.Rel.Database}] = true
}
