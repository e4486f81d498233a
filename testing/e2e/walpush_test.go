package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// copyTo copies a WAL file to a folder that belongs to no cluster, changed by
// edit, and returns its new path.
func copyTo(t *testing.T, path, name string, edit func([]byte) []byte) string {
	t.Helper()
	dest := filepath.Join(harness.TempDir(t), name)
	body := readFile(t, path)
	if edit != nil {
		body = edit(body)
	}
	writeFile(t, dest, body)
	return dest
}

// TestPromise1WALPush holds wal-push to its contract with the archiver: 0 or 1,
// nothing replaced, nothing foreign or torn taken.
func TestPromise1WALPush(t *testing.T) {
	t.Parallel()
	s, segments := walDir(t, 4)
	path := segments[1]
	name := filepath.Base(path)
	must(t, s.agent(t, "wal-push", path))
	before := objects(t, s.repo)

	t.Run("same bytes again", func(t *testing.T) {
		must(t, s.agent(t, "wal-push", path))
		// Also with other settings: the key has neither codec nor recipient.
		must(t, s.agent(t, "wal-push", path, "--compression", "lz4"))
		key := strings.TrimSpace(must(t, harness.Agent(t, nil, "keygen", "-o", filepath.Join(s.base, "other.txt"))).Stdout)
		must(t, s.agent(t, "wal-push", path, "--recipients", key))
	})

	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b[at] ^= 1
			return b
		}
	}
	other, _ := walDir(t, 1)
	random := func(b []byte) []byte {
		for i := range b {
			b[i] = byte(i*i*31 + i>>8)
		}
		return b
	}
	next := filepath.Base(segments[2])
	refusals := []struct {
		name, path string
		args       []string
		texts      []string
	}{
		{"other bytes", copyTo(t, path, name, flip(500_000)), nil, []string{name, "other"}},
		{"other name", copyTo(t, path, next, nil), nil, []string{next, "refused"}},
		{"short", copyTo(t, segments[2], next, func(b []byte) []byte { return b[:len(b)-1] }), nil, []string{next}},
		{"half", copyTo(t, segments[2], next, func(b []byte) []byte { return b[:len(b)/2] }), nil, []string{next}},
		{"long", copyTo(t, segments[2], next, func(b []byte) []byte { return append(b, make([]byte, 8192)...) }), nil, []string{next}},
		{"empty", copyTo(t, segments[2], next, func([]byte) []byte { return nil }), nil, []string{next}},
		{"random", copyTo(t, segments[2], next, random), nil, []string{next}},
		{"torn", copyTo(t, segments[2], next, func(b []byte) []byte {
			copy(b[10*8192:], make([]byte, 8192)) // in the middle of its records
			return b
		}), nil, []string{next}},
		{"higher timeline", copyTo(t, segments[2], "00000002"+next[8:], func(b []byte) []byte {
			b[4] = 9
			return b
		}), nil, []string{"00000002" + next[8:]}},
		{"foreign cluster", segments[2], []string{"--system-identifier", "42"}, []string{"42"}},
		{"no segment", copyTo(t, path, "something", nil), nil, []string{"something", "hint"}},
		{"no such file", filepath.Join(filepath.Dir(path), "0000000100000000000000FF"), nil, []string{"0000000100000000000000FF"}},
		{"folder", filepath.Dir(path), nil, []string{"pg_wal"}},
		{"unknown flag", path, []string{"--nonsense"}, []string{"--nonsense"}},
		{"bad setting", path, []string{"--compression", "brotli"}, []string{"brotli"}},
		{"no repository there", path, []string{"--repository", filepath.Join(s.base, "nowhere")}, []string{"nowhere"}},
		{"unreadable configuration", path, []string{"--config", filepath.Join(s.base, "missing.yaml")}, []string{"missing.yaml"}},
		{"two files", path, []string{segments[2]}, []string{"usage"}},
	}
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			refused(t, s.agent(t, append([]string{"wal-push", r.path}, r.args...)...), 1, r.texts...)
		})
	}
	t.Run("no argument", func(t *testing.T) { refused(t, s.agent(t, "wal-push"), 1) })
	t.Run("foreign segment in our directory", func(t *testing.T) {
		foreign := filepath.Join(other.DataDir, "pg_wal")
		theirs := segmentsOf(t, foreign)[0]
		mine := filepath.Join(filepath.Dir(path), filepath.Base(theirs))
		saved := readFile(t, mine)
		writeFile(t, mine, readFile(t, theirs))
		defer writeFile(t, mine, saved)
		refused(t, s.agent(t, "wal-push", mine), 1, filepath.Base(theirs))
	})
	if diff := cmp.Diff(keys(before), keys(objects(t, s.repo))); diff != "" {
		t.Errorf("a refused file changed the repository:\n%s", diff)
	}
	s.fetched(t, name, path)

	t.Run("repository moved away", func(t *testing.T) {
		away(t, s.repo)
		hinted(t, s.agent(t, "wal-push", segments[2]), 1, s.repo)
		if exists(s.repo) {
			t.Error("wal-push made a repository")
		}
	})
	t.Run("empty mount point", func(t *testing.T) {
		away(t, s.repo)
		makeDir(t, s.repo)
		hinted(t, s.agent(t, "wal-push", segments[2]), 1, s.repo, "empty mount point")
		if got := objects(t, s.repo); len(got) != 0 {
			t.Errorf("something was written: %v", keys(got))
		}
	})
	t.Run("read only", func(t *testing.T) {
		closed(t, filepath.Join(s.repo, "cluster"))
		hinted(t, s.agent(t, "wal-push", segments[2]), 1, "permission denied")
	})
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			p := harness.StartAgent(t, s.env(), "wal-push", segments[3], "--bandwidth", "20kB")
			pid := pidOf(t, p, segments[3])
			await(t, "a half written object", func() bool {
				return ended(p) || openBelow(pid, func(target string) bool { return strings.HasPrefix(target, s.repo+"/cluster/") })
			})
			p.Signal(signal)
			refused(t, p.Wait(), 1, "interrupted")
		})
	}
	if got := objects(t, s.repo); len(got) != len(before) {
		t.Errorf("what was interrupted left something: %v", keys(got))
	}
}

