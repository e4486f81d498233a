package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"agent/internal/postgres"
)

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
// page is being written just now and is not judged. bad are the damaged ones, by
// their place in the chunk.
func (p *pageChecker) check(ctx context.Context, f io.ReaderAt, file *fileState, offset int64, chunk []byte) (bad []int, err error) {
	if !p.enabled || !file.class.PageChecksums || offset%p.block != 0 {
		return nil, nil
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
			return nil, err
		}
		switch {
		case ok:
		case file.class.Rel.Fork == postgres.FSMFork || file.class.Rel.Fork == postgres.VMFork:
			// The server replaces such a page by zeros when it reads it.
			p.log.Warn("a page of a free space or visibility map has a wrong checksum", "path", file.Path, "block", block)
		default:
			p.bad.add(file.Path, block)
			bad = append(bad, i/int(p.block))
		}
	}
	return bad, nil
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
