package compress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

const (
	readBuffer = 64 << 10
	// maxStoredFrame bounds what is gathered of one frame of at most MaxFrame
	// raw bytes; encoders stay below it by far.
	maxStoredFrame = 2 * MaxFrame
)

// Reader decodes an object: skippable frames, which it passes over, and one or
// more frames of one method, found by their magic bytes. Frames of ours are
// decoded whole; bigger ones of other tools as a stream, if their window is at
// most MaxWindow. Input that ends within a frame, or before the first one, is
// an error, never a clean io.EOF; an end between two frames cannot be noticed
// here. It is not safe for concurrent use.
type Reader struct {
	br     *bufio.Reader
	dec    Decoder
	frame  []byte // stored bytes of the current frame
	buf    []byte // raw bytes of the current frame
	raw    []byte // what of buf was not read yet
	stream *frameStream
	method Method
	frames int
	err    error
}

// NewReader makes a Reader of r. It reads ahead. The caller closes the Reader,
// which does not close r.
func NewReader(r io.Reader) *Reader {
	return &Reader{br: bufio.NewReaderSize(r, readBuffer)}
}

// Read gives raw bytes. Errors about the content wrap ErrCorrupt or ErrWindow;
// those of the source are passed on wrapped.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.err == nil {
		if len(r.raw) > 0 {
			n := copy(p, r.raw)
			r.raw = r.raw[n:]
			return n, nil
		}
		if r.stream != nil {
			n, err := r.stream.read(p)
			if errors.Is(err, io.EOF) {
				r.stream, err = nil, nil
			}
			r.err = err
			if n > 0 {
				return n, nil
			}
			continue
		}
		r.err = r.nextFrame()
	}
	return 0, r.err
}

// Close frees the buffers. It never fails; Read fails from then on.
func (r *Reader) Close() error {
	*r = Reader{br: r.br, err: errClosed}
	return nil
}

var errClosed = errors.New("read closed compressed object")

// nextFrame begins the next frame, or gives io.EOF if there is none.
func (r *Reader) nextFrame() error {
	head, err := r.br.Peek(maxFrameHeader)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return fmt.Errorf("read compressed object: %w", err)
	case len(head) == 0 && r.frames == 0:
		return corruptf("no zstd or lz4 frame in it")
	case len(head) == 0:
		return io.EOF
	case len(head) >= 4 && isSkippable(binary.LittleEndian.Uint32(head)):
		return r.skip(head)
	}
	h, err := parseFrameHeader(head)
	switch {
	case errors.Is(err, errShort):
		return corruptf("cut off in a frame header")
	case err != nil:
		return err
	}
	if err := h.usable(); err != nil {
		return err
	}
	if r.frames > 0 && h.method != r.method {
		return corruptf("%s frame after %s frames", h.method, r.method)
	}
	r.method = h.method
	r.frames++
	if h.window > MaxWindow {
		return fmt.Errorf("%w: its window is %d bytes, at most %d are read; "+
			"it was not made by this program, compress it again without --long and --ultra",
			ErrWindow, h.window, MaxWindow)
	}
	src := &frameSource{br: r.br, walker: frameWalker{h: h}}
	if !h.hasContent || !h.checksum || h.content > MaxFrame {
		r.stream, err = newFrameStream(src)
		return err
	}
	if r.frame, err = src.gather(r.frame[:0]); err != nil {
		return err
	}
	r.buf, err = r.dec.AppendRaw(r.buf[:0], r.frame)
	r.raw = r.buf
	return err
}

// skip passes over a skippable frame.
func (r *Reader) skip(head []byte) error {
	if len(head) < skippableHead {
		return corruptf("cut off in a skippable frame")
	}
	n := skippableHead + int64(binary.LittleEndian.Uint32(head[4:]))
	_, err := io.CopyN(io.Discard, r.br, n)
	switch {
	case errors.Is(err, io.EOF):
		return corruptf("cut off in a skippable frame")
	case err != nil:
		return fmt.Errorf("read compressed object: %w", err)
	}
	return nil
}

// frameSource gives the stored bytes of exactly one frame. The libraries take
// some ends within a frame for the end of the data; here each is an error.
type frameSource struct {
	br     *bufio.Reader
	walker frameWalker
	left   int   // bytes of the current part
	err    error // the first error other than the end of the frame
	done   bool
}

// peek is what frameWalker.next asks for.
func (s *frameSource) peek(n int) ([]byte, error) {
	b, err := s.br.Peek(n)
	return b, s.sourceError(err)
}

func (s *frameSource) sourceError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return corruptf("cut off within a %s frame", s.walker.h.method)
	default:
		return fmt.Errorf("read compressed object: %w", err)
	}
}

// nextPart finds the length of the next part; io.EOF at the frame's end.
func (s *frameSource) nextPart() error {
	if s.err != nil {
		return s.err
	}
	n, err := s.walker.next(s.peek)
	if err != nil {
		s.err = err
		return err
	}
	s.left = n
	if n == 0 {
		s.done = true
		return io.EOF
	}
	return nil
}

// Read gives stored bytes and ends with the frame.
func (s *frameSource) Read(p []byte) (int, error) {
	if s.left == 0 {
		if err := s.nextPart(); err != nil {
			return 0, err
		}
	}
	n, err := s.br.Read(p[:min(len(p), s.left)])
	s.left -= n
	if err != nil {
		s.err = s.sourceError(err)
		return n, s.err
	}
	return n, nil
}

// gather appends the whole frame to dst.
func (s *frameSource) gather(dst []byte) ([]byte, error) {
	for {
		if err := s.nextPart(); errors.Is(err, io.EOF) {
			return dst, nil
		} else if err != nil {
			return dst, err
		}
		if len(dst)+s.left > maxStoredFrame {
			return dst, corruptf("%s frame of %d raw bytes takes more than %d",
				s.walker.h.method, s.walker.h.content, maxStoredFrame)
		}
		start := len(dst)
		dst = slices.Grow(dst, s.left)[:start+s.left]
		if _, err := io.ReadFull(s.br, dst[start:]); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = io.EOF
			}
			return dst, s.sourceError(err)
		}
	}
}

// frameStream decodes one frame of any length with the libraries' readers.
type frameStream struct {
	src *frameSource
	dec io.Reader
}

func newFrameStream(src *frameSource) (*frameStream, error) {
	if src.walker.h.method == LZ4 {
		return &frameStream{src: src, dec: lz4.NewReader(src)}, nil
	}
	dec, err := zstd.NewReader(src,
		zstd.WithDecoderConcurrency(1), // no goroutines, so nothing to close
		zstd.WithDecoderLowmem(true),
		zstd.WithDecodeBuffersBelow(0),
		zstd.WithDecoderMaxWindow(MaxWindow))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	return &frameStream{src: src, dec: dec}, nil
}

// read gives raw bytes, and io.EOF once the whole frame was read and found
// good by the library.
func (f *frameStream) read(p []byte) (int, error) {
	n, err := f.dec.Read(p)
	switch {
	case err == nil:
		return n, nil
	case f.src.err != nil:
		return n, f.src.err
	case !errors.Is(err, io.EOF):
		return n, corruptf("%s frame: %v", f.src.walker.h.method, err)
	case !f.src.done:
		return n, corruptf("%s frame ends before its last block", f.src.walker.h.method)
	default:
		return n, io.EOF
	}
}
