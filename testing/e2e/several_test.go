package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// pair is a site with two repositories: near, which is required, and far, which
// is not. What site does with its repository it does with near.
type pair struct {
	*site
	far    string
	config string
}

// newPair makes both repositories and a server that archives into them.
func newPair(t *testing.T, sealed bool) *pair {
	t.Helper()
	base := harness.TempDir(t)
	p := &pair{
		site: &site{base: base, repo: filepath.Join(base, "near"), state: filepath.Join(base, "state")},
		far:  filepath.Join(base, "far"), config: filepath.Join(base, "agent.yaml"),
	}
	lines := []string{"repositories:", "  - {name: near, url: " + p.repo + "}", "  - {name: far, url: " + p.far + ", required: false}"}
	if sealed {
		p.identity = filepath.Join(base, "identity.txt")
		p.recipient = strings.TrimSpace(must(t, harness.Agent(t, nil, "keygen", "-o", p.identity)).Stdout)
		lines = append(lines, "recipients: "+p.recipient)
	}
	writeFile(t, p.config, []byte(strings.Join(lines, "\n")+"\n"))
	p.settings = []string{"AGENT_CONFIG=" + p.config, "AGENT_STATE_DIR=" + p.state}
	must(t, harness.Agent(t, p.settings, "repo", "init"))
	p.Server = harness.Start(t, harness.Options{NoFsync: true, WALSegSizeMB: 1, Conf: map[string]string{
		"archive_mode":    "on",
		"archive_command": fmt.Sprintf("%s wal-push %%p --config %s --state-dir %s", harness.AgentBinary(t), p.config, p.state),
	}})
	return p
}

// beyond is the environment of the agent on another host that knows both
// repositories.
func (p *pair) beyond() []string {
	env := []string{"AGENT_CONFIG=" + p.config, "AGENT_STATE_DIR=" + filepath.Join(p.base, "beyond")}
	if p.identity != "" {
		env = append(env, "AGENT_IDENTITY_FILE="+p.identity)
	}
	return env
}

// alone is the environment of the agent on another host that knows one
// repository.
func (p *pair) alone(repo string) []string {
	return append(p.beyond(), "AGENT_REPOSITORY="+repo, "AGENT_STATE_DIR="+filepath.Join(p.base, "alone"))
}

// gone moves a repository away until the returned function is called.
func gone(t *testing.T, path string) (back func()) {
	t.Helper()
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(path, path+".away")
	return func() { move(path+".away", path) }
}

// later lets the time pass for which a repository that was down is left alone.
func (p *pair) later(t *testing.T) {
	t.Helper()
	notes, err := filepath.Glob(filepath.Join(p.state, "debts", "*.suspended"))
	if err != nil || len(notes) == 0 {
		t.Fatalf("no repository is left alone: %v", err)
	}
	for _, note := range notes {
		if err := os.Remove(note); err != nil {
			t.Fatal(err)
		}
	}
}

// copies are the objects of a repository without what is each one's own.
func copies(t *testing.T, repo string) map[string]string {
	t.Helper()
	all := objects(t, repo)
	maps.DeleteFunc(all, func(key, _ string) bool {
		return key == "repository.json" || strings.Contains(key, "/claim/") || strings.Contains(key, ".tmp-")
	})
	return all
}

