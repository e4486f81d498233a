package repo

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/storage"
)

// A request costs about as much time as this many bytes of an answer: 20 ms at
// 50 MB/s from a store behind a network, opening a file where there is none.
const (
	requestBytes      = 1 << 20
	requestBytesLocal = 64 << 10
)

// rangeOverhead is how many requests ranges take before the first of them: the
// object's size, its head, and, where it is sealed, its tail.
const rangeOverhead = 3

// Extent is a stretch of the opened content of a pack, in bytes.
type Extent struct{ Offset, Length int64 }

// ReadFrames is ReadPack for some frames of a pack, which are given by rising
// offset: where they are a small part of it only ranges of the object are read.
// Then nothing compares the object's hash, so that a frame counts only after it
// was decoded: it carries a checksum of its raw bytes, and of a sealed pack age
// authenticates every chunk that is read.
func (r *Repository) ReadFrames(ctx context.Context, cluster ClusterID, backup BackupName, want Pack, frames []Extent, use func(*PackStream) error) error {
	open := func(s source, ctx context.Context, key string, want Pack) (packBody, error) {
		// An older version cannot be read by ranges; it is a second chance anyway.
		if s.version == "" && s.place.err() == nil {
			if spans, few := chooseRanges(frames, want.Size, s.place.Bucket.Capabilities().Local); few {
				return s.openRanges(ctx, key, want, spans)
			}
		}
		return s.openPack(ctx, key, want)
	}
	return r.readPack(ctx, cluster, backup, want, use, open)
}

// chooseRanges joins the frames over holes that are cheaper to read than to leave
// out. few is whether reading what is left costs less than half of reading the
// whole: below that the better proof of the whole is worth it.
func chooseRanges(frames []Extent, size int64, local bool) (spans []Extent, few bool) {
	request := int64(requestBytes)
	if local {
		request = requestBytesLocal
	}
	cost := int64(rangeOverhead) * request
	for _, f := range frames {
		if n := len(spans); n > 0 {
			last := &spans[n-1]
			end := last.Offset + last.Length
			if f.Offset-end <= request {
				grown := max(end, f.Offset+f.Length) - end
				last.Length += grown
				cost += grown
				continue
			}
		}
		spans = append(spans, f)
		cost += request + f.Length
	}
	return spans, cost <= (request+size)/2
}

// rangedPack reads stretches of a pack. It is used by one goroutine.
type rangedPack struct {
	from   source
	key    string
	src    *rangeSource
	opened io.ReaderAt
}

func (s source) openRanges(ctx context.Context, key string, want Pack, spans []Extent) (packBody, error) {
	p := &rangedPack{from: s, key: key, src: &rangeSource{ctx: ctx, bucket: s.place.Bucket, key: key, size: want.Size}}
	p.opened = p.src
	// Side by side: each is a round trip.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		info, err := s.place.Bucket.Stat(gctx, key)
		if err == nil && info.Size != want.Size {
			err = s.otherSize(info.Size, want.Size, key)
		}
		return err
	})
	g.Go(func() error { return p.src.fillHead(gctx) })
	switch err := g.Wait(); {
	case errors.Is(err, storage.ErrRange):
		return nil, p.fail(err)
	case err != nil:
		return nil, err
	case !crypto.IsSealed(p.src.head):
		p.src.spans = spans
		return p, nil
	}
	opened, size, err := s.repo.keys.Identities.OpenAt(p.src, want.Size)
	if err != nil {
		if err = errors.Join(p.fail(err), p.Close()); errs.KindOf(err) == errs.Identity {
			// A damaged header looks the same; reading the whole tells them apart.
			return s.openPack(ctx, key, want)
		}
		return nil, err
	}
	p.opened = opened
	for _, e := range spans {
		at, n := crypto.SealedRange(want.Size, size, e.Offset, e.Length)
		p.src.spans = append(p.src.spans, Extent{at, n})
	}
	return p, nil
}

func (p *rangedPack) readFrame(offset int64, dst []byte) error {
	n, err := p.opened.ReadAt(dst, offset)
	if n == len(dst) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return p.fail(err)
}

// fail names the pack, and tells damage from a store that could not be asked.
func (p *rangedPack) fail(err error) error {
	if p.src.err != nil {
		return fmt.Errorf("read %s of %s: %w", p.key, p.from, p.src.err)
	}
	if errs.KindOf(err) == errs.Identity {
		return err
	}
	return p.from.damaged(err, p.key)
}

func (p *rangedPack) finish() error { return nil }

func (p *rangedPack) whole() bool { return false }

// Close gives up the transfer.
func (p *rangedPack) Close() error { return p.src.close() }

// rangeSource reads the stored bytes of an object by the ranges that were
// planned, each by one request from which what follows is streamed. Anything
// else is a request of its own. It is used by one goroutine.
type rangeSource struct {
	ctx    context.Context
	bucket storage.Bucket
	key    string
	size   int64
	head   []byte
	spans  []Extent // stored bytes, ascending

	body     io.ReadCloser // the bytes from pos to end
	pos, end int64
	err      error // of the store
}

func (r *rangeSource) fillHead(ctx context.Context) error {
	n := min(r.size, headSize)
	body, err := r.bucket.GetRange(ctx, r.key, 0, n)
	if err != nil {
		return err
	}
	r.head, err = io.ReadAll(body)
	return errors.Join(err, body.Close())
}

// ReadAt reads stored bytes; they are cheap in rising order within a span.
func (r *rangeSource) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(r.head)) {
		n = copy(p, r.head[off:])
	}
	for n < len(p) && off+int64(n) < r.size {
		m, err := r.stream(p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// stream reads what it can from one answer.
func (r *rangeSource) stream(p []byte, off int64) (int, error) {
	if r.body == nil || off < r.pos || off >= r.end {
		if err := r.open(off, min(int64(len(p)), r.size-off)); err != nil {
			return 0, err
		}
	}
	skipped, err := io.CopyN(io.Discard, r.body, off-r.pos)
	r.pos += skipped
	n := 0
	if err == nil {
		n, err = io.ReadFull(r.body, p[:min(int64(len(p)), r.end-off)])
		r.pos += int64(n)
	}
	return n, r.failed(err)
}

// open asks for the rest of the span that holds off, or for n bytes.
func (r *rangeSource) open(off, n int64) error {
	if err := r.close(); err != nil {
		return r.failed(err)
	}
	for _, s := range r.spans {
		if end := s.Offset + s.Length; off >= s.Offset && off < end {
			n = end - off
		}
	}
	body, err := r.bucket.GetRange(r.ctx, r.key, off, n)
	if err != nil {
		return r.failed(err)
	}
	r.body, r.pos, r.end = body, off, off+n
	return nil
}

// failed remembers an error of the store. That the object ends too early is
// none.
func (r *rangeSource) failed(err error) error {
	if err != nil && r.err == nil && !errors.Is(err, storage.ErrRange) {
		r.err = err
	}
	return err
}

func (r *rangeSource) close() error {
	if r.body == nil {
		return nil
	}
	err := r.body.Close()
	r.body = nil
	return err
}
