package compress

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// A row of frames comes apart into the frames of which it was made, and one that
// is cut off or altered is never taken for a shorter row.
func TestSplitter(t *testing.T) {
	for _, codec := range []string{"zstd", "lz4", "none"} {
		set, err := Parse(codec)
		if err != nil {
			t.Fatal(err)
		}
		enc, err := NewEncoder(set)
		if err != nil {
			t.Fatal(err)
		}
		var frames [][]byte
		var row []byte
		for n := range 3 {
			frame, err := enc.AppendFrame(nil, bytes.Repeat([]byte{byte(n), 7}, 5000*(n+1)))
			if err != nil {
				t.Fatal(err)
			}
			frames, row = append(frames, frame), append(row, frame...)
		}
		s := NewSplitter(bytes.NewReader(row))
		for n, want := range frames {
			if got, err := s.Next(); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: frame %d: %v, %d bytes instead of %d", codec, n, err, len(got), len(want))
			}
		}
		if _, err := s.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: behind the last frame: %v", codec, err)
		}
		for _, bad := range [][]byte{row[:len(row)-1], row[:len(frames[0])+2], append([]byte{1}, row...)} {
			s := NewSplitter(bytes.NewReader(bad))
			var err error
			for err == nil {
				_, err = s.Next()
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", codec, err)
			}
		}
	}
}
