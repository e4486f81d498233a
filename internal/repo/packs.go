package repo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/crypto"
	"agent/internal/storage"
)

// PackKind says what a pack holds, and so which class of keys opens it.
type PackKind string

// The kinds of packs.
const (
	PackData PackKind = "data" // stretches of files
	PackMeta PackKind = "meta" // sections of manifests
)

const (
	// packTarget is the stored size at which a pack is closed.
	packTarget = 32 << 20
	// packRoom is what one more frame and the sealing can add to it: a frame
	// of incompressible data, and age's chunk that is not yet flushed.
	packRoom = 2 << 20
)

// Pack describes a stored pack in the list of its backup.
type Pack struct {
	Number uint32     `json:"pack"`
	Kind   PackKind   `json:"kind"`
	Size   int64      `json:"size"` // stored bytes
	SHA256 Digest     `json:"sha256"`
	Lender BackupName `json:"lender,omitempty"` // whose pack it is; empty: the backup's own
	// LockedUntil is when the first place lets go of it; zero where nothing is
	// locked.
	LockedUntil time.Time `json:"locked_until,omitzero"`
}

// FrameRef says where a frame lies. Offsets count from the start of the
// pack's opened content (frames in a row) and of its raw content.
type FrameRef struct {
	Pack              uint32
	Offset, Length    int64 // stored, after opening
	RawOffset, RawLen int64
	Ending            [4]byte // the last stored bytes, a checksum of the raw ones
}

// PackSet gathers the packs of one backup while it is written: their numbers
// and, once uploaded, their digests. Safe for concurrent use.
type PackSet struct {
	ctx     context.Context // of the group: an upload outlives the step that began it
	repo    *Repository
	cluster ClusterID
	name    BackupName
	group   *errgroup.Group
	// The buffers that are free, and leave to make another one: together they
	// bound the memory.
	buffers chan []byte
	leave   chan struct{}

	mu     sync.Mutex
	next   uint32
	stored map[uint32]Pack
}

// NewPackSet prepares to write the packs of a backup. At most uploads packs
// are on their way at a time; memory is 34 MiB for each and for each open one.
// group runs the uploads; its context, ctx, ends everything when one fails.
func (r *Repository) NewPackSet(ctx context.Context, group *errgroup.Group, cluster ClusterID, name BackupName, uploads int) *PackSet {
	s := &PackSet{
		ctx: ctx, repo: r, cluster: cluster, name: name, group: group,
		stored:  make(map[uint32]Pack),
		buffers: make(chan []byte, uploads+2),
		leave:   make(chan struct{}, uploads+2),
	}
	for range cap(s.leave) {
		s.leave <- struct{}{}
	}
	return s
}

// Writer appends frames to packs of one kind.
type Writer struct {
	set  *PackSet
	kind PackKind
	to   crypto.Recipients

	mu   sync.Mutex
	open *openPack
}

type openPack struct {
	number      uint32
	buf         *bytes.Buffer
	seal        io.WriteCloser
	offset, raw int64
}

// Writer returns the writer for packs of a kind. Writers of one set share
// numbers and the memory bound, so there is one open pack for each kind.
func (s *PackSet) Writer(kind PackKind) *Writer {
	to := s.repo.keys.Data
	if kind == PackMeta {
		to = s.repo.keys.Meta
	}
	return &Writer{set: s, kind: kind, to: to}
}

// Append puts a frame of rawLen raw bytes into the open pack and says where it
// lies. It waits while all buffers are on their way to the store. Safe for
// concurrent use; frame may be reused when it returns.
func (w *Writer) Append(ctx context.Context, frame []byte, rawLen int64) (FrameRef, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		if err := w.begin(ctx); err != nil {
			return FrameRef{}, err
		}
	}
	p := w.open
	if _, err := p.seal.Write(frame); err != nil {
		return FrameRef{}, fmt.Errorf("seal frame: %w", err)
	}
	ref := FrameRef{Pack: p.number, Offset: p.offset, Length: int64(len(frame)), RawOffset: p.raw, RawLen: rawLen, Ending: ending(frame)}
	p.offset += int64(len(frame))
	p.raw += rawLen
	if p.buf.Len() >= packTarget {
		return ref, w.finish()
	}
	return ref, nil
}

