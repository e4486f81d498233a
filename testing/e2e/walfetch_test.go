package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"agent/testing/harness"
)

// notFound fails the test unless wal-fetch said "not found".
func notFound(t *testing.T, r harness.Result) {
	t.Helper()
	if r.Code != 74 {
		t.Errorf("status %d, expected 74:\n%s", r.Code, r.Stderr)
	}
}

// stops fails the test unless the status makes PostgreSQL stop: 126 and above,
// but not 143, which it takes for its own shutdown.
func stops(t *testing.T, r harness.Result, texts ...string) {
	t.Helper()
	if r.Code < 126 || r.Code == 143 {
		t.Errorf("status %d would end recovery", r.Code)
	}
	for _, text := range texts {
		if !strings.Contains(r.Stderr, text) {
			t.Errorf("%q is not told:\n%s", text, r.Stderr)
		}
	}
}

// TestPromise2WALFetch goes through all that can happen to wal-fetch: only
// where the right repository says that the file does not exist, and it is no
// gap, may PostgreSQL go live.
func TestPromise2WALFetch(t *testing.T) {
	t.Parallel()
	s, segments := walDir(t, 5)
	for _, i := range []int{0, 1, 3} { // a gap at 2
		must(t, s.agent(t, "wal-push", segments[i]))
	}
	name := func(i int) string { return filepath.Base(segments[i]) }
	fetch := func(t *testing.T, env []string, args ...string) harness.Result {
		t.Helper()
		return harness.Agent(t, append(s.elsewhere(), env...), append([]string{"wal-fetch"}, args...)...)
	}
	dest := func(t *testing.T) string { return filepath.Join(harness.TempDir(t), "RECOVERYXLOG") }
	s.fetched(t, name(1), segments[1]) // pins the repository

	t.Run("not found", func(t *testing.T) {
		notFound(t, fetch(t, nil, name(4), dest(t)))
		notFound(t, fetch(t, nil, "00000002.history", dest(t)))
		notFound(t, fetch(t, nil, "00000002"+name(1)[8:], dest(t)))
	})
	t.Run("gap", func(t *testing.T) { stops(t, fetch(t, nil, name(2), dest(t)), name(2), name(3)) })

	bad := []struct {
		name string
		args []string
		env  []string
	}{
		{name: "unknown flag", args: []string{name(4), "x", "--nonsense"}},
		{name: "bad flag value", args: []string{name(4), "x", "--concurrency", "many"}},
		{name: "one argument", args: []string{name(4)}},
		{name: "no argument"},
		{name: "no WAL file", args: []string{"nonsense", "x"}},
		{name: "bad environment", args: []string{name(4), "x"}, env: []string{"AGENT_COMPRESSION=brotli"}},
		{name: "unknown environment", args: []string{name(4), "x"}, env: []string{"AGENT_NONSENSE=1"}},
		{name: "missing configuration", args: []string{name(4), "x", "--config", "/nonexistent/agent.yaml"}},
		{name: "no repository set", args: []string{name(4), "x"}, env: []string{"AGENT_REPOSITORY="}},
		{name: "unknown scheme", args: []string{name(4), "x"}, env: []string{"AGENT_REPOSITORY=gopher://x/y"}},
		{name: "never made", args: []string{name(4), "x", "--repository", filepath.Join(s.base, "nowhere")}},
		{name: "foreign cluster", args: []string{name(4), "x", "--system-identifier", "nonsense"}},
		{name: "no such folder", args: []string{name(1), "/nonexistent/x"}},
		{name: "state in a file", args: []string{name(1), "x"}, env: []string{"AGENT_STATE_DIR=" + s.repo + "/repository.json"}},
	}
	for _, b := range bad {
		t.Run(b.name, func(t *testing.T) { stops(t, fetch(t, b.env, b.args...), "agent: error: ") })
	}
	t.Run("broken configuration", func(t *testing.T) {
		path := filepath.Join(harness.TempDir(t), "agent.yaml")
		writeFile(t, path, []byte("nonsense: 1\n"))
		stops(t, fetch(t, nil, name(4), dest(t), "--config", path), "nonsense")
	})
	t.Run("unknown command", func(t *testing.T) {
		for _, args := range [][]string{{"wal-fech", name(4), "x"}, {"--nonsense"}, {"wal-fetch-"}} {
			if r := harness.Agent(t, s.elsewhere(), args...); r.Code != 127 {
				t.Errorf("%q ends with %d:\n%s", args, r.Code, r.Stderr)
			}
		}
	})
	t.Run("damaged", func(t *testing.T) {
		for _, h := range harms()[1:] {
			t.Run(h.name, func(t *testing.T) {
				path := s.walObject(t, name(1))
				harmed(t, path, h)
				stops(t, fetch(t, nil, name(1), dest(t)), s.key(t, path))
			})
		}
	})
	t.Run("another file's object", func(t *testing.T) {
		body := readFile(t, s.walObject(t, name(0)))
		harmed(t, s.walObject(t, name(1)), harm{do: func([]byte) []byte { return body }})
		stops(t, fetch(t, nil, name(1), dest(t)), name(1))
	})
	for _, n := range []int{1, 4} {
		t.Run("repository moved away", func(t *testing.T) {
			away(t, s.repo)
			stops(t, fetch(t, nil, name(n), dest(t)), s.repo)
		})
		t.Run("empty mount point", func(t *testing.T) {
			away(t, s.repo)
			makeDir(t, s.repo)
			stops(t, fetch(t, nil, name(n), dest(t)), "empty mount point")
			// Also on a host that never saw it.
			stops(t, fetch(t, []string{"AGENT_STATE_DIR=" + dest(t)}, name(n), dest(t)), s.repo)
		})
		t.Run("another repository", func(t *testing.T) {
			away(t, s.repo)
			must(t, harness.Agent(t, []string{"AGENT_REPOSITORY=" + s.repo, "AGENT_STATE_DIR=" + dest(t)}, "repo", "init"))
			stops(t, fetch(t, nil, name(n), dest(t)), "pinned")
		})
		t.Run("permission denied", func(t *testing.T) {
			closed(t, filepath.Join(s.repo, "cluster"))
			stops(t, fetch(t, nil, name(n), dest(t)), "permission denied")
		})
	}
	t.Run("signals", func(t *testing.T) {
		for signal, want := range map[syscall.Signal]int{
			syscall.SIGTERM: 143, // as PostgreSQL sends it when it shuts down
			syscall.SIGQUIT: 134, // the runtime's crash must not exit with 2
			syscall.SIGINT:  130,
			syscall.SIGKILL: 137,
		} {
			t.Run(signal.String(), func(t *testing.T) {
				to := dest(t) // other tests fetch segments of this name, too
				p := harness.StartAgent(t, s.elsewhere(), "wal-fetch", name(1), to, "--bandwidth", "20kB")
				pid := pidOf(t, p, name(1), to)
				await(t, "the transfer", func() bool {
					return ended(p) || openBelow(pid, func(target string) bool { return strings.HasPrefix(target, s.repo+"/cluster/") })
				})
				p.Signal(signal)
				if r := p.Wait(); r.Code != want {
					t.Errorf("status %d, expected %d", r.Code, want)
				}
			})
		}
	})
}

