package retention

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBackupEndsBeside lets a backup appear between the plan of a delete and its
// announcement, so that one goes by the second plan that was not announced: it
// stays, and with it what it borrows and its WAL.
func TestBackupEndsBeside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.switchWAL(1, 3)
	full := w.backup(1, "")
	w.pass(time.Hour)
	child := w.backup(1, full)
	w.pass(time.Hour)
	w.backup(1, "")
	w.pass(time.Hour)
	w.bucket.before = func(key string) {
		if strings.Contains(key, "/tomb/") {
			w.bucket.before = nil
			w.backup(1, "")
		}
	}
	if _, err := w.run(Request{Verb: Retain, Count: 2}, Rules{}, -1); err != nil {
		t.Fatal(err)
	}
	if w.backups[full] != nil || w.backups[child] == nil || len(w.order) != 3 {
		t.Errorf("there are backups %v", w.order)
	}
	w.sound()
}

// TestRefusedBackupKeepsLenders deletes a backup whose backup.json the store does
// not remove, with the one that it borrows from.
func TestRefusedBackupKeepsLenders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.switchWAL(1, 3)
	full := w.backup(1, "")
	w.pass(time.Hour)
	child := w.backup(1, full)
	w.pass(time.Hour)
	w.backup(1, "")
	w.bucket.refuse = fmt.Sprintf("cluster/%020d/backup/%s/backup.json", uint64(w.cluster), child)
	if _, err := w.run(Request{Verb: Retain, Count: 1}, Rules{}, -1); err == nil {
		t.Fatal("it is not told that an object was not removed")
	}
	if w.backups[full] != nil || w.backups[child] == nil || len(w.order) != 2 {
		t.Errorf("there are backups %v", w.order)
	}
	w.sound()
	w.bucket.refuse = ""
	if _, err := w.run(Request{Verb: Retain, Count: 1}, Rules{}, -1); err != nil {
		t.Fatal(err)
	}
	w.pass(72 * time.Hour)
	w.switchWAL(1, 1)
	if _, err := w.run(Request{Verb: Garbage}, Rules{}, -1); err != nil {
		t.Fatal(err)
	}
	w.sound()
	w.clean()
}

// TestHistoryNotArchived has no history of a timeline through which another one
// leads: its WAL is needed all the same.
func TestHistoryNotArchived(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.switchWAL(1, 3)
	w.backup(1, "")
	second := w.fork(1, w.next[1])
	w.switchWAL(second, 4)
	third := w.fork(second, w.next[second])
	w.switchWAL(third, 4)
	w.backup(third, "")
	w.switchWAL(third, 1)
	if err := os.Remove(filepath.Join(w.dir, fmt.Sprintf("cluster/%020d/history/%s.history", uint64(w.cluster), second))); err != nil {
		t.Fatal(err)
	}
	before := w.reach()
	if _, err := w.run(Request{Verb: Retain, Count: 2}, Rules{}, -1); err != nil {
		t.Fatal(err)
	}
	after := w.reach()
	for moment := range before {
		if !after[moment] {
			t.Errorf("%s cannot be reached any more", moment)
		}
	}
}
