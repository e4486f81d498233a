package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"agent/testing/harness"
)

// TestCompactKilled ends backup-compact by kill -9 as soon as it has its claim, and
// as soon as it has stored its first pack: no backup has come of it, the old ones
// are whole, and the next run makes one, in both repositories. What is left of the
// killed runs is garbage.
func TestCompactKilled(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.settings = append(p.settings, "AGENT_COMPRESSION=none")
	p.Exec(t, "CREATE TABLE a AS SELECT g AS i, md5(g::text) || md5((g + 1)::text) AS m FROM generate_series(1, 200000) g", "CHECKPOINT")
	p.push(t)
	p.Exec(t, "UPDATE a SET m = md5(m) || m WHERE i % 7 = 0")
	last := p.pushed(t)
	if last.Type != "incremental" {
		t.Fatalf("the backup is %+v", last)
	}
	before := p.backups(t)
	for _, moment := range []string{"claim/*/0", "backup/*/pack/*"} {
		known, err := filepath.Glob(filepath.Join(p.repo, "cluster", "*", moment))
		if err != nil {
			t.Fatal(err)
		}
		run := harness.StartAgent(t, p.beyond(), "backup-compact", "LATEST", "--compression", "none", "--bandwidth", "8MB")
		await(t, moment, func() bool {
			found, err := filepath.Glob(filepath.Join(p.repo, "cluster", "*", moment))
			return err == nil && len(found) > len(known) || ended(run)
		})
		run.Signal(syscall.SIGKILL)
		if r := run.Wait(); r.Code != 137 {
			t.Fatalf("it ended before it was killed, with status %d:\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		if !slices.Equal(p.backups(t), before) {
			t.Fatalf("the backups were %v and are %v", before, p.backups(t))
		}
		must(t, harness.Agent(t, p.beyond(), "backup-verify", "--deep"))
	}
	got := parse[compacted](t, must(t, harness.Agent(t, p.beyond(), "backup-compact", "LATEST", "--json")).Stdout)
	if got.From != last.Name {
		t.Fatalf("it made %+v", got)
	}
	must(t, harness.Agent(t, p.beyond(), "backup-verify", "--deep"))
	for _, repo := range []string{p.repo, p.far} {
		// The claims of the killed runs hold for a quarter of an hour.
		claims, err := filepath.Glob(filepath.Join(repo, "cluster", "*", "claim", "*", "*"))
		if err != nil || len(claims) != 2 {
			t.Fatalf("claims are %v, %v", claims, err)
		}
		for _, path := range claims {
			past := time.Now().Add(-time.Hour)
			if err := os.Chtimes(path, past, past); err != nil {
				t.Fatal(err)
			}
		}
		env := p.alone(repo)
		must(t, harness.Agent(t, env, "delete", "target", last.Name, before[0], "--confirm"))
		must(t, harness.Agent(t, env, "backup-verify", "--deep"))
		p.restored(t, env, 200_000)
	}
}
