package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"agent/testing/harness"
)

// kept is a site with one backup and some WAL behind it, whose server is gone:
// all that is left is the repository.
type kept struct {
	*site
	backup
	wal []string // the archived segments that a restore needs, in order
}

// keepOne makes a backup and rows in several segments after it.
func keepOne(t *testing.T, p plan) *kept {
	t.Helper()
	p.WALSegSizeMB = 1
	k := &kept{site: newSite(t, p)}
	k.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)",
		// Random, so that there is more than one pack.
		"CREATE TABLE big AS SELECT md5(g::text) || md5((g + 1)::text) AS m FROM generate_series(1, 300000) g", "CHECKPOINT")
	k.backup = k.push(t)
	var last string
	for range 3 {
		k.Exec(t, "INSERT INTO a SELECT 1 + max(i) FROM a")
		last = k.switchWAL(t)
	}
	k.Stop(t)
	for _, path := range segmentsIn(t, k.repo) {
		if name := filepath.Base(path); name >= k.StartWAL && name <= last {
			k.wal = append(k.wal, name)
		}
	}
	if len(k.wal) < 4 || k.wal[0] != k.StartWAL || k.wal[len(k.wal)-1] != last {
		t.Fatalf("archived are %q, the backup starts with %s and the WAL ends with %s", k.wal, k.StartWAL, last)
	}
	return k
}

