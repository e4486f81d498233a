package repo

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/storage"
)

// syncMemory is how much of an object stays in memory: a whole pack does.
const syncMemory = packTarget + packRoom

// taken is an object as it is stored, brought here and proved.
type taken struct {
	spool spool
	sum   Digest    // of the stored bytes
	raw   *[32]byte // the hash of the raw bytes that it carries; nil: none is known
}

// source is the body to send.
func (t *taken) source() storage.Source {
	if t.spool.file == nil {
		return storage.Bytes(t.spool.mem.Bytes())
	}
	return &t.spool
}

func (t *taken) head() ([]byte, error) {
	head := make([]byte, min(t.spool.Size(), headSize))
	if _, err := t.spool.readerAt().ReadAt(head, 0); err != nil {
		return nil, stateError(err)
	}
	return head, nil
}

// proof says whether an object is what was stored. Its errors about the object
// are Damaged.
type proof func(ctx context.Context, s source, key string, t *taken) error

// exactly proves an object whose size and hash are known.
func exactly(want ObjectDigest) proof {
	return func(_ context.Context, s source, key string, t *taken) error {
		if t.spool.Size() != want.Size {
			return s.damaged(fmt.Errorf("it has %d bytes instead of %d", t.spool.Size(), want.Size), key)
		}
		if t.sum != want.SHA256 {
			return s.damaged(errors.New("its SHA-256 is not that of what was stored"), key)
		}
		return nil
	}
}

// carried proves an object by the hash of its raw bytes at its beginning, which
// WAL has (must), and by its content if that can be opened here.
func carried(must bool) proof {
	return func(_ context.Context, s source, key string, t *taken) error {
		head, err := t.head()
		if err != nil {
			return err
		}
		sum, ok, err := headHash(head)
		switch {
		case err != nil:
			return s.damaged(err, key)
		case ok:
			t.raw = &sum
		case must:
			return s.damaged(errNoHash, key)
		}
		if crypto.IsSealed(head) && !s.repo.keys.Identities.Given() {
			return nil
		}
		body, err := t.spool.Open()
		if err != nil {
			return err
		}
		defer body.Close()
		o, err := s.newObject(body, key)
		if err == nil {
			_, err = io.Copy(io.Discard, o)
			err = errors.Join(err, o.Close())
		}
		if errs.KindOf(err) == errs.Identity {
			// This host holds other keys, or none of this class.
			return nil
		}
		return err
	}
}

// proofOf is how an object outside of a backup's folder is proved. ok is false
// for keys of a kind that is not known.
func proofOf(key string) (prove proof, ok bool) {
	_, folder, rest := splitKey(key)
	switch folder {
	case "cluster.json":
		return proveJSON, rest == ""
	case "wal", "history", "summary":
		return carried(true), rest != ""
	case "stream":
		return carried(false), rest != ""
	case "mark", "gap", "horizon", "audit", "drill", "dump":
		if strings.HasSuffix(rest, ".json") {
			return proveJSON, true
		}
		return func(context.Context, source, string, *taken) error { return nil }, rest != ""
	default:
		return nil, false
	}
}

func proveJSON(_ context.Context, s source, key string, t *taken) error {
	body, err := t.spool.Open()
	if err != nil {
		return err
	}
	defer body.Close()
	var value json.RawMessage
	d := json.NewDecoder(body)
	if err := d.Decode(&value); err != nil {
		return s.damaged(fmt.Errorf("decode: %w", err), key)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return s.damaged(errors.New("there is something behind its end"), key)
	}
	return nil
}

// splitKey takes "cluster/ID/folder/rest" apart; folder is empty for other keys.
func splitKey(key string) (id ClusterID, folder, rest string) {
	digits, rest, _ := strings.Cut(strings.TrimPrefix(key, clusterRoot), "/")
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || !strings.HasPrefix(key, ClusterID(n).prefix()) {
		return 0, "", ""
	}
	folder, rest, _ = strings.Cut(rest, "/")
	return ClusterID(n), folder, rest
}

// take brings an object here from the first of the places that has a good copy.
func (s *syncRun) take(ctx context.Context, from []*place, key string, prove proof) (*taken, error) {
	var got *taken
	err := s.repo.readFrom(ctx, from, key, expected, func(src source) (err error) {
		got, err = src.take(ctx, key, prove)
		return err
	})
	return got, err
}

func (s source) take(ctx context.Context, key string, prove proof) (*taken, error) {
	body, info, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	t := &taken{spool: spool{dir: s.repo.spoolDir, most: syncMemory}}
	if info.Size <= syncMemory {
		t.spool.mem.Grow(int(info.Size))
	}
	sum := sha256.New()
	src := &storeReader{r: io.TeeReader(body, sum)}
	_, err = io.Copy(&t.spool, src)
	if src.err != nil {
		err = fmt.Errorf("read %s of %s: %w", key, s, src.err)
	}
	t.sum = Digest(sum.Sum(nil))
	if err == nil {
		err = prove(ctx, s, key, t)
	}
	if err != nil {
		return nil, errors.Join(err, t.spool.Close())
	}
	return t, nil
}

