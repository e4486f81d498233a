package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

// streamed serves what wal-receive has stored of a segment that no repository
// has whole, in a recovery to the end of the archive: zeros are behind it, which
// is where PostgreSQL finds the end of WAL. A standby streams what is missing,
// and whoever else fetches wants a whole segment or none. miss is what the
// absence of the segment means; it is returned when nothing is served. A segment
// that is missing between others is served only if ranges hold all of it.
func (f *Fetcher) streamed(ctx context.Context, cluster repo.ClusterID, file postgres.WALFile, dest string, e evidence, miss error) error {
	size := e.size
	gap := errors.Is(miss, errGap)
	segment, err := file.Segment(size)
	if err != nil {
		return err
	}
	err = f.Repo.ReadStreamed(ctx, cluster, segment, size, e.Streamed, func(body io.Reader, reach postgres.LSN) error {
		if reach = wholeHeader(reach, size); reach == segment.Start(size) || gap && reach != segment.End(size) {
			return miss
		}
		if err := place(padded(body, segment.Start(size), reach, size), file, dest, cluster); err != nil {
			return err
		}
		f.Log.Warn("fetched an unfinished segment, as far as it was received", "wal", file.Name, "until_lsn", reach.String())
		return nil
	})
	if errors.Is(err, storage.ErrNotExist) && errs.KindOf(err) != errs.Damaged {
		return miss
	}
	if err != nil && !errors.Is(err, miss) {
		return fmt.Errorf("fetch what was received of %s: %w", file.Name, err)
	}
	return err
}

// The lengths of WAL page headers in bytes, on a segment's first page and on
// others (src/include/access/xlog_internal.h).
const (
	firstPageHeader = 40
	pageHeader      = 24
)

// wholeHeader is reach, or the start of its page if it is inside of the page's
// header: half a header is none.
func wholeHeader(reach postgres.LSN, size postgres.SegmentSize) postgres.LSN {
	inPage := reach % postgres.WALBlockSize
	header := postgres.LSN(pageHeader)
	if (reach - inPage).Offset(size) == 0 {
		header = firstPageHeader
	}
	if inPage < header {
		return reach - inPage
	}
	return reach
}

// padded is a segment of which only what is before reach is taken.
func padded(body io.Reader, start, reach postgres.LSN, size postgres.SegmentSize) io.Reader {
	have := int64(reach - start)
	return io.MultiReader(io.LimitReader(body, have), io.LimitReader(zeros{}, int64(size)-have))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// hasSignal looks for a signal file beside the pg_wal that dest is in.
func hasSignal(dest, name string) (bool, error) {
	_, err := os.Stat(filepath.Join(filepath.Dir(dest), "..", name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", name, err)
	}
	return true, nil
}
