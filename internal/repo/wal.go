package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

// WALCheck is told every byte of a WAL file in order, and says at the end
// whether it is what its name says. Nothing is stored unless it agrees.
type WALCheck interface {
	io.Writer
	Close() error
}

// HashedWALCheck is a WALCheck that is told the SHA-256 of the bytes, too, before
// any of them is stored.
type HashedWALCheck interface {
	WALCheck
	Hashed(sum [32]byte)
}

// PutWAL archives a WAL file. The store decides that its key is new; if it is
// not, the raw SHA-256 that the stored object carries is compared: the same
// bytes are success (existed is true), other bytes a Conflict, which nothing
// here ever replaces. When PutWAL returns without error the file is durable in
// every required place. When a store could not be reached, what was sealed is
// kept for the next call.
//
// turn, if it is not nil, is waited for when the object is ready to be sent, and
// nothing is sent or kept if it fails: so files can be prepared side by side and
// stored in their order.
func (r *Repository) PutWAL(ctx context.Context, cluster ClusterID, f postgres.WALFile, src io.ReadSeeker, size int64, check WALCheck, turn func(context.Context) error) (existed bool, err error) {
	b := r.newWALBuilder(cluster, f, check)
	body, err := b.build(src, size)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if turn != nil {
		if err := turn(ctx); err != nil {
			return false, err
		}
	}
	existed, err = r.putHashed(ctx, cluster.WALKey(f, b.sum), b.sum, body)
	if err != nil && (isOutage(err) || ctx.Err() != nil) {
		if turn == nil {
			b.keep(body)
		}
	} else {
		b.forget()
	}
	return existed, err
}

// putHashed stores an object that carries the hash of its raw bytes wherever it
// must be. That it is there already is success if it carries the same hash.
func (r *Repository) putHashed(ctx context.Context, key string, sum [32]byte, body *walBody) (existed bool, err error) {
	var there atomic.Bool
	err = r.everywhere(ctx, key, func(ctx context.Context, p *place) error {
		_, err := p.Bucket.Put(ctx, key, body, storage.PutOptions{SHA256: body.sum, Unhashed: true, Lock: p.lock(r.now())})
		if !errors.Is(err, storage.ErrExists) {
			return err
		}
		there.Store(true)
		exists := err
		return r.readFrom(ctx, []*place{p}, key, expected, func(s source) error { return s.sameAsStored(ctx, key, sum, exists) })
	})
	return there.Load(), err
}

// sameAsStored compares our hash with the one at the start of the object that
// was there before; exists is the error to wrap.
func (s source) sameAsStored(ctx context.Context, key string, sum [32]byte, exists error) error {
	body, info, err := s.get(ctx, key)
	if err != nil {
		return fmt.Errorf("look at object that exists already: %w", err)
	}
	head := make([]byte, min(info.Size, headSize))
	_, err = io.ReadFull(body, head)
	if err = errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("look at object that exists already: %w", err)
	}
	stored, ok, err := headHash(head)
	switch {
	case err != nil:
		return s.damaged(err, key)
	case !ok:
		return s.damaged(errNoHash, key)
	case stored != sum:
		return errs.Wrap(exists, errs.Conflict,
			"Two servers archive into one place (after a failover, a clone or a restore), or this is the wrong repository. Nothing was replaced. Find out which server is the right one; on the other set archive_mode=off or another repository.",
			"%s of %s holds other bytes than this file", key, s)
	}
	return nil
}

var errNoHash = errors.New("it does not begin with the hash of its bytes")

// ReadWAL lets use take an archived WAL file as a stream of raw bytes, which
// proves at its end that they are those that were archived. If a copy turns out
// to be damaged, or its store fails, use is called again, from the beginning,
// with another copy. That there is no such file is storage.ErrNotExist. quick
// answers that without looking for older versions of an object that is hidden.
func (r *Repository) ReadWAL(ctx context.Context, cluster ClusterID, f postgres.WALFile, quick bool, use func(io.Reader) error) error {
	return r.readWAL(ctx, cluster, f, quick, true, use)
}

// ReadSegment is ReadWAL for a segment whose pages use checks, as a
// postgres.SegmentChecker does: each frame's checksum proves its bytes and each
// page's address their order, and PostgreSQL checks each record besides. The
// SHA-256 of the whole, almost half of the work, adds nothing then.
func (r *Repository) ReadSegment(ctx context.Context, cluster ClusterID, f postgres.WALFile, quick bool, use func(io.Reader) error) error {
	return r.readWAL(ctx, cluster, f, quick, f.Kind != postgres.WALSegment, use)
}

func (r *Repository) readWAL(ctx context.Context, cluster ClusterID, f postgres.WALFile, quick, hashed bool, use func(io.Reader) error) error {
	how := expected
	if quick {
		how = probing
	}
	key := cluster.WALKey(f, [32]byte{})
	if f.Kind == postgres.WALPartial {
		var err error
		if key, err = r.partial(ctx, cluster, f); err != nil {
			return err
		}
	}
	return r.read(ctx, key, how, func(s source) error {
		o, err := s.openObject(ctx, key)
		if err != nil {
			return err
		}
		if o.want == nil {
			err = s.damaged(errNoHash, key)
		} else {
			if !hashed {
				o.hash = nil
			}
			err = use(o)
		}
		return errors.Join(err, o.Close())
	})
}

