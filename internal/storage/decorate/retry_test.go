package decorate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/storage"
)

var errBroken = fmt.Errorf("%w: connection reset", storage.ErrUnavailable)

// Only the class ErrUnavailable is tried again.
func TestRetryClasses(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 1},
		{storage.ErrNotExist, 1},
		{storage.ErrExists, 1},
		{storage.ErrRange, 1},
		{storage.ErrBadLength, 1},
		{storage.ErrBadDigest, 1},
		{storage.ErrKey, 1},
		{storage.ErrPermission, 1},
		{storage.ErrNoSpace, 1},
		{context.Canceled, 1},
		{io.ErrUnexpectedEOF, 1},
		{errors.New("unknown"), 1},
		{storage.ErrUnavailable, 4},
		{&storage.Error{Op: "x", Err: errBroken}, 4},
	} {
		s := &scripted{
			put:  func(int, storage.Source) error { return tt.err },
			stat: func(int) error { return tt.err },
			get: func(int, int64, int64) (io.ReadCloser, error) {
				if tt.err == nil {
					return storage.Bytes("0123456789").Open()
				}
				return nil, tt.err
			},
			list: func(int, string) ([]string, error) { return nil, tt.err },
			del:  func(int, []string) error { return tt.err },
		}
		opts := quick()
		opts.Tries = 4
		b := Retry(s, opts)
		for op, f := range map[string]func() error{
			"put":  func() error { _, err := b.Put(t.Context(), "k", storage.Bytes("x"), storage.PutOptions{}); return err },
			"stat": func() error { _, err := b.Stat(t.Context(), "k"); return err },
			"get":  func() error { _, _, err := b.Get(t.Context(), "k"); return err },
			"range": func() error {
				_, err := b.GetRange(t.Context(), "k", 1, 2)
				return err
			},
			"list": func() (last error) {
				for _, err := range b.List(t.Context(), "p", "") {
					last = err
				}
				return last
			},
			"delete": func() error { return b.Delete(t.Context(), "k") },
		} {
			s.asked = nil
			if err := f(); !errors.Is(err, tt.err) {
				t.Errorf("%s: %v, want %v", op, err, tt.err)
			}
			if len(s.asked) != tt.want {
				t.Errorf("%s with %v: %d tries, want %d", op, tt.err, len(s.asked), tt.want)
			}
		}
	}
}

// Each try of a Put has its body from the start; an ErrExists after a try whose
// reply was lost is passed up.
func TestRetryPut(t *testing.T) {
	var bodies []string
	s := &scripted{put: func(try int, src storage.Source) error {
		r, err := src.Open()
		if err != nil {
			return err
		}
		got, err := io.ReadAll(io.LimitReader(r, int64(try*3)))
		if err != nil {
			return err
		}
		bodies = append(bodies, string(got))
		if err := r.Close(); err != nil {
			return err
		}
		if try == 3 {
			return &storage.Error{Op: "put", Err: storage.ErrExists}
		}
		return errBroken
	}}
	_, err := Retry(s, quick()).Put(t.Context(), "k", storage.Bytes("0123456789"), storage.PutOptions{})
	if !errors.Is(err, storage.ErrExists) {
		t.Errorf("put: %v, want ErrExists", err)
	}
	if diff := cmp.Diff([]string{"012", "012345", "012345678"}, bodies); diff != "" {
		t.Errorf("bodies (-want +got):\n%s", diff)
	}
}

