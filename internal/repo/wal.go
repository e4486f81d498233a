package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	"walagent/internal/compress"
	"walagent/internal/crypto"
	"walagent/internal/errs"
	"walagent/internal/postgres"
	"walagent/internal/storage"
)

// walInMemory is the largest WAL file whose object is built in memory, from
// one read. A larger one (segments of 128 MiB to 1 GiB) is read twice, since
// its hash must stand before its bytes, and spooled sealed on disk.
const walInMemory = 64 << 20

// WALCheck is told every byte of a WAL file in order, and says at the end
// whether it is what its name says. Nothing is stored unless it agrees.
type WALCheck interface {
	io.Writer
	Close() error
}

// PutWAL archives a WAL file. The store decides that its key is new; if it is
// not, the raw SHA-256 that the stored object carries is compared: the same
// bytes are success (existed is true), other bytes a Conflict, which nothing
// here ever replaces. When PutWAL returns without error the file is durable.
func (r *Repository) PutWAL(ctx context.Context, cluster ClusterID, f postgres.WALFile, src io.ReadSeeker, size int64, check WALCheck, spoolDir string) (existed bool, err error) {
	b, err := r.newWALBuilder(f, check)
	if err != nil {
		return false, err
	}
	var body storage.Source
	if size <= walInMemory {
		body, err = b.inMemory(src)
	} else {
		s := &spool{dir: spoolDir}
		defer func() { err = errors.Join(err, s.Close()) }()
		body, err = s, b.spooled(src, s)
	}
	if err != nil {
		return false, err
	}
	key := cluster.WALKey(f, b.sum)
	_, err = r.bucket.Put(ctx, key, body, storage.PutOptions{})
	if !errors.Is(err, storage.ErrExists) {
		return false, err
	}
	return true, r.sameAsStored(ctx, key, b.sum, err)
}

// walBuilder turns raw bytes into frames, hashing and checking each once.
type walBuilder struct {
	repo  *Repository
	file  postgres.WALFile
	check WALCheck
	enc   *compress.Encoder
	sum   [32]byte
}

func (r *Repository) newWALBuilder(f postgres.WALFile, check WALCheck) (*walBuilder, error) {
	enc, err := compress.NewEncoder(r.codec)
	if err != nil {
		return nil, fmt.Errorf("make encoder: %w", err)
	}
	return &walBuilder{repo: r, file: f, check: check, enc: enc}, nil
}

func (b *walBuilder) inMemory(src io.Reader) (storage.Source, error) {
	sum := sha256.New()
	var frames []byte
	err := EachChunk(src, func(raw []byte) (err error) {
		sum.Write(raw)
		if _, err := b.check.Write(raw); err != nil {
			return err
		}
		frames, err = b.enc.AppendFrame(frames, raw)
		return err
	})
	if err == nil {
		err = b.check.Close()
	}
	if err != nil {
		return nil, err
	}
	b.sum = [32]byte(sum.Sum(nil))
	var body bytes.Buffer
	body.Grow(len(frames) + len(frames)>>11 + headSize)
	seal, err := hashedHead(&body, b.recipients(), b.sum)
	if err == nil {
		_, err = seal.Write(frames)
	}
	if err == nil {
		err = seal.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", b.file.Name, err)
	}
	return storage.Bytes(body.Bytes()), nil
}

func (b *walBuilder) spooled(src io.ReadSeeker, s *spool) error {
	sum := sha256.New()
	err := EachChunk(src, func(raw []byte) error {
		sum.Write(raw)
		_, err := b.check.Write(raw)
		return err
	})
	if err == nil {
		err = b.check.Close()
	}
	if err != nil {
		return err
	}
	b.sum = [32]byte(sum.Sum(nil))
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read %s again: %w", b.file.Name, err)
	}
	seal, err := hashedHead(s, b.recipients(), b.sum)
	if err != nil {
		return fmt.Errorf("seal %s: %w", b.file.Name, err)
	}
	again := sha256.New()
	var frame []byte
	err = EachChunk(src, func(raw []byte) (err error) {
		again.Write(raw)
		if frame, err = b.enc.AppendFrame(frame[:0], raw); err == nil {
			_, err = seal.Write(frame)
		}
		return err
	})
	if err == nil {
		err = seal.Close()
	}
	if err == nil && [32]byte(again.Sum(nil)) != b.sum {
		err = errors.New("it changed while it was read")
	}
	if err != nil {
		return fmt.Errorf("seal %s: %w", b.file.Name, err)
	}
	return nil
}

// recipients: history files are small, not secret, and needed by everybody
// who plans a recovery, so they are never sealed.
func (b *walBuilder) recipients() (to crypto.Recipients) {
	if b.file.Kind == postgres.WALHistory {
		return to
	}
	return b.repo.keys.WAL
}

// sameAsStored compares our hash with the one at the start of the object that
// was there before; exists is the error to wrap.
func (r *Repository) sameAsStored(ctx context.Context, key string, sum [32]byte, exists error) error {
	body, _, err := r.bucket.Get(ctx, key)
	if err != nil {
		return fmt.Errorf("look at object that exists already: %w", err)
	}
	head, err := io.ReadAll(io.LimitReader(body, headSize))
	if err = errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("look at object that exists already: %w", err)
	}
	stored, ok, err := headHash(head)
	switch {
	case err != nil:
		return r.damaged(err, key)
	case !ok:
		return r.damaged(errors.New("it does not begin with the hash of its bytes"), key)
	case stored != sum:
		return errs.Wrap(exists, errs.Conflict,
			"Two servers archive into one place (after a failover, a clone or a restore), or this is the wrong repository. Nothing was replaced. Find out which server is the right one; on the other set archive_mode=off or another repository.",
			"%s of %s holds other bytes than this file", key, r)
	}
	return nil
}

