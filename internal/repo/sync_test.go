package repo

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
	"agent/internal/storage"
)

// lagging is a repository whose second place was down while everything was
// stored, and is back.
func lagging(t *testing.T, keys Keys) *several {
	t.Helper()
	s := newSeveral(t, keys, true, false)
	s.spots[1].down = true
	s.wal(t, segment(1), segment(2))
	s.again()
	s.backup(t)
	s.again()
	s.wal(t, segment(6))
	if n := len(s.content(1)); n != 0 {
		t.Fatalf("%d objects in a place that is down", n)
	}
	s.spots[1].down = false
	s.time = s.time.Add(2 * suspension)
	s.again()
	return s
}

// settled fails the test if the second place owes anything.
func (s *several) settled(t testing.TB) {
	t.Helper()
	if behind, err := s.Behind(); err != nil || len(behind) != 0 {
		t.Fatalf("still owed: %+v, %v", behind, err)
	}
}

// Whichever way it is brought up to date, a place then has the same bytes, each
// object after all that it needs.
func TestSync(t *testing.T) {
	keys, _ := testKeys(t)
	for name, k := range map[string]Keys{"sealed": {Data: keys.Data, WAL: keys.WAL, Meta: keys.Meta}, "plain": {}} {
		for _, pending := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/pending %v", name, pending), func(t *testing.T) {
				s := lagging(t, k)
				res, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}, Pending: pending, Concurrency: 4})
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(s.content(0), s.content(1)); d != "" {
					t.Fatal(d)
				}
				want := []SyncResult{{Name: "b", URL: "memory:///b", Objects: int64(len(s.content(0))), Backups: []BackupName{testName}}}
				for _, body := range s.content(0) {
					want[0].Bytes += int64(len(body))
				}
				if d := cmp.Diff(want, res); d != "" {
					t.Fatal(d)
				}
				s.settled(t)
				puts := s.spots[1].puts[1:] // after repository.json
				at := func(key string) int { return slices.Index(puts, key) }
				history, doc := at(testCluster.historyPrefix()+"00000002.history"), at(testCluster.backupKey(testName))
				for n, key := range puts {
					if strings.Contains(key, "/wal/") && n < history {
						t.Errorf("%s before the history", key)
					}
					if strings.Contains(key, "/pack/") && n > min(at(testCluster.packsKey(testName)), at(testCluster.manifestKey(testName))) {
						t.Errorf("%s after what lists it", key)
					}
					if strings.Contains(key, "/backup/") && n > doc {
						t.Errorf("%s after backup.json", key)
					}
				}
				for n := 3; n <= 5; n++ {
					if at(testCluster.WALKey(walFile(t, segment(n)), [32]byte{})) > doc {
						t.Errorf("segment %d after backup.json", n)
					}
				}
				// A second time there is nothing to do.
				before := len(s.spots[1].puts)
				if _, err := s.Sync(t.Context(), SyncOptions{Concurrency: 4}); err != nil || len(s.spots[1].puts) != before {
					t.Fatalf("a second time %d objects were stored, %v", len(s.spots[1].puts)-before, err)
				}
			})
		}
	}
}

