package sftp

import (
	"context"
	"time"
)

// grace is how long a healthy server may take to undo or to finish what a
// caller has given up. A server that takes longer is taken for dead.
const grace = 3 * time.Second

// future is a request that was sent, or soon will be.
type future[T any] struct {
	ctx  context.Context
	done chan outcome[T]
}

type outcome[T any] struct {
	v   T
	err error
}

// ask runs f, which waits for an answer of the server, beside its caller. When
// ctx is done before the answer is taken by wait, late gets the value of an
// answer that comes in the end, to undo it; it may be nil. f must end when its
// connection is closed.
func ask[T any](ctx context.Context, b *Bucket, f func() (T, error), late func(T)) future[T] {
	r := future[T]{ctx, make(chan outcome[T])}
	b.tasks.Go(func() {
		v, err := f()
		select {
		case r.done <- outcome[T]{v, err}:
		case <-ctx.Done():
			if err == nil && late != nil {
				late(v)
			}
		}
	})
	return r
}

// wait returns the answer, or the error of the context.
func (r future[T]) wait() (T, error) {
	select {
	case o := <-r.done:
		return o.v, o.err
	case <-r.ctx.Done():
		var none T
		return none, r.ctx.Err()
	}
}

// call is ask for one request whose answer needs no undoing.
func call[T any](ctx context.Context, b *Bucket, f func() (T, error)) (T, error) {
	if err := ctx.Err(); err != nil {
		var none T
		return none, err
	}
	return ask(ctx, b, f, nil).wait()
}

// do is call for a request that answers only yes or no.
func do(ctx context.Context, b *Bucket, f func() error) error {
	_, err := call(ctx, b, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// outlive returns a context that is done a moment after ctx: for what must be
// brought to its end, or undone, although the caller wants no more of it.
func outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() {
		stop()
		cancel()
	}
}
