package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

// Unfinished yields the files with reserved names; see storage.Cleaner. Only a
// Put that was killed leaves one, and only on file systems without O_TMPFILE
// (NFS, SMB). Nothing but its folder tells which object it was to become: it is
// yielded if all keys of the folder begin with prefix. Every folder below prefix
// is read. Since is when the file was last written.
func (b *Bucket) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	return func(yield func(storage.Unfinished, error) bool) {
		w := &tempWalker{ctx: ctx, prefix: prefix, yield: yield}
		if err := w.run(b); err != nil && !errors.Is(err, errStop) {
			yield(storage.Unfinished{}, b.fail("list", prefix, err))
		}
	}
}

type tempWalker struct {
	ctx    context.Context
	prefix string
	yield  func(storage.Unfinished, error) bool
}

func (w *tempWalker) run(b *Bucket) error {
	if err := errors.Join(storage.CheckPrefix(w.prefix), w.ctx.Err()); err != nil {
		return err
	}
	root, err := b.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	base, _ := split(w.prefix)
	dir, err := b.openDir(root, base)
	switch {
	case errors.Is(err, unix.ENOENT):
		return b.checkRoot()
	case err != nil:
		return err
	}
	if base != "" {
		base += "/"
	}
	if err := w.walk(dir, base); err != nil {
		return err
	}
	return b.checkRoot()
}

// walk looks through the directory at, whose keys begin with base, and those
// below it, and closes it. Its names are read before the first is yielded, since
// what is discarded may be the last of the directory.
func (w *tempWalker) walk(at *os.File, base string) error {
	defer at.Close()
	temps, dirs, err := w.names(at, base)
	if err != nil {
		return err
	}
	for _, name := range temps {
		if err := w.visit(at, base, name); err != nil {
			return err
		}
	}
	for _, name := range dirs {
		sub, err := openFileAt(at, name, openDirFlags)
		if errors.Is(err, unix.ENOENT) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if err := w.walk(sub, base+name+"/"); err != nil {
			return err
		}
	}
	return nil
}

func (w *tempWalker) names(at *os.File, base string) (temps, dirs []string, err error) {
	for {
		if err := w.ctx.Err(); err != nil {
			return nil, nil, err
		}
		some, err := at.ReadDir(batch)
		for _, d := range some {
			switch name := d.Name(); {
			case isTemp(name) && d.Type().IsRegular() && strings.HasPrefix(base, w.prefix):
				temps = append(temps, name)
			case d.IsDir() && storage.ValidComponent(name) && strings.HasPrefix(base+name+"/", w.prefix):
				dirs = append(dirs, name)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // at its end, or removed meanwhile
			return temps, dirs, nil
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

func (w *tempWalker) visit(at *os.File, base, name string) error {
	st, err := lstatat(at, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if !w.yield(storage.Unfinished{Key: base + name, ID: name, Size: st.Size, Since: time.Unix(st.Mtim.Unix()).UTC()}, nil) {
		return errStop
	}
	return nil
}

// isTemp says whether a name is reserved for unfinished files: no object has it.
func isTemp(name string) bool { return strings.HasPrefix(name, storage.TempPrefix) }

// Discard removes the reserved name; see storage.Cleaner. An object that was
// made of the file has another name, and keeps it.
func (b *Bucket) Discard(ctx context.Context, u storage.Unfinished) error {
	if err := b.discard(ctx, u); err != nil {
		return b.fail("discard", u.Key, err)
	}
	return nil
}

func (b *Bucket) discard(ctx context.Context, u storage.Unfinished) error {
	dir, name := split(u.Key)
	if !isTemp(name) || name != u.ID {
		return fmt.Errorf("%w: it is not the name of an unfinished file", storage.ErrKey)
	}
	if dir != "" {
		if err := storage.CheckKey(dir); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	root, err := b.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	parent, err := b.openDir(root, dir)
	if errors.Is(err, unix.ENOENT) {
		return b.checkRoot()
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Unlinkat(int(parent.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	b.prune(root, dir)
	return nil
}

// Clean removes unfinished files that were last written before the given time,
// by this host's view of the folder's clock, and returns how many; see
// storage.Clean.
func (b *Bucket) Clean(ctx context.Context, before time.Time) (int, error) {
	return storage.Clean(ctx, b, "", before)
}
