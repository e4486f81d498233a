package decorate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/storage"
)

// obedience is how a store that hangs takes the end of its context.
type obedience int

const (
	obeys    obedience = iota
	late               // after two seconds, less than Grace
	never              // only when the test ends
	byClosed           // a reader that only Close frees
)

// hanging answers no call, or gives a body that stops after some bytes, or a
// listing that stops after some keys.
type hanging struct {
	storage.Bucket
	how     obedience
	answers bool          // what is opened is given, and hangs then
	freed   chan struct{} // ends everything
	closed  atomic.Int64  // readers
	success bool          // the late outcome is a success
	gives   error         // the outcome of what hung, instead of the context's error
}

func (h *hanging) String() string { return "hanging" }

// hang waits as the store does and gives its outcome.
func (h *hanging) hang(ctx context.Context) error {
	switch h.how {
	case obeys:
		select {
		case <-ctx.Done():
		case <-h.freed:
		}
	case late:
		<-ctx.Done()
		time.Sleep(2 * time.Second)
	default:
		<-h.freed
	}
	switch {
	case h.success:
		return nil
	case h.gives != nil:
		return h.gives
	case ctx.Err() != nil:
		return &storage.Error{Op: "do", Bucket: "hanging", Err: ctx.Err()}
	default:
		return errBroken
	}
}

func (h *hanging) Put(ctx context.Context, key string, src storage.Source, _ storage.PutOptions) (storage.Info, error) {
	r, err := src.Open()
	if err != nil {
		return storage.Info{}, err
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, 3); err != nil {
		return storage.Info{}, err
	}
	return storage.Info{Key: key}, h.hang(ctx)
}

func (h *hanging) Stat(ctx context.Context, key string) (storage.Info, error) {
	return storage.Info{Key: key}, h.hang(ctx)
}

func (h *hanging) Delete(ctx context.Context, _ ...string) error { return h.hang(ctx) }

func (h *hanging) GetRange(ctx context.Context, key string, _, n int64) (io.ReadCloser, error) {
	if !h.answers {
		if err := h.hang(ctx); err != nil {
			return nil, err
		}
	}
	return &hangingBody{h: h, ctx: ctx, left: min(n, 5), closing: make(chan struct{})}, nil
}

func (h *hanging) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	r, err := h.GetRange(ctx, key, 0, 10)
	return r, storage.Info{Key: key, Size: 10}, err
}

func (h *hanging) GetVersion(ctx context.Context, key, _ string) (io.ReadCloser, storage.Info, error) {
	return h.Get(ctx, key)
}

func (h *hanging) List(ctx context.Context, _, _ string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if h.answers && !yield(storage.Info{Key: "a"}, nil) {
			return
		}
		if err := h.hang(ctx); err != nil {
			yield(storage.Info{}, err)
			return
		}
		yield(storage.Info{Key: "late"}, nil)
	}
}

func (h *hanging) Versions(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return h.List(ctx, prefix, "")
}

func (h *hanging) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for info, err := range h.List(ctx, prefix, "") {
			if !yield(info.Key, err) {
				return
			}
		}
	}
}

// hangingBody gives a byte a second, and then hangs.
type hangingBody struct {
	h       *hanging
	ctx     context.Context
	left    int64
	closing chan struct{}
}

