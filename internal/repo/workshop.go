package repo

import (
	"fmt"

	"agent/internal/compress"
)

// workshop is what it takes to make one object out of raw bytes: an encoder with
// its tables, and buffers, which come to several times the size of the object. A
// process that archives a backlog makes one object after the other, and would
// spend a good part of its time on new memory.
type workshop struct {
	enc    *compress.Encoder
	raw    []byte // of one frame
	frames []byte
	sealed []byte
}

// workshop takes one that is free, or a new one. It goes back to r.workshops when
// nobody uses the object any more; what is kept there, the garbage collector
// takes when it is not used.
func (r *Repository) workshop() (*workshop, error) {
	if w, ok := r.workshops.Get().(*workshop); ok {
		return w, nil
	}
	enc, err := compress.NewEncoder(r.codec)
	if err != nil {
		return nil, fmt.Errorf("make encoder: %w", err)
	}
	return &workshop{enc: enc, raw: make([]byte, compress.MaxFrame)}, nil
}
