package compact

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/repo"
)

const (
	// batchPieces bounds the plan that is held in memory, at some 100 bytes for
	// a piece. Within a batch each pack is read once.
	batchPieces = 1 << 19
	// filePieces is how many pieces an entry counts for.
	filePieces = 4
)

// batch is a stretch of the manifest, and what it needs of each pack.
type batch struct {
	files  []*file
	packs  map[repo.PackID]map[int64]*frame
	pieces int
}

// file is an entry with the pieces that it consists of.
type file struct {
	repo.Entry
	pieces []*piece
}

// piece is a stretch of a file, which lies in one frame.
type piece struct {
	length  int64
	zero    bool
	inFrame int64
	pack    uint32 // where it lies in the new backup
	raw     int64
}

// frame is an old frame with the pieces that are needed of it.
type frame struct {
	repo.Frame
	pieces []*piece
}

func newBatch() *batch { return &batch{packs: make(map[repo.PackID]map[int64]*frame)} }

func (b *batch) add(e repo.Entry, parts []repo.FilePart) {
	f := &file{Entry: e}
	for _, part := range parts {
		for _, r := range part.Runs {
			if r.Zero() {
				f.pieces = append(f.pieces, &piece{length: r.Length, zero: true})
				continue
			}
			b.run(f, r, part.Section.PackOf(r))
		}
	}
	b.files = append(b.files, f)
	b.pieces += filePieces + len(f.pieces)
}

// run cuts a run at the borders of frames. A section whose runs are not covered
// by them was refused.
func (b *batch) run(f *file, r repo.Run, pack *repo.PackFrames) {
	byOffset := b.packs[pack.PackID]
	if byOffset == nil {
		byOffset = make(map[int64]*frame)
		b.packs[pack.PackID] = byOffset
	}
	raw, left := r.Raw, r.Length
	for i, _ := repo.FrameAt(pack.Frames, raw); left > 0; i++ {
		one := pack.Frames[i]
		of := byOffset[one.Offset]
		if of == nil {
			of = &frame{Frame: one}
			byOffset[one.Offset] = of
		}
		n := min(left, one.RawOffset+one.RawLen-raw)
		p := &piece{length: n, inFrame: raw - one.RawOffset}
		of.pieces, f.pieces = append(of.pieces, p), append(f.pieces, p)
		raw, left = raw+n, left-n
	}
}

// live reports whether all of the frame is needed.
func (f *frame) live() bool {
	slices.SortFunc(f.pieces, func(a, b *piece) int { return cmp.Compare(a.inFrame, b.inFrame) })
	end := int64(0)
	for _, p := range f.pieces {
		if p.inFrame > end {
			return false
		}
		end = max(end, p.inFrame+p.length)
	}
	return end == f.RawLen
}

// parts are the file's in the new backup; packs are the new ones, with their
// frames, by number.
func (f *file) parts(packs []repo.PackFrames) []repo.FilePart {
	var runs []repo.Run
	for _, p := range f.pieces {
		r := repo.Run{Length: p.length}
		if !p.zero {
			at, _ := slices.BinarySearchFunc(packs, p.pack, byNumber)
			r.Pack, r.Raw = int32(at)+1, p.raw
		}
		if n := len(runs); n > 0 && goesOn(runs[n-1], r) {
			runs[n-1].Length += r.Length
			continue
		}
		runs = append(runs, r)
	}
	if len(runs) == 0 {
		return nil
	}
	return []repo.FilePart{{Part: repo.Part{Runs: runs}, Section: &repo.Section{Packs: packs}, Index: -1}}
}

func goesOn(a, b repo.Run) bool {
	return a.Pack == b.Pack && (a.Zero() || a.Raw+a.Length == b.Raw)
}

func byNumber(p repo.PackFrames, number uint32) int { return cmp.Compare(p.Number, number) }