func (b *hangingBody) Read(p []byte) (int, error) {
	if b.left > 0 {
		time.Sleep(time.Second)
		b.left--
		p[0] = 'x'
		return 1, nil
	}
	if b.h.how == byClosed {
		<-b.closing
		return 0, errors.New("read on a closed body")
	}
	if err := b.h.hang(b.ctx); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

func (b *hangingBody) Close() error {
	b.h.closed.Add(1)
	close(b.closing)
	return nil
}

func hours() TimeoutOptions {
	return TimeoutOptions{Base: time.Hour, MinRate: 100, Idle: time.Minute, Grace: 10 * time.Second}
}

// operation is one way to wait for a store, and how long that may take.
type operation struct {
	name  string
	limit time.Duration
	text  string
	do    func(ctx context.Context, b storage.Bucket) error
}

func operations() []operation {
	drained := func(r io.ReadCloser, err error) error {
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return errors.Join(err, r.Close())
	}
	const answer = "store unavailable: no answer within 1h0m0s"
	return []operation{
		{"put", time.Hour + 10*time.Second, "put k of hanging: store unavailable: 1000 bytes not stored within 1h0m10s", func(ctx context.Context, b storage.Bucket) error {
			_, err := b.Put(ctx, "k", storage.Bytes(make([]byte, 1000)), storage.PutOptions{})
			return err
		}},
		{"stat", time.Hour, "stat k of hanging: " + answer, func(ctx context.Context, b storage.Bucket) error {
			_, err := b.Stat(ctx, "k")
			return err
		}},
		{"get", time.Hour, "get k of hanging: " + answer, func(ctx context.Context, b storage.Bucket) error {
			r, _, err := b.Get(ctx, "k")
			return drained(r, err)
		}},
		{"range", time.Hour, "get k of hanging: " + answer, func(ctx context.Context, b storage.Bucket) error {
			return drained(b.GetRange(ctx, "k", 0, 10))
		}},
		{"version", time.Hour, "get k of hanging: " + answer, func(ctx context.Context, b storage.Bucket) error {
			r, _, err := b.GetVersion(ctx, "k", "1")
			return drained(r, err)
		}},
		{"list", time.Hour, "list p of hanging: " + answer, func(ctx context.Context, b storage.Bucket) error {
			return lastError(b.List(ctx, "p", ""))
		}},
		{"folders", time.Hour, "list p/ of hanging: " + answer, func(ctx context.Context, b storage.Bucket) error {
			return lastError(b.Folders(ctx, "p/"))
		}},
		{"versions", time.Hour, "list p of hanging: " + answer, func(ctx context.Context, b storage.Bucket) error {
			return lastError(b.Versions(ctx, "p"))
		}},
		{"delete", time.Hour, "delete k of hanging: " + answer, func(ctx context.Context, b storage.Bucket) error {
			return b.Delete(ctx, "k")
		}},
		{"delete of many", 3 * time.Hour, "delete k of hanging: store unavailable: 201 objects not deleted within 3h0m0s", func(ctx context.Context, b storage.Bucket) error {
			keys := make([]string, 201)
			for i := range keys {
				keys[i] = "k"
			}
			err := b.Delete(ctx, keys...)
			var each interface{ Unwrap() []error }
			if err == nil || errors.Is(err, storage.ErrExists) {
				return err
			}
			if !errors.As(err, &each) || len(each.Unwrap()) != len(keys) {
				return fmt.Errorf("not each key has an error: %w", err)
			}
			return each.Unwrap()[200]
		}},
	}
}

func lastError[T any](seq iter.Seq2[T, error]) (last error) {
	for _, err := range seq {
		last = err
	}
	return last
}

// Every operation of a store that does not answer ends when it should, with
// what was waited for, whether the store's client minds its context or not.
func TestTimeoutCuts(t *testing.T) {
	for _, how := range []obedience{obeys, late, never} {
		for _, op := range operations() {
			synctest.Test(t, func(t *testing.T) {
				h := &hanging{how: how, freed: make(chan struct{})}
				start := time.Now()
				err := op.do(t.Context(), Timeout(h, hours()))
				took := time.Since(start)
				extra := map[obedience]time.Duration{late: 2 * time.Second, never: 10 * time.Second}[how]
				if took != op.limit+extra {
					t.Errorf("%s (%d): took %v, want %v", op.name, how, took, op.limit+extra)
				}
				if !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s (%d): %v is not only ErrUnavailable", op.name, how, err)
				}
				if err == nil || err.Error() != op.text {
					t.Errorf("%s (%d): %v, want %s", op.name, how, err, op.text)
				}
				close(h.freed)
			})
		}
	}
}

// The end of the caller's context is not taken for a fault of the store; its
// cause is kept.
func TestTimeoutKeepsContextErrors(t *testing.T) {
	why := errors.New("shutting down")
	for _, how := range []obedience{obeys, late, never} {
		for _, op := range operations() {
			for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
				synctest.Test(t, func(t *testing.T) {
					h := &hanging{how: how, freed: make(chan struct{})}
					ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, why)
					defer cancel()
					if errors.Is(want, context.Canceled) {
						canceled, end := context.WithCancelCause(t.Context())
						time.AfterFunc(time.Minute, func() { end(why) })
						ctx = canceled
					}
					start := time.Now()
					err := op.do(ctx, Timeout(h, hours()))
					if took := time.Since(start); took > time.Minute+10*time.Second {
						t.Errorf("%s (%d): took %v", op.name, how, took)
					}
					if !errors.Is(err, want) || !errors.Is(err, why) || errors.Is(err, storage.ErrUnavailable) {
						t.Errorf("%s (%d): %v, want %v for %v alone", op.name, how, err, want, why)
					}
					close(h.freed)
				})
			}
		}
	}
}