// What is owed is worked off without a look at anything else.
func TestSyncPendingAlone(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	s.wal(t, segment(1))
	gone := testCluster.WALKey(walFile(t, segment(1)), [32]byte{})
	delete(s.spots[1].objects, gone) // not noted anywhere
	s.spots[1].down = true
	s.wal(t, segment(2))
	s.spots[1].down = false
	s.again()
	s.spots[0].lists, s.spots[1].lists = nil, nil
	if _, err := s.Sync(t.Context(), SyncOptions{Pending: true, Concurrency: 1}); err != nil {
		t.Fatal(err)
	}
	if lists := slices.Concat(s.spots[0].lists, s.spots[1].lists); len(lists) != 0 {
		t.Errorf("listed: %q", lists)
	}
	if _, ok := s.spots[1].objects[gone]; ok || len(s.content(1)) != 1 {
		t.Errorf("there are %q", sorted(s.content(1)))
	}
	s.settled(t)
	if res, err := s.Sync(t.Context(), SyncOptions{Pending: true}); err != nil || res != nil {
		t.Errorf("nothing is owed: %v, %v", res, err)
	}
	if _, err := s.Sync(t.Context(), SyncOptions{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s.content(0), s.content(1)); d != "" {
		t.Error(d)
	}
}

// A debt that lost its list, or whose object was never finished, does not stay.
func TestSyncPendingOdd(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	s.wal(t, segment(1), segment(2))
	key := testCluster.WALKey(walFile(t, segment(1)), [32]byte{})
	delete(s.spots[1].objects, key)
	for _, owed := range []string{testCluster.backupKey(testName), testCluster.WALKey(walFile(t, segment(9)), [32]byte{}), key} {
		if err := s.debts.add("memory:///b", owed, s.time); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Sync(t.Context(), SyncOptions{Pending: true}); err != nil {
		t.Fatal(err)
	}
	s.settled(t)
	if len(s.content(1)) != 2 {
		t.Fatalf("there are %q", sorted(s.content(1)))
	}
	// A list that became too long says to compare everything.
	delete(s.spots[1].objects, key)
	appendDebt(t, s.debts, "memory:///b", `{"all":true}`+"\n")
	if behind, err := s.Behind(); err != nil || len(behind) != 1 || !behind[0].All {
		t.Fatalf("%+v, %v", behind, err)
	}
	if _, err := s.Sync(t.Context(), SyncOptions{Pending: true}); err != nil {
		t.Fatal(err)
	}
	s.settled(t)
	if len(s.content(1)) != 2 {
		t.Fatalf("there are %q", sorted(s.content(1)))
	}
	// What is not a key of ours is not copied, and stays.
	if err := s.debts.add("memory:///b", testCluster.prefix()+"later/x", s.time); err != nil {
		t.Fatal(err)
	}
	if res, err := s.Sync(t.Context(), SyncOptions{Pending: true}); err == nil || res[0].Lacking != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
}

var errCut = errors.New("cut off")

// Wherever it is cut off, the place shows no backup that is not whole, and the
// next time it is finished.
func TestSyncCutOff(t *testing.T) {
	for _, pending := range []bool{false, true} {
		cuts := 0
		for n := 0; ; n++ {
			s := lagging(t, Keys{})
			var puts atomic.Int64
			hook := s.spots[1].hook
			s.spots[1].hook = func(op, key string) error {
				if op == "put" && puts.Add(1) > int64(n) {
					return errCut
				}
				return hook(op, key)
			}
			_, err := s.Sync(t.Context(), SyncOptions{Pending: pending, Concurrency: 1 + n%3})
			shown := s.whole(t, 1)
			if err == nil {
				if cuts < 8 || shown != 1 {
					t.Fatalf("only %d cuts, %d backups", cuts, shown)
				}
				break
			}
			cuts++
			if !errors.Is(err, errCut) || shown > 0 {
				t.Fatalf("cut after %d objects: %d backups, %v", n, shown, err)
			}
			s.spots[1].hook = hook
			s.again()
			if _, err := s.Sync(t.Context(), SyncOptions{Pending: pending, Concurrency: 2}); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(s.content(0), s.content(1)); d != "" {
				t.Fatalf("cut after %d objects:\n%s", n, d)
			}
			s.settled(t)
		}
	}
}

func flipped(body string) []byte {
	b := []byte(body)
	b[len(b)/2] ^= 1
	return b
}

// An object that is damaged in one place is taken from another, from an older
// version, or else stays behind with what needs it, and nothing else does.
func TestSyncDamaged(t *testing.T) {
	keys, _ := testKeys(t)
	sample := lagging(t, keys)
	for _, key := range sorted(sample.content(0)) {
		harms := map[string]func(string) []byte{"flipped": flipped, "cut": func(b string) []byte { return []byte(b[:len(b)-1]) }, "removed": nil}
		if strings.HasSuffix(key, "cluster.json") {
			// It has no hash of its own.
			harms = map[string]func(string) []byte{"cut": func(b string) []byte { return []byte(b[:len(b)/2]) }}
		}
		for how, harm := range harms {
			for _, help := range []string{"none", "another place", "an older version"} {
				t.Run(strings.TrimPrefix(key, testCluster.prefix())+"/"+how+"/"+help, func(t *testing.T) {
					s := newSeveral(t, keys, true, false, false)
					for n, spot := range s.spots {
						if n == 1 || n == 2 && help != "another place" {
							continue
						}
						for k, o := range sample.spots[0].objects {
							if k != repositoryKey {
								spot.set(k, o.body)
							}
						}
					}
					good := s.spots[0].objects[key].body
					delete(s.spots[0].objects, key)
					if harm != nil {
						s.spots[0].set(key, harm(string(good)))
					}
					if help == "an older version" {
						s.spots[0].versions[key] = [][]byte{good[:len(good)/2], good}
						if how == "removed" {
							// A listing does not show it: what needs it does.
							if !strings.Contains(key, "/backup/") && !strings.Contains(key, "000000020000000000000003") || strings.HasSuffix(key, "backup.json") {
								return
							}
						}
					}
					res, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}, Concurrency: 2})
					if help != "none" {
						if err != nil || !bytes.Equal(s.spots[1].objects[key].body, good) || s.whole(t, 1) != 1 {
							t.Fatalf("%v: %q", err, sorted(s.content(1)))
						}
						return
					}
					needed := strings.Contains(key, "/backup/") || strings.Contains(key, "/history/") || slices.ContainsFunc([]int{3, 4, 5}, func(n int) bool { return strings.HasSuffix(key, segment(n)) })
					if how == "removed" && (!needed || strings.HasSuffix(key, "/backup.json")) {
						if err != nil {
							t.Fatal(err) // nobody can know that it was there
						}
						return
					}
					if errs.KindOf(err) != errs.Damaged || len(res) != 1 || res[0].Lacking == 0 || len(res[0].Problems) == 0 {
						t.Fatalf("%+v, %v", res, err)
					}
					want := 1
					if needed {
						want = 0
					}
					if got := s.whole(t, 1); got != want {
						t.Fatalf("%d backups", got)
					}
					if _, ok := s.spots[1].objects[key]; ok {
						t.Error("a damaged object was copied")
					}
				})
			}
		}
	}
}

