package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/storage"
)

const sweepSegment postgres.SegmentSize = 16 << 20

// below drops the segments before one of timeline 1.
type below uint64

func (b below) Drops(s postgres.Segment, _ time.Time) bool {
	return s.Timeline == 1 && s.Number < uint64(b)
}
func (b below) End(postgres.Timeline) uint64 { return uint64(b) }

func segmentNamed(n uint64) string {
	return postgres.Segment{Timeline: 1, Number: n}.Name(sweepSegment)
}

// swept is a bucket with two backups, of which one is hidden, and WAL.
func swept(t *testing.T) (*memory, *Repository) {
	t.Helper()
	m := newMemory()
	old := testTime.Add(-48 * time.Hour)
	put := func(key string) { m.objects[testCluster.prefix()+key] = memoryObject{[]byte("12345"), old} }
	for _, name := range []BackupName{testName, otherName} {
		for _, f := range []string{"backup.json", "packs", "manifest", "pack/00000000", "pack/00000001"} {
			put("backup/" + string(name) + "/" + f)
		}
		put("mark/" + string(name) + "/20261120T101530.000Z-note-aaaaaa.json")
	}
	for n := range uint64(6) {
		name := segmentNamed(n)
		put("wal/" + name[:16] + "/" + name)
		put("summary/" + name[:16] + "/" + name)
	}
	put("wal/0000000100000000/" + segmentNamed(2) + ".00000028.backup")
	put("wal/0000000100000000/" + segmentNamed(2) + ".partial.0011223344556677")
	for _, n := range []uint64{1, 4, 9} {
		put(fmt.Sprintf("stream/00000001/%016X-%016X", n*uint64(sweepSegment), n*uint64(sweepSegment)+512))
	}
	put("history/00000002.history")
	put("gap/00000001-" + segmentNamed(0) + "-" + segmentNamed(1) + ".json")
	put("gap/00000001-" + segmentNamed(2) + "-" + segmentNamed(3) + ".json")
	return m, testRepo(m, Keys{}, compress.Setting{})
}