// stream is a reader over s that ends with err.
func stream(s string, err error) io.ReadCloser {
	return io.NopCloser(io.MultiReader(strings.NewReader(s), errReader{err}))
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestRetryResumesReaders(t *testing.T) {
	const object = "0123456789"
	notAgain := errors.New("not again")
	for _, tt := range []struct {
		name   string
		ranged bool
		get    func(try int, off, n int64) (io.ReadCloser, error)
		asked  []string
		want   string
		err    error
	}{
		{"breaks twice", false, func(try int, off, _ int64) (io.ReadCloser, error) {
			if try == 4 {
				return stream(object[off:], io.EOF), nil
			}
			if try == 3 {
				return nil, errBroken
			}
			return stream(object[off:off+4], errBroken), nil
		}, []string{"get k", "get k 4+6", "get k 8+2", "get k 8+2"}, object, nil},
		{"ends early", true, func(_ int, off, n int64) (io.ReadCloser, error) {
			return stream(object[off:off+min(n, 3)], io.ErrUnexpectedEOF), nil
		}, []string{"get k 2+7", "get k 5+4", "get k 8+1"}, "2345678", nil},
		{"is found damaged at its end", false, func(int, int64, int64) (io.ReadCloser, error) {
			return stream(object, notAgain), nil
		}, []string{"get k"}, object, notAgain},
		{"ends early and cleanly", true, func(_ int, off, n int64) (io.ReadCloser, error) {
			return stream(object[off:off+min(n, 3)], io.EOF), nil
		}, []string{"get k 2+7", "get k 5+4", "get k 8+1"}, "2345678", nil},
		{"is too short", false, func(_ int, off, _ int64) (io.ReadCloser, error) {
			if off > 0 {
				return nil, storage.ErrRange
			}
			return stream(object[:5], io.ErrUnexpectedEOF), nil
		}, []string{"get k", "get k 5+5"}, object[:5], io.ErrUnexpectedEOF},
		{"breaks for good", false, func(int, int64, int64) (io.ReadCloser, error) {
			return stream(object[:5], notAgain), nil
		}, []string{"get k"}, object[:5], notAgain},
		{"is deleted meanwhile", false, func(_ int, off, _ int64) (io.ReadCloser, error) {
			if off > 0 {
				return nil, storage.ErrNotExist
			}
			return stream(object[:5], errBroken), nil
		}, []string{"get k", "get k 5+5"}, object[:5], storage.ErrNotExist},
		{"makes no progress", false, func(_ int, off, _ int64) (io.ReadCloser, error) {
			if off > 0 {
				return stream("", errBroken), nil
			}
			return stream(object[:5], errBroken), nil
		}, []string{"get k", "get k 5+5", "get k 5+5"}, object[:5], storage.ErrUnavailable},
	} {
		s := &scripted{get: tt.get}
		opts := quick()
		opts.Tries = 3
		b := Retry(s, opts)
		var r io.ReadCloser
		var err error
		if tt.ranged {
			r, err = b.GetRange(t.Context(), "k", 2, 7)
		} else {
			r, _, err = b.Get(t.Context(), "k")
		}
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		got, err := io.ReadAll(r)
		if string(got) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: %q, %v, want %q, %v", tt.name, got, err, tt.want, tt.err)
		}
		if tt.err != nil {
			if n, again := r.Read(make([]byte, 1)); n != 0 || !errors.Is(again, tt.err) {
				t.Errorf("%s: reading on gives %d, %v", tt.name, n, again)
			}
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: close: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.asked, s.asked); diff != "" {
			t.Errorf("%s asked (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestRetryResumesListings(t *testing.T) {
	s := &scripted{list: func(try int, after string) ([]string, error) {
		switch try {
		case 1:
			return []string{"p/a", "p/b"}, errBroken
		case 2:
			return nil, errBroken
		case 3:
			return []string{"p/c"}, errBroken
		default:
			return []string{"p/d"}, nil
		}
	}}
	opts := quick()
	opts.Tries = 3
	var got []string
	for info, err := range Retry(s, opts).List(t.Context(), "p/", "p/0") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Key)
	}
	if diff := cmp.Diff([]string{"p/a", "p/b", "p/c", "p/d"}, got); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	want := []string{"list p/ after p/0", "list p/ after p/b", "list p/ after p/b", "list p/ after p/c"}
	if diff := cmp.Diff(want, s.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func failedKey(key string, err error) error {
	return &storage.Error{Op: "delete", Bucket: "scripted", Key: key, Err: err}
}

func TestRetryDelete(t *testing.T) {
	for _, tt := range []struct {
		name  string
		del   func(try int, keys []string) error
		asked []string
		left  []string // keys of the error
	}{
		{"some again", func(try int, _ []string) error {
			if try == 1 {
				return errors.Join(failedKey("b", errBroken), failedKey("c", errBroken))
			}
			return nil
		}, []string{`delete ["a" "b" "c"]`, `delete ["b" "c"]`}, nil},
		{"one for good", func(try int, _ []string) error {
			if try == 1 {
				return errors.Join(failedKey("a", storage.ErrPermission), failedKey("c", errBroken))
			}
			return nil
		}, []string{`delete ["a" "b" "c"]`, `delete ["c"]`}, []string{"a"}},
		{"never", func(_ int, keys []string) error {
			return errors.Join(failedKey("a", storage.ErrPermission), failedKey("c", errBroken))
		}, []string{`delete ["a" "b" "c"]`, `delete ["c"]`, `delete ["c"]`}, []string{"a", "a", "a", "c"}},
		{"refused", func(int, []string) error {
			return failedKey("a", storage.ErrPermission)
		}, []string{`delete ["a" "b" "c"]`}, []string{"a"}},
		{"names no keys", func(try int, _ []string) error {
			if try < 3 {
				return errBroken
			}
			return nil
		}, []string{`delete ["a" "b" "c"]`, `delete ["a" "b" "c"]`, `delete ["a" "b" "c"]`}, nil},
	} {
		s := &scripted{del: tt.del}
		opts := quick()
		opts.Tries = 3
		err := Retry(s, opts).Delete(t.Context(), "a", "b", "c")
		var left []string
		if err != nil {
			passing, lasting := sortFailures(err)
			for _, e := range lasting {
				var one *storage.Error
				if !errors.As(e, &one) {
					t.Fatalf("an error without a key: %v", e)
				}
				left = append(left, one.Key)
			}
			for _, e := range passing {
				left = append(left, e.Key)
			}
		}
		if diff := cmp.Diff(tt.left, left); diff != "" {
			t.Errorf("%s: failed keys (-want +got):\n%s%v", tt.name, diff, err)
		}
		if diff := cmp.Diff(tt.asked, s.asked); diff != "" {
			t.Errorf("%s asked (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Waits grow, keep to the maximum, and end in time. The clock is that of the
// bubble, so that the numbers are exact.
func TestRetryWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		s := &scripted{stat: func(int) error {
			at = append(at, time.Since(start))
			return errBroken
		}}
		b := Retry(s, RetryOptions{Now: time.Now, Initial: time.Second, Max: 8 * time.Second, Elapsed: time.Minute})
		if _, err := b.Stat(t.Context(), "k"); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("stat: %v", err)
		}
		if at[len(at)-1] > time.Minute || len(at) < 6 {
			t.Errorf("tries at %v, all are to be within a minute", at)
		}
		mean := time.Second
		for i := 1; i < len(at); i++ {
			if wait := at[i] - at[i-1]; wait < mean/2 || wait > mean*3/2 {
				t.Errorf("wait %d is %v, not within half of %v", i, wait, mean)
			}
			mean = min(mean*2, 8*time.Second)
		}
	})
}

// Progress begins the time anew, so that a long download over a bad line ends.
func TestRetryElapsedIsWithoutProgress(t *testing.T) {
	now := epoch
	s := &scripted{get: func(_ int, off, n int64) (io.ReadCloser, error) {
		now = now.Add(time.Minute)
		return stream("x", errBroken), nil
	}}
	opts := quick()
	opts.Elapsed = 90 * time.Second
	opts.Now = func() time.Time { return now }
	r, _, err := Retry(s, opts).Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.LimitReader(r, 10))
	if err != nil || len(got) != 10 {
		t.Errorf("read %q, %v", got, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// Nothing is tried once the context is done, and a wait ends with it.
func TestRetryStopsWithContext(t *testing.T) {
	why := errors.New("shutting down")
	for _, during := range []string{"try", "wait"} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			s := &scripted{
				stat: func(int) error {
					if during == "try" {
						cancel(why)
					}
					return errBroken
				},
				del: func(int, []string) error { return errors.Join(failedKey("a", errBroken), failedKey("b", errBroken)) },
			}
			b := Retry(s, RetryOptions{Now: time.Now, Initial: time.Hour, Max: time.Hour, Elapsed: -1})
			stop := context.AfterFunc(ctx, func() {})
			defer stop()
			if during == "wait" {
				go func() {
					synctest.Wait() // until Stat sleeps
					cancel(why)
				}()
			}
			_, err := b.Stat(ctx, "k")
			for _, want := range []error{context.Canceled, why, storage.ErrUnavailable} {
				if !errors.Is(err, want) {
					t.Errorf("cancelled during %s: %v, want %v", during, err, want)
				}
			}
			if len(s.asked) != 1 {
				t.Errorf("cancelled during %s: %d tries", during, len(s.asked))
			}
			err = b.Delete(ctx, "a", "b")
			if !errors.Is(err, context.Canceled) || strings.Count(err.Error(), "delete") != 2 {
				t.Errorf("cancelled delete: %v", err)
			}
		})
	}
}

func TestRetryLogs(t *testing.T) {
	var out bytes.Buffer
	opts := quick()
	opts.Log = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "wait" {
			return slog.String(a.Key, "-")
		}
		return a
	}}))
	s := &scripted{stat: func(try int) error {
		if try < 3 {
			return errBroken
		}
		return nil
	}}
	if _, err := Retry(s, opts).Stat(t.Context(), "some/key"); err != nil {
		t.Fatal(err)
	}
	line := `time=- level=WARN msg="storage operation failed, will try again" op=stat bucket=scripted key=some/key try=%d wait=- error="store unavailable: connection reset"` + "\n"
	if diff := cmp.Diff(fmt.Sprintf(line+line, 1, 2), out.String()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}
