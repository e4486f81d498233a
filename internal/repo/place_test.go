package repo

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
	"agent/internal/storage"
)

// A required place that is down fails a push, whatever the others say; nothing
// of it is lost, and the next attempt stores the same bytes everywhere.
func TestRequiredDown(t *testing.T) {
	keys, _ := testKeys(t)
	s := newSeveral(t, keys, true, true, false)
	s.spots[1].down = true
	s.again()
	if err := s.Check(t.Context()); !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "repository b") {
		t.Fatalf("got %v", err)
	}
	if _, err := putWAL(t, s.Repository, segment(1), noise(1, 100_000)); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	if a, b, c := len(s.content(0)), len(s.content(1)), len(s.content(2)); a != 1 || b != 0 || c != 1 {
		t.Fatalf("%d, %d and %d objects", a, b, c)
	}
	s.spots[1].down = false
	s.again()
	if existed, err := putWAL(t, s.Repository, segment(1), noise(1, 100_000)); err != nil || !existed {
		t.Fatalf("%v, %v", existed, err)
	}
	for n := range 2 {
		if d := cmp.Diff(s.content(0), s.content(n+1)); d != "" {
			t.Fatal(d)
		}
	}
	// Other bytes are refused by each place that has it.
	if _, err := putWAL(t, s.Repository, segment(1), noise(2, 100_000)); errs.KindOf(err) != errs.Conflict {
		t.Fatalf("got %v", err)
	}
	if b, err := s.Behind(); err != nil || len(b) != 0 {
		t.Fatalf("%+v, %v", b, err) // what is nowhere durable is owed to nobody
	}
}

// A best-effort place that is down does not hold a push up: it is asked once in
// a while, and what it lacks is noted.
func TestBestEffortDown(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	asked := 0
	s.spots[1].hook = func(string, string) error { asked++; return storage.ErrUnavailable }
	for n := range 5 {
		s.again() // each push is a process
		s.wal(t, segment(n))
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	behind, err := s.Behind()
	if err != nil || len(behind) != 1 || len(behind[0].Keys) != 5 || behind[0].Suspended == nil || !behind[0].Since.Equal(testTime) || behind[0].Name != "b" {
		t.Fatalf("%+v, %v", behind, err)
	}
	if s.SyncDue() {
		t.Error("it is due while the place is left alone")
	}
	s.time = s.time.Add(suspension)
	if !s.SyncDue() {
		t.Error("nothing is due")
	}
	s.again()
	s.wal(t, segment(5))
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	if n := strings.Count(s.log.String(), "a best-effort repository is left out"); n != 2 {
		t.Errorf("told %d times:\n%s", n, s.log)
	}
}

// A best-effort place that fails in the middle of a backup is left out from
// then on, and does not show the backup.
func TestBestEffortFailsInBackup(t *testing.T) {
	for _, at := range []string{"/pack/", "/manifest", "/packs", "/wal/", "/backup.json"} {
		t.Run(at, func(t *testing.T) {
			s := newSeveral(t, Keys{}, true, false)
			var broken atomic.Int64
			s.spots[1].hook = func(op, key string) error {
				if broken.Load() > 0 || op == "put" && strings.Contains(key, at) {
					broken.Add(1)
					return storage.ErrUnavailable
				}
				return nil
			}
			s.backup(t)
			if n := broken.Load(); n > 2 {
				t.Errorf("it was asked %d times after it had failed", n)
			}
			behind, err := s.Behind()
			if err != nil || len(behind) != 1 || !slices.Contains(behind[0].Keys, testCluster.backupKey(testName)) {
				t.Fatalf("%+v, %v", behind, err)
			}
			s.spots[1].hook = nil
			if s.whole(t, 0) != 1 || s.whole(t, 1) != 0 {
				t.Fatal("the backup is shown where it is not whole, or not where it is")
			}
			s.again()
			if _, err := s.Sync(t.Context(), SyncOptions{Pending: true}); err != nil || s.whole(t, 1) != 1 {
				t.Fatal(err)
			}
			if d := cmp.Diff(s.content(0), s.content(1)); d != "" {
				t.Fatal(d)
			}
			s.settled(t)
		})
	}
}

// A backup does not appear in a place that lacks WAL, though it took all the
// rest of it.
func TestBackupWithoutWAL(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	for _, lacking := range []string{segment(3), segment(5), "00000002.history"} {
		key := testCluster.WALKey(walFile(t, lacking), [32]byte{})
		s.spots[1].took = func(stored string) error {
			if stored == key {
				delete(s.spots[1].objects, key)
			}
			return nil
		}
		b, _, err := s.tryBackup(t, testName)
		if err != nil {
			t.Fatal(err)
		}
		s.spots[1].took = nil
		if s.whole(t, 0) != 1 || s.whole(t, 1) != 0 {
			t.Fatalf("shown without %s", lacking)
		}
		s.again()
		if incomplete, err := s.StoreBackup(t.Context(), b, nil); err != nil || !slices.Equal(incomplete, []string{"b"}) {
			t.Fatalf("%q, %v", incomplete, err)
		}
		s.again()
		if _, err := s.Sync(t.Context(), SyncOptions{Pending: true}); err != nil || s.whole(t, 1) != 1 {
			t.Fatal(err)
		}
		for _, spot := range s.spots {
			for key := range spot.objects {
				if key != repositoryKey {
					delete(spot.objects, key)
				}
			}
		}
		s.again()
	}
}

// A best-effort place that hangs holds a push up for a bounded time.
func TestBestEffortHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeveral(t, Keys{}, true, false)
		s.places[1].Bucket = hanging{s.spots[1]}
		began := time.Now()
		s.wal(t, segment(1))
		if took := time.Since(began); took != bestEffortGrace {
			t.Errorf("it took %s", took)
		}
		if behind, err := s.Behind(); err != nil || len(behind) != 1 || !strings.Contains(s.log.String(), "longer than the required") {
			t.Errorf("%+v, %v\n%s", behind, err, s.log)
		}
	})
}

