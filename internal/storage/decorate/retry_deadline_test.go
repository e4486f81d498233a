package decorate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"agent/internal/storage"
)

// told is an error that says when to come back.
type told struct {
	error
	after time.Duration
}

func (t told) RetryAfter() time.Duration { return t.after }
func (t told) Unwrap() error             { return t.error }

// A wait that would end after the deadline is not begun: the store's error is
// there at once, and not the deadline's at last.
func TestRetryGivesUpBeforeDeadline(t *testing.T) {
	for name, do := range map[string]func(context.Context, storage.Bucket) error{
		"stat":   func(ctx context.Context, b storage.Bucket) error { _, err := b.Stat(ctx, "k"); return err },
		"delete": func(ctx context.Context, b storage.Bucket) error { return b.Delete(ctx, "a", "b") },
		"list":   func(ctx context.Context, b storage.Bucket) error { return lastError(b.List(ctx, "p", "")) },
		"read": func(ctx context.Context, b storage.Bucket) error {
			r, _, err := b.Get(ctx, "k")
			if err != nil {
				return err
			}
			_, err = io.ReadAll(r)
			return err
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &scripted{
				stat: func(int) error { return errBroken },
				del:  func(int, []string) error { return failedKey("a", errBroken) },
				list: func(int, string) ([]string, error) { return nil, errBroken },
				get:  func(int, int64, int64) (io.ReadCloser, error) { return stream("", errBroken), nil },
			}
			const limit = time.Minute
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			start := time.Now()
			err := do(ctx, Retry(s, RetryOptions{Now: time.Now, Initial: time.Second, Max: 8 * time.Second}))
			took := time.Since(start)
			if !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
				t.Errorf("%s: %v after %v", name, err, took)
			}
			// The next wait is at most one and a half times Max.
			if took < limit-12*time.Second || len(s.asked) < 7 {
				t.Errorf("%s: gave up after %v and %d tries", name, took, len(s.asked))
			}
			if name != "delete" && !strings.Contains(err.Error(), "the deadline comes before another try") {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// A try that the deadline ends does not hide why there was more than one.
func TestRetryNamesTheErrorBeforeTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{freed: make(chan struct{})}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		opts := hours()
		opts.Base = time.Minute
		_, err := Retry(Timeout(h, opts), RetryOptions{Now: time.Now}).Stat(ctx, "k")
		for _, want := range []error{context.DeadlineExceeded, storage.ErrUnavailable} {
			if !errors.Is(err, want) {
				t.Errorf("stat: %v, want %v", err, want)
			}
		}
		if err != nil && !strings.HasSuffix(err.Error(),
			"context deadline exceeded in try 2; the one before gave: stat k of hanging: store unavailable: no answer within 1m0s") {
			t.Errorf("stat: %v", err)
		}
		// Without a try before there is nothing to add.
		if _, err := Retry(h, RetryOptions{Now: time.Now}).Stat(ctx, "k"); err == nil || strings.Contains(err.Error(), "before") {
			t.Errorf("stat once: %v", err)
		}
	})
}

// A store that says when to come back is not asked before, but Max is kept.
func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct{ after, least, most time.Duration }{
		{5 * time.Second, 5 * time.Second, 6250 * time.Millisecond},
		{time.Hour, 10 * time.Second, 12500 * time.Millisecond},
		{time.Millisecond, 500 * time.Millisecond, 1500 * time.Millisecond},
		{0, 500 * time.Millisecond, 1500 * time.Millisecond},
		{-time.Hour, 500 * time.Millisecond, 1500 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			var at []time.Time
			s := &scripted{stat: func(try int) error {
				at = append(at, time.Now())
				if try == 1 {
					return &storage.Error{Op: "stat", Err: fmt.Errorf("%w: %w", storage.ErrUnavailable, told{errors.New("SlowDown (503)"), tt.after})}
				}
				return nil
			}}
			if _, err := Retry(s, RetryOptions{Now: time.Now, Initial: time.Second, Max: 10 * time.Second}).Stat(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
			if wait := at[1].Sub(at[0]); wait < tt.least || wait > tt.most+time.Nanosecond {
				t.Errorf("told %v, waited %v, want %v to %v", tt.after, wait, tt.least, tt.most)
			}
		})
	}
}
