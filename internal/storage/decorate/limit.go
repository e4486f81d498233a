package decorate

import (
	"context"
	"io"
	"iter"
	"sync"

	"walagent/internal/storage"
)

// Limit lets at most n operations run at a time (at least 1); others wait for
// a slot or for the end of their context. A reader holds its slot until it is
// closed or was read to its end or to an error, so that whoever holds n
// readers open and asks for one more waits for himself. A listing holds one
// only while it asks the store, not while its consumer works.
func Limit(b storage.Bucket, n int) storage.Bucket {
	return &limit{Bucket: b, slots: make(chan struct{}, max(n, 1))}
}

type limit struct {
	storage.Bucket
	slots chan struct{}
}

// enter takes a slot; leave gives it back.
func (l *limit) enter(ctx context.Context, op, key string) error {
	err := ctx.Err()
	if err == nil {
		select {
		case l.slots <- struct{}{}:
			return nil
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return &storage.Error{Op: op, Bucket: l.Bucket.String(), Key: key, Err: err}
}

func (l *limit) leave() { <-l.slots }

func (l *limit) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	if err := l.enter(ctx, "put", key); err != nil {
		return storage.Info{}, err
	}
	defer l.leave()
	return l.Bucket.Put(ctx, key, src, opts)
}

func (l *limit) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	if err := l.enter(ctx, "get", key); err != nil {
		return nil, storage.Info{}, err
	}
	r, info, err := l.Bucket.Get(ctx, key)
	if err != nil {
		l.leave()
		return nil, storage.Info{}, err
	}
	return l.holding(r), info, nil
}

func (l *limit) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if n == 0 {
		return l.Bucket.GetRange(ctx, key, off, n) // asks nobody
	}
	if err := l.enter(ctx, "get", key); err != nil {
		return nil, err
	}
	r, err := l.Bucket.GetRange(ctx, key, off, n)
	if err != nil {
		l.leave()
		return nil, err
	}
	return l.holding(r), nil
}

func (l *limit) Stat(ctx context.Context, key string) (storage.Info, error) {
	if err := l.enter(ctx, "stat", key); err != nil {
		return storage.Info{}, err
	}
	defer l.leave()
	return l.Bucket.Stat(ctx, key)
}

func (l *limit) Delete(ctx context.Context, keys ...string) error {
	if ctx.Err() == nil && len(keys) > 0 {
		if err := l.enter(ctx, "delete", keys[0]); err == nil {
			defer l.leave()
		}
	}
	// With the context done the store gives the error for each key.
	return l.Bucket.Delete(ctx, keys...)
}

func (l *limit) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		next, stop := iter.Pull2(l.Bucket.List(ctx, prefix, startAfter))
		defer stop()
		for {
			if err := l.enter(ctx, "list", prefix); err != nil {
				yield(storage.Info{}, err)
				return
			}
			info, err, ok := next()
			l.leave()
			if !ok || !yield(info, err) {
				return
			}
		}
	}
}

func (l *limit) holding(r io.ReadCloser) io.ReadCloser {
	return &holding{ReadCloser: r, leave: sync.OnceFunc(l.leave)}
}

// holding is a reader with a slot.
type holding struct {
	io.ReadCloser
	leave func()
}

func (h *holding) Read(p []byte) (int, error) {
	n, err := h.ReadCloser.Read(p)
	if err != nil {
		h.leave()
	}
	return n, err
}

func (h *holding) Close() error {
	defer h.leave()
	return h.ReadCloser.Close()
}
