package fs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

// attempts bounds how often a Put begins again because a Delete removed the
// directory it was about to use.
const attempts = 100

// Put creates the object; see storage.Bucket. The body is hashed and written
// once, in pieces. ErrExists is returned only after the directory was synced,
// so that whoever finds the same bytes there may take them for durable even if
// the other creator died before its own sync. Metadata is dropped.
func (b *Bucket) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	info, err := b.put(ctx, key, src, opts)
	if err != nil {
		return storage.Info{}, b.fail("put", key, err)
	}
	return info, nil
}

func (b *Bucket) put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	if err := storage.CheckKey(key); err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, err
	}
	if opts.Lock != nil {
		return storage.Info{}, fmt.Errorf("%w: a folder cannot lock files", storage.ErrUnsupported)
	}
	if src.Size() < 0 {
		return storage.Info{}, fmt.Errorf("%w: %d bytes", storage.ErrBadLength, src.Size())
	}
	root, err := b.openRoot()
	if err != nil {
		return storage.Info{}, err
	}
	defer root.Close()
	dir, base := split(key)
	tmp, err := b.prepare(ctx, root, dir, base)
	if err != nil {
		return storage.Info{}, err
	}
	defer tmp.discard()
	info, err := b.write(ctx, tmp, src, opts)
	if err == nil {
		err = b.publish(ctx, root, dir, base, tmp)
	}
	if err != nil {
		if errors.Is(err, errNoUnnamed) {
			b.named.Store(true)
			return b.put(ctx, key, src, opts) // with a name, so not here again
		}
		return storage.Info{}, err
	}
	info.Key = key
	return info, nil
}

// prepare makes the directory and opens the unfinished file in it. It looks
// for the object first only to save the copy; link decides.
func (b *Bucket) prepare(ctx context.Context, root *os.File, dir, base string) (*temp, error) {
	for range attempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		parent, err := b.putDir(root, dir)
		if errors.Is(err, errRaced) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := b.occupied(parent, base); err != nil {
			parent.Close()
			return nil, err
		}
		tmp, err := b.newTemp(parent)
		if err == nil {
			return tmp, nil
		}
		raced := removed(parent)
		parent.Close()
		if !raced && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
	}
	return nil, errRaced
}

// putDir is makeDir with the answer for a key that runs through an object.
func (b *Bucket) putDir(root *os.File, dir string) (*os.File, error) {
	parent, err := b.makeDir(root, dir)
	if errors.Is(err, errObject) {
		return nil, fmt.Errorf("%w: %w", storage.ErrKey, errObject)
	}
	if errors.Is(err, errRaced) {
		// The root itself may be what was removed.
		if err := b.checkRoot(); err != nil {
			return nil, err
		}
	}
	return parent, err
}

// occupied returns nil if base is free, ErrExists if it is an object, which is
// durable then, and another error for anything else that has the name.
func (b *Bucket) occupied(parent *os.File, base string) error {
	st, err := lstatat(parent, base)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	switch fileType(st) {
	case unix.S_IFREG:
		if err := b.sys.syncDir(parent); err != nil {
			return err
		}
		return storage.ErrExists
	case unix.S_IFDIR:
		return fmt.Errorf("%w: there are objects below it", storage.ErrKey)
	case unix.S_IFLNK:
		return errSymlink(base)
	default:
		return errSpecial(base)
	}
}

// write copies the body into the unfinished file and makes it durable.
func (b *Bucket) write(ctx context.Context, tmp *temp, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	body, err := src.Open()
	if err != nil {
		return storage.Info{}, &bodyError{err}
	}
	s := &sink{ctx: ctx, f: tmp.f, left: src.Size()}
	if !opts.Unhashed || opts.SHA256 != nil {
		s.hash = sha256.New()
	}
	err = s.copy(body)
	if cerr := body.Close(); err == nil && cerr != nil {
		err = &bodyError{cerr}
	}
	if err != nil {
		return storage.Info{}, err
	}
	info := storage.Info{Size: src.Size()}
	if s.hash != nil {
		s.hash.Sum(info.SHA256[:0])
	}
	if opts.SHA256 != nil && *opts.SHA256 != info.SHA256 {
		return storage.Info{}, fmt.Errorf("%w: %x, not %x", storage.ErrBadDigest, info.SHA256, *opts.SHA256)
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, err
	}
	if err := b.sys.fsync(tmp.f); err != nil {
		return storage.Info{}, err
	}
	st, err := tmp.f.Stat()
	if err != nil {
		return storage.Info{}, err
	}
	info.ModTime = st.ModTime()
	return info, nil
}

// publish gives the finished file its name and makes the name durable. When
// only the last sync fails, the object stays: another creator may have been
// told already that it exists.
func (b *Bucket) publish(ctx context.Context, root *os.File, dir, base string, tmp *temp) error {
	for range attempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := b.link(tmp, base)
		if errors.Is(err, unix.ENOENT) {
			if tmp.name != "" {
				return errRaced // somebody removed the unfinished file
			}
			// A Delete removed the directory under an unnamed file; the file
			// can be linked into the one that takes its place.
			parent, err := b.putDir(root, dir)
			if err != nil && !errors.Is(err, errRaced) {
				return err
			}
			if err == nil {
				tmp.move(parent)
			}
			continue
		}
		if errors.Is(err, unix.EEXIST) {
			if err := b.occupied(tmp.dir, base); err != nil {
				return err
			}
			continue // deleted since
		}
		if err != nil {
			return err
		}
		if err := tmp.unname(); err != nil {
			return err
		}
		return b.sys.syncDir(tmp.dir)
	}
	return errRaced
}
