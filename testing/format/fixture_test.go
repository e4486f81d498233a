package format_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"agent/internal/report"
	"agent/testing/harness"
)

// fixture says what was in the cluster when a repository of a released format
// was written. README.md beside the fixtures explains it to people.
type fixture struct {
	Major int `json:"postgres_major"`
	// Backups are by name: what the table rows held when each ended. The last
	// one restores to Final.
	Backups []fixtureBackup `json:"backups"`
	Final   string          `json:"final"`
}

type fixtureBackup struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Rows string `json:"rows"`
}

// fixtureQuery is what Rows and Final answer.
const fixtureQuery = "SELECT count(*) || ' rows, ' || md5(string_agg(i || ' ' || t, ',' ORDER BY i)) FROM kept"

// TestReleasedFormats reads and restores a repository of every format that was
// ever released, as it was written then.
func TestReleasedFormats(t *testing.T) {
	found, err := filepath.Glob("testdata/format*/*/fixture.json")
	if err != nil || len(found) < 2 {
		t.Fatalf("fixtures %v: %v", found, err)
	}
	for _, path := range found {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(filepath.Dir(dir))+"/"+filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			released(t, dir)
		})
	}
}

// copied is a fixture's copy, so that nothing changes what is kept, and the
// environment to read it.
func copied(t *testing.T, stored string) (dir, repository string, env []string) {
	t.Helper()
	dir = harness.TempDir(t)
	if err := os.CopyFS(dir, os.DirFS(stored)); err != nil {
		t.Fatal(err)
	}
	harness.Own(t, dir)
	repository = filepath.Join(dir, "repository")
	return dir, repository, []string{"AGENT_REPOSITORY=" + repository, "AGENT_STATE_DIR=" + filepath.Join(dir, "state")}
}

func released(t *testing.T, stored string) {
	dir, repository, env := copied(t, stored)
	r := &reader{}
	identity := filepath.Join(dir, "identity.txt")
	key, err := os.ReadFile(identity)
	sealed := err == nil
	if sealed {
		if err := os.Chmod(identity, 0o600); err != nil {
			t.Fatal(err)
		}
		if r.identities, err = age.ParseIdentities(strings.NewReader(string(key))); err != nil {
			t.Fatal(err)
		}
	}
	body, err := os.ReadFile(filepath.Join(dir, "fixture.json"))
	if err != nil {
		t.Fatal(err)
	}
	var f fixture
	if err := json.Unmarshal(body, &f); err != nil {
		t.Fatal(err)
	}
	if sealed {
		understood(t, env, false)
		env = append(env, "AGENT_IDENTITY_FILE="+identity)
	}
	understood(t, env, true)
	counted(t, env, f, repository)

	clusters, err := filepath.Glob(filepath.Join(repository, "cluster", "*"))
	if err != nil || len(clusters) != 1 {
		t.Fatalf("clusters %v: %v", clusters, err)
	}
	r.dir = clusters[0]
	for _, b := range f.Backups {
		entries, err := r.restore(b.Name)
		if err != nil || len(entries) < 200 || r.kind != b.Type || (r.borrowed > 0) != (b.Type == "incremental") {
			t.Errorf("by docs/format.md the %s backup %s has %d entries and borrows %d packs: %v", r.kind, b.Name, len(entries), r.borrowed, err)
		}
		if got := rows(t, env, f.Major, b.Name, "--target-immediate"); got != b.Rows {
			t.Errorf("the backup %s holds %q and not %q", b.Name, got, b.Rows)
		}
	}
	if got := rows(t, env, f.Major, "LATEST"); got != f.Final {
		t.Errorf("at the end of the WAL there are %q and not %q", got, f.Final)
	}
}

