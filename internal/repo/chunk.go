package repo

import (
	"io"

	"agent/internal/compress"
)

// readPiece is how many bytes are asked for at a time. A file in memory gives them in
// some 10 microseconds. A thread that is longer in a system call than 20 is one that
// blocks to the runtime, which wakes another one to go on, and looks after it every
// 20 microseconds for a while.
const readPiece = 64 << 10

// EachChunk reads src to its end and hands it over in pieces of 1 MiB, the
// last one shorter; an empty src gives none. Only a plain io.EOF is an end: a
// reader that was cut off says so with another error, which is returned. The
// piece is valid during the call.
func EachChunk(src io.Reader, do func(raw []byte) error) error {
	return eachChunk(make([]byte, compress.MaxFrame), src, do)
}

// eachChunk is EachChunk with pieces of the size of buf, which they lie in.
func eachChunk(buf []byte, src io.Reader, do func(raw []byte) error) error {
	for {
		n := 0
		var err error
		for n < len(buf) && err == nil {
			var m int
			m, err = src.Read(buf[n:min(n+readPiece, len(buf))])
			n += m
		}
		if n > 0 && (err == nil || err == io.EOF) {
			if err := do(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
