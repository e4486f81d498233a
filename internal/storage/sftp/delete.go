package sftp

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"agent/internal/storage"
)

// Delete removes objects; see storage.Bucket. What was removed is durable when
// it returns, where the server can sync directories. Directories that became
// empty are removed too, never the root.
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
		dir := above(key)
		if byDir[dir] == nil {
			dirs = append(dirs, dir)
		}
		byDir[dir] = append(byDir[dir], key)
	}
	if len(dirs) == 0 {
		return errors.Join(failed...)
	}
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		for _, dir := range dirs {
			for _, key := range byDir[dir] {
				fail(key, err)
			}
		}
		return errors.Join(failed...)
	}
	defer release()
	for _, dir := range dirs {
		b.deleteIn(ctx, c, dir, byDir[dir], fail)
	}
	return errors.Join(failed...)
}

// deleteIn removes keys that are in one directory, many at a time.
func (b *Bucket) deleteIn(ctx context.Context, c *conn, dir string, keys []string, fail func(string, error)) {
	var removed, missed []string
	for len(keys) > 0 {
		some := keys[:min(len(keys), parallel)]
		keys = keys[len(some):]
		removals := make([]future[bool], len(some))
		for i, key := range some {
			removals[i] = ask(ctx, b, func() (bool, error) { return b.remove(c, b.at(key)) }, nil)
		}
		for i, key := range some {
			switch found, err := removals[i].wait(); {
			case err != nil:
				fail(key, err)
			case found:
				removed = append(removed, key)
			default:
				missed = append(missed, key)
			}
		}
	}
	if len(missed) > 0 {
		if err := b.checkRoot(ctx, c); err != nil {
			for _, key := range missed {
				fail(key, err)
			}
			return
		}
	}
	if len(removed) > 0 {
		if err := b.syncDir(ctx, c, b.at(dir)); err != nil {
			for _, key := range removed {
				fail(key, err)
			}
			return
		}
	}
	b.prune(ctx, c, dir)
}

// remove removes one file, and says whether there was one.
func (b *Bucket) remove(c *conn, p string) (bool, error) {
	err := c.sftp.Remove(p)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	case !answered(err):
		return false, err
	}
	// A directory is a part of longer keys: there is no object of this name.
	if st, serr := c.sftp.Lstat(p); errors.Is(serr, os.ErrNotExist) || serr == nil && st.IsDir() {
		return false, nil
	}
	return false, err
}

// Clean removes unfinished files that were last written before the given time,
// by the server's clock, and returns how many. Only a Put whose connection
// broke or that was killed leaves one; take a time well before the start of
// any Put that may still run. Errors are *storage.Error.
func (b *Bucket) Clean(ctx context.Context, before time.Time) (int, error) {
	n, err := b.clean(ctx, before)
	if err != nil {
		return n, b.fail("clean", "", err)
	}
	return n, nil
}

func (b *Bucket) clean(ctx context.Context, before time.Time) (int, error) {
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	if err := b.checkRoot(ctx, c); err != nil {
		return 0, err
	}
	total := 0
	dirs := []string{b.root}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		list, err := call(ctx, b, func() ([]os.FileInfo, error) { return c.sftp.ReadDir(dir) })
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return total, err
		}
		for _, st := range list {
			p := dir + "/" + st.Name()
			switch {
			case st.IsDir() && storage.ValidComponent(st.Name()):
				dirs = append(dirs, p)
			case st.Mode().IsRegular() && strings.HasPrefix(st.Name(), storage.TempPrefix) && st.ModTime().Before(before):
				err := do(ctx, b, func() error { return c.sftp.Remove(p) })
				if err == nil {
					total++
				} else if !errors.Is(err, os.ErrNotExist) {
					return total, err
				}
			}
		}
	}
	return total, nil
}
