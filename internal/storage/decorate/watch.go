package decorate

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"agent/internal/storage"
)

// open opens an object within Base; its reader is watched until it is closed.
func (t *timeout) open(ctx context.Context, key string, f func(context.Context) (io.ReadCloser, storage.Info, error)) (io.ReadCloser, storage.Info, error) {
	type opened struct {
		body io.ReadCloser
		info storage.Info
	}
	own, cancel := context.WithCancelCause(ctx)
	w := t.answer("get", key)
	discard := func(o opened, err error) {
		if err == nil {
			o.body.Close() // of no use without its context
		}
	}
	o, _, err := await(ctx, cancel, w, func() (opened, error) {
		body, info, err := f(own)
		return opened{body, info}, err
	}, discard)
	if err == nil && own.Err() != nil {
		discard(o, nil)
		err = w.stopped(ctx)
	}
	if err != nil {
		cancel(nil)
		return nil, storage.Info{}, err
	}
	return watch(ctx, cancel, t, key, o.body), o.info, nil
}

// watched is a body of which no read may wait for ever.
type watched struct {
	body   io.ReadCloser
	ctx    context.Context         // the caller's
	cancel context.CancelCauseFunc // ends the context under which body was opened
	t      *timeout
	idle   wait
	close  func() error // of body, once
	unhook func() bool  // from ctx
	timer  *time.Timer  // runs while a read does

	mu      sync.Mutex
	reading bool
	cut     bool
	err     error // for good
}

func watch(ctx context.Context, cancel context.CancelCauseFunc, t *timeout, key string, body io.ReadCloser) *watched {
	w := &watched{body: body, ctx: ctx, cancel: cancel, t: t, close: sync.OnceValue(body.Close)}
	w.idle = wait{t: t, op: "get", key: key, limit: t.opts.Idle, missing: "no byte of the body"}
	w.unhook = context.AfterFunc(ctx, w.free)
	return w
}

// stalled ends a read that waited for too long.
func (w *watched) stalled() {
	w.mu.Lock()
	w.cut = true
	w.mu.Unlock()
	w.cancel(w.idle.over())
	w.free()
}

// free closes the body beside a read that the end of its context does not free.
func (w *watched) free() {
	time.AfterFunc(w.t.opts.Grace, func() {
		w.mu.Lock()
		reading := w.reading
		w.mu.Unlock()
		if reading {
			_ = w.close() // it is given up: only the read's error counts
		}
	})
}

func (w *watched) Read(p []byte) (int, error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(w.idle.limit, w.stalled)
	} else {
		w.timer.Reset(w.idle.limit)
	}
	n, err := w.body.Read(p)
	return n, w.end(w.timer.Stop(), err)
}

// begin is nil if there is something to read.
func (w *watched) begin() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.err != nil:
	case w.ctx.Err() != nil, w.cut:
		w.err = w.idle.stopped(w.ctx)
	default:
		w.reading = true
	}
	return w.err
}

// end is the outcome of a read, in time or not.
func (w *watched) end(inTime bool, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reading = false
	w.cut = w.cut || !inTime
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	w.err = err
	if w.cut || w.ctx.Err() != nil {
		w.err = w.idle.failed(w.ctx, err)
	}
	return w.err
}

// Close gives the body up; it waits for no longer than Base.
func (w *watched) Close() error {
	w.unhook()
	limit := w.t.answer("get", w.idle.key)
	limit.missing = "reader not closed"
	_, _, err := await(w.ctx, w.cancel, limit, func() (struct{}, error) { return struct{}{}, w.close() }, func(struct{}, error) {})
	w.cancel(nil)
	return err
}