// A body may take for ever as long as bytes come; it is cut when none do.
func TestTimeoutOfBodies(t *testing.T) {
	for _, how := range []obedience{obeys, late, byClosed} {
		for name, open := range map[string]func(context.Context, storage.Bucket) (io.ReadCloser, error){
			"get": func(ctx context.Context, b storage.Bucket) (io.ReadCloser, error) {
				r, _, err := b.Get(ctx, "k")
				return r, err
			},
			"range": func(ctx context.Context, b storage.Bucket) (io.ReadCloser, error) { return b.GetRange(ctx, "k", 0, 10) },
			"version": func(ctx context.Context, b storage.Bucket) (io.ReadCloser, error) {
				r, _, err := b.GetVersion(ctx, "k", "1")
				return r, err
			},
		} {
			synctest.Test(t, func(t *testing.T) {
				h := &hanging{how: how, answers: true, freed: make(chan struct{})}
				opts := hours()
				opts.Idle = 1500 * time.Millisecond // for each byte, not for all
				r, err := open(t.Context(), Timeout(h, opts))
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if _, err := io.ReadFull(r, make([]byte, 5)); err != nil {
					t.Fatalf("%s: while bytes come: %v", name, err)
				}
				time.Sleep(24 * time.Hour) // the consumer's own time
				const want = "get k of hanging: store unavailable: no byte of the body within 1.5s"
				for range 2 {
					n, err := r.Read(make([]byte, 5))
					if n != 0 || err == nil || err.Error() != want || !errors.Is(err, storage.ErrUnavailable) {
						t.Errorf("%s (%d): read gives %d, %v, want %s", name, how, n, err, want)
					}
				}
				extra := map[obedience]time.Duration{late: 2 * time.Second, byClosed: 10 * time.Second}[how]
				if took := time.Since(start); took != 24*time.Hour+5*time.Second+opts.Idle+extra {
					t.Errorf("%s (%d): took %v", name, how, took)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				if n := h.closed.Load(); n != 1 {
					t.Errorf("%s (%d): the body was closed %d times", name, how, n)
				}
				close(h.freed)
			})
		}
	}
}

// A read ends with the caller's context, also where only Close frees it.
func TestTimeoutBodyStopsWithContext(t *testing.T) {
	why := errors.New("shutting down")
	for _, how := range []obedience{obeys, late, byClosed} {
		synctest.Test(t, func(t *testing.T) {
			h := &hanging{how: how, answers: true, freed: make(chan struct{})}
			ctx, cancel := context.WithCancelCause(t.Context())
			r, _, err := Timeout(h, hours()).Get(ctx, "k")
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(10*time.Second, func() { cancel(why) })
			for range 2 {
				_, err := io.Copy(io.Discard, r)
				if !errors.Is(err, context.Canceled) || !errors.Is(err, why) || errors.Is(err, storage.ErrUnavailable) {
					t.Errorf("(%d): %v, want context.Canceled for %v", how, err, why)
				}
			}
			if err := r.Close(); err != nil || h.closed.Load() != 1 {
				t.Errorf("(%d): close: %v, %d times", how, err, h.closed.Load())
			}
		})
	}
}

// What is opened too late is closed and not given; a Put that succeeds after
// all is a success, and what the store decided is passed on.
func TestTimeoutLateOutcomes(t *testing.T) {
	for _, how := range []obedience{late, never} {
		for _, gives := range []error{nil, storage.ErrExists} {
			synctest.Test(t, func(t *testing.T) {
				h := &hanging{how: how, success: gives == nil, gives: gives, freed: make(chan struct{})}
				b := Timeout(h, hours())
				want := gives
				if how == never {
					want = storage.ErrUnavailable
				}
				for _, op := range operations() {
					if strings.HasPrefix(op.text, "get") || strings.HasPrefix(op.text, "list") {
						continue
					}
					if err := op.do(t.Context(), b); !errors.Is(err, want) || err == nil && want != nil {
						t.Errorf("%s (%d): %v, want %v", op.name, how, err, want)
					}
				}
				if gives == nil {
					for _, op := range operations() {
						if strings.HasPrefix(op.text, "get") || strings.HasPrefix(op.text, "list") {
							if err := op.do(t.Context(), b); err == nil || err.Error() != op.text {
								t.Errorf("%s (%d): %v, want %s", op.name, how, err, op.text)
							}
						}
					}
				}
				close(h.freed)
				synctest.Wait()
				if n := h.closed.Load(); gives == nil && n != 3 {
					t.Errorf("(%d): %d of 3 late readers were closed", how, n)
				}
			})
		}
	}
}

// A listing has Base for each step, and the consumer all the time it likes.
func TestTimeoutOfListings(t *testing.T) {
	for _, how := range []obedience{obeys, late, never} {
		synctest.Test(t, func(t *testing.T) {
			h := &hanging{how: how, answers: true, freed: make(chan struct{})}
			var keys []string
			var last error
			for info, err := range Timeout(h, hours()).List(t.Context(), "p", "") {
				if last = err; err == nil {
					keys = append(keys, info.Key)
				}
				time.Sleep(24 * time.Hour)
			}
			if len(keys) != 1 || !errors.Is(last, storage.ErrUnavailable) {
				t.Errorf("(%d): %q, then %v", how, keys, last)
			}
			for range Timeout(h, hours()).Folders(t.Context(), "") {
				break // in time
			}
			close(h.freed)
		})
	}
}

// Nothing reads from the body of a Put that is over, and a source that blocks
// does not hold Put up for longer than Grace.
func TestTimeoutFencesBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept io.ReadCloser
		s := &scripted{put: func(_ int, src storage.Source) (err error) {
			kept, err = src.Open()
			return err
		}}
		b := Timeout(s, hours())
		for _, src := range []storage.Source{storage.Bytes("secret"), unseekable{}} {
			if _, err := b.Put(t.Context(), "k", src, storage.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(kept); len(got) > 0 || !errors.Is(err, errShut) {
				t.Errorf("read after Put: %q, %v", got, err)
			}
			var into strings.Builder
			if n, err := io.Copy(&into, kept); n != 0 || !errors.Is(err, errShut) {
				t.Errorf("copy after Put: %q, %v", into.String(), err)
			}
		}
		gate := make(chan struct{})
		s.put = func(_ int, src storage.Source) error {
			r, err := src.Open()
			if err != nil {
				return err
			}
			go func() { _, _ = r.Read(make([]byte, 1)) }()
			synctest.Wait()
			return errBroken
		}
		start := time.Now()
		_, err := b.Put(t.Context(), "k", blocking{gate}, storage.PutOptions{})
		if took := time.Since(start); !errors.Is(err, storage.ErrUnavailable) || took != hours().Grace {
			t.Errorf("put of a source that blocks: %v after %v", err, took)
		}
		close(gate)
	})
}