// OpenWAL opens an archived WAL file as a stream of raw bytes, which proves
// at its end that they are those that were archived. That there is no such
// file is storage.ErrNotExist.
func (r *Repository) OpenWAL(ctx context.Context, cluster ClusterID, f postgres.WALFile) (io.ReadCloser, error) {
	key, err := r.walObject(ctx, cluster, f)
	if err != nil {
		return nil, err
	}
	o, _, err := r.openObject(ctx, key)
	if err != nil {
		return nil, err
	}
	if o.want == nil {
		err := r.damaged(errors.New("it does not begin with the hash of its bytes"), key)
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// walObject finds the key. A .partial file's ends in its hash: if there is
// more than one, nobody but a person can tell which is meant.
func (r *Repository) walObject(ctx context.Context, cluster ClusterID, f postgres.WALFile) (string, error) {
	key := cluster.WALKey(f, [32]byte{})
	if f.Kind != postgres.WALPartial {
		return key, nil
	}
	prefix := cluster.walDir(f) + f.Name + "."
	var keys []string
	for info, err := range r.bucket.List(ctx, prefix, "") {
		if err != nil {
			return "", err
		}
		keys = append(keys, info.Key)
	}
	switch len(keys) {
	case 0:
		return "", &storage.Error{Op: "list", Bucket: r.String(), Key: prefix, Err: storage.ErrNotExist}
	case 1:
		return keys[0], nil
	default:
		return "", errs.New(errs.Conflict, "Fetch the one that is meant by hand; docs/format.md says how to open an object.",
			"there are %d different %s: %s", len(keys), f.Name, strings.Join(keys, ", "))
	}
}

// MissingWAL names the first segment of [first, last] that is not in the
// repository, or "" if all are there. It costs one listing.
func (r *Repository) MissingWAL(ctx context.Context, cluster ClusterID, first, last postgres.Segment, size postgres.SegmentSize) (string, error) {
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
	for info, err := range r.bucket.List(ctx, cluster.timelinePrefix(first.Timeline), after) {
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

// HasHistory reports whether the history file of a timeline is archived.
// Timeline 1 has none.
func (r *Repository) HasHistory(ctx context.Context, cluster ClusterID, t postgres.Timeline) (bool, error) {
	if t == 1 {
		return true, nil
	}
	_, err := r.bucket.Stat(ctx, cluster.historyPrefix()+t.String()+".history")
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Histories reads all timeline history files of a cluster. Those that are
// damaged are returned apart: whether one matters depends on the timeline that
// is wanted.
func (r *Repository) Histories(ctx context.Context, cluster ClusterID) (all map[postgres.Timeline]postgres.History, damaged map[postgres.Timeline]error, err error) {
	all, damaged = make(map[postgres.Timeline]postgres.History), make(map[postgres.Timeline]error)
	for info, err := range r.bucket.List(ctx, cluster.historyPrefix(), "") {
		if err != nil {
			return nil, nil, fmt.Errorf("list timeline histories: %w", err)
		}
		f, err := postgres.ParseWALFile(strings.TrimPrefix(info.Key, cluster.historyPrefix()))
		if err != nil || f.Kind != postgres.WALHistory {
			continue
		}
		h, err := r.history(ctx, cluster, f, info.Key)
		switch {
		case errs.KindOf(err) == errs.Damaged:
			damaged[f.Timeline] = err
		case err != nil:
			return nil, nil, err
		default:
			all[f.Timeline] = h
		}
	}
	return all, damaged, nil
}

func (r *Repository) history(ctx context.Context, cluster ClusterID, f postgres.WALFile, key string) (postgres.History, error) {
	o, err := r.OpenWAL(ctx, cluster, f)
	if err != nil {
		return nil, r.missing(err, key)
	}
	body, err := io.ReadAll(io.LimitReader(o, 1<<20))
	if err = errors.Join(err, o.Close()); err != nil {
		return nil, err
	}
	h, err := postgres.ParseHistory(f.Timeline, body)
	if err != nil {
		return nil, r.damaged(err, key)
	}
	return h, nil
}

// Gap says why a segment that is not in the repository must have been there:
// a later segment of its timeline is, or a descendant left the timeline behind
// it. An empty reason means that the WAL simply ends before it.
func (r *Repository) Gap(ctx context.Context, cluster ClusterID, f postgres.WALFile, size postgres.SegmentSize) (reason string, err error) {
	for info, err := range r.bucket.List(ctx, cluster.timelinePrefix(f.Timeline), cluster.WALKey(f, [32]byte{})) {
		if err != nil {
			return "", fmt.Errorf("look for later WAL: %w", err)
		}
		name := info.Key[strings.LastIndexByte(info.Key, '/')+1:]
		later, err := postgres.ParseWALFile(name)
		if err == nil && later.Kind == postgres.WALSegment && later.Timeline == f.Timeline && later.Name > f.Name {
			return "the later segment " + later.Name + " is there", nil
		}
	}
	histories, damaged, err := r.Histories(ctx, cluster)
	for _, d := range damaged {
		err = errors.Join(err, d) // it might be the one that tells
	}
	if err != nil {
		return "", err
	}
	segment, err := postgres.ParseSegment(f.Name, size)
	if err != nil {
		return "", err
	}
	for t, h := range histories {
		if left, ok := h.SwitchPoint(f.Timeline); ok && segment.Number < left.Segment(size) {
			return fmt.Sprintf("timeline %d left timeline %d behind it, at %s", t, f.Timeline, left), nil
		}
	}
	return "", nil
}
