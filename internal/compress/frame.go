package compress

import (
	"encoding/binary"
	"errors"
)

// maxFrameHeader is the longest header of both formats, in bytes.
const maxFrameHeader = 19

// errShort says that a header or block head goes on beyond the bytes given.
var errShort = errors.New("compressed data ends too early")

// frameHeader is what the first bytes of a frame say.
type frameHeader struct {
	method         Method // Zstd or LZ4
	size           int    // bytes of the header itself
	hasContent     bool
	content        uint64 // raw bytes in the frame, if hasContent
	checksum       bool   // raw bytes are followed by their checksum
	blockChecksums bool   // lz4: each block is followed by its own
	dictionary     bool
	window         uint64 // bytes of history a decoder must keep
	maxBlock       uint64 // bytes, stored and raw, in one block
}

// parseFrameHeader reads the header at the beginning of b, of which
// maxFrameHeader bytes are always enough; errShort if there are too few.
func parseFrameHeader(b []byte) (frameHeader, error) {
	if len(b) < 4 {
		return frameHeader{}, errShort
	}
	switch magic := binary.LittleEndian.Uint32(b); magic {
	case zstdMagic:
		return parseZstdHeader(b)
	case lz4Magic:
		return parseLZ4Header(b)
	default:
		return frameHeader{}, corruptf("no zstd or lz4 frame begins with %x", b[:4])
	}
}

// parseZstdHeader follows RFC 8878, 3.1.1.1.
func parseZstdHeader(b []byte) (frameHeader, error) {
	h := frameHeader{method: Zstd}
	if len(b) < 5 {
		return h, errShort
	}
	descriptor := b[4]
	if descriptor&zstdFlagReserved != 0 {
		return h, corruptf("reserved bit in zstd frame header")
	}
	single := descriptor&zstdFlagSingle != 0
	h.checksum = descriptor&zstdFlagChecksum != 0
	windowSize := 1
	if single {
		windowSize = 0
	}
	dictSize := [4]int{0, 1, 2, 4}[descriptor&3]
	contentSize := [4]int{0, 2, 4, 8}[descriptor>>6]
	if single && contentSize == 0 {
		contentSize = 1
	}
	h.size = 5 + windowSize + dictSize + contentSize
	if len(b) < h.size {
		return h, errShort
	}
	for _, c := range b[5+windowSize : 5+windowSize+dictSize] {
		h.dictionary = h.dictionary || c != 0 // id 0 is "none"
	}
	field := b[5+windowSize+dictSize : h.size]
	h.hasContent = true
	switch contentSize {
	case 0:
		h.hasContent = false
	case 1:
		h.content = uint64(field[0])
	case 2:
		h.content = uint64(binary.LittleEndian.Uint16(field)) + 256
	case 4:
		h.content = uint64(binary.LittleEndian.Uint32(field))
	case 8:
		h.content = binary.LittleEndian.Uint64(field)
	}
	if single {
		h.window = h.content
	} else {
		base := uint64(1) << (10 + b[5]>>3)
		h.window = base + base/8*uint64(b[5]&7)
	}
	// The Block_Maximum_Size is also bounded by the window, which the library
	// checks; here it only has to bound what one block may take.
	h.maxBlock = zstdMaxBlock
	return h, nil
}

// parseLZ4Header follows the LZ4 frame format, "Frame Descriptor".
func parseLZ4Header(b []byte) (frameHeader, error) {
	h := frameHeader{method: LZ4, window: 64 << 10}
	if len(b) < 7 {
		return h, errShort
	}
	flags, bd := b[4], b[5]
	h.hasContent = flags&lz4FlagSize != 0
	h.checksum = flags&lz4FlagChecksum != 0
	h.blockChecksums = flags&lz4FlagBlockChecksum != 0
	h.dictionary = flags&lz4FlagDictionary != 0
	h.size = 7
	if h.hasContent {
		h.size += 8
	}
	if h.dictionary {
		h.size += 4
	}
	if len(b) < h.size {
		return h, errShort
	}
	if h.hasContent {
		h.content = binary.LittleEndian.Uint64(b[6:])
	}
	switch block := bd >> 4 & 7; {
	case flags&0xC0 != lz4FlagVersion || flags&lz4FlagReserved != 0 || bd&0x8F != 0 || block < 4:
		return h, corruptf("unknown version or reserved bits in lz4 frame header")
	case byte(xxh32(b[4:h.size-1])>>8) != b[h.size-1]:
		return h, corruptf("wrong checksum of lz4 frame header")
	default:
		h.maxBlock = 1 << (8 + 2*uint(block))
	}
	return h, nil
}

// usable refuses frames that nobody could decode here.
func (h frameHeader) usable() error {
	if h.dictionary {
		return corruptf("%s frame made with a dictionary", h.method)
	}
	return nil
}

// frameWalker finds the end of a frame by its block heads, without decoding.
type frameWalker struct {
	h       frameHeader
	started bool
	ended   bool
}

// next returns how many bytes the next part of the frame takes: its header,
// one block, what ends it; 0 after the last part. peek gives the next n bytes
// without consuming them, or an error that next passes on.
func (w *frameWalker) next(peek func(n int) ([]byte, error)) (int, error) {
	switch {
	case w.ended:
		return 0, nil
	case !w.started:
		w.started = true
		return w.h.size, nil
	case w.h.method == Zstd:
		return w.nextZstd(peek)
	default:
		return w.nextLZ4(peek)
	}
}

// nextZstd follows RFC 8878, 3.1.1.2.
func (w *frameWalker) nextZstd(peek func(n int) ([]byte, error)) (int, error) {
	b, err := peek(3)
	if err != nil {
		return 0, err
	}
	head := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
	size := uint64(head >> 3)
	if size > w.h.maxBlock {
		return 0, corruptf("zstd block of %d bytes", size)
	}
	n := 3
	switch head >> 1 & 3 {
	case zstdBlockRaw, zstdBlockCompressed:
		n += int(size)
	case zstdBlockRLE:
		n++
	default:
		return 0, corruptf("zstd block of reserved type")
	}
	if head&1 != 0 {
		w.ended = true
		if w.h.checksum {
			n += 4
		}
	}
	return n, nil
}

// nextLZ4 follows the LZ4 frame format, "Data Blocks".
func (w *frameWalker) nextLZ4(peek func(n int) ([]byte, error)) (int, error) {
	b, err := peek(lz4BlockHead)
	if err != nil {
		return 0, err
	}
	n := lz4BlockHead
	head := binary.LittleEndian.Uint32(b)
	if head == 0 {
		w.ended = true
		if w.h.checksum {
			n += 4
		}
		return n, nil
	}
	size := uint64(head &^ lz4StoredBit)
	if size > w.h.maxBlock {
		return 0, corruptf("lz4 block of %d bytes", size)
	}
	n += int(size)
	if w.h.blockChecksums {
		n += 4
	}
	return n, nil
}

// frameLength is the number of bytes of the frame with header h that b begins
// with; errShort if b ends before.
func frameLength(h frameHeader, b []byte) (int, error) {
	w := frameWalker{h: h}
	off := 0
	for {
		n, err := w.next(func(n int) ([]byte, error) {
			if len(b)-off < n {
				return nil, errShort
			}
			return b[off : off+n], nil
		})
		if err != nil || n == 0 {
			return off, err
		}
		if len(b)-off < n {
			return off, errShort
		}
		off += n
	}
}