// blocking is a source whose bodies block until gate is closed.
type blocking struct{ gate chan struct{} }

func (b blocking) Size() int64                  { return 1 }
func (b blocking) Open() (io.ReadCloser, error) { return io.NopCloser(b), nil }

func (b blocking) Read([]byte) (int, error) {
	<-b.gate
	return 0, io.EOF
}

// A size that nobody can have makes no limit of the past.
func TestTimeoutLimits(t *testing.T) {
	b := &timeout{Bucket: &scripted{}, opts: TimeoutOptions{Base: time.Second, MinRate: 10}}
	for size, want := range map[int64]time.Duration{
		-1 << 63: time.Second, -1: time.Second, 0: time.Second, 9: time.Second, 25: 3 * time.Second,
		1<<63 - 1: time.Second + maxTransfer,
	} {
		if got := b.storing("k", size).limit; got != want {
			t.Errorf("limit for %d bytes: %v, want %v", size, got, want)
		}
	}
}

// What was decided of some keys before a Delete was cut is kept; all the others
// are tried again.
func TestTimeoutOfHalfADelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{}
		h := &hanging{freed: make(chan struct{})}
		half := &halfDelete{scripted: s, h: h}
		err := Retry(Timeout(half, hours()), RetryOptions{Now: time.Now, Elapsed: -1}).Delete(t.Context(), "a", "b", "c")
		if !errors.Is(err, storage.ErrPermission) || errors.Is(err, context.Canceled) || errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("delete: %v", err)
		}
		if diff := cmp.Diff([]string{`delete ["a" "b" "c"]`, `delete ["a" "c"]`}, s.asked); diff != "" {
			t.Errorf("asked (-want +got):\n%s", diff)
		}
	})
}

// halfDelete refuses b, and hangs then, the first time.
type halfDelete struct {
	*scripted
	h *hanging
}

func (d *halfDelete) Delete(ctx context.Context, keys ...string) error {
	if d.note("delete %q", keys) > 1 {
		return nil
	}
	err := d.h.hang(ctx)
	return errors.Join(failedKey("b", storage.ErrPermission), failedKey("c", err))
}
