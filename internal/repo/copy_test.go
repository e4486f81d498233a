package repo

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
)

// copying is a repository in the first place and an empty second one.
func copying(t *testing.T) *several {
	t.Helper()
	s := newSeveral(t, Keys{}, true, true)
	_, own, err := s.tryBackup(t, otherName)
	if err != nil {
		t.Fatal(err)
	}
	for i := range own {
		own[i].Lender = otherName
	}
	s.wal(t, segment(1), segment(8), "00000001.history")
	s.time = s.time.Add(time.Hour)
	s.backup(t, own[0])
	s.spots[1] = newSpot("n")
	s.again()
	return s
}

func TestCopy(t *testing.T) {
	s := copying(t)
	res, err := s.Copy(t.Context(), "n", SyncOptions{Concurrency: 3})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s.content(0), s.content(1)); d != "" || res.Objects != int64(len(s.content(0))) {
		t.Fatalf("%d objects\n%s", res.Objects, d)
	}
	if string(s.spots[0].objects[repositoryKey].body) == string(s.spots[1].objects[repositoryKey].body) {
		t.Error("the copy has the same id")
	}
	if res, err := s.Copy(t.Context(), "n", SyncOptions{}); err != nil || res.Objects != 0 {
		t.Fatalf("again: %+v, %v", res, err)
	}
	// A copy that this host knows and that is gone is not made anew.
	s.spots[1].objects = map[string]memoryObject{}
	if _, err := s.Copy(t.Context(), "n", SyncOptions{}); !errors.Is(err, ErrGone) || len(s.spots[1].objects) != 0 {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Copy(t.Context(), "x", SyncOptions{}); errs.KindOf(err) != errs.Usage {
		t.Fatalf("got %v", err)
	}
}

// One backup comes with all that it needs, and no more.
func TestCopyOne(t *testing.T) {
	s := copying(t)
	if _, err := s.Copy(t.Context(), "n", SyncOptions{Backup: "20200101T000000Z-aaaaaa"}); errs.KindOf(err) != errs.NotFound {
		t.Fatalf("got %v", err)
	}
	o := SyncOptions{Backup: testName, Concurrency: 2}
	o.DryRun = true
	dry, err := s.Copy(t.Context(), "n", o)
	if err != nil || len(s.content(1)) != 0 {
		t.Fatalf("%v, %q", err, sorted(s.content(1)))
	}
	o.DryRun = false
	res, err := s.Copy(t.Context(), "n", o)
	if err != nil || s.whole(t, 1) != 1 || res.Objects != dry.Objects || dry.Objects != int64(len(s.content(1))) {
		t.Fatalf("%+v, %+v, %v", dry, res, err)
	}
	for key := range s.content(1) {
		if strings.HasSuffix(key, segment(1)) || strings.HasSuffix(key, segment(8)) || key == testCluster.packKey(otherName, 1) || key == testCluster.backupKey(otherName) {
			t.Errorf("%s was copied", key)
		}
	}
	if len(s.content(1)) != 12 {
		t.Errorf("there are %q", sorted(s.content(1)))
	}
	o.Clusters = []ClusterID{5}
	if _, err := s.Copy(t.Context(), "n", o); errs.KindOf(err) != errs.NotFound {
		t.Fatalf("got %v", err)
	}
}
