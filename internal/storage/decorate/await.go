package decorate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"agent/internal/storage"
)

// wait is something to wait for, and how long.
type wait struct {
	t       *timeout
	op, key string
	limit   time.Duration
	missing string // what did not come, as in "no answer within 30s"
}

// fail is the error that says so.
func (w wait) fail(format string, args ...any) error {
	return &storage.Error{Op: w.op, Bucket: w.t.Bucket.String(), Key: w.key, Err: fmt.Errorf(format, args...)}
}

func (w wait) over() error {
	return w.fail("%w: %s within %v", storage.ErrUnavailable, w.missing, w.limit)
}

// stopped is the error of an operation that gave nothing, since its own context
// was ended by the caller or by the limit.
func (w wait) stopped(ctx context.Context) error {
	if ctx.Err() != nil {
		return w.fail("%w, with %s yet", ended(ctx), w.missing)
	}
	return w.over()
}

// failed is the error of an operation under a context that was ended; err is
// how the store's client put it.
func (w wait) failed(ctx context.Context, err error) error {
	switch {
	case definite(err):
		return err
	case ctx.Err() == nil:
		return w.over()
	case !errors.Is(err, ctx.Err()):
		return w.fail("%w, with %s yet: %w", ended(ctx), w.missing, err)
	case !errors.Is(err, context.Cause(ctx)):
		return w.stopped(ctx)
	default:
		return err
	}
}

// definite says whether err is the outcome of an operation, whatever became of
// its context meanwhile.
func definite(err error) bool {
	for _, outcome := range []error{
		storage.ErrNotExist, storage.ErrExists, storage.ErrRange, storage.ErrBadLength, storage.ErrBadDigest, storage.ErrKey,
		storage.ErrPermission, storage.ErrNoSpace, storage.ErrNoBucket, storage.ErrUnsupported,
	} {
		if errors.Is(err, outcome) {
			return true
		}
	}
	return false
}

// once does one operation under a context of its own that ends with it.
func once[T any](ctx context.Context, w wait, f func(context.Context) (T, error)) (T, error) {
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v, _, err := await(ctx, cancel, w, func() (T, error) { return f(own) }, func(T, error) {})
	return v, err
}

// await runs f, whose context cancel ends, and waits for it as long as w and
// ctx, the parent of that context, allow, and then for Grace. An f that is not
// back by then is left behind; discard gets what it returns at last.
func await[T any](ctx context.Context, cancel context.CancelCauseFunc, w wait, f func() (T, error), discard func(T, error)) (v T, left bool, err error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	timer := time.NewTimer(w.limit)
	defer timer.Stop()
	select {
	case r := <-done:
		if r.err != nil && ctx.Err() != nil {
			return r.v, false, w.failed(ctx, r.err)
		}
		return r.v, false, r.err
	case <-timer.C:
		cancel(w.over())
	case <-ctx.Done():
	}
	grace := time.NewTimer(w.t.opts.Grace)
	defer grace.Stop()
	select {
	case r := <-done:
		if r.err != nil {
			return r.v, false, w.failed(ctx, r.err)
		}
		return r.v, false, nil
	case <-grace.C:
		go func() {
			r := <-done
			discard(r.v, r.err)
		}()
		return v, true, w.stopped(ctx)
	}
}
