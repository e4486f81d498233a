package decorate

import (
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"walagent/internal/storage"
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

func TestCollector(t *testing.T) {
	c := NewCollector("file:///backup", func() Counts {
		return Counts{Put: KindCounts{21, 2}, Get: KindCounts{3, 0}, List: KindCounts{4, 1}, Up: 1000, Down: 2000}
	})
	const want = `
# HELP walagent_storage_bytes_total Bytes sent to the store and read from it.
# TYPE walagent_storage_bytes_total counter
walagent_storage_bytes_total{direction="down",repository="file:///backup"} 2000
walagent_storage_bytes_total{direction="up",repository="file:///backup"} 1000
# HELP walagent_storage_errors_total Operations on the store that failed, by kind.
# TYPE walagent_storage_errors_total counter
walagent_storage_errors_total{kind="delete",repository="file:///backup"} 0
walagent_storage_errors_total{kind="get",repository="file:///backup"} 0
walagent_storage_errors_total{kind="list",repository="file:///backup"} 1
walagent_storage_errors_total{kind="put",repository="file:///backup"} 2
walagent_storage_errors_total{kind="stat",repository="file:///backup"} 0
# HELP walagent_storage_requests_total Operations on the store, by kind.
# TYPE walagent_storage_requests_total counter
walagent_storage_requests_total{kind="delete",repository="file:///backup"} 0
walagent_storage_requests_total{kind="get",repository="file:///backup"} 3
walagent_storage_requests_total{kind="list",repository="file:///backup"} 4
walagent_storage_requests_total{kind="put",repository="file:///backup"} 21
walagent_storage_requests_total{kind="stat",repository="file:///backup"} 0
`
	// A pedantic registry also checks what Describe said.
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&got, family); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, "\n"+got.String()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
