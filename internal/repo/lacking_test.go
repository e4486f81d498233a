package repo

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"agent/internal/errs"
	"agent/internal/storage"
)

// lend makes packs of otherName that another backup can borrow; finished says
// whether that backup exists.
func (s *several) lend(t *testing.T, finished bool) []Pack {
	t.Helper()
	_, own, err := s.tryBackup(t, otherName)
	if err != nil {
		t.Fatal(err)
	}
	for i := range own {
		own[i].Lender = otherName
	}
	if !finished {
		for _, spot := range s.spots {
			delete(spot.objects, testCluster.backupKey(otherName))
		}
	}
	s.time = s.time.Add(time.Hour)
	s.again()
	return own
}

// A backup does not appear in a best-effort place that lacks a pack which it
// borrows, of a backup that was finished or of one that was not.
func TestBackupWithoutBorrowed(t *testing.T) {
	for name, c := range map[string]struct {
		finished bool
		damage   func(s *several)
	}{
		"nothing is there": {true, func(s *several) {
			for key := range s.spots[1].objects {
				if strings.Contains(key, string(otherName)) {
					delete(s.spots[1].objects, key)
				}
			}
		}},
		"the first pack is missing": {false, func(s *several) { delete(s.spots[1].objects, testCluster.packKey(otherName, 0)) }},
		"the last pack is missing":  {false, func(s *several) { delete(s.spots[1].objects, testCluster.packKey(otherName, 1)) }},
		"all packs are missing": {false, func(s *several) {
			delete(s.spots[1].objects, testCluster.packKey(otherName, 0))
			delete(s.spots[1].objects, testCluster.packKey(otherName, 1))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSeveral(t, Keys{}, true, false)
			lent := s.lend(t, c.finished)
			c.damage(s)
			b := s.backup(t, lent...)
			if _, ok := s.spots[0].objects[testCluster.backupKey(b.Name)]; !ok {
				t.Fatal("the backup does not exist where all is")
			}
			if _, ok := s.spots[1].objects[testCluster.backupKey(b.Name)]; ok {
				t.Fatal("the backup exists where a pack is missing")
			}
			s.again()
			if incomplete, err := s.StoreBackup(t.Context(), b, lent); err != nil || !slices.Equal(incomplete, []string{"b"}) {
				t.Fatalf("%q, %v", incomplete, err)
			}
			s.again()
			_, err := s.Sync(t.Context(), SyncOptions{Pending: true})
			if err != nil || s.whole(t, 1) == 0 {
				t.Fatalf("%d backups, %v", s.whole(t, 1), err)
			}
			if _, ok := s.spots[1].objects[testCluster.backupKey(b.Name)]; !ok {
				t.Fatal("the backup was not brought")
			}
			s.settled(t)
		})
	}
}

// Where all packs are, the backup appears at once, whether their own was
// finished or not.
func TestBackupWithBorrowed(t *testing.T) {
	for _, finished := range []bool{true, false} {
		for _, second := range []bool{true, false} {
			s := newSeveral(t, Keys{}, true, second)
			b := s.backup(t, s.lend(t, finished)...)
			if _, ok := s.spots[1].objects[testCluster.backupKey(b.Name)]; !ok {
				t.Errorf("finished %t, required %t: the backup does not exist", finished, second)
			}
		}
	}
}

// A required place that lacks what is borrowed gets no backup, and says what to do.
func TestRequiredWithoutBorrowed(t *testing.T) {
	s := newSeveral(t, Keys{}, true, true)
	lent := s.lend(t, true)
	parent, err := s.LoadBackup(t.Context(), testCluster, otherName)
	if err != nil {
		t.Fatal(err)
	}
	if place, err := s.Incomplete(t.Context(), parent); err != nil || place != "" {
		t.Fatalf("%q, %v", place, err)
	}
	for key := range s.spots[1].objects {
		if strings.Contains(key, string(otherName)) {
			delete(s.spots[1].objects, key)
		}
	}
	if place, err := s.Incomplete(t.Context(), parent); err != nil || place != "b" {
		t.Fatalf("%q, %v", place, err)
	}
	b, _, err := s.tryBackup(t, testName, lent...)
	if errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), "pack 00000000 of backup "+string(otherName)) {
		t.Fatal(err)
	}
	if _, ok := s.spots[1].objects[testCluster.backupKey(b.Name)]; ok {
		t.Fatal("the backup exists where a pack is missing")
	}
	s.spots[1].down = true
	if _, err := s.Incomplete(t.Context(), parent); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatal(err)
	}
}