func sweepOf(t *testing.T, r *Repository) *Sweep {
	t.Helper()
	s, err := r.NewSweep(r.Names()[0], testCluster)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSweepBackups(t *testing.T) {
	m, r := swept(t)
	s := sweepOf(t, r)
	before := m.below("")
	for _, dry := range []bool{true, false} {
		s.Dry = dry
		gone, err := s.Hide(t.Context(), []BackupName{testName})
		if err != nil || !cmp.Equal(gone, []BackupName{testName}) {
			t.Fatalf("hidden are %v, %v", gone, err)
		}
		if err := s.Clear(t.Context(), testName, func(n uint32) bool { return n == 1 }); err != nil {
			t.Fatal(err)
		}
		if got := s.Take(); got.Objects != 4 || got.Bytes != 20 || got.Failed+got.Locked != 0 {
			t.Errorf("dry %v: %+v", dry, got)
		}
		if dry && !cmp.Equal(before, m.below("")) {
			t.Error("a dry sweep removes something")
		}
	}
	want := []string{testCluster.packKey(testName, 1)}
	if diff := cmp.Diff(want, m.below(testCluster.backupDir(testName))); diff != "" {
		t.Error(diff)
	}
	if len(m.below(testCluster.markPrefix()+string(testName))) != 1 {
		t.Error("marks go before the last pack")
	}
	// When the last borrower is gone the rest goes, and the marks.
	if err := s.Clear(t.Context(), testName, func(uint32) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if left := append(m.below(testCluster.backupDir(testName)), m.below(testCluster.markPrefix()+string(testName))...); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	// What exists is not cleared.
	if err := s.Clear(t.Context(), otherName, func(uint32) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if left := m.below(testCluster.backupDir(otherName)); len(left) != 5 {
		t.Errorf("of a backup that exists are left %v", left)
	}
}

// TestSweepRefused is a store that does not let go of everything.
func TestSweepRefused(t *testing.T) {
	m, r := swept(t)
	s := sweepOf(t, r)
	m.hook = func(op, key string) error {
		if op == "delete" && (strings.HasSuffix(key, string(otherName)+"/backup.json") || strings.HasSuffix(key, "pack/00000001")) {
			return storage.ErrPermission
		}
		return nil
	}
	gone, err := s.Hide(t.Context(), []BackupName{testName, otherName})
	if err != nil || !cmp.Equal(gone, []BackupName{testName}) {
		t.Fatalf("hidden are %v, %v", gone, err)
	}
	if err := s.Clear(t.Context(), testName, func(uint32) bool { return false }); err != nil {
		t.Fatal(err)
	}
	got := s.Take()
	if got.Objects != 4 || got.Failed != 2 || len(got.Problems) != 2 || !errors.Is(got.Problems[0].Err, storage.ErrPermission) {
		t.Errorf("%+v", got)
	}
	if len(m.below(testCluster.markPrefix()+string(testName))) != 1 {
		t.Error("marks go before the last pack")
	}
	m.hook = func(op, _ string) error {
		if op == "list" {
			return storage.ErrUnavailable
		}
		return nil
	}
	if err := s.Clear(t.Context(), testName, func(uint32) bool { return false }); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("a listing that fails is %v", err)
	}
}

func TestSweepWAL(t *testing.T) {
	m, r := swept(t)
	s := sweepOf(t, r)
	if err := s.WAL(t.Context(), []postgres.Timeline{1}, sweepSegment, below(3)); err != nil {
		t.Fatal(err)
	}
	got := s.Take()
	// Three segments with their summaries, a backup's label, a partial segment, a
	// range before the boundary and one of a segment that is whole, and a record.
	if got.Objects != 3+3+2+2+1 {
		t.Errorf("%+v", got)
	}
	var left []string
	for _, folder := range []string{"wal/", "summary/", "stream/", "gap/", "history/"} {
		left = append(left, m.below(testCluster.prefix()+folder)...)
	}
	for _, key := range left {
		for n := range uint64(3) {
			if strings.Contains(key, segmentNamed(n)) && !strings.Contains(key, "gap/") {
				t.Errorf("%s is left", key)
			}
		}
	}
	if len(left) != 3+3+1+1+1 {
		t.Errorf("left are %v", left)
	}
}

// TestSweepLocked is that what a place promises to keep stays, though the store
// would hide it.
func TestSweepLocked(t *testing.T) {
	m, r := swept(t)
	r.places[0].Immutable = &Immutable{Mode: storage.Governance, For: 30 * 24 * time.Hour}
	s := sweepOf(t, r)
	gone, err := s.Hide(t.Context(), []BackupName{testName})
	if err != nil || len(gone) > 0 {
		t.Errorf("hidden are %v, %v", gone, err)
	}
	if err := s.WAL(t.Context(), []postgres.Timeline{1}, sweepSegment, below(3)); err != nil {
		t.Fatal(err)
	}
	if got := s.Take(); got.Objects != 0 || got.Locked == 0 || len(m.below(testCluster.walPrefix())) != 8 {
		t.Errorf("%+v", got)
	}
}

// TestSweepStops is a delete that lost its right to go on.
func TestSweepStops(t *testing.T) {
	m, r := swept(t)
	s := sweepOf(t, r)
	taken := errors.New("taken for dead")
	s.Current = func(context.Context) error { return taken }
	if _, err := s.Hide(t.Context(), []BackupName{testName}); !errors.Is(err, taken) || len(m.below(testCluster.backupKey(testName))) != 1 {
		t.Errorf("it goes on: %v", err)
	}
}

func TestStale(t *testing.T) {
	m, r := swept(t)
	s := sweepOf(t, r)
	delete(m.objects, testCluster.backupKey(testName))
	for _, c := range []struct {
		name   BackupName
		before time.Time
		want   bool
	}{{testName, testTime, true}, {testName, testTime.Add(-72 * time.Hour), false}, {otherName, testTime, false}} {
		if got, err := s.Stale(t.Context(), c.name, c.before); err != nil || got != c.want {
			t.Errorf("%s before %s: %v, %v", c.name, c.before, got, err)
		}
	}
}

func TestDeadClaims(t *testing.T) {
	m, r := swept(t)
	claimAt(m, claimOf(testName, "a"), 0, testTime.Add(-72*time.Hour))
	claimAt(m, claimOf(testName, "a"), 1, testTime.Add(-71*time.Hour))
	claimAt(m, claimOf(otherName, "b"), 0, testTime.Add(-72*time.Hour))
	claimAt(m, claimOf(otherName, "b"), 1, testTime)
	if err := sweepOf(t, r).DeadClaims(t.Context(), testTime.Add(-GarbageAge)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{testCluster.claimKey(otherName, 0), testCluster.claimKey(otherName, 1)}, m.below(testCluster.claimPrefix())); diff != "" {
		t.Error(diff)
	}
}

func TestHorizon(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	for _, n := range []uint64{5, 9, 9, 7} {
		if err := r.StoreHorizon(t.Context(), testCluster, postgres.Segment{Timeline: 1, Number: n}, sweepSegment, "here"); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.StoreHorizon(t.Context(), testCluster, postgres.Segment{Timeline: 2, Number: 3}, sweepSegment, "here"); err != nil {
		t.Fatal(err)
	}
	got, err := r.Horizons(t.Context(), testCluster, sweepSegment)
	if diff := cmp.Diff(map[postgres.Timeline]uint64{1: 9, 2: 3}, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	// An earlier one goes; one that came late and says less stays, and counts not.
	if keys := m.below(testCluster.horizonPrefix()); len(keys) != 3 {
		t.Errorf("records are %v", keys)
	}
}

func TestOldMarks(t *testing.T) {
	m, r := swept(t)
	put := func(name BackupName, file string) {
		m.objects[testCluster.markPrefix()+string(name)+"/"+file] = memoryObject{[]byte("{}"), testTime}
	}
	put(testName, "20261120T101530.000Z-verified-aaaaaa.json")
	put(testName, "20261121T101530.000Z-keep-aaaaaa.json")
	put(testName, "20261122T101530.000Z-verified-aaaaaa.json")
	put(testName, "20261123T101530.000Z-verified-aaaaaa.json")
	put(otherName, "20261119T101530.000Z-verified-aaaaaa.json")
	if err := sweepOf(t, r).OldMarks(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(m.below(testCluster.markPrefix()), " ")
	if n := len(m.below(testCluster.markPrefix())); n != 5 || strings.Count(left, "verified") != 2 || !strings.Contains(left, "20261123T101530.000Z-verified") {
		t.Errorf("left are %s", left)
	}
}
