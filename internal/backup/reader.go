package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"agent/internal/compress"
	"agent/internal/delta"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// stretch is a part of one file that is read by one worker: one range, or some
// that have changed.
type stretch struct {
	file   *fileState
	slot   int             // of the file's results
	ranges []delta.Stretch // ascending
}

// bytes is how much there is to read.
func (s stretch) bytes() int64 {
	n := int64(0)
	for _, r := range s.ranges {
		n += r.Length
	}
	return n
}

// fileState gathers what the workers find out about a file. Each stretch has
// its own slot, so that workers do not meet.
type fileState struct {
	source
	plan    delta.Plan
	former  *former // what an earlier backup has of it; nil: nothing of use
	results []stretchResult
	seen    []bool  // the stretches that the collector has seen
	ends    []int64 // where in the file each ends
	left    int     // how many it has not seen
	weight  int64   // of its runs while it is on its way
}

// summed tells whether the file is always read whole, and known by a digest: all
// are but the main forks of relations.
func (f *fileState) summed() bool {
	return !f.class.Relation || f.class.Rel.Fork != postgres.MainFork
}

type stretchResult struct {
	runs   []placed
	frames []repo.FrameRef
	gone   bool
	now    *fileNow // what the file was when it was opened, if that counts
	sum    [16]byte // of a file that is summed
	same   bool     // the file is as the earlier backup has it
}

// placed is a run at its place in the file, in a pack of this backup, or zeros.
// What lies between runs is as the earlier backup has it.
type placed struct {
	offset, length int64
	zero           bool
	pack           uint32
	raw            int64 // in the pack
}

type fileNow struct {
	size     int64
	modified time.Time
}

// unit is the work of one worker at a time: one stretch of a large file, or a
// batch of small ones.
type unit struct {
	stretches []stretch
}

// worker reads units into frames. It owns its buffers and is used by one
// goroutine.
type worker struct {
	packs  *repo.Writer
	enc    *compress.Encoder
	pages  *pageChecker
	limit  *rate.Limiter // nil: unlimited
	meter  *meter
	raw    []byte // the frame that is being filled; capacity is a frame
	scan   []byte // what is read before it is known whether it is kept; as large
	frame  []byte
	pieces []piece // what is in raw
	block  int64
}

// piece is a run whose place in its pack is not known before its frame is.
type piece struct {
	result *stretchResult
	run    int
	offset int64 // in the frame
}

// do reads a unit; its results are complete when it returns.
func (w *worker) do(ctx context.Context, u *unit) error {
	for _, s := range u.stretches {
		if err := w.read(ctx, s, &s.file.results[s.slot]); err != nil {
			return err
		}
	}
	return w.flush(ctx)
}

