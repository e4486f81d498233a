package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// batchPieces bounds the plan that is held in memory, at some 64 bytes for a
// piece. Within a batch each pack is fetched once.
const batchPieces = 1 << 19

// minFetches is how many packs are fetched at a time at least.
const minFetches = 4

// filePieces is how many pieces a file counts for.
const filePieces = 4

// maxFinal bounds the files that are held in memory until their turn.
const maxFinal = 64 << 20

// pending is a file of the batch.
type pending struct {
	repo.Entry
	// writing is held while pieces are written: the kernel lets one into a file
	// at a time, and who waits there keeps a processor from the other workers.
	writing sync.Mutex

	mu   sync.Mutex
	sums []sum  // checksums of the pieces, by offset when complete
	body []byte // of a final file, which is held until its turn; otherwise nil
}

type sum struct {
	offset, length int64
	crc            uint32
}

// piece says that a part of a frame is a part of a file.
type piece struct {
	file    *pending
	offset  int64 // in the file
	inFrame int64
	length  int64
}

// framePlan is a frame and where its bytes go.
type framePlan struct {
	repo.Frame
	pieces []piece
}

type plan struct {
	packs  map[repo.PackID]map[int64]*framePlan
	pieces int
}

type meter struct{ written, total atomic.Int64 }

