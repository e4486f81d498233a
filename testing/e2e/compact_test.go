package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// compacted is what the tests read of a compacted backup's JSON.
type compacted struct {
	incremental
	From string `json:"compacted_from"`
}

// TestCompact: the last backup of a chain is made to stand alone, on a host
// without the database; it restores to the same bytes, also when nothing of the
// others is left, and a chain goes on from it.
func TestCompact(t *testing.T) {
	for major, sealed := range map[int]bool{harness.DefaultMajor: true, 18: false} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, plan{Options: harness.Options{Major: major}, sealed: sealed})
			space := filepath.Join(harness.TempDir(t), "space")
			makeDir(t, space)
			s.Exec(t, fmt.Sprintf("CREATE TABLESPACE aside LOCATION '%s'", space),
				"CREATE TABLE kept AS SELECT g AS i, md5(g::text) || repeat('x', 300) AS m FROM generate_series(1, 40000) g",
				"CREATE TABLE there (i int) TABLESPACE aside", "INSERT INTO there SELECT generate_series(1, 5000)")
			first := s.push(t)
			var last incremental
			for n := range 3 {
				s.Exec(t, fmt.Sprintf("UPDATE kept SET m = md5(m) WHERE i %% 500 = %d", n), "DELETE FROM there WHERE i < 10",
					fmt.Sprintf("CREATE TABLE more%d AS SELECT generate_series(1, 2000) AS g", n))
				if last = s.pushed(t); last.Type != "incremental" {
					t.Fatalf("the backup is %+v", last)
				}
			}
			env := s.elsewhere()
			if sealed {
				env = append(env, "AGENT_RECIPIENTS="+s.recipient)
				hinted(t, harness.Agent(t, s.env(), "backup-compact", last.Name), 11, "identity")
			}
			// Nothing is made of what is damaged.
			pack := filepath.Join(s.backupDir(t, first.Name), "pack", "00000000")
			good := readFile(t, pack)
			bad := slices.Clone(good)
			bad[len(bad)/2] ^= 1
			writeFile(t, pack, bad)
			before := s.backups(t)
			hinted(t, harness.Agent(t, env, "backup-compact", last.Name), 6, s.key(t, pack))
			if !slices.Equal(s.backups(t), before) {
				t.Errorf("the backups were %v and are %v", before, s.backups(t))
			}
			writeFile(t, pack, good)

			got := parse[compacted](t, must(t, harness.Agent(t, env, "backup-compact", "LATEST", "--json")).Stdout)
			want := compacted{incremental: incremental{backup: last.backup, Type: "full", Data: last.Data, Stored: got.Stored}, From: last.Name}
			want.Name, want.Packs = got.Name, got.Packs
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(compacted{}, incremental{}, backup{})); diff != "" {
				t.Errorf("expected (-) and compacted (+) differ:\n%s", diff)
			}
			if left, err := filepath.Glob(filepath.Join(s.repo, "cluster", "*", "claim", "*")); err != nil || len(left) != 0 {
				t.Errorf("claims are left: %v, %v", left, err)
			}
			if out := must(t, harness.Agent(t, env, "backup-compact", got.Name)).Stdout; !strings.Contains(out, "nothing to do") {
				t.Errorf("once more: %s", out)
			}
			refused(t, harness.Agent(t, env, "backup-compact", "20261120T101530Z-k3v7qa"), 7)

			restored := func(name string) map[string]string {
				dir := fresh(t)
				must(t, s.restore(t, dir, name, "--target-immediate", "--tablespace-map", space+"="+dir+"-space"))
				verifyBackup(t, s.Server, dir)
				all := objects(t, dir)
				for path, body := range objects(t, dir+"-space") {
					all["space/"+path] = body
				}
				// These name the restored directory, the backup, and when.
				for _, path := range []string{"tablespace_map", "backup_manifest", "postgresql.auto.conf"} {
					delete(all, path)
				}
				return all
			}
			old, after := restored(last.Name), restored(got.Name)
			if other := differing(old, after); len(other) > 0 {
				t.Fatalf("of the compacted backup these files are others: %q", other)
			}
			for _, name := range s.backups(t) {
				if name != got.Name {
					if err := os.RemoveAll(s.backupDir(t, name)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if other := differing(after, restored(got.Name)); len(other) > 0 {
				t.Fatalf("without the other backups these files are others: %q", other)
			}

			// The chain goes on from it, where its manifest can be read.
			s.Exec(t, "UPDATE kept SET m = 'last' WHERE i = 1")
			with := s.env()
			if sealed {
				with = append(with, "AGENT_IDENTITY_FILE="+s.identity)
			}
			next := parse[incremental](t, must(t, harness.Agent(t, with, "backup-push", "--json", "--parent", got.Name)).Stdout)
			if next.Type != "incremental" || next.Parent != got.Name || next.Depth != 1 {
				t.Fatalf("the next backup is %+v", next)
			}
			rows := s.QueryString(t, "SELECT md5(string_agg(i || m, ',' ORDER BY i)) FROM kept")
			s.switchWAL(t)
			s.Stop(t)
			dir := fresh(t)
			must(t, s.restore(t, dir, "--target-action", "promote", "--tablespace-map", space+"="+dir+"-space"))
			c := harness.StartExisting(t, dir, major, nil)
			c.WaitRecovered(t)
			if c.QueryString(t, "SELECT md5(string_agg(i || m, ',' ORDER BY i)) FROM kept") != rows {
				t.Error("rows differ")
			}
			healthy(t, c)
			c.Stop(t)
			checksums(t, c)
			if !slices.Equal(s.backups(t), []string{got.Name, next.Name}) {
				t.Errorf("the backups are %v", s.backups(t))
			}
		})
	}
}

// differing are the names of files that are not the same in both.
func differing(a, b map[string]string) []string {
	var names []string
	for name, body := range a {
		if other, ok := b[name]; !ok || other != body {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}
