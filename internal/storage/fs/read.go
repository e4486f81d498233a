package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

// Get opens the object; see storage.Bucket. The reader looks at ctx before
// each read.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	f, info, err := b.openObject(ctx, key)
	if err != nil {
		return nil, storage.Info{}, b.fail("get", key, err)
	}
	return &reader{ctx: ctx, b: b, key: key, f: f, left: info.Size, short: io.ErrUnexpectedEOF}, info, nil
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
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("%w: offset %d, length %d", storage.ErrRange, off, n)
	}
	if n == 0 {
		return storage.Bytes(nil).Open()
	}
	f, info, err := b.openObject(ctx, key)
	if err != nil {
		return nil, err
	}
	if off > info.Size || n > info.Size-off {
		f.Close()
		return nil, fmt.Errorf("%w: %d bytes from %d of %d", storage.ErrRange, n, off, info.Size)
	}
	return &reader{ctx: ctx, b: b, key: key, f: f, off: off, left: n, short: storage.ErrRange}, nil
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
	dir, base, err := b.openParent(ctx, key)
	if err != nil {
		return storage.Info{}, err
	}
	defer dir.Close()
	st, err := lstatat(dir, base)
	if errors.Is(err, unix.ENOENT) {
		return storage.Info{}, b.missing()
	}
	if err != nil {
		return storage.Info{}, err
	}
	if err := b.object(st, base); err != nil {
		return storage.Info{}, err
	}
	return infoOf(key, st), nil
}

// openParent opens the directory that the object would be in, and gives the
// object's name in it.
func (b *Bucket) openParent(ctx context.Context, key string) (parent *os.File, base string, err error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, "", err
	}
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	root, err := b.openRoot()
	if err != nil {
		return nil, "", err
	}
	defer root.Close()
	dir, base := split(key)
	parent, err = b.openDir(root, dir)
	if errors.Is(err, unix.ENOENT) {
		return nil, "", b.missing()
	}
	return parent, base, err
}

func (b *Bucket) openObject(ctx context.Context, key string) (*os.File, storage.Info, error) {
	dir, base, err := b.openParent(ctx, key)
	if err != nil {
		return nil, storage.Info{}, err
	}
	defer dir.Close()
	// O_NONBLOCK, so that a named pipe in the object's place does not hang us.
	f, err := openFileAt(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, storage.Info{}, b.missing()
	case errors.Is(err, unix.ELOOP):
		return nil, storage.Info{}, errSymlink(base)
	case err != nil:
		return nil, storage.Info{}, err
	}
	var st unix.Stat_t
	if err = os.NewSyscallError("fstat", unix.Fstat(int(f.Fd()), &st)); err == nil {
		err = b.object(st, base)
	}
	if err != nil {
		f.Close()
		return nil, storage.Info{}, err
	}
	return f, infoOf(key, st), nil
}

// object says whether what has the name of an object is one. A directory is
// part of longer keys, so that there is no object of its name.
func (b *Bucket) object(st unix.Stat_t, base string) error {
	switch fileType(st) {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return b.missing()
	case unix.S_IFLNK:
		return errSymlink(base)
	default:
		return errSpecial(base)
	}
}

func infoOf(key string, st unix.Stat_t) storage.Info {
	return storage.Info{Key: key, Size: st.Size, ModTime: time.Unix(st.Mtim.Unix())}
}

// reader reads a stretch of an object to its announced end.
type reader struct {
	ctx   context.Context
	b     *Bucket
	key   string
	f     *os.File
	off   int64
	left  int64
	short error // when the file ends before the stretch does
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.b.fail("get", r.key, err)
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.left)]
	n, err := r.f.ReadAt(p, r.off)
	r.off += int64(n)
	r.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: the file has lost %d bytes", r.short, r.left)
	}
	if err != nil {
		return n, r.b.fail("get", r.key, err)
	}
	return n, nil
}

func (r *reader) Close() error { return r.f.Close() }
