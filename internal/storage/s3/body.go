package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"agent/internal/storage"
)

const (
	hashPiece = 64 << 10  // hashed by one algorithm and then by the next, while it is in the cache
	readPiece = 256 << 10 // read from a body that is not in memory
)

// sums hashes a body as it passes. It is used by one goroutine.
type sums struct {
	checksum string    // Options.Checksum
	sha      hash.Hash // nil: not asked for
	crc      uint32
	md5      hash.Hash
	n        int64
}

// newSums computes the checksum and, if withSHA, the SHA-256.
func newSums(checksum string, withSHA bool) *sums {
	s := &sums{checksum: checksum}
	if withSHA {
		s.sha = sha256.New()
	}
	if checksum == ChecksumMD5 {
		s.md5 = md5.New()
	}
	return s
}

// Write takes the next bytes; it never fails.
func (s *sums) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		piece := rest[:min(len(rest), hashPiece)]
		if s.sha != nil {
			s.sha.Write(piece)
		}
		switch s.checksum {
		case ChecksumCRC32C:
			s.crc = crc32.Update(s.crc, crc32.MakeTable(crc32.Castagnoli), piece)
		case ChecksumMD5:
			s.md5.Write(piece)
		}
		rest = rest[len(piece):]
	}
	s.n += int64(len(p))
	return len(p), nil
}

func (s *sums) sha256() (sum [32]byte) {
	s.sha.Sum(sum[:0])
	return sum
}

// sha256Hex is the form that signatures take; empty if it was not asked for.
func (s *sums) sha256Hex() string {
	if s.sha == nil {
		return ""
	}
	return hex.EncodeToString(s.sha.Sum(nil))
}

// crc32cHeader is the value of x-amz-checksum-crc32c: base64 of the big-endian
// sum ("Checking object integrity", Amazon S3 User Guide). nil: not asked for.
func (s *sums) crc32cHeader() *string {
	if s.checksum != ChecksumCRC32C {
		return nil
	}
	return encode(binary.BigEndian.AppendUint32(nil, s.crc))
}

// md5Header is the value of Content-MD5 (RFC 1864). nil: not asked for.
func (s *sums) md5Header() *string {
	if s.checksum != ChecksumMD5 {
		return nil
	}
	return encode(s.md5.Sum(nil))
}

func encode(sum []byte) *string {
	text := base64.StdEncoding.EncodeToString(sum)
	return &text
}

// check compares with what the caller has announced.
func (s *sums) check(size int64, want *[32]byte) error {
	switch {
	case s.n < size:
		return fmt.Errorf("%w: it is %d bytes short", storage.ErrBadLength, size-s.n)
	case s.n > size:
		return errLonger()
	case want != nil && *want != s.sha256():
		return fmt.Errorf("%w: %s, not %x", storage.ErrBadDigest, s.sha256Hex(), *want)
	}
	return nil
}

func errLonger() error { return fmt.Errorf("%w: it is longer", storage.ErrBadLength) }

// bodyError is an error of the source, which says nothing of the store.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// body is what one PutObject sends. Its errors are kept, since the HTTP client
// reports them as its own.
type body struct {
	io.ReadSeeker
	src io.Closer // nil: nothing is open
	err error
}

// Read passes on and remembers.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadSeeker.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = &bodyError{err}
	}
	return n, err
}

func (b *body) close() error {
	if b.src == nil {
		return nil
	}
	if err := b.src.Close(); err != nil {
		return &bodyError{err}
	}
	return nil
}

// load opens the body and hashes it, once. A body that can write itself and go
// back to its start (memory, a file) is read again to be sent; any other is
// read into memory, which is at most singleMax bytes.
func load(ctx context.Context, src storage.Source, s *sums) (*body, error) {
	r, err := src.Open()
	if err != nil {
		return nil, &bodyError{err}
	}
	b, err := hashed(ctx, r, src.Size(), s)
	if err != nil {
		r.Close()
		return nil, err
	}
	return b, nil
}

func hashed(ctx context.Context, r io.ReadCloser, size int64, s *sums) (*body, error) {
	seeker, canSeek := r.(io.ReadSeeker)
	to, canWrite := r.(io.WriterTo)
	if !canSeek || !canWrite {
		buf := make([]byte, size)
		if err := fill(ctx, r, buf, s); err != nil {
			return nil, err
		}
		if err := atEnd(r); err != nil {
			return nil, err
		}
		if err := r.Close(); err != nil {
			return nil, &bodyError{err}
		}
		return &body{ReadSeeker: bytes.NewReader(buf)}, nil
	}
	if _, err := to.WriteTo(s); err != nil {
		return nil, &bodyError{err}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := seeker.Seek(0, io.SeekStart); err != nil {
		return nil, &bodyError{err}
	}
	return &body{ReadSeeker: seeker, src: r}, nil
}

// fill reads len(buf) bytes and hashes them.
func fill(ctx context.Context, r io.Reader, buf []byte, s *sums) error {
	for done := 0; done < len(buf); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf[done:min(len(buf), done+readPiece)])
		if _, werr := s.Write(buf[done : done+n]); werr != nil {
			return werr
		}
		done += n
		switch {
		case done == len(buf):
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%w: it ends after %d bytes", storage.ErrBadLength, s.n)
		case err != nil:
			return &bodyError{err}
		}
	}
	return nil
}

// atEnd wants that nothing more comes.
func atEnd(r io.Reader) error {
	one := make([]byte, 1)
	for {
		n, err := r.Read(one)
		switch {
		case n > 0:
			return errLonger()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return &bodyError{err}
		}
	}
}
