package decorate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"agent/internal/storage"
	"agent/internal/storage/fs"
	"agent/internal/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fastDir is a folder in memory where there is one.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "storage-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func openFS(t *testing.T, dir string) storage.Bucket {
	t.Helper()
	b, err := fs.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// quick are options that make a retry wait next to nothing.
func quick() RetryOptions { return RetryOptions{Initial: 1, Max: 1, Now: time.Now} }

// flaky fails every other call before it reaches the store, and breaks every
// reader and every listing after a while.
type flaky struct {
	storage.Bucket
	calls atomic.Int64
}

func (f *flaky) fail(op, key string) error {
	if f.calls.Add(1)%2 == 1 {
		return broken(op, key)
	}
	return nil
}

func broken(op, key string) error {
	return &storage.Error{Op: op, Bucket: "flaky", Key: key, Err: fmt.Errorf("%w: on purpose", storage.ErrUnavailable)}
}

func (f *flaky) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	if err := f.fail("put", key); err != nil {
		// What a try takes from its body must not be missing in the next.
		if r, oerr := src.Open(); oerr == nil {
			io.CopyN(io.Discard, r, 1000)
			r.Close()
		}
		return storage.Info{}, err
	}
	return f.Bucket.Put(ctx, key, src, opts)
}

func (f *flaky) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	if err := f.fail("get", key); err != nil {
		return nil, storage.Info{}, err
	}
	r, info, err := f.Bucket.Get(ctx, key)
	if err != nil {
		return nil, storage.Info{}, err
	}
	return &breaking{r, info.Size/3 + 1, broken("get", key)}, info, nil
}

func (f *flaky) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := f.fail("get", key); err != nil {
		return nil, err
	}
	r, err := f.Bucket.GetRange(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	return &breaking{r, n/2 + 1, io.ErrUnexpectedEOF}, nil
}

func (f *flaky) Stat(ctx context.Context, key string) (storage.Info, error) {
	if err := f.fail("stat", key); err != nil {
		return storage.Info{}, err
	}
	return f.Bucket.Stat(ctx, key)
}

func (f *flaky) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		left := f.calls.Add(1) % 500
		for info, err := range f.Bucket.List(ctx, prefix, startAfter) {
			if left--; left == 0 {
				yield(storage.Info{}, broken("list", prefix))
				return
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// Delete does half of its work.
func (f *flaky) Delete(ctx context.Context, keys ...string) error {
	if f.calls.Add(1)%2 == 0 {
		return f.Bucket.Delete(ctx, keys...)
	}
	half := len(keys) / 2
	errs := []error{f.Bucket.Delete(ctx, keys[:half]...)}
	for _, key := range keys[half:] {
		errs = append(errs, broken("delete", key))
	}
	return errors.Join(errs...)
}

// Unwrap is the store behind.
func (f *flaky) Unwrap() storage.Bucket { return f.Bucket }

// Decorate makes a Cleaner flaky too.
func (f *flaky) Decorate(ability any) {
	if c, ok := ability.(*storage.Cleaner); ok {
		*c = flakyCleaner{*c, f}
	}
}

type flakyCleaner struct {
	storage.Cleaner
	f *flaky
}

// Unfinished breaks every other time, behind the first that it gives.
func (c flakyCleaner) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	return func(yield func(storage.Unfinished, error) bool) {
		err := c.f.fail("list", prefix)
		for u, uerr := range c.Cleaner.Unfinished(ctx, prefix) {
			if !yield(u, uerr) {
				return
			}
			if err != nil {
				break
			}
		}
		if err != nil {
			yield(storage.Unfinished{}, err)
		}
	}
}

func (c flakyCleaner) Discard(ctx context.Context, u storage.Unfinished) error {
	if err := c.f.fail("discard", u.Key); err != nil {
		return err
	}
	return c.Cleaner.Discard(ctx, u)
}

// abandon leaves a file as a Put into a folder does that is killed.
func abandon(t *testing.T, dir, key string) {
	t.Helper()
	p := filepath.Join(dir, filepath.Dir(key), storage.TempPrefix+filepath.Base(key))
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// breaking is a reader that fails after some bytes.
type breaking struct {
	io.ReadCloser
	left int64
	err  error
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, b.err
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// Each decorator over a folder passes the whole suite, and all of them on a
// store that fails all the time.
func TestDecorators(t *testing.T) {
	for name, wrap := range map[string]func(storage.Bucket) storage.Bucket{
		"Retry":      func(b storage.Bucket) storage.Bucket { return Retry(b, quick()) },
		"RetryFlaky": func(b storage.Bucket) storage.Bucket { return Retry(&flaky{Bucket: b}, quick()) },
		"Bandwidth": func(b storage.Bucket) storage.Bucket {
			return Bandwidth(b, BandwidthOptions{Up: 1 << 36, Down: 1 << 36})
		},
		"BandwidthUnset": func(b storage.Bucket) storage.Bucket { return Bandwidth(b, BandwidthOptions{}) },
		"Timeout":        func(b storage.Bucket) storage.Bucket { return Timeout(b, TimeoutOptions{}) },
		"Count":          func(b storage.Bucket) storage.Bucket { return Count(b) },
		"All": func(b storage.Bucket) storage.Bucket {
			b = Bandwidth(Count(&flaky{Bucket: b}), BandwidthOptions{Up: 1 << 36, Down: 1 << 36})
			return Retry(Timeout(b, TimeoutOptions{}), quick())
		},
	} {
		t.Run(name, func(t *testing.T) {
			storagetest.Run(t, func(t *testing.T) storagetest.Harness {
				dir := fastDir(t)
				return storagetest.Harness{
					Open:      func(t *testing.T) storage.Bucket { return wrap(openFS(t, dir)) },
					Abandon:   func(t *testing.T, key string) { abandon(t, dir, key) },
					BigObject: 5<<20 + 1,
				}
			})
		})
	}
}

// scripted gives prepared answers, and notes what it was asked.
type scripted struct {
	storage.Bucket
	asked []string
	put   func(try int, src storage.Source) error
	stat  func(try int) error
	get   func(try int, off, n int64) (io.ReadCloser, error)
	list  func(try int, after string) ([]string, error)
	del   func(try int, keys []string) error
}

func (s *scripted) note(format string, args ...any) int {
	s.asked = append(s.asked, fmt.Sprintf(format, args...))
	return len(s.asked)
}

func (s *scripted) String() string { return "scripted" }

func (s *scripted) Put(_ context.Context, key string, src storage.Source, _ storage.PutOptions) (storage.Info, error) {
	return storage.Info{Key: key}, s.put(s.note("put %s", key), src)
}

func (s *scripted) Stat(_ context.Context, key string) (storage.Info, error) {
	return storage.Info{Key: key}, s.stat(s.note("stat %s", key))
}

func (s *scripted) Get(_ context.Context, key string) (io.ReadCloser, storage.Info, error) {
	r, err := s.get(s.note("get %s", key), 0, -1)
	return r, storage.Info{Key: key, Size: 10}, err
}

func (s *scripted) GetRange(_ context.Context, key string, off, n int64) (io.ReadCloser, error) {
	return s.get(s.note("get %s %d+%d", key, off, n), off, n)
}

func (s *scripted) List(_ context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		keys, err := s.list(s.note("list %s after %s", prefix, after), after)
		for _, key := range keys {
			if !yield(storage.Info{Key: key}, nil) {
				return
			}
		}
		if err != nil {
			yield(storage.Info{}, err)
		}
	}
}

func (s *scripted) Delete(_ context.Context, keys ...string) error {
	return s.del(s.note("delete %q", keys), keys)
}

var epoch = time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)