// move brings what a batch needs into new packs, and returns them by number.
func (c *run) move(ctx context.Context, b *batch, data *repo.Writer) ([]repo.PackFrames, error) {
	ids := slices.SortedFunc(maps.Keys(b.packs), repo.PackID.Compare)
	out := &moved{name: c.backup.Name}
	queue := make(chan repo.PackID, len(ids))
	for _, id := range ids {
		queue <- id
	}
	close(queue)
	g, ctx := errgroup.WithContext(ctx)
	// One more than there are processors: while one awaits an answer the others
	// work. Each holds what it needs of one pack.
	for range min(c.Concurrency+1, max(len(ids), 1)) {
		g.Go(func() error {
			enc, err := compress.NewEncoder(c.Codec)
			if err != nil {
				return fmt.Errorf("make encoder: %w", err)
			}
			w := &worker{run: c, data: data, out: out, enc: enc}
			for id := range queue {
				if err := w.pack(ctx, id, b.packs[id]); err != nil {
					return err
				}
			}
			return w.flush(ctx)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, p := range out.packs {
		slices.SortFunc(p.Frames, func(a, b repo.Frame) int { return cmp.Compare(a.RawOffset, b.RawOffset) })
	}
	return out.packs, nil
}

// moved are the new frames of a batch.
type moved struct {
	name  repo.BackupName
	mu    sync.Mutex
	packs []repo.PackFrames // by number
}

func (m *moved) add(ref repo.FrameRef) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, found := slices.BinarySearchFunc(m.packs, ref.Pack, byNumber)
	if !found {
		m.packs = slices.Insert(m.packs, at, repo.PackFrames{PackID: repo.PackID{Backup: m.name, Number: ref.Pack}})
	}
	m.packs[at].Frames = append(m.packs[at].Frames, ref.Frame())
}

// worker moves the frames of one pack after the other.
type worker struct {
	run  *run
	data *repo.Writer
	out  *moved
	dec  compress.Decoder
	enc  *compress.Encoder

	stored []byte // frames of one pack, in a row
	raw    []byte // of one frame
	// open is what the next new frame will hold, and whose it is.
	open    []byte
	waiting []*piece
	framed  []byte
}

func (w *worker) pack(ctx context.Context, id repo.PackID, frames map[int64]*frame) error {
	want, ok := w.run.packs[id]
	if !ok {
		return errs.New(errs.Damaged, "Compact another backup (agent backup-list).", "pack %s/%08x is not in the list of packs", id.Backup, id.Number)
	}
	order := make([]*frame, 0, len(frames))
	extents := make([]repo.Extent, 0, len(frames))
	for _, f := range frames {
		order = append(order, f)
	}
	slices.SortFunc(order, func(a, b *frame) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, f := range order {
		extents = append(extents, repo.Extent{Offset: f.Offset, Length: f.Length})
	}
	// Nothing is used before all was proved: what has gone into a new pack stays
	// there.
	err := w.run.repo.ReadFrames(ctx, w.run.backup.Cluster, id.Backup, want, extents, func(s *repo.PackStream) error {
		return w.read(s, order)
	})
	if err != nil {
		return err
	}
	at := int64(0)
	for _, f := range order {
		stored := w.stored[at : at+f.Length]
		at += f.Length
		if f.live() {
			err = w.copy(ctx, f, stored)
		} else {
			err = w.reframe(ctx, f, stored)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read brings the frames here.
func (w *worker) read(s *repo.PackStream, order []*frame) error {
	w.stored = w.stored[:0]
	for _, f := range order {
		at := len(w.stored)
		w.stored = slices.Grow(w.stored, int(f.Length))[:at+int(f.Length)]
		if err := s.ReadFrame(f.Offset, w.stored[at:]); err != nil {
			return err
		}
		if s.Whole() {
			continue
		}
		if err := w.decode(f, w.stored[at:]); err != nil {
			return s.Damaged(err)
		}
	}
	return s.Finish()
}

func (w *worker) decode(f *frame, stored []byte) (err error) {
	if w.raw, err = w.dec.AppendRaw(w.raw[:0], stored); err == nil && !f.Proves(stored) {
		err = fmt.Errorf("frame at %d is another one", f.Offset)
	}
	if err == nil && int64(len(w.raw)) != f.RawLen {
		err = fmt.Errorf("frame at %d has %d raw bytes instead of %d", f.Offset, len(w.raw), f.RawLen)
	}
	return err
}

// copy stores a frame as it is.
func (w *worker) copy(ctx context.Context, f *frame, stored []byte) error {
	ref, err := w.data.Append(ctx, stored, f.RawLen)
	if err != nil {
		return err
	}
	w.out.add(ref)
	for _, p := range f.pieces {
		p.pack, p.raw = ref.Pack, ref.RawOffset+p.inFrame
		w.run.meter.done.Add(p.length)
	}
	w.run.meter.copied.Add(f.RawLen)
	return nil
}

// reframe takes the pieces of a frame of which not all is needed.
func (w *worker) reframe(ctx context.Context, f *frame, stored []byte) error {
	if err := w.decode(f, stored); err != nil {
		return errs.Wrap(err, errs.Damaged, "Compact another backup (agent backup-list), and report this: the pack is as it was stored.", "a frame cannot be understood")
	}
	for _, p := range f.pieces {
		if int64(len(w.open))+p.length > compress.MaxFrame {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
		p.raw = int64(len(w.open)) // in the frame, until that has its place
		w.open = append(w.open, w.raw[p.inFrame:p.inFrame+p.length]...)
		w.waiting = append(w.waiting, p)
	}
	return nil
}

// flush stores the new frame that was being filled.
func (w *worker) flush(ctx context.Context) (err error) {
	if len(w.open) == 0 {
		return nil
	}
	if w.framed, err = w.enc.AppendFrame(w.framed[:0], w.open); err != nil {
		return fmt.Errorf("compress frame: %w", err)
	}
	ref, err := w.data.Append(ctx, w.framed, int64(len(w.open)))
	if err != nil {
		return err
	}
	w.out.add(ref)
	for _, p := range w.waiting {
		p.pack, p.raw = ref.Pack, ref.RawOffset+p.raw
		w.run.meter.done.Add(p.length)
	}
	w.run.meter.reframed.Add(int64(len(w.open)))
	w.open, w.waiting = w.open[:0], w.waiting[:0]
	return nil
}