// Close uploads the pack that is still open.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		return nil
	}
	return w.finish()
}

func (w *Writer) begin(ctx context.Context) error {
	b, err := w.set.buffer(ctx)
	if err != nil {
		return err
	}
	p := &openPack{number: w.set.number(), buf: bytes.NewBuffer(b[:0])}
	if p.seal, err = sealWriter(p.buf, w.to); err != nil {
		return fmt.Errorf("begin pack %08x: %w", p.number, err)
	}
	w.open = p
	return nil
}

// buffer is one that was used before, as long as the store keeps up, so that a
// fast store costs little memory; else a new one; else the next that is free.
func (s *PackSet) buffer(ctx context.Context) ([]byte, error) {
	select {
	case b := <-s.buffers:
		return b, nil
	default:
	}
	select {
	case b := <-s.buffers:
		return b, nil
	case <-s.leave:
		return make([]byte, 0, packTarget+packRoom), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (w *Writer) finish() error {
	p := w.open
	w.open = nil
	if err := p.seal.Close(); err != nil {
		return fmt.Errorf("seal pack %08x: %w", p.number, err)
	}
	w.set.group.Go(func() error { return w.set.upload(w.kind, p) })
	return nil
}

func (s *PackSet) number() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.next
	s.next++
	return n
}

func (s *PackSet) upload(kind PackKind, p *openPack) error {
	key := s.cluster.packKey(s.name, p.number)
	until := s.repo.lockedUntil()
	info, err := s.repo.putOwned(s.ctx, key, s.cluster.backupKey(s.name), storage.Bytes(p.buf.Bytes()))
	if err != nil {
		return fmt.Errorf("store pack: %w", err)
	}
	s.mu.Lock()
	s.stored[p.number] = Pack{Number: p.number, Kind: kind, Size: info.Size, SHA256: info.SHA256, LockedUntil: until}
	s.mu.Unlock()
	s.buffers <- p.buf.Bytes()[:0]
	return nil
}

// Packs returns the description of all packs in order, after the
// group was waited for.
func (s *PackSet) Packs() ([]Pack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	packs := make([]Pack, 0, len(s.stored))
	for n := range s.next {
		p, ok := s.stored[n]
		if !ok {
			return nil, fmt.Errorf("list packs: pack %08x was not stored", n)
		}
		packs = append(packs, p)
	}
	return packs, nil
}

// Stored describes the packs from one number to before another, if all of them
// are stored.
func (s *PackSet) Stored(from, before uint32) (packs []Pack, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := from; n < before; n++ {
		p, ok := s.stored[n]
		if !ok {
			return nil, false
		}
		packs = append(packs, p)
	}
	return packs, true
}

// Next is the number of the pack that is begun next.
func (s *PackSet) Next() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// StoredSize is the sum of the packs stored so far, in bytes.
func (s *PackSet) StoredSize() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for _, p := range s.stored {
		n += p.Size
	}
	return n
}

// Frame is the entry of the pack's frame table.
func (r FrameRef) Frame() Frame {
	return Frame{Offset: r.Offset, Length: r.Length, RawOffset: r.RawOffset, RawLen: r.RawLen, Ending: r.Ending}
}

// MissingPacks says which of these packs is not, or not as it was stored, in
// every required place; empty: none. It costs a listing for each backup whose
// packs they are.
func (r *Repository) MissingPacks(ctx context.Context, cluster ClusterID, packs map[PackID]Pack) (string, error) {
	byBackup := make(map[BackupName]int)
	for id := range packs {
		byBackup[id.Backup]++
	}
	for _, p := range r.required() {
		if err := p.err(); err != nil {
			return "", err
		}
		for name, want := range byBackup {
			found := 0
			prefix := cluster.backupDir(name) + "pack/"
			for info, err := range p.Bucket.List(ctx, prefix, "") {
				if err != nil {
					return "", fmt.Errorf("list packs: %w", err)
				}
				number, err := strconv.ParseUint(strings.TrimPrefix(info.Key, prefix), 16, 32)
				if pack, ok := packs[PackID{name, uint32(number)}]; err == nil && ok && pack.Size == info.Size {
					found++
				}
			}
			if found < want {
				return fmt.Sprintf("a pack of %s", name), nil
			}
		}
	}
	return "", nil
}
