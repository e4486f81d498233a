package decorate

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/storage"
)

// able is a store with both abilities, which answers from lists of errors and
// notes what it was asked.
type able struct {
	storage.Bucket
	asked []string
	errs  []error // of the calls, in their order; then nil
	hangs bool
}

func (a *able) String() string { return "able" }

func (a *able) next(ctx context.Context, format string, args ...any) error {
	a.asked = append(a.asked, fmt.Sprintf(format, args...))
	if a.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if len(a.errs) == 0 {
		return nil
	}
	err := a.errs[0]
	a.errs = a.errs[1:]
	return err
}

func (a *able) ExtendLock(ctx context.Context, key string, lock storage.Lock) error {
	return a.next(ctx, "lock %s %s", key, lock.Mode)
}

func (a *able) Discard(ctx context.Context, u storage.Unfinished) error {
	return a.next(ctx, "discard %s %s", u.Key, u.ID)
}

// Unfinished gives three, of which the third is behind the error, if there is one.
func (a *able) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	return func(yield func(storage.Unfinished, error) bool) {
		err := a.next(ctx, "unfinished %s", prefix)
		if a.hangs {
			yield(storage.Unfinished{}, err)
			return
		}
		for i, u := range []storage.Unfinished{{Key: "k", ID: "1"}, {Key: "k", ID: "2"}, {Key: "l", ID: "1"}} {
			if i == 2 && err != nil {
				yield(storage.Unfinished{}, err)
				return
			}
			if !yield(u, nil) {
				return
			}
		}
	}
}

// abilities are the operations, by how able names them.
func abilities(t *testing.T, b storage.Bucket) map[string]func(context.Context) error {
	t.Helper()
	e, ok := storage.As[storage.Extender](b)
	c, also := storage.As[storage.Cleaner](b)
	if !ok || !also {
		t.Fatalf("abilities of %T are not found: %t, %t", b, ok, also)
	}
	return map[string]func(context.Context) error{
		"lock k governance": func(ctx context.Context) error {
			return e.ExtendLock(ctx, "k", storage.Lock{Mode: storage.Governance})
		},
		"discard k id": func(ctx context.Context) error { return c.Discard(ctx, storage.Unfinished{Key: "k", ID: "id"}) },
		"unfinished p": func(ctx context.Context) (last error) {
			var got []string
			for u, err := range c.Unfinished(ctx, "p") {
				if err != nil {
					return err
				}
				got = append(got, u.Key+u.ID)
			}
			if want := []string{"k1", "k2", "l1"}; !slices.Equal(got, want) {
				return fmt.Errorf("%q are unfinished, want %q", got, want)
			}
			return nil
		},
	}
}

// What passes is tried again, what does not is passed up, and nothing that is
// unfinished is given twice.
func TestAbilitiesAreRetried(t *testing.T) {
	denied := &storage.Error{Op: "x", Err: storage.ErrPermission}
	for _, tt := range []struct {
		errs  []error
		want  error
		tries int
	}{
		{nil, nil, 1},
		{[]error{errBroken, errBroken}, nil, 3},
		{[]error{denied}, storage.ErrPermission, 1},
		{[]error{errBroken, denied}, storage.ErrPermission, 2},
		{[]error{storage.ErrUnsupported}, storage.ErrUnsupported, 1},
	} {
		a := &able{}
		for op, do := range abilities(t, Retry(Timeout(Bandwidth(Count(a), BandwidthOptions{}), TimeoutOptions{}), quick())) {
			a.errs, a.asked = slices.Clone(tt.errs), nil
			if err := do(t.Context()); !errors.Is(err, tt.want) || tt.want == nil && err != nil {
				t.Errorf("%s after %v: %v", op, tt.errs, err)
			}
			if want := slices.Repeat([]string{op}, tt.tries); !slices.Equal(a.asked, want) {
				t.Errorf("%s after %v: asked %q", op, tt.errs, a.asked)
			}
		}
	}
}

// A sequence may be used more than once.
func TestUnfinishedTwice(t *testing.T) {
	c, _ := storage.As[storage.Cleaner](Retry(&able{}, quick()))
	seq := c.Unfinished(t.Context(), "")
	n := 0
	for range seq {
		for range seq {
			n++
		}
	}
	if n != 9 {
		t.Errorf("two uses, one within the other, give %d, want 9", n)
	}
}

// A store that hangs is given up: after Base, and in its search for what is
// unfinished after twenty times as long.
func TestAbilitiesTimeOut(t *testing.T) {
	for op, limit := range map[string]time.Duration{
		"lock k governance": 30 * time.Second, "discard k id": 30 * time.Second, "unfinished p": 10 * time.Minute,
	} {
		synctest.Test(t, func(t *testing.T) {
			do := abilities(t, Timeout(&able{hangs: true}, TimeoutOptions{}))[op]
			start := time.Now()
			err := do(t.Context())
			if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "no answer within") {
				t.Errorf("%s: %v", op, err)
			}
			if got := time.Since(start); got != limit {
				t.Errorf("%s: given up after %v, want %v", op, got, limit)
			}
		})
	}
}

func TestAbilitiesAreCounted(t *testing.T) {
	a := &able{}
	b := Count(a)
	for op, do := range abilities(t, b) {
		for _, err := range []error{nil, storage.ErrNotExist, storage.ErrPermission} {
			a.errs = []error{err}
			if got := do(t.Context()); !errors.Is(got, err) {
				t.Errorf("%s: %v, want %v", op, got, err)
			}
		}
	}
	want := Counts{Put: KindCounts{3, 1}, List: KindCounts{3, 1}, Delete: KindCounts{3, 1}}
	if diff := cmp.Diff(want, b.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

// What the store cannot do no decorator can.
func TestAbilitiesAreNotMadeUp(t *testing.T) {
	b := Retry(Timeout(Count(openFS(t, fastDir(t))), TimeoutOptions{}), quick())
	if _, ok := storage.As[storage.Extender](b); ok {
		t.Error("a folder extends locks")
	}
	if _, ok := storage.As[storage.Cleaner](b); !ok {
		t.Error("a folder cleans nothing")
	}
	if _, ok := storage.As[storage.Cleaner](Retry(&scripted{}, quick())); ok {
		t.Error("a store without the ability cleans")
	}
}