// partial finds the key of a .partial file, which ends in its hash: if there
// is more than one, nobody but a person can tell which is meant.
func (r *Repository) partial(ctx context.Context, cluster ClusterID, f postgres.WALFile) (string, error) {
	prefix := cluster.walDir(f) + f.Name + "."
	var keys []string
	err := r.surely(func(p *place) error {
		for info, err := range p.Bucket.List(ctx, prefix, "") {
			if err != nil {
				return err
			}
			if !slices.Contains(keys, info.Key) {
				keys = append(keys, info.Key)
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case len(keys) == 0:
		return "", &storage.Error{Op: "list", Bucket: r.String(), Key: prefix, Err: storage.ErrNotExist}
	case len(keys) == 1:
		return keys[0], nil
	default:
		return "", errs.New(errs.Conflict, "Fetch the one that is meant by hand; docs/format.md says how to open an object.",
			"there are %d different %s: %s", len(keys), f.Name, strings.Join(keys, ", "))
	}
}

// MissingWAL names the first file of the segments [first, last] and of their
// timeline's history that is not in every required place, or "" if all are
// there. It costs one listing for each place, and another look on a later
// timeline.
func (r *Repository) MissingWAL(ctx context.Context, cluster ClusterID, first, last postgres.Segment, size postgres.SegmentSize) (string, error) {
	for _, p := range r.required() {
		if err := p.err(); err != nil {
			return "", err
		}
		name, err := missingSegment(ctx, p, cluster, first, last, size)
		if err == nil && name == "" {
			name, err = missingHistory(ctx, p, cluster, first.Timeline)
		}
		if err != nil || name != "" {
			return name, err
		}
	}
	return "", nil
}

func missingSegment(ctx context.Context, p *place, cluster ClusterID, first, last postgres.Segment, size postgres.SegmentSize) (string, error) {
	after := ""
	if first.Number > 0 {
		before := first
		before.Number--
		f, err := postgres.ParseWALFile(before.Name(size))
		if err != nil {
			return "", err
		}
		after = cluster.WALKey(f, [32]byte{})
	}
	want := first
	for info, err := range p.Bucket.List(ctx, cluster.timelinePrefix(first.Timeline), after) {
		if err != nil {
			return "", fmt.Errorf("list WAL: %w", err)
		}
		if want.Number > last.Number {
			break
		}
		name := info.Key[strings.LastIndexByte(info.Key, '/')+1:]
		switch wanted := want.Name(size); {
		case name == wanted:
			want = want.Next()
		case len(name) == len(wanted) && name > wanted:
			return wanted, nil
		}
	}
	if want.Number <= last.Number {
		return want.Name(size), nil
	}
	return "", nil
}

// missingHistory names the history file of a timeline if it is not there.
// Timeline 1 has none.
func missingHistory(ctx context.Context, p *place, cluster ClusterID, t postgres.Timeline) (string, error) {
	if t == 1 {
		return "", nil
	}
	name := t.String() + ".history"
	_, err := p.Bucket.Stat(ctx, cluster.historyPrefix()+name)
	if errors.Is(err, storage.ErrNotExist) {
		return name, nil
	}
	return "", err
}

// Histories reads all timeline history files of a cluster. Those that are
// damaged are returned apart: whether one matters depends on the timeline that
// is wanted.
func (r *Repository) Histories(ctx context.Context, cluster ClusterID) (all map[postgres.Timeline]postgres.History, damaged map[postgres.Timeline]error, err error) {
	return r.histories(ctx, cluster, r.anywhere)
}

// AllHistories is Histories for who decides by what is not there: it fails if a
// required place does not answer.
func (r *Repository) AllHistories(ctx context.Context, cluster ClusterID) (all map[postgres.Timeline]postgres.History, damaged map[postgres.Timeline]error, err error) {
	return r.histories(ctx, cluster, r.surely)
}

func (r *Repository) histories(ctx context.Context, cluster ClusterID, asking func(func(*place) error) error) (all map[postgres.Timeline]postgres.History, damaged map[postgres.Timeline]error, err error) {
	all, damaged = make(map[postgres.Timeline]postgres.History), make(map[postgres.Timeline]error)
	files := make(map[postgres.Timeline]postgres.WALFile)
	var mu sync.Mutex
	note := func(info storage.Info) {
		f, err := postgres.ParseWALFile(strings.TrimPrefix(info.Key, cluster.historyPrefix()))
		if err == nil && f.Kind == postgres.WALHistory {
			mu.Lock()
			defer mu.Unlock()
			files[f.Timeline] = f
		}
	}
	err = asking(func(p *place) error {
		var besides sync.WaitGroup
		defer besides.Wait()
		besides.Go(func() { r.hidden(ctx, p, cluster.historyPrefix(), note) })
		for info, err := range p.Bucket.List(ctx, cluster.historyPrefix(), "") {
			if err != nil {
				return fmt.Errorf("list timeline histories: %w", err)
			}
			note(info)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for t, f := range files {
		h, err := r.history(ctx, cluster, f)
		switch {
		case errs.KindOf(err) == errs.Damaged:
			damaged[t] = err
		case err != nil:
			return nil, nil, err
		default:
			all[t] = h
		}
	}
	return all, damaged, nil
}

func (r *Repository) history(ctx context.Context, cluster ClusterID, f postgres.WALFile) (postgres.History, error) {
	key := cluster.WALKey(f, [32]byte{})
	var body []byte
	err := r.ReadWAL(ctx, cluster, f, false, func(raw io.Reader) (err error) {
		body, err = io.ReadAll(io.LimitReader(raw, 1<<20))
		return err
	})
	if err != nil {
		return nil, missing(err, key, r.String())
	}
	h, err := postgres.ParseHistory(f.Timeline, body)
	if err != nil {
		return nil, r.malformed(err, key)
	}
	return h, nil
}

// WALHash is the SHA-256 that an archived WAL file carries of its bytes, from
// the first place that has it. No key is needed.
func (r *Repository) WALHash(ctx context.Context, cluster ClusterID, f postgres.WALFile) (sum [32]byte, err error) {
	return r.CarriedHash(ctx, cluster.WALKey(f, [32]byte{}))
}