// hanging does not end a Put before it is told to.
type hanging struct{ *spot }

func (h hanging) Put(ctx context.Context, key string, _ storage.Source, _ storage.PutOptions) (storage.Info, error) {
	<-ctx.Done()
	return storage.Info{}, h.fail("put", key, context.Cause(ctx))
}

// A command that is ended says nothing of its places.
func TestInterruptedPush(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	s.spots[1].hook = func(string, string) error { return storage.ErrUnavailable }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.EnsureCluster(ctx, Cluster{ID: testCluster, SegmentSize: 1 << 20}); err == nil {
		t.Fatal("no error")
	}
	if behind, err := s.Behind(); err != nil || len(behind) != 0 {
		t.Fatalf("%+v, %v", behind, err)
	}
}

// What is noted of a place that cannot be opened is found when it is back,
// however its URL was written.
func TestPlaceURL(t *testing.T) {
	b, dir := folder(t)
	for _, written := range []string{dir, dir + "/", "file://" + dir, "file://localhost" + dir, "FILE://" + dir + "/x/.."} {
		if got := (&place{Place: Place{URL: written}}).String(); got != b.String() {
			t.Errorf("%s is %s, not %s", written, got, b)
		}
	}
	if got := (&place{Place: Place{URL: "s3://bucket/a%20b"}}).String(); got != "s3://bucket/a%20b" {
		t.Errorf("got %s", got)
	}
}

// Places that could not even be opened count as down.
func TestPlaceNotOpened(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	s.places[1].Bucket, s.places[1].Err, s.places[1].URL = nil, errs.New(errs.Storage, "", "it is not there"), "memory:///b"
	s.wal(t, segment(1))
	behind, err := s.Behind()
	if err != nil || len(behind) != 1 || behind[0].URL != "memory:///b" {
		t.Fatalf("%+v, %v", behind, err)
	}
	if _, err := s.Init(t.Context()); errs.KindOf(err) != errs.Storage {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Sync(t.Context(), SyncOptions{}); errs.KindOf(err) != errs.Storage {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Ensure(t.Context(), "b"); errs.KindOf(err) != errs.Storage {
		t.Fatalf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