// read takes one stretch.
func (w *worker) read(ctx context.Context, s stretch, out *stretchResult) (err error) {
	if s.bytes() == 0 && s.file.class.Relation {
		out.sum = emptySum
		return nil
	}
	f, err := os.Open(s.file.osPath)
	if errors.Is(err, fs.ErrNotExist) {
		out.gone = true
		for _, r := range s.ranges {
			out.zeros(r.Offset, r.Length)
		}
		return nil
	}
	if err != nil {
		return w.explain(err, s)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if s.file.summed() {
		return w.readSummed(ctx, f, s, out)
	}
	if len(s.ranges) > 1 {
		// Single pages: what the kernel would read ahead is not wanted. That
		// it does not take the advice changes nothing but the speed.
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
	}
	for _, r := range s.ranges {
		if s.file.plan.Scan {
			err = w.scanRange(ctx, f, s, r, out)
		} else {
			err = w.readRange(ctx, f, s, r, out, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readRange takes a range of a file. Where the file has become shorter the rest
// is zeros: the truncation is in the WAL and is done again by recovery. sum, if
// not nil, is fed what is taken.
func (w *worker) readRange(ctx context.Context, f *os.File, s stretch, r delta.Stretch, out *stretchResult, sum hash.Hash) error {
	if err := w.align(ctx); err != nil {
		return err
	}
	for done := int64(0); done < r.Length; {
		if len(w.raw) == cap(w.raw) {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
		at := len(w.raw)
		n := min(r.Length-done, int64(cap(w.raw)-at))
		chunk := w.raw[at : at+int(n)]
		got, _, err := w.fill(ctx, f, s, r.Offset+done, chunk)
		if err != nil {
			return err
		}
		feed(sum, chunk[:got])
		if got < len(chunk) {
			w.take(out, r.Offset+done, at, got)
			rest := r.Length - done - int64(got)
			out.zeros(r.Offset+done+int64(got), rest)
			feedZeros(sum, rest)
			return nil
		}
		if at == 0 && len(chunk) == cap(w.raw) && postgres.IsZero(chunk) {
			out.zeros(r.Offset+done, n)
		} else {
			w.take(out, r.Offset+done, at, got)
		}
		done += n
	}
	return nil
}

// fill reads chunk and checks its pages; bad are those that are damaged, by
// their place in the chunk.
func (w *worker) fill(ctx context.Context, f *os.File, s stretch, offset int64, chunk []byte) (got int, bad []int, err error) {
	if err := w.throttle(ctx, len(chunk)); err != nil {
		return 0, nil, err
	}
	got, err = f.ReadAt(chunk, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, w.explain(err, s)
	}
	w.meter.read.Add(int64(got))
	bad, err = w.pages.check(ctx, f, s.file, offset, chunk[:got])
	return got, bad, err
}

// scanRange reads a range and takes the pages that may differ from what the
// earlier backup has.
func (w *worker) scanRange(ctx context.Context, f *os.File, s stretch, r delta.Stretch, out *stretchResult) error {
	for done := int64(0); done < r.Length; {
		chunk := w.scan[:min(r.Length-done, int64(cap(w.scan)))]
		offset := r.Offset + done
		got, bad, err := w.fill(ctx, f, s, offset, chunk)
		if err != nil {
			return err
		}
		block := int(w.block)
		for at := 0; at < got; {
			end := at
			for end < got && w.keep(s, chunk[end:min(end+block, got)], end/block, bad) {
				end = min(end+block, got)
			}
			if end == at {
				at += block
				continue
			}
			if err := w.put(ctx, out, offset+int64(at), chunk[at:end]); err != nil {
				return err
			}
			at = end
		}
		if got < len(chunk) {
			out.zeros(offset+int64(got), r.Length-done-int64(got))
			return nil
		}
		done += int64(len(chunk))
	}
	return nil
}

// keep: a piece of a page is one that is being written.
func (w *worker) keep(s stretch, page []byte, n int, bad []int) bool {
	return len(page) < int(w.block) || slices.Contains(bad, n) || s.file.plan.Keep(page)
}

// put takes bytes that were read elsewhere.
func (w *worker) put(ctx context.Context, out *stretchResult, offset int64, b []byte) error {
	if err := w.align(ctx); err != nil {
		return err
	}
	for len(b) > 0 {
		if len(w.raw) == cap(w.raw) {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
		at := len(w.raw)
		n := copy(w.raw[at:cap(w.raw)], b)
		w.take(out, offset, at, n)
		offset, b = offset+int64(n), b[n:]
	}
	return nil
}

// readSummed takes a file that is always read whole, unless it is as the earlier
// backup has it. Files that are not relations are replaced whole (settings,
// say), and no WAL puts right what is cut: what is open now is the file.
func (w *worker) readSummed(ctx context.Context, f *os.File, s stretch, out *stretchResult) error {
	size := s.file.Size
	if !s.file.class.Relation {
		info, err := f.Stat()
		if err != nil {
			return w.explain(err, s)
		}
		size = info.Size()
		out.now = &fileNow{size: size, modified: info.ModTime()}
	}
	whole := delta.Stretch{Length: size}
	before := s.file.former
	known := before != nil && before.HasSum && before.Size == size
	if known && size > int64(cap(w.raw)) {
		// Too large to be held until it is known whether it has changed.
		sum := sha256.New()
		if err := w.digest(ctx, f, s, whole, sum); err != nil {
			return err
		}
		if out.sum = short(sum); out.sum == before.Sum {
			out.same = true
			return nil
		}
	}
	if known && cap(w.raw)-len(w.raw) < int(size)+int(w.block) {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	if err := w.align(ctx); err != nil {
		return err
	}
	at, pieces := len(w.raw), len(w.pieces)
	sum := sha256.New()
	if err := w.readRange(ctx, f, s, whole, out, sum); err != nil {
		return err
	}
	out.sum = short(sum)
	if known && size <= int64(cap(w.raw)) && out.sum == before.Sum {
		// Nothing of it has left the buffer: it is as if it had not been read.
		w.raw, w.pieces = w.raw[:at], w.pieces[:pieces]
		out.runs, out.same = nil, true
	}
	return nil
}

// digest reads a range for its sum alone.
func (w *worker) digest(ctx context.Context, f *os.File, s stretch, r delta.Stretch, sum hash.Hash) error {
	for done := int64(0); done < r.Length; {
		chunk := w.scan[:min(r.Length-done, int64(cap(w.scan)))]
		if err := w.throttle(ctx, len(chunk)); err != nil {
			return err
		}
		got, err := f.ReadAt(chunk, r.Offset+done)
		if err != nil && !errors.Is(err, io.EOF) {
			return w.explain(err, s)
		}
		w.meter.read.Add(int64(got))
		feed(sum, chunk[:got])
		if got < len(chunk) {
			feedZeros(sum, r.Length-done-int64(got))
			return nil
		}
		done += int64(got)
	}
	return nil
}

// emptySum is that of no bytes.
var emptySum = short(sha256.New())

func short(sum hash.Hash) (s [16]byte) {
	copy(s[:], sum.Sum(nil))
	return s
}

func feed(sum hash.Hash, b []byte) {
	if sum != nil {
		sum.Write(b)
	}
}

func feedZeros(sum hash.Hash, n int64) {
	if sum == nil {
		return
	}
	var zeros [8192]byte
	for n > 0 {
		step := min(n, int64(len(zeros)))
		sum.Write(zeros[:step])
		n -= step
	}
}

// zeros says that a range is zeros.
func (r *stretchResult) zeros(offset, length int64) {
	if length > 0 {
		r.runs = append(r.runs, placed{offset: offset, length: length, zero: true})
	}
}

// take keeps n bytes of the file's offset that are at position at of the frame.
func (w *worker) take(out *stretchResult, offset int64, at, n int) {
	if n == 0 {
		return
	}
	w.raw = w.raw[:at+n]
	w.pieces = append(w.pieces, piece{result: out, run: len(out.runs), offset: int64(at)})
	out.runs = append(out.runs, placed{offset: offset, length: int64(n)})
}

// align makes the next file begin at a whole block of the frame, so that runs
// of page files are counted in blocks, and in a frame of its own rather than
// in a small rest.
func (w *worker) align(ctx context.Context) error {
	rest := int64(len(w.raw)) % w.block
	if rest != 0 {
		pad := w.raw[len(w.raw) : len(w.raw)+int(w.block-rest)]
		clear(pad)
		w.raw = w.raw[:len(w.raw)+len(pad)]
	}
	if cap(w.raw)-len(w.raw) < int(w.block) {
		return w.flush(ctx)
	}
	return nil
}

// flush makes a frame of what was gathered and gives its runs their place.
func (w *worker) flush(ctx context.Context) error {
	if len(w.raw) == 0 {
		return nil
	}
	if rest := int64(len(w.raw)) % w.block; rest != 0 {
		pad := w.raw[len(w.raw) : len(w.raw)+int(w.block-rest)]
		clear(pad)
		w.raw = w.raw[:len(w.raw)+len(pad)]
	}
	var err error
	if w.frame, err = w.enc.AppendFrame(w.frame[:0], w.raw); err != nil {
		return fmt.Errorf("compress frame: %w", err)
	}
	ref, err := w.packs.Append(ctx, w.frame, int64(len(w.raw)))
	if err != nil {
		return err
	}
	w.meter.stored.Add(int64(len(w.frame)))
	for _, p := range w.pieces {
		run := &p.result.runs[p.run]
		run.pack, run.raw = ref.Pack, ref.RawOffset+p.offset
		if n := len(p.result.frames); n == 0 || p.result.frames[n-1] != ref {
			p.result.frames = append(p.result.frames, ref)
		}
	}
	w.raw, w.pieces = w.raw[:0], w.pieces[:0]
	return nil
}

func (w *worker) throttle(ctx context.Context, n int) error {
	if w.limit == nil {
		return nil
	}
	for n > 0 {
		step := min(n, w.limit.Burst())
		if err := w.limit.WaitN(ctx, step); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

func (w *worker) explain(err error, s stretch) error {
	hint := "Look at the kernel's log for disk errors. No backup was made."
	if errors.Is(err, fs.ErrPermission) {
		hint = "Run the agent as the user that PostgreSQL runs as."
	}
	return errs.Wrap(err, errs.Other, hint, "read %s", s.file.Path)
}