// place streams the manifest and writes every file but pg_control, whose
// entry and bytes it returns: they come last.
func (x *run) place(ctx context.Context, m *repo.ManifestReader, packs map[repo.PackID]repo.Pack) (*pending, error) {
	p := &plan{packs: make(map[repo.PackID]map[int64]*framePlan)}
	var files []*pending
	var control *pending
	flush := func() error {
		if err := x.execute(ctx, p, packs); err != nil {
			return err
		}
		for _, f := range files {
			if err := x.complete(f); err != nil {
				return err
			}
		}
		p, files = &plan{packs: make(map[repo.PackID]map[int64]*framePlan)}, nil
		return nil
	}
	for {
		e, parts, err := m.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if e.Kind != repo.EntryFile {
			if err := x.dest.directory(e); err != nil {
				return nil, err
			}
			continue
		}
		f := &pending{Entry: e}
		if e.Final {
			if e.Size > maxFinal {
				return nil, errs.New(errs.Damaged, "Use another backup (agent backup-list).", "the manifest says that %s has %d bytes", e.Path, e.Size)
			}
			f.body = make([]byte, e.Size)
		}
		if e.Path == postgres.ControlPath {
			control = f
		}
		files = append(files, f)
		if err := x.plan(p, f, parts); err != nil {
			return nil, err
		}
		if p.pieces >= batchPieces {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	if control == nil {
		return nil, errs.New(errs.Damaged, "Use another backup (agent backup-list).", "the manifest has no %s", postgres.ControlPath)
	}
	return control, nil
}

// plan adds the pieces of a file. Zeros are not written: the file gets its
// size and they are there.
func (x *run) plan(p *plan, f *pending, parts []repo.FilePart) error {
	// A file costs memory too, as much as some pieces: there may be millions
	// of empty ones.
	p.pieces += filePieces
	offset, zero := int64(0), f.Size == 0
	for _, part := range parts {
		for _, r := range part.Runs {
			if r.Zero() {
				zero = true
				f.sums = append(f.sums, sum{offset, r.Length, x.powers.zeros(r.Length)})
				x.meter.written.Add(r.Length)
				offset += r.Length
				continue
			}
			offset = p.add(f, r, part.Section.PackOf(r), offset)
		}
	}
	if zero && f.body == nil {
		return x.dest.create(f.Path, f.Mode, f.Size)
	}
	return nil
}

// add cuts a run at the borders of frames. The section was refused if a run
// is not covered by them.
func (p *plan) add(f *pending, r repo.Run, pack *repo.PackFrames, offset int64) int64 {
	byOffset := p.packs[pack.PackID]
	if byOffset == nil {
		byOffset = make(map[int64]*framePlan)
		p.packs[pack.PackID] = byOffset
	}
	raw, left := r.Raw, r.Length
	for i, _ := repo.FrameAt(pack.Frames, raw); left > 0; i++ {
		fr := pack.Frames[i]
		plan := byOffset[fr.Offset]
		if plan == nil {
			plan = &framePlan{Frame: fr}
			byOffset[fr.Offset] = plan
		}
		n := min(left, fr.RawOffset+fr.RawLen-raw)
		if plan.add(piece{file: f, offset: offset, inFrame: raw - fr.RawOffset, length: n}) {
			p.pieces++
		}
		offset, raw, left = offset+n, raw+n, left-n
	}
	return offset
}

// add reports whether the piece is one more: where it goes on in file and frame
// it is one with the piece before, and both are one write.
func (f *framePlan) add(p piece) bool {
	if n := len(f.pieces); n > 0 {
		last := &f.pieces[n-1]
		if last.file == p.file && last.offset+last.length == p.offset && last.inFrame+last.length == p.inFrame {
			last.length += p.length
			return false
		}
	}
	f.pieces = append(f.pieces, p)
	return true
}

// frameJob is a frame on its way from a pack to a worker.
type frameJob struct {
	plan   *framePlan
	stored []byte
	pack   *packJobs
}

// packJobs are the frames of one copy of a pack that workers have in hand.
type packJobs struct {
	*repo.PackStream
	sent int
	done chan struct{} // gets one for each frame that is written or given up
	mu   sync.Mutex
	bad  error // the first frame that could not be decoded
}

// wait returns when the workers have done with all frames that were sent.
func (p *packJobs) wait(ctx context.Context) error {
	for ; p.sent > 0; p.sent-- {
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bad
}

func (p *packJobs) damaged(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bad == nil {
		p.bad = p.Damaged(err)
	}
}

// execute fetches each pack of the plan once and writes what it holds.
// Fetchers read and open packs; workers decode frames and write, so that both
// cores are busy however unequal the packs are.
func (x *run) execute(ctx context.Context, p *plan, packs map[repo.PackID]repo.Pack) error {
	ids := slices.SortedFunc(maps.Keys(p.packs), repo.PackID.Compare)
	g, ctx := errgroup.WithContext(ctx)
	// While one answer is awaited, another comes.
	fetches := max(x.Concurrency, minFetches)
	// Twice as many as there are processors for them: half of their time goes into
	// writing, where two often want the same file.
	workers := 2 * x.Concurrency
	jobs := make(chan frameJob, x.Concurrency)
	buffers := make(chan []byte, fetches+workers)
	for range cap(buffers) {
		buffers <- nil // grown at first use
	}
	g.Go(func() error {
		defer close(jobs)
		fetch, ctx := errgroup.WithContext(ctx)
		fetch.SetLimit(fetches)
		for _, id := range ids {
			fetch.Go(func() error { return x.fetch(ctx, id, p.packs[id], packs, jobs, buffers) })
		}
		return fetch.Wait()
	})
	for range workers {
		g.Go(func() error { return x.write(ctx, jobs, buffers) })
	}
	return g.Wait()
}

func (x *run) fetch(ctx context.Context, id repo.PackID, frames map[int64]*framePlan, packs map[repo.PackID]repo.Pack, jobs chan<- frameJob, buffers chan []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	want, ok := packs[id]
	if !ok {
		return errs.New(errs.Damaged, "Use another backup (agent backup-list).", "pack %s/%08x is not in the list of packs", id.Backup, id.Number)
	}
	order := make([]*framePlan, 0, len(frames))
	for _, f := range frames {
		order = append(order, f)
	}
	slices.SortFunc(order, func(a, b *framePlan) int { return cmp.Compare(a.Offset, b.Offset) })
	extents := make([]repo.Extent, len(order))
	for i, f := range order {
		extents[i] = repo.Extent{Offset: f.Offset, Length: f.Length}
	}
	return x.repo.ReadFrames(ctx, x.Cluster, id.Backup, want, extents, func(s *repo.PackStream) error {
		return hand(ctx, s, order, jobs, buffers)
	})
}

// hand gives the frames of a pack to the workers, and returns when they are
// written and the pack has proved to be what was stored. Until then it may have
// to be read again from another copy, over what was written.
func hand(ctx context.Context, s *repo.PackStream, order []*framePlan, jobs chan<- frameJob, buffers chan []byte) error {
	pack := &packJobs{PackStream: s, done: make(chan struct{}, len(order))}
	for _, f := range order {
		var buf []byte
		select {
		case buf = <-buffers:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		buf = slices.Grow(buf[:0], int(f.Length))[:f.Length]
		if err := s.ReadFrame(f.Offset, buf); err != nil {
			buffers <- buf
			return errors.Join(err, pack.wait(ctx))
		}
		pack.sent++
		select {
		case jobs <- frameJob{f, buf, pack}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := s.Finish()
	return errors.Join(err, pack.wait(ctx))
}

// write decodes frames and puts their pieces into files.
func (x *run) write(ctx context.Context, jobs <-chan frameJob, buffers chan<- []byte) error {
	var dec compress.Decoder
	var raw []byte
	for {
		select {
		case j, ok := <-jobs:
			if !ok {
				return nil
			}
			var err error
			if raw, err = dec.AppendRaw(raw[:0], j.stored); err == nil && !j.plan.Proves(j.stored) {
				err = fmt.Errorf("frame at %d is another one", j.plan.Offset)
			}
			if err == nil && int64(len(raw)) != j.plan.RawLen {
				err = fmt.Errorf("frame at %d has %d raw bytes instead of %d", j.plan.Offset, len(raw), j.plan.RawLen)
			}
			if err != nil {
				j.pack.damaged(err)
			} else if err := x.writePieces(raw, j.plan.pieces); err != nil {
				return err
			}
			buffers <- j.stored // has room for all that there are
			j.pack.done <- struct{}{}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// writePieces writes the pieces of one frame, those of one file after another.
func (x *run) writePieces(raw []byte, pieces []piece) error {
	for len(pieces) > 0 {
		f, n := pieces[0].file, 1
		for n < len(pieces) && pieces[n].file == f {
			n++
		}
		if err := x.writeFile(f, raw, pieces[:n]); err != nil {
			return err
		}
		pieces = pieces[n:]
	}
	return nil
}

func (x *run) writeFile(f *pending, raw []byte, pieces []piece) (err error) {
	f.add(raw, pieces)
	for _, p := range pieces {
		x.meter.written.Add(p.length)
	}
	if f.body != nil {
		return nil
	}
	open, err := x.dest.open(f.Path, f.Mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.dest.explain(open.Close())) }()
	f.writing.Lock()
	defer f.writing.Unlock()
	for _, p := range pieces {
		if _, err := open.WriteAt(raw[p.inFrame:p.inFrame+p.length], p.offset); err != nil {
			return x.dest.explain(err)
		}
	}
	return nil
}

// add notes the checksums of pieces, and keeps them if the file is one that is held.
func (f *pending) add(raw []byte, pieces []piece) {
	sums := make([]sum, len(pieces))
	for i, p := range pieces {
		sums[i] = sum{p.offset, p.length, crc32.Checksum(raw[p.inFrame:p.inFrame+p.length], crcTable)}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sums = append(f.sums, sums...)
	if f.body != nil {
		for _, p := range pieces {
			copy(f.body[p.offset:], raw[p.inFrame:p.inFrame+p.length])
		}
	}
}

// complete adds a file whose pieces are all written to PostgreSQL's manifest.
// Final files but pg_control are written here, whole.
func (x *run) complete(f *pending) error {
	// A pack that was read again has written its pieces again: the last counts.
	slices.SortStableFunc(f.sums, func(a, b sum) int { return cmp.Compare(a.offset, b.offset) })
	slices.Reverse(f.sums)
	f.sums = slices.CompactFunc(f.sums, func(a, b sum) bool { return a.offset == b.offset })
	slices.Reverse(f.sums)
	var crc uint32
	var at int64
	for _, s := range f.sums {
		if s.offset != at {
			return fmt.Errorf("write %s: bytes %d to %d are missing", f.Path, at, s.offset)
		}
		crc = x.powers.combine(crc, s.crc, s.length)
		at += s.length
	}
	if at != f.Size {
		return fmt.Errorf("write %s: %d of %d bytes", f.Path, at, f.Size)
	}
	f.sums = nil
	size := f.Size
	if f.Path == "tablespace_map" {
		moved, err := x.dest.remap(f.body)
		if err != nil {
			return err
		}
		f.body = moved
		size, crc = int64(len(moved)), crc32.Checksum(moved, crcTable)
	}
	if f.body != nil && f.Path != postgres.ControlPath {
		if err := x.dest.writeFile(f.Path, f.Mode, f.body); err != nil {
			return err
		}
	}
	return x.verify.add(f.Path, size, f.ModTime, crc)
}

// report calls Progress about once a second until the returned function is.
func (x *run) report(began time.Time) (stop func()) {
	if x.Progress == nil {
		return func() {}
	}
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				x.Progress(Progress{Written: x.meter.written.Load(), Total: x.meter.total.Load(), Elapsed: x.Now().Sub(began)})
			case <-quit:
				return
			}
		}
	})
	return func() {
		close(quit)
		done.Wait()
	}
}

// pathOf is where an entry lies on this host, below the data directory; its
// tablespace links lead elsewhere.
func (d *destination) pathOf(rel string) string {
	return filepath.Join(d.root, filepath.FromSlash(rel))
}
