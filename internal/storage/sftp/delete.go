package sftp

import (
	"context"
	"errors"
	"os"

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
