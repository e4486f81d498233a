package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/pkg/sftp"

	"agent/internal/storage"
)

// Get opens the object; see storage.Bucket. Two answers of the server are
// waited for, of which the second is the first piece of the object. An open
// reader holds at most 4 MiB.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	r, info, err := b.open(ctx, key)
	if err != nil {
		return nil, storage.Info{}, b.fail("get", key, err)
	}
	// One byte more shows that the file is the one that was looked at.
	r.left, r.end, r.short = info.Size, info.Size+1, io.ErrUnexpectedEOF
	r.whole = true
	r.fill()
	return r, info, nil
}

// GetRange opens a part of the object; see storage.Bucket. A range beyond the
// end, or one with a negative number, is ErrRange at once.
func (b *Bucket) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := b.getRange(ctx, key, off, n)
	if err != nil {
		return nil, b.fail("get", key, err)
	}
	return r, nil
}

func (b *Bucket) getRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, err
	}
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		return nil, fmt.Errorf("%w: offset %d, length %d", storage.ErrRange, off, n)
	}
	if n == 0 {
		return storage.Bytes(nil).Open()
	}
	r, info, err := b.open(ctx, key)
	if err != nil {
		return nil, err
	}
	if off+n > info.Size {
		_ = r.Close() // nothing was read
		return nil, fmt.Errorf("%w: %d bytes from %d of %d", storage.ErrRange, n, off, info.Size)
	}
	r.next, r.left, r.end, r.short = off, n, off+n, storage.ErrRange
	r.fill()
	return r, nil
}

// Stat describes the object; see storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, key string) (storage.Info, error) {
	info, err := b.stat(ctx, key)
	if err != nil {
		return storage.Info{}, b.fail("stat", key, err)
	}
	return info, nil
}

func (b *Bucket) stat(ctx context.Context, key string) (storage.Info, error) {
	if err := storage.CheckKey(key); err != nil {
		return storage.Info{}, err
	}
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		return storage.Info{}, err
	}
	defer release()
	st, err := b.lstat(ctx, c, b.at(key))
	return b.object(ctx, c, key, st, err)
}

// open opens the object and looks at it, both at a time.
func (b *Bucket) open(ctx context.Context, key string) (*reader, storage.Info, error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, storage.Info{}, err
	}
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		return nil, storage.Info{}, err
	}
	r, info, err := b.openOn(ctx, c, key)
	if err != nil {
		release()
		return nil, storage.Info{}, err
	}
	r.release = release
	return r, info, nil
}

func (b *Bucket) openOn(ctx context.Context, c *conn, key string) (*reader, storage.Info, error) {
	p := b.at(key)
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	look := ask(asking, b, func() (os.FileInfo, error) { return c.sftp.Lstat(p) }, nil)
	opened := ask(asking, b, func() (*sftp.File, error) { return c.sftp.Open(p) }, b.closeLater)
	st, err := look.wait()
	info, err := b.object(ctx, c, key, st, err)
	if err != nil {
		return nil, storage.Info{}, err
	}
	f, err := opened.wait()
	if errors.Is(err, os.ErrNotExist) {
		err = b.missing(ctx, c, key) // deleted just now
	}
	if err != nil {
		return nil, storage.Info{}, err
	}
	return &reader{ctx: ctx, b: b, c: c, key: key, f: f}, info, nil
}

// object makes an Info of what has the name of an object, or of the error of
// looking. A directory is part of longer keys, so that there is no object of
// its name.
func (b *Bucket) object(ctx context.Context, c *conn, key string, st os.FileInfo, err error) (storage.Info, error) {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return storage.Info{}, b.missing(ctx, c, key)
	case err != nil:
		return storage.Info{}, err
	case st.Mode().IsRegular():
		return infoOf(key, st), nil
	case st.IsDir():
		return storage.Info{}, b.missing(ctx, c, key)
	case st.Mode()&os.ModeSymlink != 0:
		return storage.Info{}, errSymlink(key)
	default:
		return storage.Info{}, errSpecial(key)
	}
}

func infoOf(key string, st os.FileInfo) storage.Info {
	return storage.Info{Key: key, Size: st.Size(), ModTime: st.ModTime()}
}
