package compress

import "encoding/binary"

// A skippable frame (RFC 8878, 3.1.2; the same in the LZ4 frame format): one
// of 16 magic numbers, the payload's size, the payload. Decoders pass over it.
const (
	skippableMagic     = 0x184D2A57 // the one we write
	skippableMagicMask = 0xFFFFFFF0
	skippableHead      = 8
)

// AppendSkippable appends a skippable frame with the payload to dst. zstd and
// lz4 pass over it when they decompress. payload is shorter than 4 GiB.
func AppendSkippable(dst, payload []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, skippableMagic)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// ParseSkippable reads a frame that AppendSkippable wrote at the beginning of
// b. The payload is a part of b; n is the length of the whole frame. ok is
// false if b begins with something else (also with a skippable frame of
// another magic number) or ends before the frame does.
func ParseSkippable(b []byte) (payload []byte, n int, ok bool) {
	if len(b) < skippableHead || binary.LittleEndian.Uint32(b) != skippableMagic {
		return nil, 0, false
	}
	size := binary.LittleEndian.Uint32(b[4:])
	if uint64(size) > uint64(len(b)-skippableHead) {
		return nil, 0, false
	}
	n = skippableHead + int(size)
	return b[skippableHead:n], n, true
}

func isSkippable(magic uint32) bool {
	return magic&skippableMagicMask == skippableMagic&skippableMagicMask
}