// Without an identity a sealed WAL object is proved by its beginning alone; an
// unsealed one, and history, wholly.
func TestSyncSealedWAL(t *testing.T) {
	keys, _ := testKeys(t)
	for name, test := range map[string]struct {
		keys Keys
		ok   bool
	}{
		"no identity": {Keys{WAL: keys.WAL}, true},
		"identity":    {keys, false},
		"plain":       {Keys{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSeveral(t, test.keys, true, false)
			s.spots[1].down = true
			s.wal(t, segment(1))
			s.spots[1].down = false
			s.again()
			key := testCluster.WALKey(walFile(t, segment(1)), [32]byte{})
			good := s.spots[0].objects[key].body
			s.spots[0].set(key, flipped(string(good)))
			if _, err := s.Sync(t.Context(), SyncOptions{Pending: true}); (err == nil) != test.ok {
				t.Fatalf("altered in the middle: %v", err)
			}
			delete(s.spots[1].objects, key)
			s.again()
			s.spots[0].set(key, append([]byte("x"), good...))
			if _, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}}); errs.KindOf(err) != errs.Damaged {
				t.Fatalf("altered at the beginning: %v", err)
			}
		})
	}
}

// Other bytes under a key are told and left alone; the same WAL that was stored
// in another way is no conflict.
func TestSyncConflict(t *testing.T) {
	sample := lagging(t, Keys{})
	for _, key := range sorted(sample.content(0)) {
		t.Run(strings.TrimPrefix(key, testCluster.prefix()), func(t *testing.T) {
			s := newSeveral(t, Keys{}, true, false)
			for k, o := range sample.spots[0].objects {
				if k != repositoryKey {
					s.spots[0].set(k, o.body)
				}
			}
			other := append(slices.Clone(s.spots[0].objects[key].body), 'x')
			if strings.Contains(key, "/wal/") || strings.Contains(key, "/history/") {
				other[20] ^= 1
			}
			s.spots[1].set(key, other)
			_, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}, Concurrency: 3})
			if !bytes.Equal(s.spots[1].objects[key].body, other) {
				t.Fatal("it was replaced")
			}
			if strings.HasSuffix(key, "cluster.json") {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
				t.Fatalf("got %v", err)
			}
			if strings.Contains(key, "/backup/") && !strings.HasSuffix(key, "backup.json") {
				if _, ok := s.spots[1].objects[testCluster.backupKey(testName)]; ok {
					t.Fatal("the backup appeared")
				}
			}
		})
	}
	s := newSeveral(t, Keys{}, true, false)
	s.wal(t, segment(1))
	delete(s.spots[1].objects, testCluster.WALKey(walFile(t, segment(1)), [32]byte{}))
	s.again()
	s.spots[0].down, s.codec = true, setting(t, "lz4")
	if _, err := putWAL(t, s.Repository, segment(1), noise(24+'1', 100_000)); err == nil {
		t.Fatal("the required place was down")
	}
	s.spots[0].down = false
	if a, b := s.content(0), s.content(1); cmp.Equal(a, b) || len(a) != 1 || len(b) != 1 {
		t.Fatalf("%d and %d objects", len(a), len(b))
	}
	s.again()
	if _, err := s.Sync(t.Context(), SyncOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A backup that is being made is left alone; what is left of a claim where a
// place was down does not count.
func TestSyncLive(t *testing.T) {
	s := lagging(t, Keys{})
	claimAt(s.spots[0].memory, claimOf(testName, "db"), 0, s.time.Add(-time.Hour))
	claimAt(s.spots[0].memory, claimOf(testName, "db"), 1, s.time.Add(-time.Minute))
	for _, pending := range []bool{true, false} {
		res, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}, Pending: pending})
		if err != nil || !slices.Equal(res[0].Live, []BackupName{testName}) || s.whole(t, 1) != 0 {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	if behind, err := s.Behind(); err != nil || len(behind) != 1 || !slices.Equal(behind[0].Keys, []string{testCluster.backupKey(testName)}) {
		t.Fatalf("%+v, %v", behind, err)
	}
	if s.SyncDue() {
		t.Error("it is tried again at once")
	}
	s.time = s.time.Add(claimTTL)
	claimAt(s.spots[1].memory, claimOf(testName, "db"), 1, s.time)
	if !s.SyncDue() {
		t.Error("it is never tried again")
	}
	if _, err := s.Sync(t.Context(), SyncOptions{Pending: true}); err != nil || s.whole(t, 1) != 1 {
		t.Fatal(err)
	}
	s.settled(t)
	claimAt(s.spots[0].memory, claimOf(testName, "db"), 2, s.time)
	s.spots[0].set(testCluster.claimEnd(testName), []byte("{}"))
	delete(s.spots[1].objects, testCluster.backupKey(testName))
	if _, err := s.Sync(t.Context(), SyncOptions{}); err != nil || s.whole(t, 1) != 1 {
		t.Fatalf("a claim that has ended counts: %v", err)
	}
}

