package fs

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

// Clean removes unfinished files that were last written before the given time,
// by this host's view of the folder's clock, and returns how many. Only a Put
// that was killed leaves one, and only on file systems without O_TMPFILE (NFS,
// SMB); take a time well before the start of any Put that may still run.
// Errors are *storage.Error.
func (b *Bucket) Clean(ctx context.Context, before time.Time) (int, error) {
	root, err := b.openRoot()
	if err != nil {
		return 0, b.fail("clean", "", err)
	}
	n, err := cleanDir(ctx, root, before)
	if err != nil {
		return n, b.fail("clean", "", err)
	}
	return n, nil
}

// cleanDir cleans a directory and those below it, and closes it.
func cleanDir(ctx context.Context, at *os.File, before time.Time) (int, error) {
	defer at.Close()
	total := 0
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		some, err := at.ReadDir(batch)
		for _, d := range some {
			n, err := cleanEntry(ctx, at, d, before)
			total += n
			if err != nil {
				return total, err
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func cleanEntry(ctx context.Context, at *os.File, d os.DirEntry, before time.Time) (int, error) {
	switch {
	case d.IsDir() && storage.ValidComponent(d.Name()):
		sub, err := openFileAt(at, d.Name(), openDirFlags)
		if errors.Is(err, unix.ENOENT) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		return cleanDir(ctx, sub, before)
	case !d.Type().IsRegular() || !strings.HasPrefix(d.Name(), storage.TempPrefix):
		return 0, nil
	}
	st, err := lstatat(at, d.Name())
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if !time.Unix(st.Mtim.Unix()).Before(before) {
		return 0, nil
	}
	err = unix.Unlinkat(int(at.Fd()), d.Name(), 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, &os.PathError{Op: "unlink", Path: d.Name(), Err: err}
	}
	return 1, nil
}
