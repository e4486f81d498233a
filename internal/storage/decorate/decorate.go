// Package decorate holds what is the same for all object stores: Retry,
// Timeout, Bandwidth and Count, each a storage.Bucket around another.
//
// Seen from the caller the order is Retry, Timeout, Bandwidth, Count, store:
// each try has its own limit, and Count sees every single request.
package decorate

import (
	"errors"
	"io"

	"agent/internal/storage"
)

// source is a source whose bodies are wrapped.
type source struct {
	storage.Source
	wrap func(io.ReadCloser) io.ReadCloser
}

func (s source) Open() (io.ReadCloser, error) {
	r, err := s.Source.Open()
	if err != nil {
		return nil, err
	}
	return s.wrap(r), nil
}

// seekable keeps Seek of a body that has it: some clients read a body once to
// hash it, and again to send it. outer is told when the second time begins, if
// it has rewound.
func seekable(outer, inner io.ReadCloser) io.ReadCloser {
	seeker, ok := inner.(io.Seeker)
	if !ok {
		return outer
	}
	if r, ok := outer.(interface{ rewound() }); ok {
		seeker = telling{seeker, r.rewound}
	}
	if to, ok := outer.(io.WriterTo); ok {
		return struct {
			io.ReadCloser
			io.WriterTo
			io.Seeker
		}{outer, to, seeker}
	}
	return struct {
		io.ReadCloser
		io.Seeker
	}{outer, seeker}
}

// telling calls rewound when the body is to be read from its start.
type telling struct {
	io.Seeker
	rewound func()
}

func (t telling) Seek(offset int64, whence int) (int64, error) {
	at, err := t.Seeker.Seek(offset, whence)
	if err == nil && at == 0 && (offset != 0 || whence != io.SeekCurrent) {
		t.rewound()
	}
	return at, err
}

// answered says whether err is the store's plain answer and not a failure.
func answered(err error) bool {
	return err == nil || errors.Is(err, storage.ErrNotExist) || errors.Is(err, storage.ErrExists) || errors.Is(err, storage.ErrRange)
}
