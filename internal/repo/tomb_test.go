package repo

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/storage"
)

func tombOf(host string, backups ...BackupName) Tomb {
	return Tomb{Command: "delete expire", Host: host, StateID: "s-" + host, PID: 1, Backups: backups}
}

// tombAt puts the nth object of a tomb at a time of the store.
func tombAt(m *memory, id, host string, n int, at time.Time, backups ...BackupName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, len(backups))
	for i, b := range backups {
		names[i] = fmt.Sprintf("%q", b)
	}
	body := fmt.Sprintf(`{"id":%q,"host":%q,"state_id":"s-%s","command":"delete expire","backups":[%s]}`, id, host, host, strings.Join(names, ","))
	key := testCluster.tombKey(id, n)
	if n < 0 {
		key = testCluster.tombDecided(id)
	}
	m.objects[key] = memoryObject{[]byte(body), at}
}

func (m *memory) below(prefix string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []string
	for key := range m.objects {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func TestEntomb(t *testing.T) {
	for name, c := range map[string]struct {
		there  func(m *memory)
		locked bool
		left   int // objects of others' tombs
	}{
		"alone":                     {func(*memory) {}, false, 0},
		"another just began":        {func(m *memory) { tombAt(m, "00", "b", 0, testTime.Add(-time.Second)) }, true, 1},
		"another began just after":  {func(m *memory) { tombAt(m, "00", "b", 0, testTime.Add(time.Second)) }, false, 1},
		"together, a smaller id":    {func(m *memory) { tombAt(m, "!", "b", 0, testTime) }, true, 1},
		"together, a greater id":    {func(m *memory) { tombAt(m, "zz", "b", 0, testTime) }, true, 1},
		"expired":                   {func(m *memory) { tombAt(m, "00", "b", 0, testTime.Add(-claimTTL-time.Second)) }, false, 0},
		"of this host, interrupted": {func(m *memory) { tombAt(m, "00", "a", 0, testTime.Add(-time.Second)) }, false, 0},
		"renewed": {func(m *memory) {
			tombAt(m, "00", "b", 0, testTime.Add(-time.Hour))
			tombAt(m, "00", "b", 1, testTime.Add(-time.Minute))
		}, true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			c.there(m)
			r := testRepo(m, Keys{}, compress.Setting{})
			g, err := r.Entomb(t.Context(), testCluster, tombOf("a", testName))
			if c.locked != (errs.KindOf(err) == errs.Locked) || !c.locked && err != nil {
				t.Fatalf("it is refused: %v", err)
			}
			if err == nil {
				if err := g.Decide(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
				if err := g.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if left := m.below(testCluster.tombPrefix()); len(left) != c.left {
				t.Errorf("left are %v", left)
			}
		})
	}
}

// TestDeadTombStays is that the rest of an old delete which cannot be removed
// does not forbid all deletes.
func TestDeadTombStays(t *testing.T) {
	m := newMemory()
	tombAt(m, "00", "b", 0, testTime.Add(-24*time.Hour))
	m.hook = func(op, key string) error {
		if op == "delete" && key == testCluster.tombKey("00", 0) {
			return storage.ErrPermission
		}
		return nil
	}
	if _, err := testRepo(m, Keys{}, compress.Setting{}).Entomb(t.Context(), testCluster, tombOf("a")); err != nil {
		t.Fatal(err)
	}
}

func TestClaims(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	claimAt(m, claimOf(otherName, "b"), 0, testTime.Add(-claimTTL-time.Second))
	live := Claim{Backup: testName, Host: "c", Lenders: []BackupName{"20261101T101530Z-aaaaaa"}, Compacts: "20261102T101530Z-aaaaaa"}
	l, err := r.Claim(t.Context(), testCluster, live, ClaimOptions{Concurrent: true})
	if err != nil {
		t.Fatal(err)
	}
	g, err := r.Entomb(t.Context(), testCluster, tombOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.Claims(t.Context())
	want := LiveClaims{Named: map[BackupName]BackupName{testName: testName, "20261101T101530Z-aaaaaa": testName, "20261102T101530Z-aaaaaa": testName}, Since: testTime}
	if err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := g.Claims(t.Context()); err != nil || len(got.Named) > 0 || !got.Since.IsZero() {
		t.Errorf("after the claim has ended: %v, %v", got, err)
	}
}

func TestDoomed(t *testing.T) {
	lender := BackupName("20261101T101530Z-aaaaaa")
	for name, c := range map[string]struct {
		there     func(m *memory)
		doomed    BackupName
		undecided bool
	}{
		"nothing":          {func(*memory) {}, "", false},
		"of others":        {func(m *memory) { tombAt(m, "00", "b", 0, testTime, otherName) }, "", false},
		"announced":        {func(m *memory) { tombAt(m, "00", "b", 0, testTime, otherName, lender) }, lender, true},
		"and long dead":    {func(m *memory) { tombAt(m, "00", "b", 0, testTime.Add(-time.Hour), lender) }, lender, true},
		"spared":           {func(m *memory) { tombAt(m, "00", "b", 0, testTime, lender); tombAt(m, "00", "b", -1, testTime) }, "", false},
		"gone on with":     {func(m *memory) { tombAt(m, "00", "b", 0, testTime, lender); tombAt(m, "00", "b", -1, testTime, lender) }, lender, false},
		"renewed, decided": {func(m *memory) { tombAt(m, "00", "b", 3, testTime, lender); tombAt(m, "00", "b", -1, testTime, lender) }, lender, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			c.there(m)
			r := testRepo(m, Keys{}, compress.Setting{})
			doomed, undecided, err := r.Doomed(t.Context(), testCluster, []BackupName{testName, lender})
			if err != nil || doomed != c.doomed || undecided != c.undecided {
				t.Errorf("%q, undecided %v, %v", doomed, undecided, err)
			}
			if c.undecided {
				return
			}
			if err := r.AwaitSpared(t.Context(), testCluster, []BackupName{testName, lender}); (err != nil) != (c.doomed != "") || err != nil && errs.KindOf(err) != errs.Locked {
				t.Errorf("it ends with %v", err)
			}
		})
	}
}

// TestAwaitSpared waits until a delete has said that it spares the lender.
func TestAwaitSpared(t *testing.T) {
	m := newMemory()
	tombAt(m, "00", "b", 0, testTime, testName)
	looked := 0
	m.hook = func(op, key string) error {
		if op == "list" && strings.HasSuffix(key, "tomb/") {
			if looked++; looked == 2 {
				tombAt(m, "00", "b", -1, testTime)
			}
		}
		return nil
	}
	if err := testRepo(m, Keys{}, compress.Setting{}).AwaitSpared(t.Context(), testCluster, []BackupName{testName}); err != nil || looked < 2 {
		t.Errorf("after %d looks: %v", looked, err)
	}
}
