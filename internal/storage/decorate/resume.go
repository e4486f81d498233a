package decorate

import (
	"context"
	"errors"
	"fmt"
	"io"

	"agent/internal/storage"
)

// resuming reads a stretch of an object, and opens what is left of it anew
// when the stream breaks. Objects are immutable, so that the parts fit.
type resuming struct {
	ctx  context.Context
	t    *tries
	body io.ReadCloser // nil while there is none
	off  int64
	left int64
	err  error // for good
}

func (r *resuming) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	for {
		if r.body == nil {
			if r.err = r.reopen(); r.err != nil {
				return 0, r.err
			}
		}
		n, err := r.body.Read(p)
		if n > 0 {
			r.t.progress()
			r.off += int64(n)
			r.left -= int64(n)
		}
		if err == io.EOF && r.left > 0 {
			err = io.ErrUnexpectedEOF
		}
		switch {
		case err == nil || err == io.EOF:
			return n, err
		case n > 0:
			// Give what there is; the break is dealt with by the next Read.
			r.drop(err)
			return n, r.err
		}
		if r.drop(err); r.err != nil {
			return 0, r.err
		}
	}
}

// drop closes a body that broke and waits for the next try, or sets r.err. A
// connection that breaks after the last byte has taken nothing; any other error
// there, such as that of a checksum, is one.
func (r *resuming) drop(err error) {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	}
	if r.left == 0 && errors.Is(err, storage.ErrUnavailable) {
		r.err = io.EOF
		return
	}
	if r.err = r.t.again(r.ctx, err); r.err != nil {
		return
	}
	r.body.Close() // broken: its error says nothing new
	r.body = nil
}

// reopen opens what is left. An object that turns out to be too short is
// damaged, and no network broke.
func (r *resuming) reopen() error {
	body, err := try(r.ctx, r.t, func() (io.ReadCloser, error) {
		return r.t.r.Bucket.GetRange(r.ctx, r.t.key, r.off, r.left)
	})
	if errors.Is(err, storage.ErrRange) {
		return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	if err != nil {
		return err
	}
	r.body = body
	return nil
}

func (r *resuming) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}
