package decorate

import (
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/internal/storage"
)

func TestCount(t *testing.T) {
	b := Count(openFS(t, fastDir(t)))
	ctx := t.Context()
	drain := func(r io.ReadCloser, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.Counts().String(); got != "no requests" {
		t.Errorf("at first: %s", got)
	}
	var wg sync.WaitGroup
	for _, key := range []string{"a", "b", "c"} {
		wg.Go(func() {
			if _, err := b.Put(ctx, key, storage.Bytes("0123456789"), storage.PutOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.Put(ctx, "a", storage.Bytes("0123456789"), storage.PutOptions{})      // exists, body not taken
	b.Put(ctx, "no key", storage.Bytes("0123456789"), storage.PutOptions{}) // fails
	before := b.Counts()
	want := Counts{Put: KindCounts{5, 1}, Up: 30}
	if diff := cmp.Diff(want, before); diff != "" {
		t.Errorf("puts (-want +got):\n%s", diff)
	}
	r, _, err := b.Get(ctx, "a")
	drain(r, err)
	drain(b.GetRange(ctx, "a", 2, 5))
	drain(b.GetRange(ctx, "a", 2, 0)) // none
	b.Get(ctx, "absent")              // an answer
	b.Stat(ctx, "a")
	b.Stat(ctx, "absent")
	b.Delete(ctx) // none
	b.Delete(ctx, "a", "b")
	b.Delete(ctx, "no key")
	for range b.List(ctx, "", "") {
		break
	}
	for range b.List(ctx, "no key", "") {
		continue
	}
	b.List(ctx, "", "") // not used
	got := b.Counts().Sub(before)
	want = Counts{
		Get: KindCounts{3, 0}, Stat: KindCounts{2, 0}, Delete: KindCounts{2, 1}, List: KindCounts{2, 1}, Down: 15,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the rest (-want +got):\n%s", diff)
	}
	if s := got.String(); s != "3 GET, 2 LIST (1 failed), 2 STAT, 2 DELETE (1 failed)" {
		t.Errorf("String: %s", s)
	}
	if s := (Counts{Put: KindCounts{21, 0}, Get: KindCounts{3, 0}}).String(); s != "21 PUT, 3 GET" {
		t.Errorf("String: %s", s)
	}
}

// A reader that breaks is one failure, however often it is read; its bytes
// count.
func TestCountBrokenReader(t *testing.T) {
	b := Count(&scripted{get: func(int, int64, int64) (io.ReadCloser, error) {
		return stream("0123", errBroken), nil
	}})
	r, _, err := b.Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("read: %v", err)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(Counts{Get: KindCounts{1, 1}, Down: 4}, b.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}
