package decorate

import (
	"context"
	"errors"
	"io"

	"golang.org/x/time/rate"

	"agent/internal/storage"
)

// BandwidthOptions are limits in bytes per second, over all operations of one
// bucket together; 0 means none.
type BandwidthOptions struct {
	Up   int64 // bodies of Put
	Down int64 // readers of Get and GetRange
}

// Bandwidth limits how fast bodies are sent and received. Bytes go in pieces of
// a twentieth of a second, so that there are no bursts; a client that takes a
// body in memory in one go, as that of a folder does, is made to wait when it
// closes it.
func Bandwidth(b storage.Bucket, opts BandwidthOptions) storage.Bucket {
	return &bandwidth{Bucket: b, up: newThrottle(opts.Up), down: newThrottle(opts.Down)}
}

const (
	minPiece = 256      // bytes
	maxPiece = 64 << 10 // bytes
)

// throttle is a limiter whose burst is one piece; nil lets all through.
type throttle struct {
	*rate.Limiter
	piece int
}

func newThrottle(perSecond int64) *throttle {
	if perSecond <= 0 {
		return nil
	}
	piece := int(min(max(perSecond/20, minPiece), maxPiece))
	return &throttle{rate.NewLimiter(rate.Limit(perSecond), piece), piece}
}

type bandwidth struct {
	storage.Bucket
	up, down *throttle
}

func (b *bandwidth) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	if b.up != nil {
		src = source{src, func(r io.ReadCloser) io.ReadCloser { return seekable(b.up.body(ctx, r), r) }}
	}
	return b.Bucket.Put(ctx, key, src, opts)
}

func (b *bandwidth) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	r, info, err := b.Bucket.Get(ctx, key)
	if err != nil || b.down == nil {
		return r, info, err
	}
	return b.down.reader(ctx, r), info, nil
}

// Unwrap is the bucket behind the limit.
func (b *bandwidth) Unwrap() storage.Bucket { return b.Bucket }

func (b *bandwidth) GetVersion(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	r, info, err := b.Bucket.GetVersion(ctx, key, version)
	if err != nil || b.down == nil {
		return r, info, err
	}
	return b.down.reader(ctx, r), info, nil
}

func (b *bandwidth) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := b.Bucket.GetRange(ctx, key, off, n)
	if err != nil || b.down == nil {
		return r, err
	}
	return b.down.reader(ctx, r), nil
}

func (t *throttle) reader(ctx context.Context, r io.ReadCloser) io.ReadCloser {
	return &throttled{ReadCloser: r, ctx: ctx, t: t}
}

// throttled pays for each piece after it was read and before it is given on.
type throttled struct {
	io.ReadCloser
	ctx context.Context
	t   *throttle
}

func (t *throttled) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p[:min(len(p), t.t.piece)])
	if n > 0 {
		if werr := t.wait(n); werr != nil {
			return n, werr
		}
	}
	return n, err
}

// body is a reader for what is sent. A client that takes all of it in one go
// may only hash it: that is paid for when the body is closed, or forgiven when
// it is read again from its start.
func (t *throttle) body(ctx context.Context, r io.ReadCloser) io.ReadCloser {
	plain := &throttled{ReadCloser: r, ctx: ctx, t: t}
	if to, ok := r.(io.WriterTo); ok {
		return &throttledBody{throttled: plain, to: to}
	}
	return plain
}

type throttledBody struct {
	*throttled
	to   io.WriterTo
	owed int64
}

// WriteTo hands the body over, and owes for it.
func (t *throttledBody) WriteTo(w io.Writer) (int64, error) {
	n, err := t.to.WriteTo(w)
	t.owed += n
	return n, err
}

func (t *throttledBody) rewound() { t.owed = 0 }

// Close pays what is owed.
func (t *throttledBody) Close() error {
	for ; t.owed > 0; t.owed -= int64(t.t.piece) {
		if err := t.wait(int(min(t.owed, int64(t.t.piece)))); err != nil {
			return errors.Join(err, t.ReadCloser.Close())
		}
	}
	return t.ReadCloser.Close()
}

// wait is rate.Limiter.WaitN with the context's own error: WaitN gives up at
// once, with another one, when it sees that the deadline will come first.
func (t *throttled) wait(n int) error {
	err := t.t.WaitN(t.ctx, n)
	if err == nil {
		return nil
	}
	if _, has := t.ctx.Deadline(); has && t.ctx.Err() == nil {
		return context.DeadlineExceeded
	}
	return ended(t.ctx)
}
