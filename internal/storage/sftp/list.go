package sftp

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"slices"
	"strings"

	"agent/internal/storage"
)

// lookAhead is how many of the directories that come next are read before
// they are needed, on each level.
const lookAhead = 8

// batch is how many objects are listed between two looks at the context.
const batch = 1024

// List yields the objects; see storage.Bucket. It holds the names of the
// directories on the way to the current key, and of some that follow, and
// reads no directory that lies wholly before startAfter or outside prefix.
// Files that are not ours by their names are passed over.
func (b *Bucket) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := b.list(ctx, prefix, startAfter, yield); err != nil && !errors.Is(err, errStop) {
			yield(storage.Info{}, b.fail("list", prefix, err))
		}
	}
}

// errStop ends a listing whose consumer has seen enough.
var errStop = errors.New("stopped")

type walker struct {
	b      *Bucket
	c      *conn
	prefix string
	after  string
	yield  func(storage.Info, error) bool
}

func (b *Bucket) list(ctx context.Context, prefix, after string, yield func(storage.Info, error) bool) error {
	if err := storage.CheckPrefix(prefix); err != nil {
		return err
	}
	if err := storage.CheckPrefix(after); err != nil {
		return err
	}
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &walker{b: b, c: c, prefix: prefix, after: after, yield: yield}
	base := above(prefix)
	if base != "" {
		base += "/"
	}
	if _, err := w.walk(ctx, base, w.read(ctx, base)); err != nil {
		return err
	}
	return b.complete(ctx, c, prefix)
}

// complete says, after a listing, whether what was not found can be believed:
// not in a folder that is gone, nor behind a symbolic link.
func (b *Bucket) complete(ctx context.Context, c *conn, prefix string) error {
	err := b.missing(ctx, c, prefix)
	if errors.Is(err, storage.ErrNotExist) {
		return nil
	}
	return err
}

// entry is one object, or one directory if its name ends with a slash: so the
// order of the names is the order of the keys ("a-b" before "a/b", "a0" after).
type entry struct {
	name string
	info os.FileInfo // of an object
}

func (e entry) isDir() bool { return strings.HasSuffix(e.name, "/") }

// walk lists a directory, whose keys begin with base, and says whether it has
// yielded anything.
func (w *walker) walk(ctx context.Context, base string, read future[[]entry]) (found bool, err error) {
	entries, err := read.wait()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ahead := newAhead(entries, func(e entry) future[[]entry] { return w.read(ctx, base+e.name) })
	for i, e := range entries {
		if i%batch == 0 {
			if err := ctx.Err(); err != nil {
				return found, err
			}
		}
		if e.isDir() {
			some, err := w.walk(ctx, base+e.name, ahead.take(i))
			found = found || some
			if err != nil {
				return found, err
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return found, err
		}
		found = true
		if !w.yield(infoOf(base+e.name, e.info), nil) {
			return found, errStop
		}
	}
	return found, nil
}

// read reads the names in a directory that can lead to a key of the listing,
// in order. One that is missing is empty.
func (w *walker) read(ctx context.Context, base string) future[[]entry] {
	p := w.b.at(base)
	return ask(ctx, w.b, func() ([]entry, error) {
		// Without the context, so that the directory is closed in the end.
		list, err := w.c.sftp.ReadDir(p)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return w.entries(base, list)
	}, nil)
}

func (w *walker) entries(base string, list []os.FileInfo) ([]entry, error) {
	var entries []entry
	for _, st := range list {
		name := st.Name()
		if !storage.ValidComponent(name) {
			continue
		}
		switch {
		case st.Mode().IsRegular():
			if key := base + name; key > w.after && strings.HasPrefix(key, w.prefix) {
				entries = append(entries, entry{name, st})
			}
		case st.IsDir():
			if w.wanted(base + name + "/") {
				entries = append(entries, entry{name + "/", nil})
			}
		case st.Mode()&os.ModeSymlink != 0:
			return nil, errSymlink(base + name)
		default:
			return nil, errSpecial(base + name)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// wanted says whether a directory, with a slash at its end, can hold keys of
// the listing.
func (w *walker) wanted(dir string) bool {
	return strings.HasPrefix(dir, w.prefix) && (dir > w.after || strings.HasPrefix(w.after, dir))
}

// lookingAhead starts the work for the directories of a list, some before they are
// needed. The first is taken alone, since many a listing ends with it.
type lookingAhead[T any] struct {
	dirs    []int // places in the list
	work    func(entry) future[T]
	entries []entry
	started map[int]future[T]
	taken   int // of dirs
	begun   int
}

func newAhead[T any](entries []entry, work func(entry) future[T]) *lookingAhead[T] {
	l := &lookingAhead[T]{work: work, entries: entries, started: make(map[int]future[T])}
	for i, e := range entries {
		if e.isDir() {
			l.dirs = append(l.dirs, i)
		}
	}
	return l
}

// take returns the work for the entry at place i, which is the next directory.
func (l *lookingAhead[T]) take(i int) future[T] {
	l.taken++
	limit := 1
	if l.taken > 1 {
		limit = min(l.taken-1+lookAhead, len(l.dirs))
	}
	for ; l.begun < limit; l.begun++ {
		place := l.dirs[l.begun]
		l.started[place] = l.work(l.entries[place])
	}
	work := l.started[i]
	delete(l.started, i)
	return work
}

// Folders yields the names of the folders below prefix that hold objects; see
// storage.Bucket. It looks into some of them at a time.
func (b *Bucket) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := b.folders(ctx, prefix, yield); err != nil && !errors.Is(err, errStop) {
			yield("", b.fail("list", prefix, err))
		}
	}
}

func (b *Bucket) folders(ctx context.Context, prefix string, yield func(string, error) bool) error {
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
	w := &walker{b: b, c: c, prefix: prefix, yield: func(storage.Info, error) bool { return false }}
	base := above(prefix)
	if base != "" {
		base += "/"
	}
	entries, err := w.read(ctx, base).wait()
	if err != nil {
		return err
	}
	ahead := newAhead(entries, func(e entry) future[bool] {
		return ask(ctx, b, func() (bool, error) {
			found, err := w.walk(ctx, base+e.name, w.read(ctx, base+e.name))
			if errors.Is(err, errStop) {
				err = nil
			}
			return found, err
		}, nil)
	})
	for i, e := range entries {
		if !e.isDir() {
			continue
		}
		found, err := ahead.take(i).wait()
		if err != nil {
			return err
		}
		if found && !yield(strings.TrimSuffix(e.name, "/"), nil) {
			return errStop
		}
	}
	return b.complete(ctx, c, prefix)
}

// Versions yields nothing: a file has one version.
func (b *Bucket) Versions(context.Context, string) iter.Seq2[storage.Info, error] {
	return storage.NoVersions()
}

// GetVersion finds no version.
func (b *Bucket) GetVersion(_ context.Context, key, _ string) (io.ReadCloser, storage.Info, error) {
	return nil, storage.Info{}, b.fail("get", key, storage.ErrNotExist)
}
