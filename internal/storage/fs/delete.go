package fs

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

// Delete removes objects; see storage.Bucket. What was removed is durable when
// it returns, so that an object removed by one call cannot outlive, after a
// crash, one removed by a later call. Directories that became empty are
// removed too, never the root.
func (b *Bucket) Delete(ctx context.Context, keys ...string) error {
	var failed []error
	fail := func(key string, err error) { failed = append(failed, b.fail("delete", key, err)) }
	byDir := make(map[string][]string)
	var dirs []string
	for _, key := range keys {
		if err := storage.CheckKey(key); err != nil {
			fail(key, err)
			continue
		}
		dir, _ := split(key)
		if byDir[dir] == nil {
			dirs = append(dirs, dir)
		}
		byDir[dir] = append(byDir[dir], key)
	}
	if len(dirs) == 0 && len(failed) > 0 {
		return errors.Join(failed...)
	}
	root, err := b.openRoot()
	if err != nil {
		for _, dir := range dirs {
			for _, key := range byDir[dir] {
				fail(key, err)
			}
		}
		return errors.Join(failed...)
	}
	defer root.Close()
	for _, dir := range dirs {
		b.deleteIn(ctx, root, dir, byDir[dir], fail)
	}
	return errors.Join(failed...)
}

// deleteIn removes keys that are in one directory.
func (b *Bucket) deleteIn(ctx context.Context, root *os.File, dir string, keys []string, fail func(string, error)) {
	parent, err := b.openDir(root, dir)
	if errors.Is(err, unix.ENOENT) {
		if err = b.checkRoot(); err == nil {
			err = ctx.Err()
		}
		if err == nil {
			return
		}
	}
	if err != nil {
		for _, key := range keys {
			fail(key, err)
		}
		return
	}
	defer parent.Close()
	var removed []string
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			fail(key, err)
			continue
		}
		_, base := split(key)
		switch err := unix.Unlinkat(int(parent.Fd()), base, 0); {
		case err == nil, errors.Is(err, unix.ENOENT):
			removed = append(removed, key)
		case errors.Is(err, unix.EISDIR):
			// A part of longer keys: there is no object of this name.
		default:
			fail(key, &os.PathError{Op: "unlink", Path: base, Err: err})
		}
	}
	if len(removed) == 0 {
		return
	}
	if err := b.sys.syncDir(parent); err != nil {
		for _, key := range removed {
			fail(key, err)
		}
		return
	}
	b.prune(root, dir)
}

// prune removes the directory if it is empty, and then those above it. The
// kernel refuses those that are not empty, so that this takes nothing from a
// Put that came first; one that comes later makes the directory again.
func (b *Bucket) prune(root *os.File, dir string) {
	for dir != "" {
		above, base := split(dir)
		parent, err := b.openDir(root, above)
		if err != nil {
			return
		}
		err = unix.Unlinkat(int(parent.Fd()), base, unix.AT_REMOVEDIR)
		parent.Close()
		if err != nil {
			return
		}
		dir = above
	}
}