// idle tells whether no agent repo sync runs.
func (p *pair) idle(t *testing.T) bool {
	t.Helper()
	f, err := os.Open(filepath.Join(p.state, "lock", "repo-sync"))
	if errors.Is(err, os.ErrNotExist) {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil
}

// owes tells whether the state directory notes that something is missing.
func (p *pair) owes(t *testing.T) bool {
	t.Helper()
	lists, err := filepath.Glob(filepath.Join(p.state, "debts", "*.list"))
	if err != nil {
		t.Fatal(err)
	}
	return len(lists) > 0
}

// same fails the test unless both repositories hold the same.
func (p *pair) same(t *testing.T) {
	t.Helper()
	if diff := cmp.Diff(copies(t, p.repo), copies(t, p.far)); diff != "" {
		log, _ := os.ReadFile(filepath.Join(p.state, "log", "repo-sync.log")) // for the message alone
		t.Fatalf("near and far differ:\n%.2000s\n%s", diff, log)
	}
}

// restored restores the newest backup and lets it recover to its end.
func (p *pair) restored(t *testing.T, env []string, rows int64) {
	t.Helper()
	dir := fresh(t)
	must(t, harness.Agent(t, env, "backup-fetch", dir))
	srv := harness.StartExisting(t, dir, p.Major, nil)
	srv.WaitRecovered(t)
	if got := srv.QueryInt(t, "SELECT count(*) FROM a"); got != rows {
		t.Errorf("%d rows, not %d", got, rows)
	}
	srv.Stop(t)
}

// TestSeveralCatchUp keeps the best-effort repository away for several pushes
// and a whole backup. When it is back the next push alone brings everything
// there.
func TestSeveralCatchUp(t *testing.T) {
	t.Parallel()
	for name, sealed := range map[string]bool{"plain": false, "sealed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, sealed)
			p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
			p.switchWAL(t)
			p.same(t)

			back := gone(t, p.far)
			for range 3 {
				p.Exec(t, "INSERT INTO a SELECT 1 + max(i) FROM a")
				p.switchWAL(t)
			}
			r := must(t, p.agent(t, "backup-push"))
			if !strings.Contains(r.Stdout, "not yet in: far") {
				t.Errorf("it is not told:\n%s%s", r.Stdout, r.Stderr)
			}
			p.Exec(t, "INSERT INTO a SELECT 1 + max(i) FROM a")
			p.switchWAL(t)
			if !p.owes(t) {
				t.Fatal("nothing is noted")
			}
			back()
			p.later(t)
			p.Exec(t, "INSERT INTO a SELECT 1 + max(i) FROM a")
			p.switchWAL(t)
			await(t, "far to be up to date", func() bool { return !p.owes(t) && p.idle(t) })
			p.Stop(t)
			await(t, "the end of what pushes have started", func() bool { return p.idle(t) })
			p.same(t)
			p.restored(t, p.alone(p.far), 6)
		})
	}
}

// TestSeveralRequiredDown keeps the required repository away: nothing is
// archived, and nothing is lost.
func TestSeveralRequiredDown(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	p.push(t)
	back := gone(t, p.repo)
	name := p.QueryString(t, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	p.Exec(t, "INSERT INTO a VALUES (2)", "SELECT pg_switch_wal()")
	await(t, "a failure to archive", func() bool {
		return p.QueryInt(t, "SELECT failed_count FROM pg_stat_archiver") > 0
	})
	if got := p.QueryString(t, "SELECT coalesce(max(last_archived_wal), '') FROM pg_stat_archiver"); got >= name {
		t.Errorf("%s counts as archived", got)
	}
	r := p.agent(t, "wal-push", filepath.Join(p.DataDir, "pg_wal", name))
	hinted(t, r, 1, "near")
	back()
	p.awaitArchived(t, name)
	p.Stop(t)
	await(t, "the end of what pushes have started", func() bool { return p.idle(t) })
	p.same(t)
	p.restored(t, p.alone(p.repo), 2)
}

// TestSeveralDetached looks at the sync that a push has started: it holds
// nothing of the server's, and killing it leaves no backup that is not whole.
func TestSeveralDetached(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)",
		"CREATE TABLE big AS SELECT md5(g::text) || md5((g + 1)::text) AS m FROM generate_series(1, 100000) g")
	back := gone(t, p.far)
	b := p.push(t)
	p.Stop(t)
	back()
	p.later(t)

	// Slow, so that it can be watched.
	slow := append(p.env(), "AGENT_BANDWIDTH=100kB")
	history := filepath.Join(p.base, "00000001.history")
	writeFile(t, history, []byte("1\t0/1000000\tno recovery target specified\n"))
	history2 := filepath.Join(p.base, "00000002.history")
	if err := os.Rename(history, history2); err != nil {
		t.Fatal(err)
	}
	id := filepath.Base(p.one(t, "cluster/*"))
	inherited, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	output, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	push := harness.Command(t.Context(), t, p.base, slow, harness.AgentBinary(t), "wal-push", "--config", "agent.yaml", "--system-identifier", strings.TrimLeft(id, "0"), history2)
	push.ExtraFiles = []*os.File{theirs}
	push.Stdout, push.Stderr = write, write
	if err := push.Run(); err != nil {
		told, _ := io.ReadAll(output) // what came before the failure
		t.Fatalf("%v\n%s", err, told)
	}
	if err := errors.Join(theirs.Close(), write.Close()); err != nil {
		t.Fatal(err)
	}
	pid := 0
	await(t, "the sync that the push has started", func() bool {
		pid = syncOf(t, p.config)
		return pid != 0 && !p.idle(t)
	})
	// Both end although the sync goes on: nobody else holds them.
	for _, pipe := range []*os.File{inherited, output} {
		if _, err := io.ReadAll(pipe); err != nil {
			t.Fatal(err)
		}
	}
	if syncOf(t, p.config) != pid {
		t.Fatal("it has ended before it was looked at")
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	for what, want := range map[string]string{
		"cwd": "/", "fd/0": "/dev/null",
		"fd/1": filepath.Join(p.state, "log", "repo-sync.log"), "fd/2": filepath.Join(p.state, "log", "repo-sync.log"),
	} {
		if got, err := os.Readlink(proc + what); err != nil || got != want {
			t.Errorf("%s of the sync is %q (%v)", what, got, err)
		}
	}
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if fields[3] != strconv.Itoa(pid) {
		t.Errorf("it is in session %s", fields[3])
	}
	// Meanwhile another push starts no second one.
	must(t, harness.Agent(t, p.env(), "wal-push", "--system-identifier", strings.TrimLeft(id, "0"), history2))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "its end", func() bool { return p.idle(t) })
	if found, err := filepath.Glob(filepath.Join(p.far, "cluster/*/backup/*/backup.json")); err != nil || len(found) != 0 {
		t.Fatalf("a backup appeared: %q, %v", found, err)
	}
	r := must(t, p.agent(t, "repo", "sync", "--pending"))
	if !strings.Contains(r.Stdout, "backup "+b.Name) {
		t.Errorf("told:\n%s", r.Stdout)
	}
	p.same(t)
}

