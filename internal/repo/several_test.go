package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// spot is a bucket in memory with a URL of its own, which can be down, keeps
// older versions, and remembers what was stored in which order and how.
type spot struct {
	*memory
	url      string
	down     bool
	versions map[string][][]byte // newest first, behind the current one

	mu    sync.Mutex
	puts  []string
	lists []string
	locks map[string]*storage.Lock
}

func newSpot(name string) *spot {
	s := &spot{memory: newMemory(), url: "memory:///" + name, versions: make(map[string][][]byte), locks: make(map[string]*storage.Lock)}
	s.hook = func(op, key string) error {
		if s.down {
			return storage.ErrUnavailable
		}
		if op == "list" {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.lists = append(s.lists, key)
		}
		return nil
	}
	return s
}

func (s *spot) String() string { return s.url }

func (s *spot) Put(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
	info, err := s.memory.Put(ctx, key, src, o)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.puts, s.locks[key] = append(s.puts, key), o.Lock
	}
	return info, err
}

func (s *spot) Capabilities() storage.Capabilities {
	return storage.Capabilities{CheapCheck: true, Versions: true, Locks: true}
}

func (s *spot) Versions(_ context.Context, key string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if len(s.versions[key]) == 0 || !yield(storage.Info{Key: key, Version: "current"}, nil) {
			return
		}
		for n, body := range s.versions[key] {
			if !yield(storage.Info{Key: key, Version: fmt.Sprint(n), Size: int64(len(body))}, nil) {
				return
			}
		}
	}
}

func (s *spot) GetVersion(_ context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	var n int
	if _, err := fmt.Sscan(version, &n); err != nil {
		return nil, storage.Info{}, err
	}
	body := s.versions[key][n]
	return io.NopCloser(bytes.NewReader(body)), storage.Info{Key: key, Size: int64(len(body))}, nil
}

// several is a repository in places called a, b and so on; of each it says
// whether it is required.
type several struct {
	*Repository
	spots []*spot
	log   *bytes.Buffer
	state string
	time  time.Time
}

