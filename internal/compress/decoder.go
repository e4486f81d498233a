package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// zstdSlack is the free room behind the output with which the zstd library
// takes its faster copies; they may write into it.
const zstdSlack = 16

// Decoder decodes single frames of at most MaxFrame raw bytes. It keeps its
// buffers from frame to frame, so one per worker is enough. The zero value is
// ready. It is not safe for concurrent use.
type Decoder struct {
	zstd *zstd.Decoder
	lz4  *lz4.Reader // for frames of other shapes than ours
}

// AppendRaw appends to dst the raw bytes of frame, which must be exactly one
// zstd or lz4 frame with content size, at most MaxFrame, and checksum. Any
// error wraps ErrCorrupt, and dst is returned as it was; up to the end of its
// capacity its free bytes may have been overwritten. No input makes it use
// more than some MiB of memory.
func (d *Decoder) AppendRaw(dst, frame []byte) ([]byte, error) {
	h, err := parseFrameHeader(frame)
	if errors.Is(err, errShort) {
		return dst, corruptf("frame header is cut off after %d bytes", len(frame))
	}
	if err != nil {
		return dst, err
	}
	if err := h.usable(); err != nil {
		return dst, err
	}
	switch {
	case !h.hasContent:
		return dst, corruptf("%s frame without content size", h.method)
	case h.content > MaxFrame:
		return dst, corruptf("%s frame of %d raw bytes, more than %d", h.method, h.content, MaxFrame)
	case !h.checksum:
		return dst, corruptf("%s frame without checksum", h.method)
	case h.window > MaxWindow:
		return dst, corruptf("%s frame with a window of %d bytes", h.method, h.window)
	}
	n, err := frameLength(h, frame)
	switch {
	case errors.Is(err, errShort):
		return dst, corruptf("%s frame is cut off after %d bytes", h.method, len(frame))
	case err != nil:
		return dst, err
	case n != len(frame):
		return dst, corruptf("%d bytes behind the end of the %s frame", len(frame)-n, h.method)
	case h.method == Zstd:
		return d.appendZstd(dst, frame, h)
	default:
		return d.appendLZ4(dst, frame, h)
	}
}

func (d *Decoder) appendZstd(dst, frame []byte, h frameHeader) ([]byte, error) {
	if d.zstd == nil {
		dec, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(MaxWindow))
		if err != nil {
			return dst, fmt.Errorf("make zstd decoder: %w", err)
		}
		d.zstd = dec
	}
	size := int(h.content)
	dst = grow(dst, size, zstdSlack)
	// An empty slice over the free capacity: the library counts what is
	// before it against its limits.
	out, err := d.zstd.DecodeAll(frame, dst[len(dst):])
	if err != nil {
		return dst, corruptf("zstd frame: %v", err)
	}
	if len(out) != size {
		return dst, corruptf("zstd frame has %d raw bytes, not %d", len(out), size)
	}
	if size == 0 || &out[0] == &dst[:len(dst)+1][len(dst)] {
		return dst[:len(dst)+size], nil
	}
	return append(dst, out...), nil // the library moved it
}

func (d *Decoder) appendLZ4(dst, frame []byte, h frameHeader) ([]byte, error) {
	size := int(h.content)
	dst = grow(dst, size, 0)
	out := dst[len(dst) : len(dst)+size : len(dst)+size]
	block, stored, single := soleBlock(frame, h)
	switch {
	case !single:
		if err := d.readLZ4(out, frame); err != nil {
			return dst, err
		}
		return dst[:len(dst)+size], nil
	case stored && len(block) != size:
		return dst, corruptf("lz4 frame has %d raw bytes, not %d", len(block), size)
	case stored:
		copy(out, block)
	default:
		n, err := lz4.UncompressBlock(block, out)
		if err != nil {
			return dst, corruptf("lz4 block: %v", err)
		}
		if n != size {
			return dst, corruptf("lz4 frame has %d raw bytes, not %d", n, size)
		}
	}
	if want, got := binary.LittleEndian.Uint32(frame[len(frame)-4:]), xxh32(out); got != want {
		return dst, corruptf("lz4 content checksum is %08x, not %08x", got, want)
	}
	return dst[:len(dst)+size], nil
}

// soleBlock finds the block of a frame of our shape: one block or none,
// without checksum of its own. frameLength has found the frame whole.
func soleBlock(frame []byte, h frameHeader) (block []byte, stored, single bool) {
	body := frame[h.size : len(frame)-lz4Trailer]
	if h.blockChecksums || h.content > h.maxBlock {
		return nil, false, false
	}
	if len(body) == 0 {
		return nil, true, true
	}
	head := binary.LittleEndian.Uint32(body)
	block = body[lz4BlockHead:]
	return block, head&lz4StoredBit != 0, uint64(head&^lz4StoredBit) == uint64(len(block))
}

// readLZ4 fills out with the raw bytes of a frame of any shape; the library
// checks size and checksum.
func (d *Decoder) readLZ4(out, frame []byte) error {
	src := bytes.NewReader(frame)
	if d.lz4 == nil {
		d.lz4 = lz4.NewReader(src) // its concurrency is 1
	} else {
		d.lz4.Reset(src)
	}
	if _, err := io.ReadFull(d.lz4, out); err != nil {
		return corruptf("lz4 frame: %v", err)
	}
	var more [1]byte
	if n, err := d.lz4.Read(more[:]); n != 0 || !errors.Is(err, io.EOF) {
		return corruptf("lz4 frame is longer than its content size, or: %v", err)
	}
	return nil
}

// grow makes room for size more bytes, and for slack behind them if it has to
// move dst anyway.
func grow(dst []byte, size, slack int) []byte {
	if cap(dst)-len(dst) >= size {
		return dst
	}
	return slices.Grow(dst, size+slack)
}
