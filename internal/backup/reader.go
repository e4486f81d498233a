package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/time/rate"

	"agent/internal/compress"
	"agent/internal/delta"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// stretch is a piece of one file that is read by one worker.
type stretch struct {
	delta.Stretch
	file *fileState
	slot int // of the file's results
}

// fileState gathers what the workers find out about a file. Each stretch has
// its own slot, so that workers do not meet.
type fileState struct {
	source
	results []stretchResult
	left    int // stretches the collector has not seen
}

type stretchResult struct {
	runs   []repo.Run
	frames []repo.FrameRef
	gone   bool
	now    *fileNow // what the file was when it was opened, if that counts
}

type fileNow struct {
	size     int64
	modified time.Time
}

// unit is the work of one worker at a time: one stretch of a large file, or a
// batch of small files.
type unit struct {
	stretches []stretch
}

// worker reads units into frames. It owns its buffers and is used by one
// goroutine.
type worker struct {
	name   repo.BackupName
	packs  *repo.Writer
	enc    *compress.Encoder
	pages  *pageChecker
	limit  *rate.Limiter // nil: unlimited
	meter  *meter
	raw    []byte // the frame that is being filled; capacity is a frame
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

// read takes one stretch. Where the file has become shorter the rest is
// zeros: the truncation is in the WAL and is done again by recovery.
func (w *worker) read(ctx context.Context, s stretch, out *stretchResult) (err error) {
	if s.Length == 0 && s.file.class.Relation {
		return nil
	}
	f, err := os.Open(s.file.osPath)
	if errors.Is(err, fs.ErrNotExist) {
		out.gone = true
		if s.Length > 0 {
			out.runs = append(out.runs, repo.Run{Length: s.Length, Zero: true})
		}
		return nil
	}
	if err != nil {
		return w.explain(err, s)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if !s.file.class.Relation && len(s.file.results) == 1 {
		// Files that are not relations are replaced whole (settings, say), and
		// no WAL puts right what is cut: what is open now is the file.
		info, err := f.Stat()
		if err != nil {
			return w.explain(err, s)
		}
		s.Length = info.Size()
		out.now = &fileNow{size: info.Size(), modified: info.ModTime()}
	}
	if err := w.align(ctx); err != nil {
		return err
	}
	for done := int64(0); done < s.Length; {
		if len(w.raw) == cap(w.raw) {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
		at := len(w.raw)
		n := min(s.Length-done, int64(cap(w.raw)-at))
		if err := w.throttle(ctx, int(n)); err != nil {
			return err
		}
		chunk := w.raw[at : at+int(n)]
		got, err := f.ReadAt(chunk, s.Offset+done)
		if err != nil && !errors.Is(err, io.EOF) {
			return w.explain(err, s)
		}
		w.meter.read.Add(int64(got))
		if err := w.pages.check(ctx, f, s.file, s.Offset+done, chunk[:got]); err != nil {
			return err
		}
		if got < len(chunk) {
			w.take(out, at, got)
			out.runs = append(out.runs, repo.Run{Length: s.Length - done - int64(got), Zero: true})
			return nil
		}
		if at == 0 && len(chunk) == cap(w.raw) && postgres.IsZero(chunk) {
			out.runs = append(out.runs, repo.Run{Length: n, Zero: true})
		} else {
			w.take(out, at, got)
		}
		done += n
	}
	return nil
}

// take keeps n bytes that were read to position at of the frame.
func (w *worker) take(out *stretchResult, at, n int) {
	if n == 0 {
		return
	}
	w.raw = w.raw[:at+n]
	w.pieces = append(w.pieces, piece{result: out, run: len(out.runs), offset: int64(at)})
	out.runs = append(out.runs, repo.Run{Length: int64(n)})
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
		run.Pack = repo.PackID{Backup: w.name, Number: ref.Pack}
		run.Raw = ref.RawOffset + p.offset
		p.result.frames = append(p.result.frames, ref)
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

// The retry rule for pages with a wrong checksum: a page that the server was
// just writing is whole, or has other bytes, some moments later.
const (
	pageRetries = 5
	pageRetryIn = 20 * time.Millisecond
)

// pageChecker verifies page checksums while pages pass through. It is shared
// by all workers.
type pageChecker struct {
	enabled   bool
	block     int64
	segBlocks uint32
	start     postgres.LSN
	// current asks the server for its insert position.
	current func(ctx context.Context) (postgres.LSN, error)
	bad     *badPages
	log     *slog.Logger
}

// check judges the whole pages of chunk, which begins at offset of the file,
// and puts a page right that a second read finds whole. A rest that is not a
// page is being written just now and is not judged.
func (p *pageChecker) check(ctx context.Context, f io.ReaderAt, file *fileState, offset int64, chunk []byte) error {
	if !p.enabled || !file.class.PageChecksums || offset%p.block != 0 {
		return nil
	}
	first := file.class.Rel.FirstBlock(p.segBlocks) + uint32(offset/p.block)
	for i := 0; i+int(p.block) <= len(chunk); i += int(p.block) {
		page := chunk[i : i+int(p.block)]
		block := first + uint32(i/int(p.block))
		if v := postgres.CheckPage(page, block, ^postgres.LSN(0), 0); v.OK() {
			continue
		}
		ok, err := p.again(ctx, f, offset+int64(i), block, page)
		if err != nil {
			return err
		}
		switch {
		case ok:
		case file.class.Rel.Fork == postgres.FSMFork || file.class.Rel.Fork == postgres.VMFork:
			// The server replaces such a page by zeros when it reads it.
			p.log.Warn("a page of a free space or visibility map has a wrong checksum", "path", file.Path, "block", block)
		default:
			p.bad.add(file.Path, block)
		}
	}
	return nil
}

// again decides about a page whose checksum is wrong: being written during
// the backup (WAL repairs it), read while it was written, or damaged.
func (p *pageChecker) again(ctx context.Context, f io.ReaderAt, offset int64, block uint32, page []byte) (bool, error) {
	fresh := make([]byte, len(page))
	for try := 0; ; try++ {
		current := postgres.LSN(0)
		if postgres.PageLSN(page) >= p.start {
			var err error
			if current, err = p.current(ctx); err != nil {
				return false, fmt.Errorf("ask for the server's WAL position: %w", err)
			}
		}
		if postgres.CheckPage(page, block, p.start, current).OK() {
			return true, nil
		}
		if try == pageRetries {
			return false, nil
		}
		select {
		case <-time.After(pageRetryIn):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
		n, err := f.ReadAt(fresh, offset)
		if n < len(fresh) && (err == nil || errors.Is(err, io.EOF)) {
			return true, nil // truncated meanwhile
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		copy(page, fresh)
	}
}