// syncOf is the process id of a sync with this configuration, or 0.
func syncOf(t *testing.T, config string) int {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		args := strings.Split(string(raw), "\x00")
		if slices.Contains(args, "sync") && slices.Contains(args, "--config="+config) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path))) // the pattern wants digits
			return pid
		}
	}
	return 0
}

// TestSeveralKilledSync kills repo sync again and again: what it shows is
// whole, and in the end everything is there.
func TestSeveralKilledSync(t *testing.T) {
	t.Parallel()
	p := newPair(t, true)
	p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	back := gone(t, p.far)
	p.push(t)
	for range 5 {
		p.Exec(t, "INSERT INTO a SELECT 1 + max(i) FROM a")
		p.switchWAL(t)
	}
	p.Stop(t)
	back()
	kills := 0
	for {
		before := len(copies(t, p.far))
		run := harness.StartAgent(t, append(p.env(), "AGENT_CONCURRENCY=1", "AGENT_BANDWIDTH=500kB"), "repo", "sync", "far")
		await(t, "an object in far", func() bool { return len(copies(t, p.far)) > before || ended(run) })
		run.Signal(syscall.SIGKILL)
		r := run.Wait()
		if r.Code == 0 {
			break
		}
		kills++
		shown, err := filepath.Glob(filepath.Join(p.far, "cluster/*/backup/*/backup.json"))
		if err != nil {
			t.Fatal(err)
		}
		if len(shown) > 0 {
			must(t, harness.Agent(t, p.alone(p.far), "backup-fetch", fresh(t)))
		}
	}
	if kills < 3 {
		t.Errorf("only %d kills", kills)
	}
	p.same(t)
	p.restored(t, p.alone(p.far), 6)
}

