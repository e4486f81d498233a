package repo

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/errs"
)

func exampleBackup() *Backup {
	return &Backup{
		Format: Format, Name: testName, Type: "full", Cluster: testCluster, PostgresVersion: 150020,
		Started: testTime, Stopped: testTime, StartLSN: 0x9000028, StopLSN: 0xA000000, Timeline: 1,
		SegmentSize: 16 << 20, BlockSize: 8192, Host: "db", Directory: "/srv/pg", User: "postgres", Agent: "test",
	}
}

func storeBackup(t testing.TB, r *Repository, b *Backup) error {
	_, err := r.StoreBackup(t.Context(), b, nil)
	return err
}

func TestBackupRoundTrip(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	want := exampleBackup()
	if _, err := r.LoadBackup(t.Context(), testCluster, testName); errs.KindOf(err) != errs.NotFound {
		t.Fatalf("not there: %v", err)
	}
	if err := errorsFirst(storeBackup(t, r, want), storeBackup(t, r, want)); err != nil {
		t.Fatal(err)
	}
	got, err := r.LoadBackup(t.Context(), testCluster, testName)
	if err != nil {
		t.Fatal(err)
	}
	if got.Created.IsZero() {
		t.Error("it is not known when the store took it")
	}
	want.Self, want.Created = got.Self, got.Created
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	other := exampleBackup()
	other.Label = "x"
	if err := storeBackup(t, r, other); err == nil {
		t.Fatal("backup.json was replaced")
	}
	long := exampleBackup()
	long.Label = strings.Repeat("x", maxBackupJSON)
	if err := storeBackup(t, r, long); err == nil {
		t.Fatal("a backup.json of more than 8 KiB was stored")
	}
	// A folder without backup.json is no backup, and one of another name none.
	m.set(testCluster.packKey(otherName, 0), nil)
	m.set(testCluster.backupPrefix()+"other/backup.json", nil)
	all, err := r.Backups(t.Context(), testCluster)
	if err != nil || len(all) != 1 || all[0].Name != testName {
		t.Fatalf("%v, %v", all, err)
	}
	key := testCluster.backupKey(testName)
	good := string(m.objects[key].body)
	for what, change := range map[string][2]string{
		"not JSON":           {"{", "["},
		"of another cluster": {testCluster.String(), "7"},
		"of another backup":  {string(testName), string(otherName)},
		"segment size":       {"16777216", "16777217"},
		"stop before start":  {`"0/A000000"`, `"0/1"`},
		"no timeline":        {`"timeline": 1`, `"timeline": 0`},
		"a short hash":       {`"sha256": "00`, `"sha256": "`},
	} {
		body := strings.Replace(good, change[0], change[1], 1)
		if body == good {
			t.Fatalf("%s: %q is not in %s", what, change[0], good)
		}
		m.set(key, resealed(t, body))
		if _, err := r.LoadBackup(t.Context(), testCluster, testName); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// Any other change at all is noticed.
	for at := range good {
		body := []byte(good)
		body[at] ^= 1
		m.set(key, body)
		if _, err := r.LoadBackup(t.Context(), testCluster, testName); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) {
			t.Fatalf("byte %d, %q, altered: %v", at, good[at], err)
		}
	}
	m.set(key, resealed(t, strings.Replace(good, `"format": 1`, `"format": 2`, 1)))
	if _, err := r.LoadBackup(t.Context(), testCluster, testName); errs.KindOf(err) != errs.Config || !strings.Contains(err.Error(), "format 2") {
		t.Fatalf("a newer format: %v", err)
	}
}

// resealed puts the right hash into a backup.json that was changed, where it
// has one.
func resealed(t testing.TB, body string) []byte {
	t.Helper()
	b := []byte(body)
	digits, sum, ok := selfDigest(b)
	if !ok {
		t.Fatalf("no hash in %s", body)
	}
	copy(digits, sum.String())
	return b
}

// The list of packs is found again whole, at any length, and an altered one
// refused.
func TestPackListRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory()
		r := testRepo(m, Keys{}, compress.Setting{})
		var list []Pack
		want := make(map[PackID]Pack)
		for n := range rapid.SampledFrom([]int{0, 1, 2, 9000, 20_000}).Draw(t, "packs") {
			p := Pack{Number: uint32(n), Kind: PackData, Size: int64(n) << 20, SHA256: sha([]byte{byte(n)})}
			id := PackID{testName, p.Number}
			if n%3 == 0 {
				p.Lender, id.Backup = otherName, otherName
			}
			list = append(list, p)
			want[id] = p
		}
		b := exampleBackup()
		var err error
		if b.Packs, err = r.StorePacks(t.Context(), testCluster, testName, encodePacks(t, r, list)); err != nil {
			t.Fatal(err)
		}
		got, err := r.LoadPacks(t.Context(), b)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d of %d packs, %v", len(got), len(want), err)
		}
		for id, p := range want {
			if got[id] != p {
				t.Fatalf("%v is %+v, not %+v", id, got[id], p)
			}
		}
		key := testCluster.packsKey(testName)
		body := slices.Clone(m.objects[key].body)
		body[rapid.IntRange(0, len(body)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		m.set(key, body)
		if _, err := r.LoadPacks(t.Context(), b); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) {
			t.Fatalf("altered: %v", err)
		}
		delete(m.objects, key)
		if _, err := r.LoadPacks(t.Context(), b); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), "is missing") {
			t.Fatalf("removed: %v", err)
		}
	})
}

func TestBackupNames(t *testing.T) {
	for range 1000 {
		name, err := NewBackupName(testTime)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseBackupName(string(name)); got != name || err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"", "LATEST", "20261120T101530Z-k3v9qa", "20261120T101530Z-K3V7QA", "../20261120T101530Z-k3v7qa", "20261120T101530Z-k3v7qa/x", "20261120T101530Z-k3v7qa\n"} {
		if _, err := ParseBackupName(bad); err == nil {
			t.Fatalf("%q was taken", bad)
		}
	}
}
