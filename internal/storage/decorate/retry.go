package decorate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"

	"agent/internal/storage"
)

// RetryOptions say how often and how long. The zero value of each field means
// its default.
type RetryOptions struct {
	// Initial is the mean of the first wait; each wait is drawn between half
	// and one and a half times its mean. Default 200 ms.
	Initial time.Duration
	// Max is the largest mean of a wait, which doubles each time. Default 15 s.
	Max time.Duration
	// Elapsed is how long after the first try of an operation, or after the
	// last progress of a reader or a listing, another try may begin. Default
	// 2 minutes; negative means without end.
	Elapsed time.Duration
	// Tries is the most tries of one operation, the first one included, or
	// without progress. Default: as many as Elapsed allows.
	Tries int
	// Log gets a warning before each wait. Default: none.
	Log *slog.Logger
	// Now is the clock; it must be given.
	Now func() time.Time
}

// Retry repeats what fails with storage.ErrUnavailable, and nothing else. It
// waits longer each time, and no more once the context is done. It does not
// begin a wait that would end after the context's deadline, but fails at once
// with the store's error, which says more than that the time is over.
//
// A store may say how long to wait: an error in whose chain errors.As finds an
// interface{ RetryAfter() time.Duration } makes the wait at least that long, up
// to Max (HTTP's Retry-After, RFC 9110 section 10.2.3).
//
//   - Put opens its source anew for each try. When a try was done by the store
//     although its reply was lost, the next one gets ErrExists; that is passed
//     up as it is, since only the caller can compare what is there.
//   - The readers of Get and GetRange go on at the byte where they broke, by a
//     ranged read, also after io.ErrUnexpectedEOF.
//   - List goes on after the last key it gave.
//   - Delete repeats the keys that failed so.
func Retry(b storage.Bucket, opts RetryOptions) storage.Bucket {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&opts.Initial, 200*time.Millisecond)
	set(&opts.Max, 15*time.Second)
	set(&opts.Elapsed, 2*time.Minute)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &retry{Bucket: b, opts: opts}
}

type retry struct {
	storage.Bucket
	opts RetryOptions
}

// tries is the budget of one operation.
type tries struct {
	r     *retry
	op    string
	key   string
	n     int
	since time.Time
	last  error // of the try before, since the last progress
	wait  *backoff.ExponentialBackOff
}

func (r *retry) tries(op, key string) *tries {
	t := &tries{r: r, op: op, key: key, wait: &backoff.ExponentialBackOff{
		InitialInterval: r.opts.Initial, MaxInterval: r.opts.Max, Multiplier: 2, RandomizationFactor: 0.5,
	}}
	t.progress()
	return t
}

// progress begins the budget anew.
func (t *tries) progress() {
	t.n, t.last = 0, nil
	t.since = t.r.opts.Now()
	t.wait.Reset()
}

// again waits before another try after err and returns nil, or returns the
// error to give up with.
func (t *tries) again(ctx context.Context, err error) error {
	if !errors.Is(err, storage.ErrUnavailable) {
		if t.last != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			// That the time was over in the middle of a try does not say why.
			return fmt.Errorf("%w in try %d; the one before gave: %w", err, t.n+1, t.last)
		}
		return err
	}
	t.n++
	t.last = err
	if t.r.opts.Tries > 0 && t.n >= t.r.opts.Tries {
		return fmt.Errorf("%w (tried %d times)", err, t.n)
	}
	if ctx.Err() != nil {
		return t.stopped(ctx, err)
	}
	wait := t.next(err)
	now := t.r.opts.Now()
	elapsed := now.Sub(t.since)
	if t.r.opts.Elapsed > 0 && elapsed+wait > t.r.opts.Elapsed {
		return fmt.Errorf("%w (tried %d times in %v)", err, t.n, elapsed.Round(time.Millisecond))
	}
	if deadline, has := ctx.Deadline(); has && now.Add(wait).After(deadline) {
		return fmt.Errorf("%w (tried %d times in %v; the deadline comes before another try)", err, t.n, elapsed.Round(time.Millisecond))
	}
	t.r.opts.Log.LogAttrs(ctx, slog.LevelWarn, "storage operation failed, will try again",
		slog.String("op", t.op), slog.String("bucket", t.r.Bucket.String()), slog.String("key", t.key),
		slog.Int("try", t.n), slog.Duration("wait", wait), slog.String("error", err.Error()))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return t.stopped(ctx, err)
	}
}

// next is how long to wait after err. Of those who are told the same time not
// all come back at the same moment.
func (t *tries) next(err error) time.Duration {
	wait := t.wait.NextBackOff()
	var told interface{ RetryAfter() time.Duration }
	if !errors.As(err, &told) || told.RetryAfter() <= 0 {
		return wait
	}
	after := min(told.RetryAfter(), t.r.opts.Max)
	return max(wait, after+rand.N(after/4+1))
}

// stopped is the error of an operation whose context ended between two tries.
func (t *tries) stopped(ctx context.Context, err error) error {
	return fmt.Errorf("%w after %d tries, the last of which gave: %w", ended(ctx), t.n, err)
}

