package restore

import (
	"bytes"
	"hash/crc32"
	"testing"

	"pgregory.net/rapid"
)

// combine and zeros give what hash/crc32 gives for the bytes themselves.
func TestCRC(t *testing.T) {
	var p powers
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOf(rapid.Byte()).Draw(t, "a")
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "b")
		n := rapid.Int64Range(0, 300_000).Draw(t, "zeros")
		sumA, sumB := crc32.Checksum(a, crcTable), crc32.Checksum(b, crcTable)
		if got, want := p.combine(sumA, sumB, int64(len(b))), crc32.Checksum(append(bytes.Clone(a), b...), crcTable); got != want {
			t.Fatalf("combine: %08x, want %08x", got, want)
		}
		if got, want := p.zeros(n), crc32.Checksum(make([]byte, n), crcTable); got != want {
			t.Fatalf("zeros(%d): %08x, want %08x", n, got, want)
		}
		if got, want := p.combine(p.combine(sumA, p.zeros(n), n), sumB, int64(len(b))),
			crc32.Checksum(append(append(bytes.Clone(a), make([]byte, n)...), b...), crcTable); got != want {
			t.Fatalf("a, %d zeros, b: %08x, want %08x", n, got, want)
		}
	})
	// Of 1 TiB of zeros nobody waits for the bytes: halves must agree.
	if got, want := p.zeros(1<<40), p.combine(p.zeros(1<<39), p.zeros(1<<39), 1<<39); got != want {
		t.Fatalf("1 TiB: %08x, want %08x", got, want)
	}
}
