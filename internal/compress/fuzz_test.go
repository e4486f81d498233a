package compress

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
)

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte{}, uint8(0))
	f.Add(pageLike(3000), uint8(4))
	f.Add(noise(3000), uint8(5))
	f.Add(make([]byte, 70000), uint8(8))
	var encoders []*Encoder
	for _, s := range settings() {
		encoders = append(encoders, newEncoder(f, s))
	}
	var d Decoder
	f.Fuzz(func(t *testing.T, raw []byte, which uint8) {
		e := encoders[int(which)%len(encoders)]
		s := e.Setting()
		raw = raw[:min(len(raw), MaxFrame)]
		frame, err := e.AppendFrame(nil, raw)
		if err != nil {
			t.Fatalf("%v: %v", s, err)
		}
		if got, err := d.AppendRaw(nil, frame); err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("%v: %v", s, err)
		}
		h, err := parseFrameHeader(frame)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(libraryReader(t, h.method, frame)); err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("%v: library: %v", s, err)
		}
	})
}

func addFrames(f *testing.F) {
	for _, s := range settings() {
		f.Add(appendFrame(f, s, nil, pageLike(700)))
		f.Add(appendFrame(f, s, nil, nil))
		f.Add(object(f, s, pageLike(300), 100))
	}
	f.Add([]byte{0x28, 0xB5, 0x2F, 0xFD, 0x84, 0xF8, 1, 0, 0, 0, 1, 0, 0})
	f.Add([]byte{0x04, 0x22, 0x4D, 0x18, 0x64, 0x40, 0xA7, 0, 0, 0, 0, 5, 0x5D, 0xCC, 0x02})
}

// FuzzDecoder: whatever is accepted is what the library reads from it, and
// nothing but ErrCorrupt is ever said.
func FuzzDecoder(f *testing.F) {
	addFrames(f)
	f.Fuzz(func(t *testing.T, frame []byte) {
		var d Decoder
		got, err := d.AppendRaw(nil, frame)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || errors.Is(err, io.EOF) || len(got) != 0 {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			return
		}
		h, err := parseFrameHeader(frame)
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(libraryReader(t, h.method, frame))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the library reads %d bytes, we %d: %v", len(want), len(got), err)
		}
	})
}

// FuzzReader: bounded output for the input, and a clean end only where each
// frame is whole.
func FuzzReader(f *testing.F) {
	addFrames(f)
	f.Fuzz(func(t *testing.T, stored []byte) {
		r := NewReader(bytes.NewReader(stored))
		_, err := io.Copy(io.Discard, io.LimitReader(r, 64<<20))
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrWindow) {
			t.Fatal(err)
		}
		if err == nil && len(stored) == 0 {
			t.Fatal("an object of nothing was accepted")
		}
	})
}
