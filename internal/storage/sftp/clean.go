package sftp

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path"
	"strings"
	"time"

	"agent/internal/storage"
)

// Unfinished yields the files with reserved names; see storage.Cleaner. Only a
// Put whose connection broke or that was killed leaves one. Nothing but its
// folder tells which object it was to become: it is yielded if all keys of the
// folder begin with prefix. Every folder below prefix is read, some of them at a
// time. Since is when the file was last written.
func (b *Bucket) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	return func(yield func(storage.Unfinished, error) bool) {
		if err := b.unfinished(ctx, prefix, yield); err != nil && !errors.Is(err, errStop) {
			yield(storage.Unfinished{}, b.fail("list", prefix, err))
		}
	}
}

type tempWalker struct {
	b      *Bucket
	c      *conn
	prefix string
	yield  func(storage.Unfinished, error) bool
}

func (b *Bucket) unfinished(ctx context.Context, prefix string, yield func(storage.Unfinished, error) bool) error {
	if err := storage.CheckPrefix(prefix); err != nil {
		return err
	}
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &tempWalker{b: b, c: c, prefix: prefix, yield: yield}
	base := above(prefix)
	if base != "" {
		base += "/"
	}
	if err := w.walk(ctx, base, w.read(ctx, base)); err != nil {
		return err
	}
	return b.complete(ctx, c, prefix)
}

// walk looks through a directory, whose keys begin with base, and those below.
func (w *tempWalker) walk(ctx context.Context, base string, read future[[]entry]) error {
	entries, err := read.wait()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ahead := newAhead(entries, func(e entry) future[[]entry] { return w.read(ctx, base+e.name) })
	for i, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.isDir() {
			if err := w.walk(ctx, base+e.name, ahead.take(i)); err != nil {
				return err
			}
			continue
		}
		u := storage.Unfinished{Key: base + e.name, ID: e.name, Size: e.info.Size(), Since: e.info.ModTime().UTC()}
		if !w.yield(u, nil) {
			return errStop
		}
	}
	return nil
}

// read reads what is of interest in a directory: unfinished files, and
// directories. One that is missing is empty.
func (w *tempWalker) read(ctx context.Context, base string) future[[]entry] {
	p := w.b.at(base)
	return ask(ctx, w.b, func() ([]entry, error) {
		// Without the context, so that the directory is closed in the end.
		list, err := w.c.sftp.ReadDir(p)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		var entries []entry
		for _, st := range list {
			switch name := st.Name(); {
			case isTemp(name) && st.Mode().IsRegular() && strings.HasPrefix(base, w.prefix):
				entries = append(entries, entry{name, st})
			case st.IsDir() && storage.ValidComponent(name) && strings.HasPrefix(base+name+"/", w.prefix):
				entries = append(entries, entry{name + "/", nil})
			}
		}
		return entries, err
	}, nil)
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
	dir := above(u.Key)
	if !isTemp(path.Base(u.Key)) || path.Base(u.Key) != u.ID {
		return fmt.Errorf("%w: it is not the name of an unfinished file", storage.ErrKey)
	}
	if dir != "" {
		if err := storage.CheckKey(dir); err != nil {
			return err
		}
	}
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	found, err := call(ctx, b, func() (bool, error) { return b.remove(c, b.at(u.Key)) })
	if err != nil {
		return err
	}
	if !found {
		if err := b.checkRoot(ctx, c); err != nil {
			return err
		}
	}
	b.prune(ctx, c, dir)
	return nil
}

// Clean removes unfinished files that were last written before the given time,
// by the server's clock, and returns how many; see storage.Clean.
func (b *Bucket) Clean(ctx context.Context, before time.Time) (int, error) {
	return storage.Clean(ctx, b, "", before)
}
