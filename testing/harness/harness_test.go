package harness

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryMajor(t *testing.T) {
	for _, major := range Majors() {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			var base, socketDir string
			var pid int
			t.Run("life", func(t *testing.T) {
				begin := time.Now()
				s := Start(t, Options{Major: major})
				t.Logf("initdb and start: %v", time.Since(begin).Round(time.Millisecond))
				base, socketDir = s.base, s.SocketDir
				if got := s.QueryInt(t, "SELECT current_setting('server_version_num')::int / 10000"); got != int64(major) {
					t.Fatalf("server is of major %d", got)
				}
				s.Exec(t, "CREATE TABLE a (i int); INSERT INTO a SELECT generate_series(1, 1000)")
				begin = time.Now()
				s.Restart(t)
				t.Logf("stop and start: %v", time.Since(begin).Round(time.Millisecond))
				s.Exec(t, "INSERT INTO a VALUES (0)")
				begin = time.Now()
				s.Kill(t)
				s.Restart(t)
				t.Logf("crash and recover: %v", time.Since(begin).Round(time.Millisecond))
				if got := s.QueryInt(t, "SELECT count(*) FROM a"); got != 1001 {
					t.Fatalf("%d rows", got)
				}
				if got := s.QueryString(t, "SHOW data_checksums"); got != "on" {
					t.Fatalf("data_checksums is %s", got)
				}
				begin = time.Now()
				s.Stop(t)
				t.Logf("stop: %v", time.Since(begin).Round(time.Millisecond))
				if s.Running() {
					t.Fatal("the server runs after Stop")
				}
				s.Restart(t) // it is the clean-up's turn to end it
				pid = s.proc.cmd.Process.Pid
			})
			gone(t, base, pid)
			gone(t, socketDir, pid)
		})
	}
}

// gone fails the test if a server's folder or any process of it exists.
func gone(t *testing.T, dir string, pid int) {
	t.Helper()
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	if pids := within(dir); len(pids) != 0 {
		t.Errorf("processes %v still work in %s", pids, dir)
	}
	// An ended process that nobody has waited for yet has no arguments.
	if args := commandLine(pid); args != "" {
		t.Errorf("process %d still runs: %s", pid, args)
	}
}