// Only what is known to be the same everywhere is copied.
func TestSyncKinds(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	for _, id := range []ClusterID{7, testCluster} {
		for _, key := range []string{"claim/x/0", "tomb/1", "keys/x", "later/x", "cluster.json.x", "backup/odd/x"} {
			s.spots[0].set(id.prefix()+key, []byte("{}"))
		}
	}
	s.spots[0].set("cluster/odd/wal/x", nil)
	s.spots[0].set("other", nil)
	want := []string{"audit/x", "drill/x.json", "dump/x", "gap/1.json", "mark/x/1.json"}
	for _, key := range want {
		s.spots[0].set(testCluster.prefix()+key, []byte("{}"))
	}
	s.spots[0].set(testCluster.prefix()+"mark/x/2.json", []byte("{"))
	res, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}})
	if errs.KindOf(err) != errs.Damaged || res[0].Lacking != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	var got []string
	for key := range s.content(1) {
		got = append(got, strings.TrimPrefix(key, testCluster.prefix()))
	}
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
}

// Where objects are locked, those that arrive later are, too.
func TestSyncLocks(t *testing.T) {
	s := lagging(t, Keys{})
	s.places[1].Immutable = &Immutable{Mode: storage.Compliance, For: 24 * time.Hour, FullEvery: 48 * time.Hour}
	if _, err := s.Sync(t.Context(), SyncOptions{}); err != nil {
		t.Fatal(err)
	}
	want := &storage.Lock{Mode: storage.Compliance, Until: s.time.Add(72*time.Hour + lockReserve)}
	for key := range s.content(1) {
		if d := cmp.Diff(want, s.spots[1].locks[key]); d != "" {
			t.Fatalf("%s:\n%s", key, d)
		}
	}
}

// A place that is still down is suspended again; one that was given up for
// another reason is not.
func TestSyncDown(t *testing.T) {
	s := lagging(t, Keys{})
	if !s.SyncDue() {
		t.Fatal("nothing is due")
	}
	for what, op := range map[string]string{"at once": "get", "in the middle": "put", "in a listing": "list"} {
		hook := s.spots[1].hook
		s.spots[1].hook = func(o, _ string) error {
			if o == op {
				return storage.ErrUnavailable
			}
			return nil
		}
		s.again()
		res, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}})
		if !errors.Is(err, storage.ErrUnavailable) || len(res) != 1 || res[0].Err == nil {
			t.Fatalf("%s: %+v, %v", what, res, err)
		}
		if s.SyncDue() || s.debts.Suspended("memory:///b", s.time) == nil {
			t.Fatalf("%s: not suspended", what)
		}
		s.spots[1].hook = hook
		s.time = s.time.Add(2 * suspension)
	}
	s.spots[0].down = true
	s.again()
	if _, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}}); !errors.Is(err, storage.ErrUnavailable) && errs.KindOf(err) != errs.Storage {
		t.Fatalf("got %v", err)
	}
	if s.debts.Suspended("memory:///b", s.time) != nil {
		t.Fatal("suspended for what another place did")
	}
	s.spots[0].down = false
	s.again()
	if _, err := s.Sync(t.Context(), SyncOptions{Pending: true}); err != nil || s.whole(t, 1) != 1 {
		t.Fatal(err)
	}
	s.settled(t)
}