// TestPromise2Standby is wal-fetch beside a standby.signal: it waits for a
// repository, and lets the standby stream what the archive has lost.
func TestPromise2Standby(t *testing.T) {
	t.Parallel()
	outer := t // of what outlives a subtest
	s, segments := walDir(t, 3)
	for _, i := range []int{0, 2} {
		must(t, s.agent(t, "wal-push", segments[i]))
	}
	standby := filepath.Join(harness.TempDir(t), "standby")
	for _, dir := range []string{standby, filepath.Join(standby, "pg_wal"), filepath.Join(standby, "global")} {
		makeDir(t, dir)
	}
	writeFile(t, filepath.Join(standby, "standby.signal"), nil)
	writeFile(t, filepath.Join(standby, "global/pg_control"), readFile(t, filepath.Join(s.DataDir, "global/pg_control")))
	dest := filepath.Join(standby, "pg_wal/RECOVERYXLOG")
	first := filepath.Base(segments[0])
	must(t, harness.Agent(t, s.elsewhere(), "wal-fetch", first, dest)) // pins
	if err := os.Remove(dest); err != nil {
		t.Fatal(err)
	}
	notFound(t, harness.Agent(t, s.elsewhere(), "wal-fetch", filepath.Base(segments[1]), dest))
	for mode, check := range map[string]func(*testing.T, harness.Result){
		"notfound": notFound,
		"stop":     func(t *testing.T, r harness.Result) { t.Helper(); stops(t, r) },
	} {
		t.Run(mode, func(t *testing.T) {
			closed(t, filepath.Join(s.repo, "cluster"))
			check(t, harness.Agent(t, s.elsewhere(), "wal-fetch", first, dest, "--standby-on-outage", mode))
		})
	}
	t.Run("wait", func(t *testing.T) {
		if err := os.Chmod(filepath.Join(s.repo, "cluster"), 0); err != nil {
			t.Fatal(err)
		}
		p := harness.StartAgent(t, s.elsewhere(), "wal-fetch", first, dest)
		awaitLine(t, p, "waiting for the repository")
		if err := os.Chmod(filepath.Join(s.repo, "cluster"), 0o755); err != nil {
			t.Fatal(err)
		}
		must(t, p.Wait())
		if string(readFile(t, dest)) != string(readFile(t, segments[0])) {
			t.Error("other bytes came")
		}
	})
	t.Run("empty mount point", func(t *testing.T) {
		if err := os.Remove(dest); err != nil {
			t.Fatal(err)
		}
		var p *harness.Process
		t.Run("unmounted", func(t *testing.T) {
			away(t, s.repo)
			makeDir(t, s.repo)
			p = harness.StartAgent(outer, s.elsewhere(), "wal-fetch", first, dest)
			awaitLine(t, p, "waiting for the repository")
		})
		must(t, p.Wait())
		if string(readFile(t, dest)) != string(readFile(t, segments[0])) {
			t.Error("other bytes came")
		}
	})
	// What is no outage is not waited for: it would never end.
	t.Run("another repository", func(t *testing.T) {
		away(t, s.repo)
		must(t, harness.Agent(t, []string{"AGENT_REPOSITORY=" + s.repo, "AGENT_STATE_DIR=" + harness.TempDir(t)}, "repo", "init"))
		stops(t, harness.Agent(t, s.elsewhere(), "wal-fetch", first, dest), "pinned")
	})
	t.Run("damaged", func(t *testing.T) {
		path := s.walObject(t, first)
		harmed(t, path, harms()[1])
		stops(t, harness.Agent(t, s.elsewhere(), "wal-fetch", first, dest), s.key(t, path))
	})
}
