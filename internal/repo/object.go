package repo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/storage"
)

// headSize is how much of an object is enough to find the hash of its raw
// bytes: age stanzas and skippable frames put it first.
const headSize = 4096

// hashedHead begins an object that any host may write again: the SHA-256 of
// its raw bytes, in a stanza of the age header or in a skippable frame, lets
// a writer without identity tell "the same again" from "other bytes".
func hashedHead(dst io.Writer, to crypto.Recipients, sum [32]byte) (io.WriteCloser, error) {
	if !to.Empty() {
		return to.Seal(dst, &sum)
	}
	_, err := dst.Write(compress.AppendSkippable(nil, sum[:]))
	return nopCloser{dst}, err
}

// headHash finds the raw SHA-256 in the first bytes of an object.
func headHash(head []byte) (sum [32]byte, ok bool, err error) {
	if crypto.IsSealed(head) {
		return crypto.HeaderHash(head)
	}
	payload, _, ok := compress.ParseSkippable(head)
	if !ok || len(payload) != len(sum) {
		return sum, false, nil
	}
	return [32]byte(payload), true, nil
}

// sealWriter begins an object whose key only one writer can own.
func sealWriter(dst io.Writer, to crypto.Recipients) (io.WriteCloser, error) {
	if to.Empty() {
		return nopCloser{dst}, nil
	}
	return to.Seal(dst, nil)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// putOwned creates an object below a key that nobody else writes (a claimed
// backup's), in all places that are in use. debt is what a best-effort place
// that fails owes then.
func (r *Repository) putOwned(ctx context.Context, key, debt string, src storage.Source) (storage.Info, error) {
	var mu sync.Mutex
	var stored storage.Info
	err := r.everywhere(ctx, debt, func(ctx context.Context, p *place) error {
		info, err := p.putOwned(ctx, key, src, storage.PutOptions{Lock: p.lock(r.now())})
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			stored = info
		}
		return err
	})
	return stored, err
}

// putOwned creates an object there. "Exists already" can only be our own
// earlier attempt whose answer was lost; that is believed if size and first
// bytes agree: a sealed object begins with a random key, an unsealed one with
// our own data.
func (p *place) putOwned(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	info, err := p.Bucket.Put(ctx, key, src, opts)
	if !errors.Is(err, storage.ErrExists) {
		return info, err
	}
	there, serr := p.Bucket.Stat(ctx, key)
	if serr != nil {
		return info, fmt.Errorf("look at object that exists already: %w", serr)
	}
	if there.Size != src.Size() {
		return info, err
	}
	n := min(src.Size(), headSize)
	stored, gerr := p.Bucket.GetRange(ctx, key, 0, n)
	if gerr != nil {
		return info, fmt.Errorf("look at object that exists already: %w", gerr)
	}
	head, gerr := io.ReadAll(stored)
	if gerr = errors.Join(gerr, stored.Close()); gerr != nil {
		return info, fmt.Errorf("look at object that exists already: %w", gerr)
	}
	ours, gerr := src.Open()
	if gerr != nil {
		return info, gerr
	}
	sum := sha256.New()
	body := io.TeeReader(ours, sum)
	mine, gerr := io.ReadAll(io.LimitReader(body, n))
	if gerr == nil {
		_, gerr = io.Copy(io.Discard, body)
	}
	if gerr = errors.Join(gerr, ours.Close()); gerr != nil {
		return info, fmt.Errorf("hash object: %w", gerr)
	}
	if !bytes.Equal(head, mine) {
		return info, err
	}
	there.SHA256 = [32]byte(sum.Sum(nil))
	return there, nil
}

// object is an opened object: raw bytes come out of Read.
type object struct {
	body io.ReadCloser
	raw  io.ReadCloser
	want *[32]byte // SHA-256 of the raw bytes, if the object carries it
	hash hash.Hash
	key  string
}

// openObject reads a sealed or plain object as a stream of raw bytes and
// checks the hash it carries. Errors about its content are Damaged and name
// the key; errors of the store stay what they are.
func (s source) openObject(ctx context.Context, key string) (*object, error) {
	body, _, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	o, err := s.newObject(body, key)
	if err != nil {
		return nil, errors.Join(err, body.Close())
	}
	return o, nil
}

func (s source) newObject(body io.ReadCloser, key string) (*object, error) {
	src := &storeReader{r: body}
	head, br, err := peek(src)
	if err != nil {
		return nil, src.orDamaged(s, err, key)
	}
	o := &object{body: body, key: key}
	sum, ok, err := headHash(head)
	if err != nil {
		return nil, s.damaged(err, key)
	}
	if ok {
		o.want, o.hash = &sum, sha256.New()
	}
	var frames io.Reader = br
	if crypto.IsSealed(head) {
		if frames, err = s.repo.keys.Identities.Open(br); err != nil {
			return nil, src.orDamaged(s, err, key)
		}
	}
	o.raw = &checkedReader{src: src, from: s, object: o, rc: compress.NewReader(frames)}
	return o, nil
}

// Read gives raw bytes; at the end the hash is compared.
func (o *object) Read(p []byte) (int, error) { return o.raw.Read(p) }

// Close gives up the transfer.
func (o *object) Close() error { return errors.Join(o.raw.Close(), o.body.Close()) }

// checkedReader names the object in each error about its content.
type checkedReader struct {
	src    *storeReader
	from   source
	object *object
	rc     io.ReadCloser
}

func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := c.rc.Read(p)
	o := c.object
	if o.hash != nil {
		o.hash.Write(p[:n])
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		if o.hash != nil && [32]byte(o.hash.Sum(nil)) != *o.want {
			return n, c.from.damaged(errors.New("the SHA-256 of its raw bytes is not the one it carries"), o.key)
		}
	default:
		err = c.src.orDamaged(c.from, err, o.key)
	}
	return n, err
}

func (c *checkedReader) Close() error { return c.rc.Close() }

// storeReader remembers an error of the transfer itself, so that a cut
// connection is not reported as a damaged object.
type storeReader struct {
	r   io.Reader
	err error
}

func (s *storeReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *storeReader) orDamaged(r source, err error, key string) error {
	if s.err != nil {
		return fmt.Errorf("read %s of %s: %w", key, r, s.err)
	}
	if errs.KindOf(err) == errs.Identity {
		return fmt.Errorf("open %s of %s: %w", key, r, err)
	}
	return r.damaged(err, key)
}

// timestamp is how times are written in the repository's JSON.
func timestamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// peek returns the first bytes of src, enough to tell what it is, and a reader
// that still has them.
func peek(src io.Reader) (head []byte, rest *bufio.Reader, err error) {
	rest = bufio.NewReaderSize(src, 64<<10)
	head, err = rest.Peek(headSize)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head, rest, err
}