// What would be copied is what is copied.
func TestSyncDryRun(t *testing.T) {
	s := lagging(t, Keys{})
	o := SyncOptions{Targets: []string{"b"}, DryRun: true}
	dry, err := s.Sync(t.Context(), o)
	if err != nil || len(s.content(1)) != 0 {
		t.Fatalf("%v, %q", err, sorted(s.content(1)))
	}
	if behind, err := s.Behind(); err != nil || len(behind) != 1 {
		t.Fatalf("settled: %+v, %v", behind, err)
	}
	o.DryRun = false
	res, err := s.Sync(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(res, dry); d != "" {
		t.Fatal(d)
	}
}

// A required place that is new is filled, and each place gets from the others
// what it lacks.
func TestSyncBothWays(t *testing.T) {
	s := lagging(t, Keys{})
	s.spots[1].set(testCluster.WALKey(walFile(t, segment(7)), [32]byte{}), s.spots[0].objects[testCluster.WALKey(walFile(t, segment(6)), [32]byte{})].body)
	if _, err := s.Sync(t.Context(), SyncOptions{Concurrency: 4}); err != nil {
		t.Fatal(err)
	}
	if a, b := s.content(0), s.content(1); !cmp.Equal(a, b) || a[testCluster.WALKey(walFile(t, segment(7)), [32]byte{})] == "" {
		t.Fatal(cmp.Diff(sorted(a), sorted(b)))
	}
	if _, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"x"}}); errs.KindOf(err) != errs.Usage {
		t.Fatalf("got %v", err)
	}
	one := testRepo(newMemory(), Keys{}, s.codec)
	if _, err := one.Sync(t.Context(), SyncOptions{}); errs.KindOf(err) != errs.Usage {
		t.Fatalf("got %v", err)
	}
}

// Packs that are lent to others count, also where their own backup is gone.
func TestSyncBorrowed(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	_, own, err := s.tryBackup(t, otherName)
	if err != nil {
		t.Fatal(err)
	}
	for i := range own {
		own[i].Lender = otherName
	}
	s.time = s.time.Add(time.Hour)
	s.backup(t, own...)
	if _, err := s.Sync(t.Context(), SyncOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, spot := range s.spots {
		delete(spot.objects, testCluster.backupKey(otherName))
	}
	delete(s.spots[1].objects, testCluster.packKey(otherName, 1))
	if _, err := s.Sync(t.Context(), SyncOptions{}); err != nil || s.whole(t, 1) != 1 {
		t.Fatal(err)
	}
	if _, ok := s.spots[1].objects[testCluster.packKey(otherName, 1)]; !ok {
		t.Fatal("the borrowed pack was not brought")
	}
}

// A backup that a delete takes away while it is brought does not appear where
// its packs are gone, nor where they are about to go.
func TestSyncBesideDelete(t *testing.T) {
	for name, remove := range map[string]func(target *memory){
		"a pack is gone": func(target *memory) { delete(target.objects, testCluster.packKey(testName, 0)) },
		"it was announced": func(target *memory) {
			target.objects[testCluster.tombKey("00", 0)] = memoryObject{[]byte(`{"id":"00","backups":["` + string(testName) + `"]}`), testTime}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := lagging(t, Keys{})
			hook := s.spots[1].hook
			var once sync.Once
			s.spots[1].hook = func(op, key string) error {
				// What lists the packs comes after all of them.
				if op == "put" && key == testCluster.packsKey(testName) {
					once.Do(func() {
						s.spots[1].memory.mu.Lock()
						defer s.spots[1].memory.mu.Unlock()
						remove(s.spots[1].memory)
					})
				}
				return hook(op, key)
			}
			_, err := s.Sync(t.Context(), SyncOptions{Targets: []string{"b"}})
			if errs.KindOf(err) != errs.Locked {
				t.Errorf("it ends with %v", err)
			}
			if _, there := s.spots[1].objects[testCluster.backupKey(testName)]; there {
				t.Error("the backup is visible")
			}
		})
	}
}
