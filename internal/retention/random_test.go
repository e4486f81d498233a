package retention

import (
	"fmt"
	"testing"
	"time"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// TestRandomTrees plays random histories of a server: WAL, forks of timelines, full
// and incremental backups, marks, and deletes of all kinds, some of them killed in
// the middle. After each of them every backup that exists restores, what is marked
// and the newest are there, a policy with a window has taken no moment of it away,
// and in the end nothing is left that belongs to no backup.
func TestRandomTrees(t *testing.T) {
	t.Parallel()
	worlds := 40
	if testing.Short() {
		worlds = 8
	}
	for seed := range worlds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, uint64(seed))
			w.switchWAL(1, 3)
			w.backup(1, "")
			for range 60 {
				w.step()
			}
			w.pass(72 * time.Hour)
			w.switchWAL(1, 1)
			if _, err := w.run(Request{Verb: Garbage}, Rules{}, -1); err != nil {
				t.Fatal(err)
			}
			w.sound()
			w.clean()
		})
	}
}

func (w *world) step() {
	w.t.Helper()
	w.pass(time.Duration(1+w.random.IntN(600)) * time.Minute)
	line := w.timelines()[w.random.IntN(len(w.lines))]
	switch w.random.IntN(10) {
	case 0, 1, 2:
		w.switchWAL(line, 1+w.random.IntN(4))
	case 3, 4:
		w.backup(line, "")
	case 5, 6:
		var parent repo.BackupName
		for _, name := range w.order {
			if b := w.backups[name]; b.Timeline == line {
				parent = name
			}
		}
		w.backup(line, parent)
	case 7:
		if len(w.lines) < 5 && w.next[line] > 4 {
			child := w.fork(line, w.next[line]-uint64(w.random.IntN(3)))
			w.switchWAL(child, 1+w.random.IntN(3))
			w.pass(time.Hour)
			w.backup(child, "")
		}
	case 8:
		if len(w.order) > 0 {
			until := time.Time{}
			if w.random.IntN(2) == 0 {
				until = w.now.Add(time.Duration(w.random.IntN(200)) * time.Hour)
			}
			w.keep(w.order[w.random.IntN(len(w.order))], until)
		}
	default:
		w.deleteSomething()
	}
}

// deleteSomething runs a random delete, perhaps killed, and looks at what is left.
func (w *world) deleteSomething() {
	w.t.Helper()
	q, rules := w.request()
	kill := -1
	if w.random.IntN(2) == 0 {
		kill = w.random.IntN(12)
	}
	before, marked, there := w.reach(), w.marked(), w.existing()
	_, err := w.run(q, rules, kill)
	if err != nil && kill < 0 {
		w.t.Fatalf("delete %s: %v", q.Verb, err)
	}
	w.sound()
	for _, name := range marked {
		if w.backups[name] == nil {
			w.t.Fatalf("delete %s took backup %s, which is marked", q.Verb, name)
		}
	}
	if len(there) > 0 && len(w.existing()) == 0 && q.Verb != Target {
		w.t.Fatalf("delete %s took the last backup", q.Verb)
	}
	if q.Verb != Expire || rules.Window == 0 {
		return
	}
	after := w.reach()
	from := w.now.Add(-rules.Window)
	for moment := range before {
		seg, perr := postgres.ParseSegment(moment[:24], worldSegment)
		if perr != nil {
			w.t.Fatal(perr)
		}
		if w.archived[seg].After(from) && !after[moment] {
			w.t.Fatalf("delete expire with a window of %s: %s, archived %s ago, cannot be reached any more", rules.Window, moment, w.now.Sub(w.archived[seg]))
		}
	}
}

func (w *world) request() (Request, Rules) {
	some := func() repo.BackupName { return w.order[w.random.IntN(len(w.order))] }
	switch n := w.random.IntN(10); {
	case n < 6 || len(w.order) == 0:
		return Request{Verb: Expire}, Rules{
			Full: w.random.IntN(3), Window: time.Duration(1+w.random.IntN(72)) * time.Hour, Daily: w.random.IntN(4),
			Weekly: w.random.IntN(2), Monthly: w.random.IntN(2), Least: w.random.IntN(3),
		}
	case n < 7:
		return Request{Verb: Retain, Count: 1 + w.random.IntN(4), Widen: []Widen{Exact, Full, FindFull}[w.random.IntN(3)]}, Rules{}
	case n < 8:
		return Request{Verb: Before, Names: []repo.BackupName{some()}, Widen: []Widen{Exact, FindFull}[w.random.IntN(2)]}, Rules{}
	case n < 9:
		for range 10 {
			if name := some(); !w.isMarked(name) {
				return Request{Verb: Target, Names: []repo.BackupName{name}}, Rules{}
			}
		}
		return Request{Verb: Garbage}, Rules{}
	default:
		return Request{Verb: Garbage}, Rules{}
	}
}

func (w *world) isMarked(name repo.BackupName) bool {
	for _, m := range w.marked() {
		if m == name {
			return true
		}
	}
	return false
}

// marked are the backups that a mark keeps now.
func (w *world) marked() []repo.BackupName {
	w.t.Helper()
	marks, err := w.repo.Marks(w.t.Context(), w.cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []repo.BackupName
	for name, m := range marks {
		if m.Kept(w.now) && w.backups[name] != nil {
			names = append(names, name)
		}
	}
	return names
}
