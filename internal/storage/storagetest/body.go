package storagetest

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
)

var errBody = errors.New("the body broke")

// is is errors.Is, with a short name since every line here needs it.
func is(err, target error) bool { return errors.Is(err, target) }

// body is a source that says one size and does another thing.
type body struct {
	size int64
	open func() (io.ReadCloser, error)
}

func (b body) Open() (io.ReadCloser, error) { return b.open() }
func (b body) Size() int64                  { return b.size }

// says announces a size that need not be true.
func says(size int64, data []byte) body {
	return body{size, func() (io.ReadCloser, error) { return io.NopCloser(plain(data)), nil }}
}

// plain hides WriteTo and Seek, so that the backend must read.
func plain(data []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(data)} }

// hooked calls hook once, when the first half was read, and fails with its
// error if there is one.
func hooked(data []byte, hook func() error) body { return hookedAt(data, len(data)/2, hook) }

// hookedAt is hooked with another place than the middle.
func hookedAt(data []byte, at int, hook func() error) body {
	return body{int64(len(data)), func() (io.ReadCloser, error) {
		r := io.MultiReader(plain(data[:at]), &once{hook: hook}, plain(data[at:]))
		return io.NopCloser(struct{ io.Reader }{r}), nil
	}}
}

// once is an empty reader with an effect.
type once struct {
	hook func() error
}

func (o *once) Read([]byte) (int, error) {
	if err := o.hook(); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

// closing counts how many bodies are open.
type closing struct {
	io.Reader
	open *atomic.Int64
}

func (c closing) Close() error {
	c.open.Add(-1)
	return nil
}