func TestOptions(t *testing.T) {
	dir := TempDir(t)
	s := Start(t, Options{
		NoChecksums:  true,
		NoFsync:      true,
		WALSegSizeMB: 1,
		DataDir:      filepath.Join(dir, "db"),
		InitOnly:     true,
		Conf:         map[string]string{"cluster_name": "it's", "archive_mode": "on", "archive_command": `printf %s "$PROBE" > mark`},
		Env:          []string{"PROBE=from the environment"},
	})
	if s.Running() {
		t.Fatal("the server runs in spite of InitOnly")
	}
	s.AppendConf(t, map[string]string{"work_mem": "1234kB"})
	s.Restart(t)
	for name, want := range map[string]string{
		"cluster_name": "it's", "data_checksums": "off", "fsync": "off",
		"wal_segment_size": "1MB", "work_mem": "1234kB", "data_directory": filepath.Join(dir, "db"),
	} {
		if got := s.QueryString(t, "SELECT current_setting($1)", name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	s.Exec(t, "CREATE TABLE a (i int)", "SELECT pg_switch_wal()")
	s.Stop(t) // archives what is left
	got, err := os.ReadFile(filepath.Join(dir, "db", "mark"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("from the environment", string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestChecksumsOffOn18(t *testing.T) {
	s := Start(t, Options{Major: 18, NoChecksums: true, NoFsync: true})
	if got := s.QueryString(t, "SHOW data_checksums"); got != "off" {
		t.Fatalf("data_checksums is %s", got)
	}
}

func TestTools(t *testing.T) {
	s := Start(t, Options{Major: 17, NoFsync: true})
	got := s.Run(t, "psql", "-XAtc", "SELECT current_user, current_setting('port')")
	if want := fmt.Sprintf("postgres|%d\n", s.Port); got != want {
		t.Errorf("psql printed %q, not %q", got, want)
	}
	s.Run(t, "pgbench", "-iqs1")
	if got := s.QueryInt(t, "SELECT count(*) FROM pgbench_accounts"); got != 100_000 {
		t.Errorf("%d accounts", got)
	}
	r := record(t, func(t testing.TB) { s.Run(t, "psql", "-Xc", "SELECT 1/0") })
	if !r.failed || !strings.Contains(r.text(), "division by zero") {
		t.Errorf("a failed program is reported as %q", r.text())
	}
}

// copyStopped copies a stopped server's directory, as a restore would make it.
func copyStopped(t *testing.T, s *Server) string {
	t.Helper()
	dir := filepath.Join(TempDir(t), "copy")
	if err := os.CopyFS(dir, os.DirFS(s.DataDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	Own(t, dir)
	return dir
}

func TestRecovery(t *testing.T) {
	for _, major := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			archive := TempDir(t)
			s := Start(t, Options{Major: major, NoFsync: true, Conf: map[string]string{
				"archive_mode": "on", "archive_command": "cp %p " + archive + "/%f",
				"restore_command": "cp " + archive + "/%f %p",
			}})
			s.Exec(t, "CREATE TABLE a (i int)")
			s.Stop(t)
			signal := func() string {
				dir := copyStopped(t, s)
				if err := os.WriteFile(filepath.Join(dir, "recovery.signal"), nil, 0o644); err != nil {
					t.Fatal(err)
				}
				return dir
			}
			ended, paused, refused := signal(), signal(), signal()
			s.Restart(t)
			s.Exec(t, "INSERT INTO a VALUES (1)", "SELECT pg_create_restore_point('here')", "INSERT INTO a VALUES (2)", "SELECT pg_switch_wal()")
			s.Stop(t)

			off := map[string]string{"archive_mode": "off"}
			r := StartExisting(t, ended, major, off)
			if r.WaitRecovered(t) {
				t.Error("recovery without a target was paused")
			}
			if got := r.QueryInt(t, "SELECT count(*) FROM a"); got != 2 {
				t.Errorf("%d rows after recovery", got)
			}

			target := map[string]string{"archive_mode": "off", "recovery_target_name": "here", "recovery_target_action": "pause"}
			r = StartExisting(t, paused, major, target)
			if !r.WaitRecovered(t) {
				t.Error("recovery to a target was not paused")
			}
			if got := r.QueryInt(t, "SELECT count(*) FROM a"); got != 1 {
				t.Errorf("%d rows at the target", got)
			}
			r.Exec(t, "SELECT pg_wal_replay_resume()")
			if r.WaitRecovered(t) {
				t.Error("recovery was paused again")
			}

			target["recovery_target_name"] = "nowhere"
			r, err := TryStart(t, refused, major, target)
			if err == nil { // it may take connections before it sees the end of WAL
				_, err = r.AwaitRecovery(t)
				if code := r.WaitExit(t); code == 0 {
					t.Error("the server ended with status 0")
				}
			}
			const want = "recovery ended before configured recovery target was reached"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("an unreachable target is reported as %v", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Run("settings", func(t *testing.T) {
		s := Start(t, Options{InitOnly: true})
		_, err := TryStart(t, s.DataDir, DefaultMajor, map[string]string{"shared_buffers": "nonsense"})
		if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "shared_buffers"`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("missing server", func(t *testing.T) {
		t.Setenv("AGENT_TEST_CACHE", t.TempDir())
		r := record(t, func(t testing.TB) { Start(t, Options{Major: 99}) })
		if want := "postgres of PostgreSQL 99 is not installed: run " + installAll; r.text() != want {
			t.Errorf("got %q, not %q", r.text(), want)
		}
	})
	t.Run("failed test", func(t *testing.T) {
		var s *Server
		r := record(t, func(t testing.TB) {
			s = Start(t, Options{})
			t.Errorf("on purpose")
		})
		if !strings.Contains(r.text(), "database system is ready to accept connections") {
			t.Errorf("the log is not shown: %s", r.text())
		}
		gone(t, s.base, s.proc.cmd.Process.Pid)
	})
}

func TestPortTaken(t *testing.T) {
	s := Start(t, Options{})
	other, err := newServer(t, "", DefaultMajor, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	other.initdb(Options{})
	other.Port = s.Port
	if err := other.start(); err != nil {
		t.Fatal(err)
	}
	if other.Port == s.Port {
		t.Fatal("two servers on one port")
	}
	if got := other.QueryInt(t, "SELECT current_setting('port')::int"); got != int64(other.Port) {
		t.Errorf("the server is on port %d, not %d", got, other.Port)
	}
}

func TestProgram(t *testing.T) {
	path, err := build("testing/harness/testdata/probe")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGHOST", "must not reach the program")
	s := Start(t, Options{InitOnly: true})
	got := startProgram(t, s.Env(), path, "74").Wait()
	if got.Code != 74 || got.Stderr != "args=[\"74\"]\n" {
		t.Errorf("got %+v", got)
	}
	lines := strings.Split(got.Stdout, "\n")
	cred, err := credential()
	if err != nil {
		t.Fatal(err)
	}
	uid := uint32(os.Getuid())
	if cred != nil {
		uid = cred.Uid
	}
	for _, want := range append(s.Env(), fmt.Sprintf("uid=%d", uid)) {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is not in %q", want, lines)
		}
	}
	if strings.Contains(got.Stdout, "must not reach") {
		t.Error("the environment of the test reached the program")
	}

	hanging := startProgram(t, nil, path, "hang")
	hanging.Signal(syscall.SIGKILL)
	if got := hanging.Wait(); got.Code != 128+9 {
		t.Errorf("a killed program ended with %d", got.Code)
	}
	hanging.Signal(syscall.SIGKILL) // too late, and no failure
}

func TestLeftBehind(t *testing.T) {
	var dir string
	var pids []int
	r := record(t, func(t testing.TB) {
		dir = TempDir(t)
		shell := startProgram(t, nil, "/bin/sh", "-c", "cd "+dir+" && sleep 1000 & echo started")
		if got := shell.Wait(); got.Stdout != "started\n" {
			t.Errorf("got %+v", got)
		}
		for len(pids) == 0 { // the child has yet to change its folder
			pids = within(dir)
		}
	})
	if r.failed || !strings.Contains(r.text(), "sleep 1000") {
		t.Errorf("reported %q", r.text())
	}
	gone(t, dir, pids[0])
}

// TestKilled shows that servers end with a test process that is killed, which
// can clean up nothing.
func TestKilled(t *testing.T) {
	if os.Getenv("HARNESS_VICTIM") != "" {
		s := Start(t, Options{})
		fmt.Printf("victim %d %s\n", s.proc.cmd.Process.Pid, s.base)
		select {} // to be killed
	}
	victim := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$", "-test.v")
	victim.Env = append(os.Environ(), "HARNESS_VICTIM=1")
	stdout, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var base string
	var printed strings.Builder
	for lines := bufio.NewScanner(stdout); base == "" && lines.Scan(); {
		fmt.Fprintln(&printed, lines.Text())
		if _, err := fmt.Sscanf(lines.Text(), "victim %d %s", &pid, &base); err != nil {
			base = ""
		}
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait() // it was killed
	if base == "" {
		t.Fatalf("the victim started no server:\n%s", printed.String())
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	// The kernel kills the server; its own children see that and leave.
	deadline := time.Now().Add(killLimit)
	for len(within(base)) != 0 {
		if time.Now().After(deadline) {
			t.Fatalf("processes %v outlived the test process", within(base))
		}
		time.Sleep(pollEvery)
	}
	// A killed server leaves shared memory behind; the next one on its directory
	// takes it over and removes it. The lock file goes first: where nobody has
	// waited for the killed process, its number still seems to be in use.
	if err := os.Remove(filepath.Join(base, "data", "postmaster.pid")); err != nil {
		t.Fatal(err)
	}
	StartExisting(t, filepath.Join(base, "data"), DefaultMajor, nil).Stop(t)
}
