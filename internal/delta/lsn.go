package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"agent/internal/postgres"
)

// byPageLSN relies on what the server writes on each page that it changes. What
// it cannot see are databases that were copied, whose pages keep their LSNs:
// whole names those that were made since the parent.
//
// The proof that no WAL without LSNs was written meanwhile, and that this is the
// server from which the parent's WAL came, is the archive: it is unbroken, and
// its newest segment is the very one in pg_wal.
func byPageLSN(ctx context.Context, src Source, geo Geometry, r Range, whole map[database]bool) (*Changes, error) {
	if err := unbroken(ctx, src, r); err != nil {
		return nil, err
	}
	return &Changes{method: ByPageLSN, geo: geo, from: r.From, whole: whole}, nil
}

// unbroken proves that the WAL of the range was archived, or is about to be.
func unbroken(ctx context.Context, src Source, r Range) error {
	needed := r.needed()
	if needed <= r.From {
		return nil
	}
	segments := r.segments(r.From, needed-1)
	waiting := false // from here on it is not archived yet
	var newest postgres.Segment
	for len(segments) > 0 {
		n := 1
		for n < len(segments) && segments[n].Timeline == segments[0].Timeline {
			n++
		}
		first, last := segments[0], segments[n-1]
		segments = segments[n:]
		missing := ""
		if !waiting {
			var err error
			if missing, err = src.Repo.MissingWAL(ctx, r.Cluster, first, last, r.SegmentSize); err != nil {
				return err
			}
			if missing == "" {
				newest = last
				continue
			}
			waiting = true
		}
		for s := first; s.Number <= last.Number; s = s.Next() {
			name := s.Name(r.SegmentSize)
			switch {
			case missing != "" && name < missing:
				newest = s
				continue
			case s.Number == r.To.Segment(r.SegmentSize):
				continue // it is being written
			}
			if err := src.expected(name); err != nil {
				return err
			}
		}
	}
	if newest.Timeline == 0 {
		return nil
	}
	return src.same(ctx, r, newest)
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

// same proves that an archived segment is the one in pg_wal: two servers may have
// gone different ways under the same names.
func (src Source) same(ctx context.Context, r Range, s postgres.Segment) error {
	name := s.Name(r.SegmentSize)
	f, err := postgres.ParseWALFile(name)
	if err != nil {
		return err
	}
	stored, err := src.Repo.WALHash(ctx, r.Cluster, f)
	if err != nil {
		return err
	}
	here, err := hashFile(filepath.Join(src.DataDir, "pg_wal", name))
	if err != nil {
		return fmt.Errorf("WAL segment %s, the newest in the repository, cannot be compared with the server's: %w", name, err)
	}
	if here != stored {
		return fmt.Errorf("WAL segment %s in the repository is not the server's", name)
	}
	return nil
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