// put creates an object at the target. What is there already must be the same.
func (s *syncRun) put(ctx context.Context, key string, t *taken) error {
	sum := [32]byte(t.sum)
	opts := storage.PutOptions{SHA256: &sum, Lock: s.target.lock(s.repo.now())}
	if t.raw == nil {
		_, err := s.target.putOwned(ctx, key, t.source(), opts)
		if errors.Is(err, storage.ErrExists) {
			if strings.HasSuffix(key, "/cluster.json") {
				return nil // another host's, of the same cluster
			}
			return s.conflict(key)
		}
		return s.atTarget(err)
	}
	// Hosts may have stored the same bytes in different ways.
	_, err := s.target.Bucket.Put(ctx, key, t.source(), opts)
	if errors.Is(err, storage.ErrExists) {
		if _, folder, _ := splitKey(key); folder == "summary" {
			return nil // perhaps of another version of the decoder: the first one stays
		}
		err = (source{repo: s.repo, place: s.target}).sameAsStored(ctx, key, *t.raw, err)
	}
	return s.atTarget(err)
}

func (s *syncRun) conflict(key string) error {
	return errs.New(errs.Conflict,
		"Nothing was replaced. Find out which of the two is right; agent backup-show and docs/format.md help. A damaged object can be removed by hand, if the store lets you, and is then brought back.",
		"%s of %s holds other bytes than the other repositories", key, s.target)
}

// batch copies several objects at a time.
type batch struct {
	*syncRun
	ctx    context.Context // ends when a copy fails for good
	group  *errgroup.Group
	behind bool // one stays behind; guarded by mu
}

func (s *syncRun) batch(ctx context.Context) *batch {
	b := &batch{syncRun: s}
	b.group, b.ctx = errgroup.WithContext(ctx)
	b.group.SetLimit(max(s.opts.Concurrency, 1))
	return b
}

// wait ends the batch; err is what ended the loop that fed it. whole says that
// nothing stays behind.
func (b *batch) wait(err error) (whole bool, _ error) {
	if failed := b.group.Wait(); failed != nil {
		err = failed // it ended the loop, too
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.behind, err
}

// copy brings an object to the target, as soon as there is room. size is for
// DryRun. done, which may be nil, is called when it has arrived.
func (b *batch) copy(key string, size int64, prove proof, done func() error) {
	if b.opts.DryRun {
		b.arrived(size)
		return
	}
	b.group.Go(func() error {
		t, err := b.take(b.ctx, b.sources, key, prove)
		if err == nil {
			err = errors.Join(b.put(b.ctx, key, t), t.spool.Close())
		}
		switch {
		case err == nil:
			b.arrived(t.spool.Size())
			if done != nil {
				return done()
			}
			return nil
		case own(err):
			b.leave(key, err)
			return nil
		default:
			return err
		}
	})
}

// leave notes that an object stays behind.
func (b *batch) leave(key string, err error) {
	b.problem(key, missing(err, key, joined(b.sources)))
	b.mu.Lock()
	b.behind = true
	b.mu.Unlock()
}

// same compares an object that the target has with other bytes, by length, than
// a source. WAL may have been stored in different ways.
func (b *batch) same(r row) {
	b.group.Go(func() error {
		_, folder, _ := splitKey(r.key)
		switch folder {
		case "cluster.json", "summary":
			return nil // of another host
		case "wal", "history":
			err := b.sameWAL(r)
			if err != nil && own(err) {
				b.leave(r.key, err)
				return nil
			}
			return err
		default:
			b.leave(r.key, b.conflict(r.key))
			return nil
		}
	})
}

func (b *batch) sameWAL(r row) error {
	var want [32]byte
	err := b.repo.readFrom(b.ctx, b.sources, r.key, expected, func(s source) (err error) {
		want, err = s.carriedHash(b.ctx, r.key)
		return err
	})
	if err != nil {
		return err
	}
	exists := &storage.Error{Op: "put", Bucket: b.target.String(), Key: r.key, Err: storage.ErrExists}
	return b.atTarget((source{repo: b.repo, place: b.target}).sameAsStored(b.ctx, r.key, want, exists))
}

// carriedHash reads the hash at the beginning of an object.
func (s source) carriedHash(ctx context.Context, key string) (sum [32]byte, err error) {
	body, info, err := s.get(ctx, key)
	if err != nil {
		return sum, err
	}
	head := make([]byte, min(info.Size, headSize))
	_, err = io.ReadFull(body, head)
	if err = errors.Join(err, body.Close()); err != nil {
		return sum, fmt.Errorf("look at %s of %s: %w", key, s, err)
	}
	sum, ok, err := headHash(head)
	if err == nil && !ok {
		err = errNoHash
	}
	if err != nil {
		return sum, s.damaged(err, key)
	}
	return sum, nil
}
