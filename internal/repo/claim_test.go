package repo

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/storage"
)

func claimOf(name BackupName, host string) Claim {
	return Claim{Backup: name, Host: host, State: "/state", StateID: "s-" + host, PID: 1}
}

// claimAt puts the nth object of a claim at a time of the store.
func claimAt(m *memory, c Claim, n int, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	body := fmt.Sprintf(`{"backup":%q,"host":%q,"state_id":%q,"state_directory":%q,"pid":7,"compacts":%q}`, c.Backup, c.Host, c.StateID, c.State, c.Compacts)
	m.objects[testCluster.claimKey(c.Backup, n)] = memoryObject{[]byte(body), at}
}

func TestClaim(t *testing.T) {
	ours, theirs := claimOf(testName, "a"), claimOf(otherName, "b")
	later := theirs
	later.Backup = "20261121T101530Z-zzzzzz"
	tests := map[string]struct {
		there  func(m *memory)
		locked bool
	}{
		"alone":                    {func(*memory) {}, false},
		"another just began":       {func(m *memory) { claimAt(m, theirs, 0, testTime.Add(-time.Second)) }, true},
		"another began just after": {func(m *memory) { claimAt(m, theirs, 0, testTime.Add(time.Second)) }, false},
		"together, a smaller name": {func(m *memory) { claimAt(m, theirs, 0, testTime) }, true},
		"together, a greater name": {func(m *memory) { claimAt(m, later, 0, testTime) }, false},
		"expired":                  {func(m *memory) { claimAt(m, theirs, 0, testTime.Add(-claimTTL-time.Second)) }, false},
		"old but not yet expired":  {func(m *memory) { claimAt(m, theirs, 0, testTime.Add(-claimTTL)) }, true},
		"renewed": {func(m *memory) {
			claimAt(m, theirs, 0, testTime.Add(-time.Hour))
			claimAt(m, theirs, 1, testTime.Add(-time.Minute))
		}, true},
		"renewed while we look": {func(m *memory) {
			claimAt(m, theirs, 0, testTime.Add(-time.Hour))
			claimAt(m, theirs, 1, testTime.Add(time.Millisecond))
		}, true},
		"renewed and expired": {func(m *memory) {
			claimAt(m, theirs, 0, testTime.Add(-2*time.Hour))
			claimAt(m, theirs, 1, testTime.Add(-time.Hour))
		}, false},
		"another is being compacted": {func(m *memory) {
			c := theirs
			c.Compacts = "20261118T101530Z-aaaaaa"
			claimAt(m, c, 0, testTime.Add(-time.Second))
		}, false},
		"our own dead run": {func(m *memory) { c := ours; c.Backup = otherName; claimAt(m, c, 0, testTime.Add(-time.Second)) }, false},
		"same host, another state": {func(m *memory) {
			c := ours
			c.Backup, c.StateID = otherName, "other"
			claimAt(m, c, 0, testTime.Add(-time.Second))
		}, true},
		"same names, nothing that proves the host": {func(m *memory) {
			c := ours
			c.Backup, c.StateID = otherName, ""
			claimAt(m, c, 0, testTime.Add(-time.Second))
		}, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			test.there(m)
			before := m.keys()
			r := testRepo(m, Keys{}, compress.Setting{})
			l, err := r.Claim(t.Context(), testCluster, ours, ClaimOptions{})
			if test.locked {
				if errs.KindOf(err) != errs.Locked || errs.HintOf(err) == "" {
					t.Fatalf("got %v", err)
				}
				if d := cmp.Diff(before, m.keys()); d != "" {
					t.Fatalf("a refused claim leaves something:\n%s", d)
				}
				if _, err := r.Claim(t.Context(), testCluster, ours, ClaimOptions{Concurrent: true}); err != nil {
					t.Fatalf("two were allowed: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := errorsFirst(l.Renew(t.Context()), l.Renew(t.Context())); err != nil {
				t.Fatal(err)
			}
			if n := len(m.keys()) - len(before); n != 3 {
				t.Fatalf("%d objects for a claim that was renewed twice", n)
			}
			if err := l.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(before, m.keys()); d != "" {
				t.Fatalf("after the release:\n%s", d)
			}
		})
	}
}

func TestClaimFailures(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	deny := func(denied string) func(op, key string) error {
		return func(op, _ string) error {
			if op == denied {
				return storage.ErrPermission
			}
			return nil
		}
	}
	m.hook = deny("list")
	if _, err := r.Claim(t.Context(), testCluster, claimOf(testName, "a"), ClaimOptions{}); !errors.Is(err, storage.ErrPermission) {
		t.Fatalf("a listing that is denied says that nobody is there: %v", err)
	}
	m.hook = deny("delete")
	l, err := r.Claim(t.Context(), testCluster, claimOf(testName, "a"), ClaimOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Where nothing may be deleted the end of a claim is one more object.
	if err := l.Release(t.Context()); err != nil || !slices.Contains(m.keys(), testCluster.claimEnd(testName)) {
		t.Fatalf("got %v, %q", err, m.keys())
	}
	m.clock = testTime.Add(time.Second)
	if _, err := r.Claim(t.Context(), testCluster, claimOf(otherName, "b"), ClaimOptions{}); err != nil {
		t.Fatalf("a claim that was ended holds: %v", err)
	}
	m.hook = func(op, _ string) error {
		if op == "delete" || op == "put" {
			return storage.ErrPermission
		}
		return nil
	}
	if err := l.Release(t.Context()); !errors.Is(err, storage.ErrPermission) {
		t.Fatalf("got %v", err)
	}
	for _, name := range []BackupName{testName, otherName} {
		delete(m.objects, testCluster.claimEnd(name))
	}
	m.hook = nil
	m.set(testCluster.claimKey(testName, 0), []byte("{"))
	m.clock = testTime.Add(2 * time.Second)
	if err := m.Delete(t.Context(), testCluster.claimKey(otherName, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Claim(t.Context(), testCluster, claimOf(otherName, "b"), ClaimOptions{}); errs.KindOf(err) != errs.Damaged {
		t.Fatalf("a damaged claim: %v", err)
	}
}

// pinned is a repository whose handle pins in dir.
func pinned(m *memory, dir string, now *time.Time) *Repository {
	return New([]Place{{Name: "main", Bucket: m, Required: true}}, Options{Pins: NewPins(dir), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return *now }, Version: "test"})
}

func TestCheck(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	marker := func(format int, id string) []byte {
		return fmt.Appendf(nil, `{"format":%d,"id":%q,"created_by":"9.9"}`, format, id)
	}
	tests := map[string]struct {
		change func(m *memory)
		kind   errs.Kind
		err    error
		text   string
	}{
		"unchanged":     {func(*memory) {}, errs.Other, nil, ""},
		"empty":         {func(m *memory) { delete(m.objects, repositoryKey) }, errs.NotInitialised, nil, "is gone"},
		"other id":      {func(m *memory) { m.set(repositoryKey, marker(1, id)) }, errs.Foreign, nil, id},
		"newer format":  {func(m *memory) { m.set(repositoryKey, marker(2, id)) }, errs.Config, nil, "format 2"},
		"no id":         {func(m *memory) { m.set(repositoryKey, marker(1, "")) }, errs.Damaged, nil, "it has no repository id"},
		"not JSON":      {func(m *memory) { m.set(repositoryKey, []byte("{")) }, errs.Damaged, nil, "decode"},
		"too large":     {func(m *memory) { m.set(repositoryKey, make([]byte, 70_000)) }, errs.Damaged, nil, "larger"},
		"not reachable": {func(m *memory) { m.hook = func(string, string) error { return storage.ErrUnavailable } }, errs.Other, storage.ErrUnavailable, ""},
		"denied":        {func(m *memory) { m.hook = func(string, string) error { return storage.ErrPermission } }, errs.Other, storage.ErrPermission, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m, now := newMemory(), testTime
			r := pinned(m, t.TempDir(), &now)
			if _, err := r.Init(t.Context()); err != nil {
				t.Fatal(err)
			}
			test.change(m)
			for _, cheap := range []bool{true, false} {
				// Where a look is paid for, it is good for some minutes.
				m.cheap = cheap
				if !cheap {
					if err := r.Check(t.Context()); err != nil {
						t.Fatalf("within the lease: %v", err)
					}
					now = now.Add(checkLease)
				}
				err := r.Check(t.Context())
				if ok := name == "unchanged"; ok != (err == nil) || errs.KindOf(err) != test.kind || !errors.Is(err, test.err) && test.err != nil {
					t.Fatalf("cheap %v: %v", cheap, err)
				}
				if err != nil && (!strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "%!")) {
					t.Fatalf("cheap %v: %v", cheap, err)
				}
			}
		})
	}
}

func TestInitAndPins(t *testing.T) {
	m, now, dir := newMemory(), testTime, t.TempDir()
	r := pinned(m, dir, &now)
	if err := r.Check(t.Context()); errs.KindOf(err) != errs.NotInitialised || !strings.Contains(errs.HintOf(err), "agent repo init") {
		t.Fatalf("before: %v", err)
	}
	ids, err := r.Init(t.Context())
	id := ids[r.String()]
	if err != nil || len(ids) != 1 || len(id) != 32 {
		t.Fatalf("%q, %v", ids, err)
	}
	if _, err := r.Init(t.Context()); errs.KindOf(err) != errs.Conflict {
		t.Fatalf("a second time: %v", err)
	}
	if got, err := r.readMarker(t.Context(), r.places[0]); got.ID != id || err != nil {
		t.Fatalf("%v, %v", got, err)
	}
	pin := r.pins.path(r.String())
	stat := func() os.FileInfo {
		t.Helper()
		info, err := os.Stat(pin)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	before := stat()
	if err := r.Check(t.Context()); err != nil || !os.SameFile(before, stat()) {
		t.Fatalf("a fresh pin was written again (%v)", err)
	}
	now = now.Add(checkLease)
	if err := r.Check(t.Context()); err != nil || !os.SameFile(before, stat()) {
		t.Fatalf("an old pin was written again where a look costs nothing (%v)", err)
	}
	m.cheap = false
	if err := r.Check(t.Context()); err != nil || os.SameFile(before, stat()) {
		t.Fatalf("an old lease was not renewed (%v)", err)
	}
	m.cheap = true
	if left, _ := filepath.Glob(filepath.Join(dir, "pins", ".pin-*")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
	// A torn pin says nothing.
	if err := os.WriteFile(pin, []byte(`{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A state directory that cannot be used is an error with advice.
	bad := pinned(m, "/dev/null", &now)
	if err := bad.Check(t.Context()); !strings.Contains(errs.HintOf(err), "AGENT_STATE_DIR") {
		t.Fatalf("got %v", err)
	}
}

// children takes one step for each name, whatever lies below it.
func TestChildren(t *testing.T) {
	m := newMemory()
	want := []string{"20261120T101530Z-aaaaaa", "20261120T101530Z-bbbbbb.x", "20261120T101530Z-bbbbbb", "20261120T101530Z-bbbbbb0"}
	for _, name := range want {
		for n := range 3000 {
			m.objects[testCluster.packKey(BackupName(name), uint32(n))] = memoryObject{}
		}
	}
	m.objects[testCluster.prefix()+"backup0/x"] = memoryObject{}
	lists := 0
	m.hook = func(op, _ string) error { lists++; return nil }
	var got []string
	for name, err := range m.Folders(t.Context(), testCluster.backupPrefix()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, name)
	}
	if d := cmp.Diff(want, got); d != "" || lists != len(want)+1 {
		t.Fatalf("%d listings:\n%s", lists, d)
	}
}

func TestClusters(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	for _, key := range []string{ClusterID(7).clusterKey(), testCluster.walPrefix() + "x/y", "cluster/12/x", "cluster/0000000000000000000a/x", "cluster/000000000000000000012/x", "other/x"} {
		m.set(key, nil)
	}
	got, err := r.Clusters(t.Context())
	if d := cmp.Diff([]ClusterID{7, testCluster}, got); d != "" || err != nil {
		t.Fatalf("%v\n%s", err, d)
	}
	if err := r.EnsureCluster(t.Context(), Cluster{ID: 9, SegmentSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := r.EnsureCluster(t.Context(), Cluster{ID: 9, SegmentSize: 1 << 24}); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	if c, err := r.Cluster(t.Context(), 9); err != nil || c.SegmentSize != 1<<20 || c.ID != 9 {
		t.Fatalf("%+v, %v", c, err)
	}
	for _, body := range []string{"{", `{"system_identifier":"8","wal_segment_size":1048576}`, `{"system_identifier":"9","wal_segment_size":5}`} {
		m.set(ClusterID(9).clusterKey(), []byte(body))
		if _, err := r.Cluster(t.Context(), 9); errs.KindOf(err) != errs.Damaged || strings.Contains(err.Error(), "%!") {
			t.Fatalf("%s: %v", body, err)
		}
	}
}