func newSeveral(t testing.TB, keys Keys, required ...bool) *several {
	t.Helper()
	s := &several{state: t.TempDir(), time: testTime, log: new(bytes.Buffer)}
	for n := range required {
		s.spots = append(s.spots, newSpot(string(rune('a'+n))))
	}
	s.open(keys, required...)
	if _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// open makes a new handle, as a new process has it.
func (s *several) open(keys Keys, required ...bool) {
	var places []Place
	for n, spot := range s.spots {
		places = append(places, Place{Name: spot.url[len(spot.url)-1:], Bucket: spot, Required: required[n]})
	}
	s.Repository = New(places, Options{
		Keys: keys, Log: slog.New(slog.NewTextHandler(s.log, nil)), Now: func() time.Time { return s.time }, Version: "test",
		Pins: NewPins(s.state), Debts: NewDebts(s.state), SpoolDir: s.state + "/spool",
	})
}

// again is open with the same places.
func (s *several) again() {
	var required []bool
	for _, p := range s.places {
		required = append(required, p.Required)
	}
	s.open(s.keys, required...)
}

// content is what a place holds of a cluster.
func (s *several) content(n int) map[string]string {
	all := make(map[string]string)
	for key, o := range s.spots[n].objects {
		if key != repositoryKey && !strings.Contains(key, "/claim/") {
			all[key] = string(o.body)
		}
	}
	return all
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// segment is the name of a segment of timeline 2.
func segment(n int) string { return postgres.Segment{Timeline: 2, Number: uint64(n)}.Name(16 << 20) }

func (s *several) wal(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := putWAL(t, s.Repository, name, noise(uint64(len(name))+uint64(name[len(name)-1]), 100_000)); err != nil {
			t.Fatal(err)
		}
	}
}

// backup stores the backup testName with a data pack and a pack of sections, which also
// needs the packs of lent, and the segments 3 to 5.
func (s *several) backup(t testing.TB, lent ...Pack) *Backup {
	t.Helper()
	b, _, err := s.tryBackup(t, testName, lent...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *several) tryBackup(t testing.TB, name BackupName, lent ...Pack) (*Backup, []Pack, error) {
	t.Helper()
	ctx := t.Context()
	if err := errorsFirst(s.Check(ctx), s.EnsureCluster(ctx, Cluster{ID: testCluster, SegmentSize: 16 << 20})); err != nil {
		t.Fatal(err)
	}
	lease, err := s.Claim(ctx, testCluster, claimOf(name, "db"), ClaimOptions{})
	if err != nil {
		t.Fatal(err)
	}
	set := newPacks(ctx, s.Repository, name, 2)
	for _, kind := range []PackKind{PackData, PackMeta} {
		w := set.Writer(kind)
		if _, err := w.Append(set.ctx, noise(uint64(len(kind))+uint64(name[17]), 300_000), 300_000); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	m, err := s.NewManifestWriter(set.PackSet, ManifestHeader{Backup: name, BlockSize: 8192, Mode: 0o700}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	_, err = m.Finish(set.ctx)
	if err := errorsFirst(err, set.group.Wait()); err != nil {
		t.Fatal(err)
	}
	own, err := set.Packs()
	if err != nil {
		t.Fatal(err)
	}
	b := exampleBackup()
	b.Name, b.Timeline = name, 2
	b.StartLSN, b.StopLSN, b.StartSegment, b.StopSegment = 0x3000028, 0x5000100, segment(3), segment(5)
	if b.Manifest, err = m.Store(ctx); err != nil {
		t.Fatal(err)
	}
	if b.Packs, err = s.StorePacks(ctx, testCluster, name, encodePacks(t, s.Repository, append(own, lent...))); err != nil {
		t.Fatal(err)
	}
	for _, wal := range []string{"00000002.history", segment(3), segment(4), segment(5)} {
		if _, err := putWAL(t, s.Repository, wal, noise(uint64(wal[len(wal)-1]), 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.StoreBackup(ctx, b, lent)
	return b, own, errors.Join(err, lease.Release(ctx))
}

// whole fails the test unless each backup that a place shows is there with all
// that it needs. It returns how many there are.
func (s *several) whole(t testing.TB, n int) int {
	t.Helper()
	alone := New([]Place{{Name: "x", Bucket: s.spots[n], Required: true}}, Options{Keys: s.keys, Log: slog.New(slog.DiscardHandler), Now: s.now})
	all, err := alone.Backups(t.Context(), testCluster)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		packs, err := alone.LoadPacks(t.Context(), b)
		if err != nil {
			t.Fatalf("%s shows backup %s: %v", s.spots[n], b.Name, err)
		}
		for id, p := range packs {
			if err := alone.ReadPack(t.Context(), testCluster, id.Backup, p, (*PackStream).Finish); err != nil {
				t.Fatalf("%s shows backup %s: %v", s.spots[n], b.Name, err)
			}
		}
		root, err := alone.OpenManifest(t.Context(), b)
		if err != nil {
			t.Fatalf("%s shows backup %s: %v", s.spots[n], b.Name, err)
		}
		if err := root.Close(); err != nil {
			t.Fatal(err)
		}
		lacks, err := alone.missingAt(t.Context(), alone.places[0], b)
		if err != nil || lacks != "" {
			t.Fatalf("%s shows backup %s without %s (%v)", s.spots[n], b.Name, lacks, err)
		}
	}
	return len(all)
}

// TestHeldLeavesOut looks for backups while a best-effort place is away: what it
// alone holds is not known, so that nothing may be removed there when it is back.
func TestHeldLeavesOut(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	s.spots[1].down = true
	if _, err := s.HeldBackups(t.Context(), testCluster); err != nil {
		t.Fatal(err)
	}
	s.spots[1].down = false
	if _, err := s.NewSweep("b", testCluster); err == nil {
		t.Error("what is there can be removed without having been looked at")
	}
	if _, err := s.NewSweep("a", testCluster); err != nil {
		t.Error(err)
	}
}

// TestHeldBackupsOfOnePlace is that a backup which only a best-effort place has,
// and could not give, is not taken for a folder that belongs to none.
func TestHeldBackupsOfOnePlace(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	s.backup(t)
	delete(s.spots[0].objects, testCluster.backupKey(testName))
	hook := s.spots[1].hook
	s.spots[1].hook = func(op, key string) error {
		if op == "get" && key == testCluster.backupKey(testName) {
			return storage.ErrUnavailable
		}
		return hook(op, key)
	}
	held, err := s.HeldBackups(t.Context(), testCluster)
	if err != nil {
		t.Fatal(err)
	}
	if held.Unread[testName] == nil && s.places[1].err() == nil || len(held.Backups) > 0 {
		t.Errorf("there is %+v", held)
	}
	if len(held.Without) > 0 && s.places[1].err() == nil {
		t.Errorf("%v is taken for garbage", held.Without)
	}
}
