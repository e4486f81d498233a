package fs

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"agent/internal/storage"
)

const (
	chunkSize  = 1 << 20   // between two looks at the context
	bufferSize = 256 << 10 // for bodies that cannot write themselves
)

// sink writes a body that has an announced length, and hashes it on the way.
type sink struct {
	ctx  context.Context
	f    *os.File
	hash hash.Hash // nil: nobody asks
	left int64     // bytes still to come
	err  error     // what went wrong here, not in the body
}

// copy takes the whole body. A body in memory hands over its own bytes by
// WriteTo; any other is read through one buffer.
func (s *sink) copy(body io.Reader) error {
	_, err := io.Copy(s, body)
	if s.err != nil {
		return s.err
	}
	if err != nil {
		return &bodyError{err}
	}
	if s.left > 0 {
		return fmt.Errorf("%w: it is %d bytes short", storage.ErrBadLength, s.left)
	}
	return nil
}

// Write hashes each piece just before it is written, while it is in the cache.
func (s *sink) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 && s.err == nil {
		piece := p[:min(len(p), chunkSize)]
		if err := s.ctx.Err(); err != nil {
			s.err = err
			break
		}
		if int64(len(piece)) > s.left {
			s.err = fmt.Errorf("%w: it is longer", storage.ErrBadLength)
			break
		}
		if s.hash != nil {
			s.hash.Write(piece)
		}
		n, err := s.f.Write(piece)
		done += n
		s.left -= int64(n)
		s.err = err
		p = p[n:]
	}
	return done, s.err
}

// ReadFrom is what io.Copy uses for bodies without WriteTo.
func (s *sink) ReadFrom(r io.Reader) (int64, error) {
	// One byte more than announced shows a body that is too long.
	buf := make([]byte, min(bufferSize, s.left+1))
	var total int64
	for {
		if s.err = s.ctx.Err(); s.err != nil {
			return total, s.err
		}
		n, err := r.Read(buf)
		w, werr := s.Write(buf[:n])
		total += int64(w)
		if werr != nil {
			return total, werr
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