// TestNotUnderstood: check-format tells what is damaged, and what a later
// version may write, of every kind of object below a backup.
func TestNotUnderstood(t *testing.T) {
	flip := func(b []byte) []byte {
		b[len(b)/2] ^= 1
		return b
	}
	for name, c := range map[string]struct {
		file   string
		change func([]byte) []byte // nil: it is removed
		code   int
		kind   string
	}{
		"damaged backup.json": {"backup.json", flip, 6, "damaged"},
		"newer backup.json":   {"backup.json", func([]byte) []byte { return []byte(`{"format": 2, "agent": "9.0"}`) }, 2, "newer"},
		"damaged list":        {"packs", flip, 6, "damaged"},
		"no list":             {"packs", nil, 6, "damaged"},
		"damaged manifest":    {"manifest", flip, 6, "damaged"},
		"no manifest":         {"manifest", nil, 6, "damaged"},
		"damaged pack":        {"pack/00000000", flip, 6, "damaged"},
		"short pack":          {"pack/00000000", func(b []byte) []byte { return b[:len(b)-1] }, 6, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, repository, env := copied(t, "testdata/format1/plain")
			found, err := filepath.Glob(filepath.Join(repository, "cluster", "*", "backup", "*", c.file))
			if err != nil || len(found) != 2 {
				t.Fatalf("%v, %v", found, err)
			}
			body, err := os.ReadFile(found[1])
			if err != nil {
				t.Fatal(err)
			}
			if c.change == nil {
				err = os.Remove(found[1])
			} else {
				err = os.WriteFile(found[1], c.change(body), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			res := harness.Agent(t, env, "repo", "check-format", "--json")
			var all []report.Format
			if err := json.Unmarshal([]byte(res.Stdout), &all); err != nil || len(all) != 1 {
				t.Fatalf("%v: %s%s", err, res.Stdout, res.Stderr)
			}
			key, err := filepath.Rel(repository, found[1])
			if err != nil {
				t.Fatal(err)
			}
			if res.Code != c.code || len(all[0].Findings) != 1 || all[0].Findings[0].Kind != c.kind || all[0].Findings[0].Key != key || all[0].Status != "not understood" {
				t.Errorf("status %d, %+v\n%s", res.Code, all[0].Findings, res.Stderr)
			}
		})
	}
}

// understood: all of a repository is read; with the identity, if there is one,
// all is opened.
func understood(t *testing.T, env []string, key bool) {
	t.Helper()
	res := harness.Agent(t, env, "repo", "check-format", "--all", "--json")
	if res.Code != 0 {
		t.Fatalf("status %d:\n%s%s", res.Code, res.Stdout, res.Stderr)
	}
	var all []report.Format
	if err := json.Unmarshal([]byte(res.Stdout), &all); err != nil || len(all) != 1 {
		t.Fatalf("%v: %s", err, res.Stdout)
	}
	if all[0].Status != "understood" || all[0].Format != 1 || len(all[0].Notes) != 0 {
		t.Errorf("%+v", all[0])
	}
	seen := make(map[string]bool)
	for _, k := range all[0].Kinds {
		seen[k.Kind] = true
		if k.Read != k.Objects || k.Format != 1 {
			t.Errorf("not all was read: %+v", k)
		}
		switch k.Kind {
		case "wal", "summary", "pack", "manifest", "stream":
			if (k.Opened == k.Objects) != key {
				t.Errorf("opened were, with a key (%v): %+v", key, k)
			}
		default:
			if k.Opened != k.Objects {
				t.Errorf("not all was opened: %+v", k)
			}
		}
	}
	want := make(map[string]bool)
	for _, kind := range []string{"repository", "cluster", "wal", "summary", "history", "stream", "backup", "packs", "manifest", "pack"} {
		want[kind] = true
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("the kinds of objects (-) and those read (+) differ:\n%s", diff)
	}
}

// counted: repo info counts all of it, and finds nothing dead.
func counted(t *testing.T, env []string, f fixture, repository string) {
	t.Helper()
	res := harness.Agent(t, env, "repo", "info", "--deep", "--json")
	var d report.Info
	if err := json.Unmarshal([]byte(res.Stdout), &d); err != nil || res.Code != 0 {
		t.Fatalf("status %d, %v: %s", res.Code, err, res.Stderr)
	}
	var files, bytes int64
	err := filepath.WalkDir(repository, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			files, bytes = files+1, bytes+info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p, c := d.Repositories[0], d.Clusters[0]
	if p.Objects != files || p.Bytes != bytes || len(c.Backups) != len(f.Backups) || len(c.Recoverable) != 2 || *c.DeadBytes != 0 || len(c.Errors) != 0 {
		t.Errorf("%d files of %d bytes; counted are %+v, %+v", files, bytes, p, c)
	}
}

// rows restores a backup, starts a server on it and asks it.
func rows(t *testing.T, env []string, major int, backup string, target ...string) string {
	t.Helper()
	dest := filepath.Join(harness.TempDir(t), "data")
	run(t, env, append([]string{"backup-fetch", dest, backup, "--target-action", "promote"}, target...)...)
	s := harness.StartExisting(t, dest, major, nil)
	if s.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	got := s.QueryString(t, fixtureQuery)
	s.Stop(t)
	return got
}
