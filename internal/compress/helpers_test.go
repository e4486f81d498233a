package compress

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"testing"
)

// pageLike makes n bytes that look like heap pages: headers, numbers, words.
func pageLike(n int) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	words := []string{"express", "delivery", "standard", "customer", "invoice", "pending", "shipped", "gift wrap"}
	b := make([]byte, 0, n+256)
	for row := uint64(0); len(b) < n; row++ {
		if len(b)%8192 < 128 {
			b = append(b, make([]byte, 24)...)
		}
		b = binary.LittleEndian.AppendUint64(b, row)
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
		b = append(b, words[rng.IntN(len(words))]...)
		b = fmt.Appendf(b, " %06d %x ", rng.IntN(1000000), rng.Uint32())
		b = append(b, words[rng.IntN(len(words))]...)
	}
	return b[:n]
}

func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(2, uint64(n)))
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b[:n]
}

// samples are raw contents of all shapes and of the sizes at which formats
// change: content size fields, block sizes, the frame limit.
func samples() map[string][]byte {
	m := map[string][]byte{"empty": {}}
	for _, n := range []int{
		1, 2, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 8192,
		65535, 65536, 65791, 65792, 131071, 131072, 131073, MaxFrame - 1, MaxFrame,
	} {
		m[fmt.Sprintf("pages %d", n)] = pageLike(n)
		m[fmt.Sprintf("noise %d", n)] = noise(n)
		m[fmt.Sprintf("zeros %d", n)] = make([]byte, n)
	}
	m["half zeros"] = append(noise(zstdMaxBlock), make([]byte, 3*zstdMaxBlock)...)
	return m
}

// settings has every compressor we use, without their slowest levels.
func settings() []Setting {
	return []Setting{{Method: Zstd}, {Zstd, 3}, {Method: LZ4}, {LZ4, 2}, {LZ4, 3}, {Method: None}}
}

// highest are the levels that take the time of all others together.
func highest() []Setting {
	return []Setting{{Zstd, 9}, {Zstd, 22}, {LZ4, 12}}
}

func newEncoder(t testing.TB, s Setting) *Encoder {
	t.Helper()
	e, err := NewEncoder(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func appendFrame(t testing.TB, s Setting, dst, raw []byte) []byte {
	t.Helper()
	frame, err := newEncoder(t, s).AppendFrame(dst, raw)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// runTool gives the standard output of zstd or lz4 for the input.
func runTool(t *testing.T, input []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = bytes.NewReader(input)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, problems.String())
	}
	return out.Bytes()
}

func toolOf(m Method) string {
	if m == LZ4 {
		return "lz4"
	}
	return "zstd"
}
