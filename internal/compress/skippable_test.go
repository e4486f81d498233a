package compress

import (
	"bytes"
	"testing"
)

func TestSkippable(t *testing.T) {
	for _, payload := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte{7}, 4000)} {
		b := AppendSkippable([]byte("before"), payload)[len("before"):]
		got, n, ok := ParseSkippable(append(bytes.Clone(b), "behind"...))
		if !ok || n != len(b) || !bytes.Equal(got, payload) {
			t.Errorf("%d bytes came back as %d, n %d, %v", len(payload), len(got), n, ok)
		}
		for cut := range b {
			if _, _, ok := ParseSkippable(b[:cut]); ok {
				t.Errorf("frame of %d bytes was accepted with %d", len(b), cut)
			}
		}
		b[0]--
		if _, _, ok := ParseSkippable(b); ok {
			t.Error("another magic number was accepted")
		}
	}
	if _, _, ok := ParseSkippable([]byte{0x57, 0x2A, 0x4D, 0x18, 255, 255, 255, 255, 0}); ok {
		t.Error("4 GiB were found in 9 bytes")
	}
}

func FuzzParseSkippable(f *testing.F) {
	f.Add(AppendSkippable(nil, []byte("hash")))
	f.Fuzz(func(t *testing.T, b []byte) {
		payload, n, ok := ParseSkippable(b)
		if ok && !bytes.Equal(AppendSkippable(nil, payload), b[:n]) {
			t.Fatal("not the frame it was read from")
		}
	})
}
