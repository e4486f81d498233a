package decorate

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"walagent/internal/storage"
)

// gate is a store whose operations wait until they are let go.
type gate struct {
	storage.Bucket
	running, most atomic.Int64
	open          chan struct{}
}

func (g *gate) String() string { return "gate" }

func (g *gate) Stat(context.Context, string) (storage.Info, error) {
	if n := g.running.Add(1); n > g.most.Load() {
		g.most.Store(n)
	}
	<-g.open
	g.running.Add(-1)
	return storage.Info{}, nil
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		b := Limit(g, 3)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := b.Stat(t.Context(), "k"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // until nobody can go on
		if n := g.running.Load(); n != 3 {
			t.Errorf("%d operations run, want 3", n)
		}
		// Who waits for a slot leaves with his context.
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := b.Stat(ctx, "k"); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled while waiting: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(g.open)
		wg.Wait()
		if n := g.most.Load(); n != 3 {
			t.Errorf("at most %d operations ran, want 3", n)
		}
	})
}

// slots tells how many slots are taken.
func slots(b storage.Bucket) int { return len(b.(*limit).slots) }

func TestLimitReaders(t *testing.T) {
	inner := openFS(t, fastDir(t))
	if _, err := inner.Put(t.Context(), "k", storage.Bytes("0123456789"), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	b := Limit(inner, 2)
	for name, end := range map[string]func(io.ReadCloser) error{
		"closed":       func(r io.ReadCloser) error { return r.Close() },
		"closed twice": func(r io.ReadCloser) error { r.Close(); r.Close(); return nil },
		"at its end":   func(r io.ReadCloser) error { _, err := io.ReadAll(r); return err },
		"at its end and closed": func(r io.ReadCloser) error {
			_, err := io.ReadAll(r)
			return errors.Join(err, r.Close())
		},
	} {
		for _, whole := range []bool{true, false} {
			var r io.ReadCloser
			var err error
			if whole {
				r, _, err = b.Get(t.Context(), "k")
			} else {
				r, err = b.GetRange(t.Context(), "k", 1, 5)
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := slots(b); n != 1 {
				t.Errorf("an open reader holds %d slots", n)
			}
			if err := end(r); err != nil {
				t.Error(err)
			}
			if n := slots(b); n != 0 {
				t.Errorf("a reader that is %s holds %d slots", name, n)
			}
			r.Close()
		}
	}
	// What fails gives its slot back.
	_, _, err := b.Get(t.Context(), "absent")
	_, rerr := b.GetRange(t.Context(), "k", 5, 100)
	if !errors.Is(err, storage.ErrNotExist) || !errors.Is(rerr, storage.ErrRange) || slots(b) != 0 {
		t.Errorf("after %v and %v %d slots are taken", err, rerr, slots(b))
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, _, err := b.Get(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) || slots(b) != 0 {
		t.Errorf("a broken reader: %v, %d slots", err, slots(b))
	}
	r.Close()
}

// A consumer of a listing may use the bucket, even when it has one slot.
func TestLimitListing(t *testing.T) {
	inner := openFS(t, fastDir(t))
	for _, key := range []string{"a", "b", "c"} {
		if _, err := inner.Put(t.Context(), key, storage.Bytes(key), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	b := Limit(inner, 0) // is 1
	seen := 0
	for info, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Delete(t.Context(), info.Key); err != nil {
			t.Fatal(err)
		}
		if seen++; seen == 2 {
			break
		}
	}
	if seen != 2 || slots(b) != 0 {
		t.Errorf("%d keys seen, %d slots taken", seen, slots(b))
	}
}