// ended is why a context is done.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// try runs f until it succeeds, fails for good, or the budget is used up.
func try[T any](ctx context.Context, t *tries, f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if err == nil {
			return v, nil
		}
		if err := t.again(ctx, err); err != nil {
			return v, err
		}
	}
}

func (r *retry) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	return try(ctx, r.tries("put", key), func() (storage.Info, error) {
		return r.Bucket.Put(ctx, key, src, opts)
	})
}

func (r *retry) Stat(ctx context.Context, key string) (storage.Info, error) {
	return try(ctx, r.tries("stat", key), func() (storage.Info, error) { return r.Bucket.Stat(ctx, key) })
}

func (r *retry) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	t := r.tries("get", key)
	var info storage.Info
	body, err := try(ctx, t, func() (body io.ReadCloser, err error) {
		body, info, err = r.Bucket.Get(ctx, key)
		return body, err
	})
	if err != nil {
		return nil, storage.Info{}, err
	}
	t.progress()
	return &resuming{ctx: ctx, t: t, body: body, left: info.Size}, info, nil
}

func (r *retry) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	t := r.tries("get", key)
	body, err := try(ctx, t, func() (io.ReadCloser, error) { return r.Bucket.GetRange(ctx, key, off, n) })
	if err != nil {
		return nil, err
	}
	t.progress()
	return &resuming{ctx: ctx, t: t, body: body, off: off, left: n}, nil
}

// GetVersion is repeated while it cannot be opened. A stream that breaks is
// not resumed: versions are read only where the current object is no good.
func (r *retry) GetVersion(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	var info storage.Info
	body, err := try(ctx, r.tries("get", key), func() (body io.ReadCloser, err error) {
		body, info, err = r.Bucket.GetVersion(ctx, key, version)
		return body, err
	})
	return body, info, err
}

// Unwrap is the bucket whose operations are repeated.
func (r *retry) Unwrap() storage.Bucket { return r.Bucket }

func (r *retry) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	last := startAfter
	return relist(ctx, r, prefix, func() iter.Seq2[storage.Info, error] { return r.Bucket.List(ctx, prefix, last) },
		func() { last = startAfter },
		func(info storage.Info) bool { last = info.Key; return true })
}

func (r *retry) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	last := ""
	return relist(ctx, r, prefix, func() iter.Seq2[string, error] { return r.Bucket.Folders(ctx, prefix) },
		func() { last = "" },
		func(name string) bool {
			name += "/" // the order is that of keys
			fresh := name > last
			last = max(last, name)
			return fresh
		})
}

func (r *retry) Versions(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	given, again := 0, 0
	return relist(ctx, r, prefix, func() iter.Seq2[storage.Info, error] {
		again = 0
		return r.Bucket.Versions(ctx, prefix)
	}, func() { given = 0 }, func(storage.Info) bool {
		again++
		fresh := again > given
		given = max(given, again)
		return fresh
	})
}

// relist repeats a listing that breaks. begin is called for each use of the
// sequence; seen says of each item whether it is a new one.
func relist[T any](ctx context.Context, r *retry, prefix string, list func() iter.Seq2[T, error], begin func(), seen func(T) bool) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		begin()
		t := r.tries("list", prefix)
		for {
			var broke error
			for item, err := range list() {
				if err != nil {
					broke = err
					break
				}
				t.progress()
				if seen(item) && !yield(item, nil) {
					return
				}
			}
			if broke == nil {
				return
			}
			if err := t.again(ctx, broke); err != nil {
				var none T
				yield(none, err)
				return
			}
		}
	}
}

func (r *retry) Delete(ctx context.Context, keys ...string) error {
	if len(keys) == 0 {
		return r.Bucket.Delete(ctx)
	}
	t := r.tries("delete", keys[0])
	var final []error // of the keys that another try does not help
	for {
		err := r.Bucket.Delete(ctx, keys...)
		if err == nil {
			return errors.Join(final...)
		}
		passing, lasting := sortFailures(err)
		final = append(final, lasting...)
		if len(passing) > 0 {
			keys = nil
			for _, e := range passing {
				keys = append(keys, e.Key)
			}
		} else if len(lasting) > 0 {
			return errors.Join(final...)
		}
		if err := t.again(ctx, err); err != nil {
			if len(passing) == 0 {
				final = append(final, err) // names no keys
			}
			for _, e := range passing {
				if ctx.Err() != nil {
					e = &storage.Error{Op: e.Op, Bucket: e.Bucket, Key: e.Key, Err: t.stopped(ctx, e.Err)}
				}
				final = append(final, e)
			}
			return errors.Join(final...)
		}
	}
}

// sortFailures takes the joined error of a Delete apart, by whether another
// try may help. An error that names no keys gives nothing.
func sortFailures(err error) (passing []*storage.Error, lasting []error) {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		for _, e := range many.Unwrap() {
			p, l := sortFailures(e)
			passing, lasting = append(passing, p...), append(lasting, l...)
		}
		return passing, lasting
	}
	var one *storage.Error
	switch {
	case !errors.As(err, &one):
		return nil, nil
	case errors.Is(one, storage.ErrUnavailable):
		return []*storage.Error{one}, nil
	default:
		return nil, []error{one}
	}
}
