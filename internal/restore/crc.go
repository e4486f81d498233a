package restore

import "hash/crc32"

// CRC-32C of a file whose pieces are written out of order: each piece has its
// own checksum, and two checksums are combined by multiplying the first with
// x^(8·length of the second) modulo the polynomial, in GF(2) (M. Adler's
// crc32_combine in zlib explains the method; this is for Castagnoli's).

const castagnoli = crc32.Castagnoli // reflected

// crcTable is read-only; the standard library keeps one for everybody.
var crcTable = crc32.MakeTable(castagnoli)

// multiply is a·b modulo the polynomial; the highest bit is x^0.
func multiply(a, b uint32) uint32 {
	var p uint32
	for m := uint32(1) << 31; m != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
			if a&(m-1) == 0 {
				break
			}
		}
		if b&1 != 0 {
			b = b>>1 ^ castagnoli
		} else {
			b >>= 1
		}
	}
	return p
}

// power is x^(8n) modulo the polynomial.
func power(n int64) uint32 {
	p := uint32(1) << 31      // x^0
	square := uint32(1) << 23 // x^8
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			p = multiply(square, p)
		}
		square = multiply(square, square)
	}
	return p
}

// powers remembers powers by length: in a backup of many small pieces a few
// lengths come again and again. The zero value is ready. It is used by one
// goroutine.
type powers struct{ known map[int64]uint32 }

// knownPowers is how many are remembered.
const knownPowers = 4096

func (p *powers) of(n int64) uint32 {
	v, ok := p.known[n]
	if ok {
		return v
	}
	if p.known == nil || len(p.known) >= knownPowers {
		p.known = make(map[int64]uint32)
	}
	v = power(n)
	p.known[n] = v
	return v
}

// combine is the checksum of a followed by b, which is n bytes long.
func (p *powers) combine(a, b uint32, n int64) uint32 { return multiply(p.of(n), a) ^ b }

// zeros is the checksum of n zero bytes.
func (p *powers) zeros(n int64) uint32 { return ^multiply(p.of(n), ^uint32(0)) }
