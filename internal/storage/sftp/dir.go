package sftp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/pkg/sftp"

	"agent/internal/errs"
	"agent/internal/storage"
)

// create makes the folder of the repository and those above it.
func (b *Bucket) create(ctx context.Context) error {
	c, release, err := b.pool.acquire(ctx)
	if err == nil {
		defer release()
		err = b.makeAll(ctx, c, b.root)
		if err == nil {
			err = b.checkRoot(ctx, c)
		} else {
			err = b.explain(ctx, c, err, 1)
		}
	}
	if err != nil {
		kind := errs.Storage
		if err = translate(err); errors.Is(err, storage.ErrNoSpace) {
			kind = errs.NoSpace
		}
		return errs.Wrap(err, kind, "Check that the user may create the folder on the server, or create it for this user.",
			"repository folder %s cannot be created", b.url)
	}
	return nil
}

// makeAll makes the directory p, and those above it that are missing, and
// syncs what is above each: those that somebody else made a moment ago too.
func (b *Bucket) makeAll(ctx context.Context, c *conn, p string) error {
	err := b.mkdir(ctx, c, p)
	if errors.Is(err, os.ErrNotExist) && p != "/" {
		if err := b.makeAll(ctx, c, path.Dir(p)); err != nil {
			return err
		}
		err = b.mkdir(ctx, c, p)
	}
	return err
}

// mkdir makes one directory, or finds it. os.ErrNotExist means that the one
// above is missing.
func (b *Bucket) mkdir(ctx context.Context, c *conn, p string) error {
	err := do(ctx, b, func() error { return c.sftp.Mkdir(p) })
	if err == nil {
		b.restrict(ctx, c, p, dirMode)
		return b.syncDir(ctx, c, path.Dir(p))
	}
	if !answered(err) || errors.Is(err, os.ErrNotExist) {
		return err
	}
	// "Failure" is the answer when it is there already, and some systems say
	// so of a directory above which may not be written.
	st, serr := b.lstat(ctx, c, p)
	switch {
	case errors.Is(serr, os.ErrNotExist) && vague(err):
		// A full disk, or it was there and a Delete removed it.
		if err = b.explain(ctx, c, err, 1); errors.Is(err, storage.ErrNoSpace) || errors.Is(err, storage.ErrPermission) {
			return err
		}
		return fmt.Errorf("%w, or cannot be made: %w", errRaced, err)
	case errors.Is(serr, os.ErrNotExist):
		return err
	case serr != nil:
		return serr
	case st.IsDir():
		return b.syncDir(ctx, c, path.Dir(p))
	case st.Mode()&os.ModeSymlink != 0:
		return errSymlink(p)
	default:
		return fmt.Errorf("%w: a part of the key is an object", storage.ErrKey)
	}
}

// makeDir makes the directory of a key, never the root.
func (b *Bucket) makeDir(ctx context.Context, c *conn, dir string) error {
	if dir != "" {
		err := b.mkdir(ctx, c, b.at(dir))
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if up := above(dir); up != "" {
			if err := b.makeDir(ctx, c, up); err != nil {
				return err
			}
			if err = b.mkdir(ctx, c, b.at(dir)); !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	// What is above was removed by a Delete, or the root is not there.
	if err := b.checkRoot(ctx, c); err != nil {
		return err
	}
	return errRaced
}

// restrict takes from a new file or directory the permissions that the
// server's umask leaves but ours would not. It is no error if the server
// cannot: then its own settings rule.
func (b *Bucket) restrict(ctx context.Context, c *conn, p string, mode os.FileMode) {
	err := do(ctx, b, func() error {
		st, err := c.sftp.Lstat(p)
		if err != nil || st.Mode().Perm()&^mode == 0 {
			return err
		}
		return c.sftp.Chmod(p, st.Mode().Perm()&mode)
	})
	if err != nil && answered(err) && !errors.Is(err, os.ErrNotExist) && !b.modeIgnored.Swap(true) {
		b.log.Warn("the SFTP server does not let new files be closed to other users of the server", "bucket", b.url, "error", err.Error())
	}
}

func (b *Bucket) lstat(ctx context.Context, c *conn, p string) (os.FileInfo, error) {
	return call(ctx, b, func() (os.FileInfo, error) { return c.sftp.Lstat(p) })
}

// checkRoot returns an error unless the root is a directory.
func (b *Bucket) checkRoot(ctx context.Context, c *conn) error {
	// The root itself may be a symbolic link.
	st, err := call(ctx, b, func() (os.FileInfo, error) { return c.sftp.Stat(b.root) })
	if errors.Is(err, os.ErrNotExist) || err == nil && !st.IsDir() {
		return b.errVanished()
	}
	return err
}

// missing is the error for an object that was not found. A miss is believed
// only if the root is there now, and if no part of the key is a symbolic link
// that leads nowhere.
func (b *Bucket) missing(ctx context.Context, c *conn, key string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts []string
	var looks []future[os.FileInfo]
	for dir := above(key); dir != ""; dir = above(dir) {
		p := b.at(dir)
		parts = append(parts, dir)
		looks = append(looks, ask(ctx, b, func() (os.FileInfo, error) { return c.sftp.Lstat(p) }, nil))
	}
	if err := b.checkRoot(ctx, c); err != nil {
		return err
	}
	for i, look := range looks {
		st, err := look.wait()
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return err
		case st.Mode()&os.ModeSymlink != 0:
			return errSymlink(parts[i])
		}
	}
	return storage.ErrNotExist
}

// syncDir makes the names in a directory durable, where the server can. It
// does nothing where the user allowed a server without fsync.
func (b *Bucket) syncDir(ctx context.Context, c *conn, p string) error {
	if b.noDirSync.Load() || !c.has(extFsync) {
		return nil
	}
	d, err := b.openDir(ctx, c, p).wait()
	if err == nil {
		err = do(ctx, b, d.Sync)
		b.closeLater(d)
	}
	return b.dirSynced(err)
}

// openDir opens a directory as a file, which OpenSSH does.
func (b *Bucket) openDir(ctx context.Context, c *conn, p string) future[*sftp.File] {
	return ask(ctx, b, func() (*sftp.File, error) { return c.sftp.Open(p) }, b.closeLater)
}

// dirSynced looks at the result of opening and syncing a directory. An answer
// that is an error means that this server cannot.
func (b *Bucket) dirSynced(err error) error {
	switch {
	case err == nil, !answered(err):
		return err
	case errors.Is(err, os.ErrNotExist):
		return nil // removed, with the name in it
	}
	if !b.noDirSync.Swap(true) {
		b.log.Debug("the SFTP server cannot sync directories", "bucket", b.url, "error", err.Error())
	}
	return nil
}

// closeLater closes a file that is no longer needed, without waiting for the
// answer: it was synced or only read.
func (b *Bucket) closeLater(f *sftp.File) {
	b.tasks.Go(func() { _ = f.Close() })
}

// prune removes a directory if it is empty, and then those above it. The
// server refuses those that are not, so that this takes nothing from a Put
// that came first; one that comes later makes the directory again.
func (b *Bucket) prune(ctx context.Context, c *conn, dir string) {
	for dir != "" {
		p := b.at(dir)
		if do(ctx, b, func() error { return c.sftp.RemoveDirectory(p) }) != nil {
			return
		}
		dir = above(dir)
	}
}

// inRoot is a path on the server as a key, for messages.
func (b *Bucket) inRoot(p string) string {
	return strings.TrimPrefix(strings.TrimPrefix(p, b.root), "/")
}
