package decorate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"agent/internal/storage"
)

// TimeoutOptions say how long a store may let us wait. The zero value of each
// field means its default.
type TimeoutOptions struct {
	// Base is how long a Stat, the opening of an object, a step of a listing,
	// the closing of a reader, and a Delete of up to a hundred keys may take; one
	// of more keys gets as much again for each further hundred, since not every
	// store deletes in batches. Default 30 s.
	Base time.Duration
	// MinRate is the rate in bytes per second that a Put must reach, on top of
	// Base. Where the bandwidth is limited to B and C Puts share it, it must be
	// clearly less than B/C, such as B/(2C). Default 256 KiB/s.
	MinRate int64
	// Idle is how long one read of a body may wait for its first byte. The time
	// between two reads is the reader's own and does not count. Default 30 s.
	Idle time.Duration
	// Grace is how long the client of the store may take to stop once its
	// context has ended, before it is left behind. Default 5 s.
	Grace time.Duration
}

// Timeout lets no single operation on b wait for ever. What it cuts fails with
// storage.ErrUnavailable and says what was waited for and how long; the end of
// the caller's own context stays what it is.
//
// An operation is cut by ending its context, with the error of the class
// ErrUnavailable as the cause (context.Cause), by which b can tell that its
// connection answers no more. If b does not come back within
// Grace after that, or after the end of the caller's context, it is left behind
// to end when it can: its late result is closed, and nothing is read any more
// from the body of its Put, which therefore never touches a source after Put
// returned. A Read cannot be left behind, since b has the caller's memory: it
// needs a b whose readers are freed by the end of their context or by Close,
// which is called beside the Read then.
//
// The limits are for one try, so that it stands below Retry.
func Timeout(b storage.Bucket, opts TimeoutOptions) storage.Bucket {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&opts.Base, 30*time.Second)
	set(&opts.Idle, 30*time.Second)
	set(&opts.Grace, 5*time.Second)
	if opts.MinRate <= 0 {
		opts.MinRate = 256 << 10
	}
	return &timeout{Bucket: b, opts: opts}
}

// deletesPerBase is how many keys a Delete may have for each Base.
const deletesPerBase = 100

type timeout struct {
	storage.Bucket
	opts TimeoutOptions
}

// Unwrap is the bucket whose operations are limited.
func (t *timeout) Unwrap() storage.Bucket { return t.Bucket }

func (t *timeout) answer(op, key string) wait {
	return wait{t: t, op: op, key: key, limit: t.opts.Base, missing: "no answer"}
}

func (t *timeout) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	f := newFence()
	defer f.shut(t.opts.Grace)
	return once(ctx, t.storing(key, src.Size()), func(ctx context.Context) (storage.Info, error) {
		return t.Bucket.Put(ctx, key, source{src, f.body}, opts)
	})
}

// storing is the wait for a Put of size bytes, which is not negative in an
// honest source.
func (t *timeout) storing(key string, size int64) wait {
	w := t.answer("put", key)
	seconds := max(size, 0) / t.opts.MinRate
	w.limit += time.Duration(min(seconds, int64(maxTransfer/time.Second))) * time.Second
	w.missing = fmt.Sprintf("%d bytes not stored", size)
	return w
}

// maxTransfer keeps the sum of durations within its type; a year is without end.
const maxTransfer = 365 * 24 * time.Hour

func (t *timeout) Stat(ctx context.Context, key string) (storage.Info, error) {
	return once(ctx, t.answer("stat", key), func(ctx context.Context) (storage.Info, error) {
		return t.Bucket.Stat(ctx, key)
	})
}

func (t *timeout) Delete(ctx context.Context, keys ...string) error {
	if len(keys) == 0 {
		return t.Bucket.Delete(ctx)
	}
	w := t.answer("delete", keys[0])
	w.limit *= time.Duration((len(keys) + deletesPerBase - 1) / deletesPerBase)
	if len(keys) > 1 {
		w.missing = fmt.Sprintf("%d objects not deleted", len(keys))
	}
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	_, _, err := await(ctx, cancel, w, func() (struct{}, error) {
		return struct{}{}, t.Bucket.Delete(own, keys...)
	}, func(struct{}, error) {})
	if err == nil || own.Err() == nil {
		return err
	}
	// Of a key that was not decided nothing is known: another Delete does no harm.
	var all []error
	decided := map[string]bool{}
	passing, lasting := sortFailures(err)
	if len(passing)+len(lasting) == 0 && definite(err) {
		return err // names no keys
	}
	for _, e := range lasting {
		var one *storage.Error
		if definite(e) && errors.As(e, &one) {
			decided[one.Key] = true
			all = append(all, e)
		}
	}
	for _, key := range keys {
		if w.key = key; !decided[key] {
			all = append(all, w.stopped(ctx))
		}
	}
	return errors.Join(all...)
}

func (t *timeout) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	return t.open(ctx, key, func(ctx context.Context) (io.ReadCloser, storage.Info, error) { return t.Bucket.Get(ctx, key) })
}

func (t *timeout) GetVersion(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	return t.open(ctx, key, func(ctx context.Context) (io.ReadCloser, storage.Info, error) {
		return t.Bucket.GetVersion(ctx, key, version)
	})
}

func (t *timeout) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, _, err := t.open(ctx, key, func(ctx context.Context) (io.ReadCloser, storage.Info, error) {
		r, err := t.Bucket.GetRange(ctx, key, off, n)
		return r, storage.Info{}, err
	})
	return r, err
}

func (t *timeout) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return stepping(ctx, t.answer("list", prefix), func(ctx context.Context) iter.Seq2[storage.Info, error] {
		return t.Bucket.List(ctx, prefix, startAfter)
	})
}

func (t *timeout) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return stepping(ctx, t.answer("list", prefix), func(ctx context.Context) iter.Seq2[string, error] {
		return t.Bucket.Folders(ctx, prefix)
	})
}

func (t *timeout) Versions(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return stepping(ctx, t.answer("list", prefix), func(ctx context.Context) iter.Seq2[storage.Info, error] {
		return t.Bucket.Versions(ctx, prefix)
	})
}

// stepping limits each step of a listing, which is begun by list; what the
// consumer does between two steps takes no time of it.
func stepping[T any](ctx context.Context, w wait, list func(context.Context) iter.Seq2[T, error]) iter.Seq2[T, error] {
	type step struct {
		item T
		more bool
	}
	return func(yield func(T, error) bool) {
		own, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		next, stop := iter.Pull2(list(own))
		left := false
		defer func() {
			if !left {
				stop()
			}
		}()
		for {
			s, late, err := await(ctx, cancel, w, func() (step, error) {
				item, err, more := next()
				return step{item, more}, err
			}, func(step, error) { stop() })
			left = late
			if err == nil && own.Err() != nil {
				err = w.stopped(ctx)
			}
			if !s.more && err == nil {
				return
			}
			if !yield(s.item, err) || err != nil {
				return
			}
		}
	}
}
