package decorate

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// errShut is what a store's client gets that goes on reading a body when its
// Put is over.
var errShut = errors.New("the body is no longer available")

// fence keeps a store's client from the bodies of a Put that is over: HTTP
// clients may still read from a body after the request has failed (net/http,
// RoundTripper), and the caller may use the memory behind it again.
type fence struct {
	closed atomic.Bool
	busy   chan struct{} // holds one while somebody reads
}

func newFence() *fence { return &fence{busy: make(chan struct{}, 1)} }

// shut lets no more be read, and waits up to limit for a read that is under
// way: a source that blocks is freed by its owner only.
func (f *fence) shut(limit time.Duration) {
	f.closed.Store(true)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case f.busy <- struct{}{}:
		<-f.busy
	case <-timer.C:
	}
}

// body puts the fence before r. It keeps Seek, and WriteTo as a sign that r is
// in memory.
func (f *fence) body(r io.ReadCloser) io.ReadCloser {
	if _, ok := r.(io.WriterTo); ok {
		return seekable(fencedWriter{fenced{r, f}}, r)
	}
	return seekable(fenced{r, f}, r)
}

type fenced struct {
	io.ReadCloser
	f *fence
}

func (b fenced) Read(p []byte) (int, error) {
	b.f.busy <- struct{}{}
	defer func() { <-b.f.busy }()
	if b.f.closed.Load() {
		return 0, errShut
	}
	return b.ReadCloser.Read(p)
}

type fencedWriter struct{ fenced }

// pieceSize is how much of a body in memory is handed over at a time.
const pieceSize = 128 << 10

// WriteTo writes copies: w may be slow, and must not hold what is the caller's.
func (b fencedWriter) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{b.fenced}, make([]byte, pieceSize))
}
