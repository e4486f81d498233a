package compress

import (
	"encoding/binary"
	"math/bits"
)

// The primes of XXH32 (xxHash specification, "XXH32 algorithm description").
const (
	xxPrime1 uint32 = 2654435761
	xxPrime2 uint32 = 2246822519
	xxPrime3 uint32 = 3266489917
	xxPrime4 uint32 = 668265263
	xxPrime5 uint32 = 374761393
)

// xxh32 is XXH32 with seed 0, the checksum of the LZ4 frame format.
func xxh32(b []byte) uint32 {
	h := uint32(len(b))
	if len(b) >= 16 {
		a1, a2, a3, a4 := xxPrime1, xxPrime2, uint32(0), uint32(0)
		a1 += xxPrime2
		a4 -= xxPrime1
		for len(b) >= 16 {
			a1 = xxRound(a1, binary.LittleEndian.Uint32(b[0:4]))
			a2 = xxRound(a2, binary.LittleEndian.Uint32(b[4:8]))
			a3 = xxRound(a3, binary.LittleEndian.Uint32(b[8:12]))
			a4 = xxRound(a4, binary.LittleEndian.Uint32(b[12:16]))
			b = b[16:]
		}
		h += bits.RotateLeft32(a1, 1) + bits.RotateLeft32(a2, 7) +
			bits.RotateLeft32(a3, 12) + bits.RotateLeft32(a4, 18)
	} else {
		h += xxPrime5
	}
	for ; len(b) >= 4; b = b[4:] {
		h = bits.RotateLeft32(h+binary.LittleEndian.Uint32(b)*xxPrime3, 17) * xxPrime4
	}
	for _, c := range b {
		h = bits.RotateLeft32(h+uint32(c)*xxPrime5, 11) * xxPrime1
	}
	h ^= h >> 15
	h *= xxPrime2
	h ^= h >> 13
	h *= xxPrime3
	return h ^ h>>16
}

func xxRound(acc, lane uint32) uint32 {
	return bits.RotateLeft32(acc+lane*xxPrime2, 13) * xxPrime1
}
