package sftp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"

	"github.com/pkg/sftp"

	"agent/internal/errs"
	"agent/internal/storage"
)

// temp is an unfinished file.
type temp struct {
	b    *Bucket
	c    *conn
	f    *sftp.File
	path string // empty when it was removed or renamed
	// restricted is closed when the file's permissions were looked at.
	restricted chan struct{}
	// dir is the directory, opened to sync it. The unfinished file in it keeps
	// it from being removed.
	dir     future[*sftp.File]
	letGo   context.CancelFunc // of the two above
	settled bool               // nothing is left to undo
}

// newTemp creates an unfinished file beside a key. os.ErrNotExist means that
// the directory is missing.
func (b *Bucket) newTemp(ctx context.Context, c *conn, key string) (*temp, error) {
	dir := above(key)
	p := path.Join(b.at(dir), storage.TempPrefix+rand.Text())
	f, err := ask(ctx, b, func() (*sftp.File, error) {
		f, err := c.sftp.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
		if !answered(err) {
			b.abandon(p)
		}
		return f, err
	}, func(f *sftp.File) {
		_ = f.Close() // it is empty
		b.removeTemp(c, p)
	}).wait()
	if err != nil {
		return nil, err
	}
	t := &temp{b: b, c: c, f: f, path: p, restricted: make(chan struct{})}
	beside, cancel := context.WithCancel(ctx)
	t.letGo = cancel
	b.tasks.Go(func() {
		defer close(t.restricted)
		b.restrict(beside, c, p, fileMode)
	})
	if c.has(extFsync) && !b.noDirSync.Load() {
		t.dir = b.openDir(beside, c, b.at(dir))
	}
	return t, nil
}

// send writes the body. When ctx is done it waits only as long for the server
// as a healthy one takes, since the library cannot be interrupted otherwise.
func (t *temp) send(ctx context.Context, s *sink, size int64) error {
	longer, stop := outlive(ctx)
	defer stop()
	kill := context.AfterFunc(longer, t.c.kill)
	defer kill()
	packets := size/int64(t.c.packet) + 1
	_, err := t.f.ReadFromWithConcurrency(s, int(min(packets, parallel)))
	switch {
	case s.err != nil:
		return s.err
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return t.b.explain(ctx, t.c, err, size)
	case s.left > 0:
		return fmt.Errorf("%w: it is %d bytes short", storage.ErrBadLength, s.left)
	}
	return nil
}

// sync makes the file's bytes durable.
func (t *temp) sync(ctx context.Context) error {
	if !t.c.has(extFsync) {
		return ctx.Err()
	}
	if err := do(ctx, t.b, t.f.Sync); err != nil {
		return t.b.explain(ctx, t.c, err, 1)
	}
	return nil
}

// publish gives the finished file its name and makes the name durable. When
// only the last sync fails, the object stays: another creator may have been
// told already that it exists.
func (t *temp) publish(ctx context.Context, final string) error {
	select {
	case <-t.restricted:
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, stop := outlive(ctx)
	defer stop()
	if err := t.name(ctx, final); err != nil {
		return err
	}
	removed := t.remove(ctx)
	err := t.syncName(ctx)
	removed() // it is noted if it fails, and the object is there all the same
	return err
}

// name is the create-if-absent.
func (t *temp) name(ctx context.Context, final string) error {
	link, how := t.c.sftp.Link, "link"
	if !t.c.has(extHardlink) {
		link, how = t.c.sftp.Rename, "rename"
	}
	err := do(ctx, t.b, func() error { return link(t.path, final) })
	switch {
	case err == nil:
		if how == "rename" {
			t.path = ""
		}
		return nil
	case !answered(err):
		return err
	case errors.Is(err, os.ErrNotExist):
		// Somebody removed the unfinished file.
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, errRaced)
	}
	// "Failure" is the answer when the name is taken.
	st, serr := t.b.lstat(ctx, t.c, final)
	switch {
	case serr == nil:
		return t.b.occupied(ctx, t.c, final, st)
	case !errors.Is(serr, os.ErrNotExist):
		return serr
	}
	if vague(err) {
		return t.b.explain(ctx, t.c, err, 1)
	}
	// Linux says EPERM of a file system that has no hard links (link(2)).
	return errs.Wrap(fmt.Errorf("%w: %w", storage.ErrUnsupported, err), errs.Storage,
		"Use another file system on the server, one with hard links, or another kind of repository.",
		"the server cannot %s a finished file to a free name, so that no object can be created safely", how)
}

// syncName makes the new name durable.
func (t *temp) syncName(ctx context.Context) error {
	if !t.c.has(extFsync) {
		return nil
	}
	if t.dir.done != nil {
		d, err := t.dir.wait()
		if err == nil {
			err = do(ctx, t.b, d.Sync)
			t.b.closeLater(d)
		}
		if err := t.b.dirSynced(err); err != nil {
			return err
		}
	}
	if !t.b.noDirSync.Load() {
		return nil
	}
	return do(ctx, t.b, t.f.Sync)
}

// remove removes the unfinished name, and returns what waits for that.
func (t *temp) remove(ctx context.Context) func() {
	p := t.path
	if p == "" {
		return func() {}
	}
	t.path = ""
	r := ask(ctx, t.b, func() (struct{}, error) {
		t.b.removeTemp(t.c, p)
		return struct{}{}, nil
	}, nil)
	return func() { _, _ = r.wait() }
}

// removeTemp removes an unfinished file, or notes it.
func (b *Bucket) removeTemp(c *conn, p string) {
	if err := c.sftp.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.abandon(p)
	}
}

// discard gives up the file, as far as it has no other name yet. Its errors
// would say nothing new: a published file was synced, and an unfinished one
// that stays is hidden from every reader, and removed later.
func (t *temp) discard(ctx context.Context) {
	if t.settled {
		return
	}
	t.settled = true
	t.letGo()
	ctx, stop := outlive(ctx)
	defer stop()
	t.remove(ctx)()
	t.b.closeLater(t.f)
}

// abandon notes an unfinished file that could not be removed.
func (b *Bucket) abandon(p string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.abandoned) < 1000 { // else Clean will find it
		b.abandoned = append(b.abandoned, p)
	}
}

// sweep removes what broken connections left, by a new one, beside what its
// caller does.
func (b *Bucket) sweep(c *conn) {
	b.mu.Lock()
	left := b.abandoned
	b.abandoned = nil
	b.mu.Unlock()
	for _, p := range left {
		b.tasks.Go(func() {
			// A second refusal is left to Clean.
			if err := c.sftp.Remove(p); !answered(err) {
				b.abandon(p)
			}
		})
	}
}

// sink is the body as the library reads it: hashed, and held to its length.
type sink struct {
	ctx  context.Context
	body io.Reader
	hash hash.Hash
	left int64 // bytes still to come
	err  error // why reading ended, if not at the end of the body
}

func (s *sink) Read(p []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.body.Read(p)
	s.hash.Write(p[:n])
	s.left -= int64(n)
	switch {
	case s.left < 0:
		s.err = fmt.Errorf("%w: it is longer", storage.ErrBadLength)
	case err != nil && !errors.Is(err, io.EOF):
		s.err = &bodyError{err}
	default:
		return n, err
	}
	return 0, s.err
}
