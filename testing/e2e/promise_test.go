package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// TestPromise5InPlace restores the recorded directory on the recorded host,
// through a configuration file: only then archiving goes on by itself.
func TestPromise5InPlace(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1}})
	config := filepath.Join(s.base, "it's 100% agent.yaml")
	writeFile(t, config, []byte("repository: "+s.repo+"\nstate_dir: "+s.state+"\n"))
	s.Exec(t, "CREATE TABLE a AS SELECT 1 AS i")
	s.push(t)
	s.Exec(t, "INSERT INTO a VALUES (2)")
	s.switchWAL(t)
	s.Stop(t)
	old := s.DataDir + ".old"
	if err := os.Rename(s.DataDir, old); err != nil {
		t.Fatal(err)
	}

	clone := fresh(t)
	r := must(t, harness.Agent(t, nil, "backup-fetch", clone, "--config", config))
	if !strings.Contains(r.Stdout, "archive_mode=off was set") {
		t.Errorf("a clone is not told that it does not archive:\n%s", r.Stdout)
	}
	before := keys(objects(t, s.repo))
	c := harness.StartExisting(t, clone, s.Major, nil)
	c.WaitRecovered(t)
	if got := c.QueryString(t, "SHOW archive_mode"); got != "off" {
		t.Errorf("archive_mode of the clone is %s", got)
	}
	c.Exec(t, "INSERT INTO a VALUES (3)", "SELECT pg_switch_wal()")
	c.Stop(t)
	if diff := cmp.Diff(before, keys(objects(t, s.repo))); diff != "" {
		t.Errorf("the clone archived:\n%s", diff)
	}

	r = must(t, harness.Agent(t, nil, "backup-fetch", s.DataDir, "--config", config))
	if strings.Contains(r.Stdout, "archive_mode=off was set") {
		t.Errorf("archiving is off:\n%s", r.Stdout)
	}
	two := *s
	two.Server = harness.StartExisting(t, s.DataDir, s.Major, nil)
	two.WaitRecovered(t)
	if got := two.QueryInt(t, "SELECT count(*) FROM a"); got != 2 {
		t.Errorf("%d rows", got)
	}
	two.switchWAL(t) // goes on archiving, on the next timeline
	s.one(t, "cluster/*/history/00000002.history")
}

// TestPromise7OtherRepository shows that no command believes a place that is
// not the repository which this host knows, and none that nobody made.
func TestPromise7OtherRepository(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{})
	b := s.push(t)
	segment := b.StartWAL
	commands := [][]string{
		{"wal-push", filepath.Join(s.DataDir, "pg_wal", segment)},
		{"wal-fetch", segment, filepath.Join(harness.TempDir(t), "x")},
		{"wal-fetch", "0000000100000000000000F0", filepath.Join(harness.TempDir(t), "x")},
		{"backup-push"},
		{"backup-list"},
		{"backup-show", "LATEST"},
		{"backup-fetch", fresh(t)},
	}
	check := func(t *testing.T, code int, text string) {
		t.Helper()
		for _, args := range commands {
			want := code
			switch args[0] {
			case "wal-push":
				want = 1
			case "wal-fetch":
				want = 126
			}
			hinted(t, s.agent(t, args...), want, text)
		}
	}
	t.Run("empty mount point", func(t *testing.T) {
		away(t, s.repo)
		makeDir(t, s.repo)
		check(t, 3, "empty mount point")
		if got := objects(t, s.repo); len(got) != 0 {
			t.Errorf("something was written: %v", keys(got))
		}
	})
	t.Run("another repository", func(t *testing.T) {
		away(t, s.repo)
		must(t, harness.Agent(t, []string{"AGENT_REPOSITORY=" + s.repo, "AGENT_STATE_DIR=" + harness.TempDir(t)}, "repo", "init"))
		check(t, 4, "pinned")
		if got := objects(t, s.repo); len(got) != 1 {
			t.Errorf("something was written: %v", keys(got))
		}
	})
	t.Run("moved away", func(t *testing.T) {
		away(t, s.repo)
		check(t, 5, s.repo)
	})
	s.push(t)
}
