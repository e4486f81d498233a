package compress

import (
	"bytes"
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

const (
	zstdMagic    = 0xFD2FB528 // RFC 8878, 3.1.1
	zstdMaxBlock = 128 << 10  // RFC 8878, 3.1.1.2.4

	zstdFlagChecksum = 1 << 2 // of the frame header descriptor, 3.1.1.1.1
	zstdFlagReserved = 1 << 3
	zstdFlagSingle   = 1 << 5

	zstdBlockRaw        = 0 // 3.1.1.2.2
	zstdBlockRLE        = 1
	zstdBlockCompressed = 2
)

// appendRawZstd appends a zstd frame that stores raw as it is (RFC 8878,
// 3.1.1): single segment, content size, checksum, blocks of type raw, or RLE
// where a block is one byte repeated.
func appendRawZstd(dst, raw []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, zstdMagic)
	const descriptor = zstdFlagSingle | zstdFlagChecksum
	switch n := len(raw); {
	case n < 256:
		dst = append(dst, descriptor, byte(n))
	case n < 256+1<<16:
		dst = append(dst, descriptor|1<<6)
		dst = binary.LittleEndian.AppendUint16(dst, uint16(n-256))
	default:
		dst = append(dst, descriptor|2<<6)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
	}
	for rest, first := raw, true; ; first = false {
		block := rest[:min(len(rest), zstdMaxBlock)]
		rest = rest[len(block):]
		last := uint32(0)
		if len(rest) == 0 {
			last = 1
		}
		// zstd 1.4.3 and older does not read a frame whose first block is RLE.
		if !first && repeats(block) {
			dst = appendUint24(dst, uint32(len(block))<<3|zstdBlockRLE<<1|last)
			dst = append(dst, block[0])
		} else {
			dst = appendUint24(dst, uint32(len(block))<<3|zstdBlockRaw<<1|last)
			dst = append(dst, block...)
		}
		if last == 1 {
			break
		}
	}
	return binary.LittleEndian.AppendUint32(dst, uint32(xxhash.Sum64(raw)))
}

// repeats says whether a block is one byte over and over.
func repeats(block []byte) bool {
	return len(block) > 1 && bytes.Equal(block[1:], block[:len(block)-1])
}

func appendUint24(dst []byte, v uint32) []byte {
	return append(dst, byte(v), byte(v>>8), byte(v>>16))
}
