package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"agent/testing/harness"
)

// processes lists those whose command line has all the texts.
func processes(t *testing.T, texts ...string) (pids []int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		ours := true
		for _, text := range texts {
			ours = ours && strings.Contains(string(line), text)
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if ours && err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killAll kills those that processes lists, and tells how many there were.
func killAll(t *testing.T, texts ...string) (killed int) {
	t.Helper()
	for _, pid := range processes(t, texts...) {
		err := syscall.Kill(pid, syscall.SIGKILL)
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		if err == nil {
			killed++
		}
	}
	return killed
}

// segmentsMade writes WAL of about n segments of 1 MiB, and ends the last one.
func (s *site) segmentsMade(t *testing.T, n int) {
	t.Helper()
	s.Exec(t, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP
		PERFORM pg_logical_emit_message(false, 'e2e', repeat(md5(i::text), 30000)); END LOOP; END $$`, n), "SELECT pg_switch_wal()")
}

func (s *site) waiting(t *testing.T) int {
	t.Helper()
	ready, err := filepath.Glob(filepath.Join(s.DataDir, "pg_wal", "archive_status", "*.ready"))
	if err != nil {
		t.Fatal(err)
	}
	return len(ready)
}

// TestBacklogKilled works off a backlog while its processes are killed again and
// again: every segment arrives, as it is.
func TestBacklogKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1, Conf: map[string]string{"wal_keep_size": "2GB", "max_wal_size": "4GB"}}})
	command := s.QueryString(t, "SHOW archive_command")
	s.Exec(t, "ALTER SYSTEM SET archive_command = 'false'", "SELECT pg_reload_conf()")
	s.segmentsMade(t, 150)
	before := s.waiting(t)
	if before < 120 {
		t.Fatalf("only %d files wait", before)
	}
	// So slow that there is something to kill.
	s.Exec(t, "ALTER SYSTEM SET archive_command = '"+command+" --bandwidth 40MB --compression none'", "SELECT pg_reload_conf()")
	killed := 0
	for round := range 3 {
		limit := before - 30*(round+1)
		await(t, "the process that works a backlog off", func() bool {
			return s.waiting(t) <= limit && len(processes(t, "wal-push-worker", s.DataDir)) > 0 || s.waiting(t) == 0
		})
		killed += killAll(t, "wal-push-worker", s.DataDir)
	}
	if killed < 2 {
		t.Errorf("only %d processes were there to be killed", killed)
	}
	s.Exec(t, "ALTER SYSTEM SET archive_command = '"+command+"'", "SELECT pg_reload_conf()")
	await(t, "the end of the backlog", func() bool { return s.waiting(t) == 0 })
	for _, path := range segmentsOf(t, filepath.Join(s.DataDir, "pg_wal")) {
		if name := filepath.Base(path); exists(filepath.Join(s.DataDir, "pg_wal", "archive_status", name+".done")) {
			s.fetched(t, name, path)
		}
	}
	if n := s.QueryInt(t, "SELECT count(*) FROM pg_stat_archiver WHERE last_failed_time > last_archived_time"); n != 0 {
		t.Error("the archiver fails")
	}
	s.Stop(t)
	await(t, "the end of the worker", func() bool { return len(processes(t, "wal-push-worker", s.DataDir)) == 0 })
}

// TestRecoveryAhead recovers with segments fetched ahead, undisturbed and with
// the process that fetches killed: the result is the same, and nothing is left.
func TestRecoveryAhead(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1}, sealed: true})
	s.Exec(t, "CREATE TABLE a (i int, filler text)")
	s.push(t)
	s.Exec(t, "INSERT INTO a SELECT g, md5(g::text) || repeat('x', 300) FROM generate_series(1, 300000) g")
	s.switchWAL(t)
	s.Stop(t)
	archived := len(segmentsIn(t, s.repo))
	if archived < 100 {
		t.Fatalf("only %d segments", archived)
	}
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", kill), func(t *testing.T) {
			dir := fresh(t)
			must(t, s.restore(t, dir))
			c, err := startQuickly(t, dir, s.Major, "AGENT_LOG_LEVEL=debug", "AGENT_IDENTITY_FILE="+s.identity)
			if err != nil {
				t.Fatal(err)
			}
			if kill {
				await(t, "the process that fetches ahead", func() bool { return killAll(t, "wal-prefetch", dir) > 0 })
			}
			c.WaitRecovered(t)
			if got := c.QueryInt(t, "SELECT count(*) FROM a"); got != 300000 {
				t.Errorf("%d rows", got)
			}
			alone := strings.Count(c.Log(), "msg=fetched")
			if !kill && alone > archived/2 {
				t.Errorf("%d of %d segments were not fetched ahead", alone, archived)
			}
			await(t, "the end of the process that fetches ahead", func() bool { return len(processes(t, "wal-prefetch", dir)) == 0 })
			left, err := filepath.Glob(filepath.Join(dir, "pg_wal", ".agent-*"))
			if err != nil || len(left) != 0 {
				t.Errorf("left in pg_wal: %v (%v)", left, err)
			}
		})
	}
}

// TestRecoveryAheadInContainer leaves no process to a server that is the first
// one of its container, which would take its end for a crash of its own.
func TestRecoveryAheadInContainer(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1}})
	name := s.push(t).StartWAL
	dir, state := fresh(t), filepath.Join(s.base, "container")
	must(t, s.restore(t, dir))
	pid, log := filepath.Join(dir, "postmaster.pid"), filepath.Join(state, "log", "wal-prefetch.log")
	fetch := func() {
		must(t, harness.Agent(t, append(s.elsewhere(), "AGENT_STATE_DIR="+state), "wal-fetch", name, filepath.Join(dir, "pg_wal", "RECOVERYXLOG")))
	}
	writeFile(t, pid, []byte("1\n"))
	fetch()
	if _, err := os.Stat(log); !os.IsNotExist(err) {
		t.Errorf("a process was started: %v", err)
	}
	writeFile(t, pid, []byte(strconv.Itoa(os.Getpid())+"\n"))
	fetch()
	if _, err := os.Stat(log); err != nil {
		t.Errorf("no process was started: %v", err)
	}
	await(t, "the end of the process that fetches ahead", func() bool { return killAll(t, "wal-prefetch", dir) == 0 })
}

// startQuickly starts a server that takes connections while it recovers.
func startQuickly(t *testing.T, dir string, major int, env ...string) (*harness.Server, error) {
	t.Helper()
	return harness.TryStart(t, dir, major, map[string]string{"hot_standby": "on"}, env...)
}