// segmentsOf lists the segments in a pg_wal, in order.
func segmentsOf(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "00000001????????????????"))
	if err != nil || len(found) == 0 {
		t.Fatalf("segments in %s: %q (%v)", dir, found, err)
	}
	slices.Sort(found)
	return found
}

// away moves a folder away for the time of a subtest.
func away(t *testing.T, path string) {
	t.Helper()
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	})
}

// closed takes all permissions from a folder and all below it for the time of
// a subtest.
func closed(t *testing.T, path string) {
	t.Helper()
	chmod := func(mode os.FileMode) {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod(0)
	t.Cleanup(func() { chmod(0o755) })
}

// TestPromise1OnePushWins lets many writers push differing files of one name:
// one of them wins, all others fail, and the winner's bytes are what is kept.
func TestPromise1OnePushWins(t *testing.T) {
	t.Parallel()
	s, segments := walDir(t, 2)
	name := filepath.Base(segments[1])
	for round := range 3 {
		var paths []string
		var running []*harness.Process
		for i := range 6 {
			path := copyTo(t, segments[1], name, func(b []byte) []byte {
				b[300_000+i] ^= byte(1 + round)
				return b
			})
			paths = append(paths, path)
			running = append(running, harness.StartAgent(t, s.env(), "wal-push", path))
		}
		var winner string
		for i, p := range running {
			switch r := p.Wait(); {
			case r.Code == 0 && winner == "":
				winner = paths[i]
			case r.Code == 0:
				t.Errorf("a second writer was told that its file is archived")
			default:
				refused(t, r, 1, name)
			}
		}
		if winner == "" {
			t.Fatal("nobody won")
		}
		s.fetched(t, name, winner)
		if err := os.Remove(s.walObject(t, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPromise1FullDisk fills the file system of the repository: wal-push says
// so, leaves nothing, and succeeds when there is room.
func TestPromise1FullDisk(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("run it as root: it mounts a small file system")
	}
	s, segments := walDir(t, 2)
	small := filepath.Join(harness.TempDir(t), "small")
	makeDir(t, small)
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=256k,mode=777"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	repo := filepath.Join(small, "repo")
	env := append(s.env(), "AGENT_REPOSITORY="+repo)
	must(t, harness.Agent(t, env, "repo", "init"))
	before := keys(objects(t, repo))
	r := harness.Agent(t, env, "wal-push", segments[0], "--compression", "none")
	hinted(t, r, 1, "no space left")
	if diff := cmp.Diff(before, keys(objects(t, repo))); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
	// Backups meet it, too, with their own status.
	s.AppendConf(t, map[string]string{"archive_mode": "on", "archive_command": "false"})
	s.Restart(t)
	r = harness.Agent(t, env, "backup-push")
	hinted(t, r, 12, "no space left")
	if got := must(t, harness.Agent(t, env, "backup-list", "--json")).Stdout; strings.TrimSpace(got) != "[]" {
		t.Errorf("there are backups: %s", got)
	}
	s.Kill(t)
	if err := syscall.Mount("tmpfs", small, "tmpfs", syscall.MS_REMOUNT, "size=16m,mode=777"); err != nil {
		t.Fatal(err)
	}
	must(t, harness.Agent(t, env, "wal-push", segments[0], "--compression", "none"))
}