// TestSeveralDamaged damages and removes every object of one repository in
// turn: it is read from the other, and that is told.
func TestSeveralDamaged(t *testing.T) {
	t.Parallel()
	p := newPair(t, true)
	p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	b := p.push(t)
	for range 2 {
		p.Exec(t, "INSERT INTO a SELECT 1 + max(i) FROM a")
		p.switchWAL(t)
	}
	p.Stop(t)
	p.same(t)
	must(t, harness.Agent(t, p.beyond(), "backup-fetch", fresh(t)))

	var paths []string
	for key := range objects(t, p.backupDir(t, b.Name)) {
		paths = append(paths, filepath.Join(p.backupDir(t, b.Name), key))
	}
	slices.Sort(paths)
	if len(paths) < 5 {
		t.Fatalf("the objects are %q", paths)
	}
	for _, path := range paths {
		for _, h := range harms()[:2] {
			t.Run(strings.TrimPrefix(path, p.backupDir(t, b.Name)+"/")+"/"+h.name, func(t *testing.T) {
				harmed(t, path, h)
				r := must(t, harness.Agent(t, p.beyond(), "backup-fetch", fresh(t), b.Name))
				for _, want := range []string{"level=WARN", "another copy was read", p.key(t, path), "repository=near", "read_from=file://" + p.far} {
					if !strings.Contains(r.Stderr, want) {
						t.Errorf("%q is not told:\n%s", want, r.Stderr)
					}
				}
			})
		}
	}
	segment := segmentsIn(t, p.repo)
	for _, h := range harms() {
		t.Run("WAL/"+h.name, func(t *testing.T) {
			path := segment[len(segment)-1]
			harmed(t, path, h)
			dest := filepath.Join(harness.TempDir(t), "RECOVERYXLOG")
			r := must(t, harness.Agent(t, p.beyond(), "wal-fetch", filepath.Base(path), dest))
			if !strings.Contains(r.Stderr, "another copy was read") || !exists(dest) {
				t.Errorf("told:\n%s", r.Stderr)
			}
		})
	}
	t.Run("all of it", func(t *testing.T) {
		// Damage to everything at once, and recovery by a server.
		for _, path := range slices.Concat(paths, segment) {
			harmed(t, path, harms()[1])
		}
		p.restored(t, p.beyond(), 3)
	})
	// Without the required repository nobody can say where the WAL ends, but
	// recovery to a moment before that needs nobody to.
	for name, change := range map[string]func(t *testing.T){
		"away":    func(*testing.T) {},
		"emptied": func(t *testing.T) { makeDir(t, p.repo) },
	} {
		t.Run(name, func(t *testing.T) {
			away(t, p.repo)
			change(t)
			dir := fresh(t)
			r := must(t, harness.Agent(t, p.beyond(), "backup-fetch", dir, "--target-immediate"))
			if !strings.Contains(r.Stderr, "a repository cannot be used") {
				t.Errorf("told:\n%s", r.Stderr)
			}
			// PostgreSQL would look ahead, beyond the target.
			srv := harness.StartExisting(t, dir, p.Major, map[string]string{"recovery_prefetch": "off"})
			if !srv.WaitRecovered(t) {
				t.Error("it did not stop at the target")
			}
			if got := srv.QueryInt(t, "SELECT count(*) FROM a"); got != 1 {
				t.Errorf("%d rows, not 1", got)
			}
			srv.Stop(t)
			// Nor does it go live where it cannot know that the WAL ends.
			dir = fresh(t)
			must(t, harness.Agent(t, p.beyond(), "backup-fetch", dir))
			c, err := harness.TryStart(t, dir, p.Major, nil)
			if err == nil { // it took connections first
				_, err = c.AwaitRecovery(t)
				c.WaitExit(t)
			}
			if err == nil {
				t.Error("the server went live without asking the required repository")
			}
		})
	}
}

// TestSeveralCopy copies a repository, and one backup of it, without its
// server, and restores from the copies.
func TestSeveralCopy(t *testing.T) {
	t.Parallel()
	p := newPair(t, true)
	p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	first := p.push(t)
	p.Exec(t, "INSERT INTO a VALUES (2)")
	second := p.push(t)
	p.Exec(t, "INSERT INTO a VALUES (3)")
	p.switchWAL(t)
	p.Stop(t)
	all, one := filepath.Join(p.base, "all"), filepath.Join(p.base, "one")
	// Another host, without any key.
	env := []string{"AGENT_STATE_DIR=" + filepath.Join(p.base, "copier")}
	must(t, harness.Agent(t, env, "repo", "copy", "--from", p.repo, "--to", all))
	if diff := cmp.Diff(copies(t, p.repo), copies(t, all)); diff != "" {
		t.Errorf("the copy differs:\n%.2000s", diff)
	}
	p.restored(t, p.alone(all), 3)

	must(t, harness.Agent(t, env, "repo", "copy", "--from", all, "--to", one, "--backup", first.Name))
	env = p.alone(one)
	list := parse[[]backup](t, must(t, harness.Agent(t, append(env, "AGENT_STATE_DIR="+filepath.Join(p.base, "one-state")), "backup-list", "--json")).Stdout)
	if len(list) != 1 || list[0].Name != first.Name {
		t.Errorf("there are %+v", list)
	}
	p.restored(t, append(env, "AGENT_STATE_DIR="+filepath.Join(p.base, "one-state")), 1)
	if found, err := filepath.Glob(filepath.Join(one, "cluster/*/backup/"+second.Name)); err != nil || len(found) != 0 {
		t.Errorf("the other backup was copied: %q", found)
	}
	// Damage is not copied.
	path := p.walObject(t, first.StartWAL)
	harmed(t, path, harms()[2])
	if r := harness.Agent(t, nil, "repo", "copy", "--from", p.repo, "--to", filepath.Join(p.base, "bad"), "--identity-file", p.identity,
		"--state-dir", filepath.Join(p.base, "copier")); r.Code != 6 || !strings.Contains(r.Stderr, p.key(t, path)) {
		t.Errorf("status %d:\n%s", r.Code, r.Stderr)
	}
	if shown, err := filepath.Glob(filepath.Join(p.base, "bad/cluster/*/backup/*/backup.json")); err != nil || len(shown) != 1 || !strings.Contains(shown[0], second.Name) {
		t.Errorf("shown are %q", shown)
	}
}
