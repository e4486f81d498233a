package fs

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

// batch is how many directory entries are taken at once, and how many objects
// are listed between two looks at the context.
const batch = 1024

// List yields the objects; see storage.Bucket. It holds the names of the
// directories on the way to the current key, one directory on each level, and
// reads no directory that lies wholly before startAfter or outside prefix.
// Files that are not ours by their names are passed over.
func (b *Bucket) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		w := &walker{ctx: ctx, b: b, prefix: prefix, after: startAfter, yield: yield}
		if err := w.run(); err != nil && !errors.Is(err, errStop) {
			yield(storage.Info{}, b.fail("list", prefix, err))
		}
	}
}

// errStop ends a listing whose consumer has seen enough.
var errStop = errors.New("stopped")

type walker struct {
	ctx    context.Context
	b      *Bucket
	prefix string
	after  string
	yield  func(storage.Info, error) bool
}

func (w *walker) run() error {
	if err := storage.CheckPrefix(w.prefix); err != nil {
		return err
	}
	if err := storage.CheckPrefix(w.after); err != nil {
		return err
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	root, err := w.b.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	base, _ := split(w.prefix)
	dir, err := w.b.openDir(root, base)
	switch {
	case errors.Is(err, unix.ENOENT):
		return w.b.checkRoot()
	case err != nil:
		return err
	}
	if base != "" {
		base += "/"
	}
	if err := w.walk(dir, base); err != nil {
		return err
	}
	// Nothing found in a folder that is gone is no answer.
	return w.b.checkRoot()
}

// entry is one object, or one directory if its name ends with a slash: so the
// order of the names is the order of the keys ("a-b" before "a/b", "a0" after).
type entry string

func (e entry) isDir() bool { return strings.HasSuffix(string(e), "/") }

// walk lists the directory at, whose keys begin with base, and closes it.
func (w *walker) walk(at *os.File, base string) error {
	defer at.Close()
	entries, err := w.entries(at, base)
	if err != nil {
		return err
	}
	for i, e := range entries {
		entries[i] = "" // let go of what was listed
		if i%batch == 0 {
			if err := w.ctx.Err(); err != nil {
				return err
			}
		}
		if err := w.visit(at, base, e); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) visit(at *os.File, base string, e entry) error {
	if e.isDir() {
		name := strings.TrimSuffix(string(e), "/")
		sub, err := openFileAt(at, name, openDirFlags)
		if errors.Is(err, unix.ENOENT) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		return w.walk(sub, base+string(e))
	}
	st, err := lstatat(at, string(e))
	if errors.Is(err, unix.ENOENT) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if !w.yield(infoOf(base+string(e), st), nil) {
		return errStop
	}
	return nil
}

// entries reads the names that can lead to a key of the listing, in order.
func (w *walker) entries(at *os.File, base string) ([]entry, error) {
	var entries []entry
	for {
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		some, err := at.ReadDir(batch)
		for _, d := range some {
			if !storage.ValidComponent(d.Name()) {
				continue
			}
			switch d.Type() {
			case 0:
				if key := base + d.Name(); key > w.after && strings.HasPrefix(key, w.prefix) {
					entries = append(entries, entry(d.Name()))
				}
			case os.ModeDir:
				if w.wanted(base + d.Name() + "/") {
					entries = append(entries, entry(d.Name()+"/"))
				}
			case os.ModeSymlink:
				return nil, errSymlink(base + d.Name())
			default:
				return nil, errSpecial(base + d.Name())
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(entries)
	return entries, nil
}

// wanted says whether a directory, with a slash at its end, can hold keys of
// the listing.
func (w *walker) wanted(dir string) bool {
	return strings.HasPrefix(dir, w.prefix) && (dir > w.after || strings.HasPrefix(w.after, dir))
}

// Folders yields the names of the folders below prefix that hold objects; see
// storage.Bucket.
func (b *Bucket) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return storage.SkipFolders(ctx, b, prefix)
}

// Versions yields nothing: a file has one version.
func (b *Bucket) Versions(context.Context, string) iter.Seq2[storage.Info, error] {
	return storage.NoVersions()
}

// GetVersion finds no version.
func (b *Bucket) GetVersion(_ context.Context, key, _ string) (io.ReadCloser, storage.Info, error) {
	return nil, storage.Info{}, b.fail("get", key, storage.ErrNotExist)
}
