package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"agent/testing/harness"
)

// TestResume: a backup that is killed at nine tenths of its work is continued by
// the next one, which repeats at most two tenths; pages that changed meanwhile
// are read again. So it is with a full backup and with an incremental one.
func TestResume(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{Major: 15, Conf: map[string]string{"autovacuum": "off", "max_wal_size": "8GB"}}, sealed: true})
	s.Run(t, "pgbench", "-i", "-q", "-s", "40")
	total := s.QueryInt(t, "SELECT sum(pg_database_size(oid))::bigint FROM pg_database")

	full := s.interrupted(t, total*9/10, "--full")
	s.Exec(t, "UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 5000 = 1", "CREATE TABLE meanwhile AS SELECT 1 AS i", "DROP TABLE pgbench_history")
	b := s.pushed(t, "--full")
	if b.Type != "full" || b.Resumed != full || b.Read > total*3/10 {
		t.Fatalf("a full backup of %d bytes that was killed at 90%% is continued by %+v", total, b)
	}
	check := func(name string) {
		t.Helper()
		dir := fresh(t)
		must(t, s.restore(t, dir, name, "--target-action", "promote"))
		verifyBackup(t, s.Server, dir)
		c := harness.StartExisting(t, dir, 15, nil)
		if c.WaitRecovered(t) {
			t.Fatal("recovery is paused")
		}
		const sum = "SELECT md5(string_agg(aid || ' ' || abalance, ',' ORDER BY aid)) FROM pgbench_accounts"
		if got, want := c.QueryString(t, sum), s.QueryString(t, sum); got != want {
			t.Error("the accounts differ")
		}
		healthy(t, c)
		c.Stop(t)
		checksums(t, c)
	}

	// All accounts change, so that the incremental is as large as a full. Who
	// reads them first changes their pages once more.
	s.Exec(t, "UPDATE pgbench_accounts SET abalance = abalance + 1", "SELECT count(*) FROM pgbench_accounts", "CHECKPOINT")
	changed := s.QueryInt(t, "SELECT pg_total_relation_size('pgbench_accounts')")
	incremental := s.interrupted(t, changed*9/10)
	s.Exec(t, "UPDATE pgbench_accounts SET abalance = 8 WHERE aid % 5000 = 2")
	next := s.pushed(t)
	if next.Type != "incremental" || next.Parent != b.Name || next.Resumed != incremental || next.Read > changed*3/10 {
		t.Fatalf("an incremental backup of %d bytes that was killed at 90%% is continued by %+v", changed, next)
	}
	s.switchWAL(t)
	check(next.Name)
	// What both have lent is kept with the last one, and its own next builds on it.
	s.Exec(t, "UPDATE pgbench_accounts SET abalance = 9 WHERE aid % 5000 = 3")
	last := s.pushed(t)
	if last.Parent != next.Name || last.Resumed != "" || last.Read > total/10 {
		t.Fatalf("the backup behind them is %+v", last)
	}
	s.switchWAL(t)
	check(last.Name)
}

// interrupted starts a backup and kills it when it has read so many bytes. It
// returns the name.
func (s *site) interrupted(t *testing.T, bytes int64, args ...string) string {
	t.Helper()
	before := s.running(t)
	p := harness.StartAgent(t, append(s.env(), "AGENT_READ_RATE=150MB"), append([]string{"backup-push"}, args...)...)
	await(t, "the backup to read", func() bool {
		if ended(p) {
			t.Fatalf("the backup ended: %s", p.Stderr())
		}
		return s.bytesRead(t) >= bytes
	})
	p.Signal(syscall.SIGKILL)
	p.Wait()
	for name := range s.running(t) {
		if !before[name] {
			return name
		}
	}
	t.Fatal("the interrupted backup has left nothing")
	return ""
}

// running are the backups of which the state directory keeps anything.
func (s *site) running(t *testing.T) map[string]bool {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(s.state, "chain/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, dir := range dirs {
		names[filepath.Base(dir)] = true
	}
	return names
}

// bytesRead is what the agents below this test's folder have read by now.
func (s *site) bytesRead(t *testing.T) (most int64) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/io")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		environ, err := os.ReadFile(filepath.Join(filepath.Dir(path), "environ"))
		if err != nil || !strings.Contains(string(environ), "AGENT_STATE_DIR="+s.state+"\x00") || !strings.Contains(string(environ), "AGENT_READ_RATE=") {
			continue
		}
		body, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(body)) {
			var n int64
			if ok, _ := fmt.Sscanf(line, "rchar: %d", &n); ok == 1 {
				most = max(most, n)
			}
		}
	}
	return most
}
