package repo

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"agent/internal/storage"
)

// A place is remembered by one name, also where its URL alone does not say
// which store is meant.
func TestDebtsOfPlacesAtEndpoints(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	reopen := func() {
		s.again()
		s.places[1].At = "https://s3.example.com"
	}
	reopen()
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.spots[1].down = true
	s.wal(t, segment(1), segment(2))
	s.spots[1].down = false
	s.time = s.time.Add(2 * suspension)
	reopen()
	if b, err := s.Behind(); err != nil || len(b) != 1 || len(b[0].Keys) != 2 {
		t.Fatalf("%+v, %v", b, err)
	}
	if res, err := s.Sync(t.Context(), SyncOptions{Pending: true, Concurrency: 1}); err != nil || len(res) != 1 || res[0].Objects != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	if b, err := s.Behind(); err != nil || len(b) != 0 || len(s.content(1)) != 2 || s.SyncDue() {
		t.Fatalf("%+v, %v, %d objects", b, err, len(s.content(1)))
	}
}

// What is durable where it must be is owed to the others, also when the
// command's time is over before they have failed.
func TestDebtAtDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, Keys{}, true, false)
		s.places[1].Bucket = hanging{s.spots[1]}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		body := noise(1, 1<<20)
		if _, err := s.PutWAL(ctx, testCluster, walFile(t, segment(1)), bytes.NewReader(body), int64(len(body)), noCheck{}, nil); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Behind(); err != nil || len(b) != 1 || len(s.content(0)) != 1 {
			t.Fatalf("%+v, %v", b, err)
		}
	})
}

// While a required place cannot be asked, nothing that is owed is known not to
// exist.
func TestPendingWithoutRequired(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false, false)
	s.spots[1].down, s.spots[2].down = true, true
	s.wal(t, segment(1))
	s.spots[1].down, s.spots[2].down = false, false
	s.spots[0].down = true
	s.time = s.time.Add(2 * suspension)
	s.again()
	if _, err := s.Sync(t.Context(), SyncOptions{Pending: true, Concurrency: 1}); err == nil {
		t.Fatal("nothing is said")
	}
	if b, err := s.Behind(); err != nil || len(b) != 2 {
		t.Fatalf("%+v, %v", b, err)
	}
}

// A copy that is only shown makes nothing.
func TestCopyDryRunMakesNothing(t *testing.T) {
	s := copying(t)
	if _, err := s.Copy(t.Context(), "n", SyncOptions{DryRun: true}); err == nil {
		t.Fatal("a place without a repository is taken")
	}
	if n := len(s.spots[1].objects); n != 0 {
		t.Fatalf("%d objects were made", n)
	}
}

// noHistories cannot list histories.
type noHistories struct{ *spot }

func (h noHistories) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	if prefix == testCluster.historyPrefix() {
		return func(yield func(storage.Info, error) bool) {
			yield(storage.Info{}, h.fail("list", prefix, storage.ErrUnavailable))
		}
	}
	return h.spot.List(ctx, prefix, after)
}

// That there is no gap, and no .partial file, is said by all required places or
// by nobody.
func TestGapNeedsAllRequired(t *testing.T) {
	s := newSeveral(t, Keys{}, true, true)
	history := "00000002.history"
	if _, err := putWAL(t, s.Repository, history, []byte("1\t0/5000000\tno recovery target specified\n")); err != nil {
		t.Fatal(err)
	}
	delete(s.spots[1].objects, testCluster.historyPrefix()+history)
	f := walFile(t, "000000010000000000000001")
	if reason, err := s.Gap(t.Context(), testCluster, f, 1<<20); err != nil || reason == "" {
		t.Fatalf("%q, %v", reason, err)
	}
	s.again()
	s.places[0].Bucket = noHistories{s.spots[0]}
	if reason, err := s.Gap(t.Context(), testCluster, f, 1<<20); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("%q, %v", reason, err)
	}

	s = newSeveral(t, Keys{}, true, false)
	s.spots[0].down = true
	s.again()
	partial := walFile(t, "000000010000000000000001.partial")
	if err := s.ReadWAL(t.Context(), testCluster, partial, false, nil); errors.Is(err, storage.ErrNotExist) || err == nil {
		t.Fatalf("got %v", err)
	}
}

// A place that was found away is asked last by the next process, too.
func TestSlowPlaceIsRemembered(t *testing.T) {
	s := newSeveral(t, Keys{}, true, true)
	s.wal(t, segment(1))
	s.spots[0].down = true
	s.again()
	if _, err := getWAL(t, s.Repository, segment(1)); err != nil {
		t.Fatal(err)
	}
	s.again()
	if got := s.readOrder(); got[0] != s.places[1] {
		t.Fatal("the place that is away is asked first")
	}
	s.time = s.time.Add(2 * suspension)
	s.again()
	if got := s.readOrder(); got[0] != s.places[0] {
		t.Fatal("it is remembered for ever")
	}
}