// segmentsIn lists the archived segments of the first timeline, in order.
func segmentsIn(t testing.TB, repo string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(repo, "cluster/*/wal/*/00000001????????????????"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

// harm is a way to damage an object.
type harm struct {
	name string
	do   func(body []byte) []byte // nil: the object is removed
}

func harms() []harm {
	return []harm{
		{name: "removed"},
		{name: "flipped", do: func(b []byte) []byte {
			b = slices.Clone(b)
			b[len(b)/2] ^= 1
			return b
		}},
		{name: "truncated", do: func(b []byte) []byte { return b[:len(b)-1] }},
		{name: "empty", do: func([]byte) []byte { return nil }},
	}
}

// harmed damages an object for the time of one subtest.
func harmed(t *testing.T, path string, h harm) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	body := readFile(t, path)
	t.Cleanup(func() {
		if err := os.WriteFile(path, body, info.Mode()); err != nil {
			t.Fatal(err)
		}
		harness.Own(t, path)
	})
	if h.do == nil {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, h.do(body), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestEveryObjectDamaged removes and alters every object of a backup in turn.
// A restore must fail each time, say which object it was, and leave nothing
// that can be started.
func TestEveryObjectDamaged(t *testing.T) {
	for name, p := range map[string]plan{
		"plain":  {compression: "none"},
		"sealed": {compression: "zstd", sealed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keepOne(t, p)
			// Pins the repository, and proves that it is whole.
			must(t, k.restore(t, fresh(t), k.Name))
			var paths []string
			for key := range objects(t, k.backupDir(t, k.Name)) {
				paths = append(paths, filepath.Join(k.backupDir(t, k.Name), key))
			}
			slices.Sort(paths)
			if len(paths) < 4 || p.compression == "none" && k.Packs < 2 {
				t.Fatalf("the backup has but %d packs and the objects %q", k.Packs, paths)
			}
			for _, path := range paths {
				for _, h := range harms() {
					t.Run(filepath.Base(path)+"/"+h.name, func(t *testing.T) {
						harmed(t, path, h)
						k.restoreHarmed(t, k.key(t, path))
					})
				}
			}
			// Its id is all that counts, and its hash stands nowhere: damage to
			// the id is told from another repository by the pin.
			path := filepath.Join(k.repo, "repository.json")
			at := bytes.Index(readFile(t, path), []byte(`"id": "`)) + 10
			for _, h := range []harm{
				{"removed", nil},
				{"half", func(b []byte) []byte { return b[:len(b)/2] }},
				{"empty", func([]byte) []byte { return nil }},
				{"other id", func(b []byte) []byte {
					b = slices.Clone(b)
					b[at] ^= 1
					return b
				}},
			} {
				t.Run("repository.json/"+h.name, func(t *testing.T) {
					harmed(t, path, h)
					if h.name == "other id" {
						k.restoreHarmed(t, "has pinned id")
					} else {
						k.restoreHarmed(t, "repository.json")
					}
				})
			}
			path = filepath.Join(k.backupDir(t, k.Name), "backup.json")
			for i := 0; i < len(readFile(t, path)); i += 29 {
				t.Run(fmt.Sprintf("backup.json/byte %d", i), func(t *testing.T) {
					harmed(t, path, harm{do: func(b []byte) []byte {
						b = slices.Clone(b)
						b[i] ^= 1
						return b
					}})
					k.restoreHarmed(t, k.key(t, path))
				})
			}
			must(t, k.restore(t, fresh(t), k.Name))
		})
	}
}

// restoreHarmed tries to restore a damaged backup: it must fail, name what is
// damaged, and leave nothing that can be started.
func (k *kept) restoreHarmed(t *testing.T, text string) {
	t.Helper()
	dir := fresh(t)
	r := k.restore(t, dir, k.Name)
	if r.Code == 0 || r.Code > 15 {
		t.Errorf("status %d", r.Code)
	}
	hinted(t, r, r.Code, text)
	if exists(filepath.Join(dir, "global/pg_control")) {
		t.Error("there is a global/pg_control")
	}
}

// TestEveryWALObjectDamaged removes and alters every segment that a restore
// needs in turn. Recovery must stop at it instead of opening the database.
func TestEveryWALObjectDamaged(t *testing.T) {
	for name, p := range map[string]plan{
		"plain":  {compression: "lz4"},
		"sealed": {compression: "zstd", sealed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keepOne(t, p)
			for i, segment := range k.wal {
				path := k.walObject(t, segment)
				for _, h := range harms() {
					t.Run(segment+"/"+h.name, func(t *testing.T) {
						harmed(t, path, h)
						last := i == len(k.wal)-1
						k.fetchHarmed(t, segment, h, last)
						// A server is asked where it matters most.
						if h.name == "removed" && last || p.sealed && h.name != "flipped" || h.name == "empty" || h.name == "truncated" {
							return
						}
						k.recoverHarmed(t, segment)
					})
				}
			}
		})
	}
}

// fetchHarmed asks for a damaged segment: only the last one may be "not found".
func (k *kept) fetchHarmed(t *testing.T, segment string, h harm, last bool) {
	t.Helper()
	dest := filepath.Join(harness.TempDir(t), segment)
	r := harness.Agent(t, k.elsewhere(), "wal-fetch", segment, dest)
	if exists(dest) {
		t.Error("a file was placed")
	}
	switch {
	case h.do != nil:
		hinted(t, r, 126, k.key(t, k.walObject(t, segment)))
	case last:
		if r.Code != 74 || !strings.Contains(r.Stderr, segment) {
			t.Errorf("the end of the archive gives %d:\n%s", r.Code, r.Stderr)
		}
	default:
		hinted(t, r, 126, segment, "is missing")
	}
}

// recoverHarmed restores the backup and lets a server recover: it must stop,
// and say which segment is the reason.
func (k *kept) recoverHarmed(t *testing.T, segment string) {
	t.Helper()
	dir := fresh(t)
	must(t, k.restore(t, dir, k.Name))
	c, err := harness.TryStart(t, dir, k.Major, nil)
	if err == nil { // it may take connections before it comes to the segment
		_, err = c.AwaitRecovery(t)
		c.WaitExit(t)
	}
	if err == nil {
		t.Fatalf("the server went live without segment %s", segment)
	}
	for _, want := range []string{"agent: error: ", segment, "FATAL:  could not restore file \"" + segment + "\" from archive"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the server's log does not say %q: %v", want, err)
		}
	}
}
