package azure

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"sync"

	"agent/internal/storage"
)

// digest is what is computed of a body on its way.
type digest struct {
	sha [sha256.Size]byte
	crc uint64
}

// crcTable is the polynomial of the service's CRC-64, which is CRC-64/NVME
// without more.
func crcTable() *crc64.Table { return crc64.MakeTable(0x9A6C9329AC4BC9B5) }

// measure reads a body to its end and computes its digest.
func measure(ctx context.Context, body io.Reader, size int64) (digest, error) {
	m := &meter{ctx: ctx, sha: sha256.New(), crc: crc64.New(crcTable()), left: size}
	_, err := io.CopyBuffer(m, body, make([]byte, min(bufferSize, size+1)))
	switch {
	case m.err != nil:
		return digest{}, m.err
	case err != nil:
		return digest{}, &bodyError{err}
	case m.left > 0:
		return digest{}, tooShort(m.left)
	}
	return digest{[sha256.Size]byte(m.sha.Sum(nil)), m.crc.Sum64()}, nil
}

const (
	chunkSize  = 1 << 20   // hashed between two looks at the context
	bufferSize = 256 << 10 // for bodies that cannot write themselves
)

// meter hashes pieces while they are in the cache. A body in memory hands over
// its own bytes in one call.
type meter struct {
	ctx  context.Context
	sha  hash.Hash
	crc  hash.Hash64
	left int64
	err  error // what went wrong here, not in the body
}

func (m *meter) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 && m.err == nil {
		piece := p[:min(len(p), chunkSize)]
		if m.ctx.Err() != nil {
			m.err = stopped(m.ctx)
			break
		}
		if int64(len(piece)) > m.left {
			m.err = errTooLong()
			break
		}
		m.sha.Write(piece)
		m.crc.Write(piece)
		m.left -= int64(len(piece))
		done += len(piece)
		p = p[len(piece):]
	}
	return done, m.err
}

func tooShort(left int64) error {
	return fmt.Errorf("%w: it is %d bytes short", storage.ErrBadLength, left)
}

func errTooLong() error { return fmt.Errorf("%w: it is longer", storage.ErrBadLength) }

// fill reads exactly len(buf) bytes, and looks at ctx on the way.
func fill(ctx context.Context, body io.Reader, buf []byte) error {
	for done := 0; done < len(buf); {
		if ctx.Err() != nil {
			return stopped(ctx)
		}
		n, err := body.Read(buf[done:min(len(buf), done+chunkSize)])
		done += n
		if errors.Is(err, io.EOF) && done < len(buf) {
			return tooShort(int64(len(buf) - done))
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return &bodyError{err}
		}
	}
	return nil
}

// atEnd wants that a body gives nothing more.
func atEnd(ctx context.Context, body io.Reader) error {
	var one [1]byte
	for {
		if ctx.Err() != nil {
			return stopped(ctx)
		}
		n, err := body.Read(one[:])
		switch {
		case n > 0:
			return errTooLong()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return &bodyError{err}
		}
	}
}

// sending is a body on its way to the service, of exactly size bytes. The HTTP
// client may still be reading when the answer has come; release ends that, so
// that the bytes below can be closed or used again.
type sending struct {
	mu   sync.Mutex
	src  io.ReadSeeker // nil after release
	size int64
	pos  int64 // as the client sees it
	real int64 // of src
	err  error // of src
}

var errReleased = errors.New("the request has ended")

func (s *sending) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.src == nil {
		return 0, errReleased
	}
	if s.pos >= s.size {
		return 0, io.EOF
	}
	if s.pos != s.real {
		if _, err := s.src.Seek(s.pos, io.SeekStart); err != nil {
			s.err = &bodyError{err}
			return 0, s.err
		}
		s.real = s.pos
	}
	n, err := s.src.Read(p[:min(int64(len(p)), s.size-s.pos)])
	s.pos += int64(n)
	s.real = s.pos
	switch {
	case errors.Is(err, io.EOF) && s.pos < s.size:
		// It was measured: somebody has cut it since.
		s.err = tooShort(s.size - s.pos)
		return n, s.err
	case err != nil && !errors.Is(err, io.EOF):
		s.err = &bodyError{err}
		return n, s.err
	}
	return n, nil
}

// Seek moves what the client sees; the SDK asks for the size by it.
func (s *sending) Seek(offset int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	s.pos = offset
	return offset, nil
}

// Close does nothing: the client may send the body once more.
func (s *sending) Close() error { return nil }

// release waits for a read that is on, forbids more, and gives the error of
// the body below, if there was one.
func (s *sending) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.src = nil
	return s.err
}
