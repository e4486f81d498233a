package sftp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/pkg/sftp"

	"agent/internal/errs"
	"agent/internal/storage"
)

// attempts bounds how often a Put begins again because a Delete removed the
// directory it was about to use.
const attempts = 100

// parallel is how many read or write requests of one file are under way at a
// time; with 32 KiB each they fill the 2 MiB window of an SSH channel.
const parallel = 64

// Put creates the object; see storage.Bucket. The body is read, hashed and
// sent once, in pieces of at most 255 KiB, of which the SSH window lets 2 MiB
// be under way. ErrExists is returned only after the directory was synced.
// Metadata is dropped. Five answers of the server are waited for, and as many
// more as the body has windows.
//
// A Put that is cancelled before the object has its name undoes what it did,
// and takes up to three seconds for it where the server does not answer. From
// then on it is brought to its end all the same.
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
		return storage.Info{}, fmt.Errorf("%w: an SFTP server cannot lock files", storage.ErrUnsupported)
	}
	if src.Size() < 0 {
		return storage.Info{}, fmt.Errorf("%w: %d bytes", storage.ErrBadLength, src.Size())
	}
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		return storage.Info{}, err
	}
	defer release()
	if !c.has(extFsync) && !b.o.AllowNoFsync {
		return storage.Info{}, errs.Wrap(storage.ErrUnsupported, errs.Storage,
			"Use OpenSSH 6.5 or later on the server, and let this user write; or allow servers without it, if losing objects to a crash of the server is acceptable.",
			"the SFTP server cannot sync files (%s)", extFsync)
	}
	b.sweep(c)
	tmp, err := b.prepare(ctx, c, key)
	if err != nil {
		return storage.Info{}, b.explain(ctx, c, err, 1)
	}
	defer tmp.discard(ctx)
	info, err := tmp.write(ctx, src, opts)
	if err != nil {
		return storage.Info{}, err
	}
	info.Key = key
	return info, tmp.publish(ctx, b.at(key))
}

// prepare opens the unfinished file in the object's directory, and makes that
// if it is missing. At the same time it looks for the object, only to save the
// copy; the link decides.
func (b *Bucket) prepare(ctx context.Context, c *conn, key string) (*temp, error) {
	dir := above(key)
	raced := errRaced
	for range attempts {
		tmp, err := b.begin(ctx, c, key)
		if !errors.Is(err, os.ErrNotExist) {
			return tmp, err
		}
		if err := b.makeDir(ctx, c, dir); errors.Is(err, errRaced) {
			raced = err
		} else if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %w", storage.ErrUnavailable, raced)
}

func (b *Bucket) begin(ctx context.Context, c *conn, key string) (*temp, error) {
	looking, cancel := context.WithCancel(ctx)
	defer cancel()
	final := b.at(key)
	look := ask(looking, b, func() (os.FileInfo, error) { return c.sftp.Lstat(final) }, nil)
	tmp, err := b.newTemp(ctx, c, key)
	if err != nil {
		return nil, err
	}
	st, err := look.wait()
	if errors.Is(err, os.ErrNotExist) {
		return tmp, nil
	}
	if err == nil {
		err = b.occupied(ctx, c, final, st)
	}
	tmp.discard(ctx)
	return nil, err
}

// occupied is the error for what has the name of the object: ErrExists if it
// is one, which is durable then.
func (b *Bucket) occupied(ctx context.Context, c *conn, final string, st os.FileInfo) error {
	switch {
	case st.Mode().IsRegular():
		if err := b.settle(ctx, c, final); err != nil {
			return err
		}
		return storage.ErrExists
	case st.IsDir():
		return fmt.Errorf("%w: there are objects below it", storage.ErrKey)
	case st.Mode()&os.ModeSymlink != 0:
		return errSymlink(b.inRoot(final))
	default:
		return errSpecial(b.inRoot(final))
	}
}

// settle makes the name of somebody else's object durable: he may have died
// between the link and the sync.
func (b *Bucket) settle(ctx context.Context, c *conn, final string) error {
	if err := b.syncDir(ctx, c, path.Dir(final)); err != nil {
		return err
	}
	if !b.noDirSync.Load() || !c.has(extFsync) {
		return nil
	}
	f, err := ask(ctx, b, func() (*sftp.File, error) { return c.sftp.Open(final) }, b.closeLater).wait()
	if err != nil {
		return err
	}
	defer b.closeLater(f)
	return do(ctx, b, f.Sync)
}

// write sends the body and makes it durable under the unfinished file's name.
func (t *temp) write(ctx context.Context, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	body, err := src.Open()
	if err != nil {
		return storage.Info{}, &bodyError{err}
	}
	s := &sink{ctx: ctx, body: body, hash: sha256.New(), left: src.Size()}
	err = t.send(ctx, s, src.Size())
	if cerr := body.Close(); err == nil && cerr != nil {
		err = &bodyError{cerr}
	}
	if err != nil {
		return storage.Info{}, err
	}
	info := storage.Info{Size: src.Size()}
	s.hash.Sum(info.SHA256[:0])
	if opts.SHA256 != nil && *opts.SHA256 != info.SHA256 {
		return storage.Info{}, fmt.Errorf("%w: %x, not %x", storage.ErrBadDigest, info.SHA256, *opts.SHA256)
	}
	return info, t.sync(ctx)
}
