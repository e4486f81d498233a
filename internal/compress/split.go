package compress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Splitter cuts a row of frames of ours into single ones, without decoding them.
// It is not safe for concurrent use.
type Splitter struct {
	br    *bufio.Reader
	frame []byte
}

// NewSplitter makes a Splitter of r. It reads ahead.
func NewSplitter(r io.Reader) *Splitter {
	return &Splitter{br: bufio.NewReaderSize(r, readBuffer)}
}

// Next gives the stored bytes of the next frame, which are good until the next
// call; io.EOF behind the last one. Errors about the content wrap ErrCorrupt;
// those of the source are passed on wrapped.
func (s *Splitter) Next() ([]byte, error) {
	head, err := s.br.Peek(maxFrameHeader)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read compressed object: %w", err)
	case len(head) == 0:
		return nil, io.EOF
	}
	h, err := parseFrameHeader(head)
	if errors.Is(err, errShort) {
		return nil, corruptf("cut off in a frame header")
	}
	if err != nil {
		return nil, err
	}
	src := &frameSource{br: s.br, walker: frameWalker{h: h}}
	s.frame, err = src.gather(s.frame[:0])
	return s.frame, err
}
