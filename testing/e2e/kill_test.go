package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// walDir makes a cluster with n whole segments in pg_wal, stops it and returns
// it. It never archived anything.
func walDir(t *testing.T, n int) (s *site, segments []string) {
	t.Helper()
	s = newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1, Conf: map[string]string{
		"archive_mode": "off", "wal_keep_size": "1GB", "full_page_writes": "off",
	}}})
	s.Exec(t, "CREATE TABLE noise (i int, m text)")
	for range n {
		s.Exec(t, "INSERT INTO noise SELECT g, md5(random()::text) FROM generate_series(1, 4000) g", "SELECT pg_switch_wal()")
	}
	current := s.QueryString(t, "SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
	s.Stop(t)
	found, err := filepath.Glob(filepath.Join(s.DataDir, "pg_wal", "00000001????????????????"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	for _, path := range found {
		if filepath.Base(path) <= current {
			segments = append(segments, path)
		}
	}
	if len(segments) < n {
		t.Fatalf("there are %d segments up to %s", len(segments), current)
	}
	return s, segments
}

// pidOf waits for a process with these texts among its arguments, and returns
// its id, or 0 if the agent ended first.
func pidOf(t *testing.T, p *harness.Process, texts ...string) (pid int) {
	t.Helper()
	await(t, fmt.Sprintf("a process of %q", texts), func() bool {
		found, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well formed
		for _, path := range found {
			raw, err := os.ReadFile(path)
			if err != nil {
				continue // ended meanwhile
			}
			args := strings.Split(string(raw), "\x00")
			if !slices.ContainsFunc(texts, func(text string) bool { return !slices.Contains(args, text) }) {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path))) // the pattern wants digits
				return true
			}
		}
		return ended(p)
	})
	return pid
}

// openBelow tells whether a process has a file open for which keep says yes.
func openBelow(pid int, keep func(target string) bool) bool {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is well formed
	return slices.ContainsFunc(links, func(link string) bool {
		target, err := os.Readlink(link)
		return err == nil && keep(target)
	})
}

// TestKillWALPush kills wal-push again and again, at random moments and while
// its object is half written. What is confirmed is durable, what is there is
// whole, and the next attempt succeeds.
func TestKillWALPush(t *testing.T) {
	t.Parallel()
	s, segments := walDir(t, 30)
	rnd := rand.New(rand.NewPCG(1, 2))
	killed := 0
	for i, path := range segments {
		name := filepath.Base(path)
		for range 2 {
			args := []string{"wal-push", path}
			if i%5 == 0 { // slow enough to be met half way
				args = append(args, "--bandwidth", "100kB")
			}
			p := harness.StartAgent(t, s.env(), args...)
			if i%5 == 0 {
				pid := pidOf(t, p, path)
				await(t, "a half written object", func() bool {
					return ended(p) || openBelow(pid, func(target string) bool { return strings.HasPrefix(target, s.repo+"/cluster/") })
				})
			} else {
				timer := time.NewTimer(time.Duration(rnd.IntN(40)) * time.Millisecond)
				select {
				case <-p.Done():
				case <-timer.C:
				}
			}
			p.Signal(syscall.SIGKILL)
			switch r := p.Wait(); r.Code {
			case 137:
				killed++
			case 0:
				s.fetched(t, name, path) // confirmed, so it is there
			default:
				t.Errorf("status %d:\n%s", r.Code, r.Stderr)
			}
		}
		if i%5 == 0 {
			if got := must(t, harness.Agent(t, s.elsewhere(), "backup-list")).Stderr; strings.Contains(got, "WARN") {
				t.Errorf("leftovers are complained about:\n%s", got)
			}
		}
		must(t, s.agent(t, "wal-push", path))
	}
	if killed < len(segments)/2 {
		t.Errorf("only %d of %d runs were killed", killed, 2*len(segments))
	}
	for _, path := range segments {
		s.fetched(t, filepath.Base(path), path)
	}
	// Nothing else is in the repository, finished or not.
	var want []string
	for _, path := range segments {
		want = append(want, filepath.Base(path))
	}
	var got, summaries []string
	for key := range objects(t, filepath.Join(s.repo, "cluster")) {
		if strings.Contains(key, "/summary/") {
			summaries = append(summaries, filepath.Base(key))
		} else {
			got = append(got, filepath.Base(key))
		}
	}
	slices.Sort(got)
	slices.Sort(summaries)
	if diff := cmp.Diff(want, summaries); diff != "" {
		t.Errorf("the repository (+) does not hold the summaries of the segments (-):\n%s", diff)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the repository (+) does not hold just the segments (-):\n%s", diff)
	}
}

// fetched compares an archived file with the original.
func (s *site) fetched(t *testing.T, name, original string) {
	t.Helper()
	dest := filepath.Join(harness.TempDir(t), name)
	must(t, harness.Agent(t, s.elsewhere(), "wal-fetch", name, dest))
	if string(readFile(t, dest)) != string(readFile(t, original)) {
		t.Errorf("%s came back with other bytes", name)
	}
}

// moment is when a running backup is met.
type moment struct {
	name  string
	await func(t *testing.T, s *site, p *harness.Process)
}

// moments are the beginning, the middle and the end of a backup with
// --read-rate.
func moments() []moment {
	return []moment{
		{"started", func(t *testing.T, _ *site, p *harness.Process) { awaitLine(t, p, "backup started") }},
		{"first pack", func(t *testing.T, s *site, p *harness.Process) {
			awaitLine(t, p, "backup started")
			name := nameIn(t, p.Stderr())
			s.awaitObject(t, p, "cluster/*/backup/"+name+"/pack/00000000")
		}},
		{"waiting for WAL", func(t *testing.T, s *site, p *harness.Process) {
			awaitLine(t, p, "backup started")
			name := nameIn(t, p.Stderr())
			s.awaitObject(t, p, "cluster/*/backup/"+name+"/packs")
		}},
	}
}

// awaitObject waits for an object, which the running agent stores.
func (s *site) awaitObject(t *testing.T, p *harness.Process, pattern string) {
	t.Helper()
	await(t, pattern, func() bool {
		found, err := filepath.Glob(filepath.Join(s.repo, pattern))
		return err == nil && len(found) > 0 || ended(p)
	})
	if ended(p) {
		t.Fatalf("the agent ended too early:\n%s", p.Stderr())
	}
}

// nameIn finds the name of the backup that the agent began, in its log.
func nameIn(t *testing.T, log string) string {
	t.Helper()
	_, rest, ok := strings.Cut(log, `msg="backup started" backup=`)
	if !ok {
		t.Fatalf("no backup is named in: %s", log)
	}
	name, _, _ := strings.Cut(rest, " ")
	return strings.TrimSpace(name)
}

// TestInterruptedBackup ends backup-push in three ways at three moments: by
// kill -9, which it cannot see, and by the signals of a terminal and of a
// service manager. The server is out of backup mode, the repository has no
// such backup, and the next backup succeeds at once.
func TestInterruptedBackup(t *testing.T) {
	t.Parallel()
	gate := filepath.Join(harness.TempDir(t), "closed")
	s := newSite(t, plan{compression: "none", Options: harness.Options{WALSegSizeMB: 1}})
	command := s.QueryString(t, "SHOW archive_command")
	// While the gate is closed nothing is archived.
	s.Exec(t, "ALTER SYSTEM SET archive_command = '! test -e "+gate+" && "+strings.ReplaceAll(command, "'", "''")+"'", "SELECT pg_reload_conf()",
		"CREATE TABLE big AS SELECT md5(g::text) || md5((g + 1)::text) AS m FROM generate_series(1, 300000) g", "CHECKPOINT")
	s.switchWAL(t)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT} {
		for _, m := range moments() {
			t.Run(fmt.Sprintf("%v/%s", signal, m.name), func(t *testing.T) {
				args := []string{"backup-push"}
				if m.name == "waiting for WAL" {
					makeDir(t, gate)
					t.Cleanup(func() { _ = os.RemoveAll(gate) }) // it is gone already, unless the test failed
				} else {
					args = append(args, "--read-rate", "25MB")
				}
				p := harness.StartAgent(t, s.env(), args...)
				m.await(t, s, p)
				p.Signal(signal)
				r := p.Wait()
				if want := 15; signal != syscall.SIGKILL {
					refused(t, r, want, "interrupted")
				} else if r.Code != 137 {
					t.Fatalf("status %d:\n%s", r.Code, r.Stderr)
				}
				if err := os.RemoveAll(gate); err != nil {
					t.Fatal(err)
				}
				s.outOfBackup(t, nameIn(t, r.Stderr), signal != syscall.SIGKILL)
			})
		}
	}
	b := s.push(t)
	if got := s.backups(t); len(got) != 1 || got[0] != b.Name {
		t.Errorf("the repository has the backups %q, not %s alone", got, b.Name)
	}
	s.Exec(t, "CREATE TABLE after_it AS SELECT 1 AS i")
	s.switchWAL(t)
	s.Stop(t)
	dir := fresh(t)
	must(t, s.restore(t, dir))
	verifyBackup(t, s.Server, dir)
	c := harness.StartExisting(t, dir, s.Major, nil)
	c.WaitRecovered(t)
	if got := c.QueryInt(t, "SELECT (SELECT count(*) FROM big) + (SELECT count(*) FROM after_it)"); got != 300_001 {
		t.Errorf("%d rows", got)
	}
}

// outOfBackup checks what an interrupted backup leaves.
func (s *site) outOfBackup(t *testing.T, name string, released bool) {
	t.Helper()
	await(t, "the end of the backup's session", func() bool {
		return s.QueryInt(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'agent%'") == 0
	})
	if exists(filepath.Join(s.DataDir, "backup_label")) {
		t.Error("there is a backup_label in the data directory")
	}
	if got := s.backups(t); slices.Contains(got, name) {
		t.Errorf("the interrupted backup is listed: %q", got)
	}
	hinted(t, s.agent(t, "backup-show", name), 7, name)
	claims, err := filepath.Glob(filepath.Join(s.repo, "cluster/*/claim/"+name+"/*"))
	if err != nil || released && len(claims) != 0 {
		t.Errorf("the claim is still there: %q (%v)", claims, err)
	}
	// The server takes the next backup at once, whoever makes it.
	conn := s.Conn(t)
	for _, sql := range []string{"SELECT pg_backup_start('by hand', true)", "SELECT pg_backup_stop(false)"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// TestKillBackupFetch kills a restore half way: no server starts on what there
// is, and the same command again completes it.
func TestKillBackupFetch(t *testing.T) {
	t.Parallel()
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed=%v", sealed), func(t *testing.T) {
			k := keepOne(t, plan{compression: "none", sealed: sealed})
			dir := fresh(t)
			rnd := rand.New(rand.NewPCG(3, 4))
			for round := range 3 {
				p := harness.StartAgent(t, k.elsewhere(), "backup-fetch", dir, "--bandwidth", "20MB")
				await(t, "a half restored directory", func() bool {
					found, _ := filepath.Glob(filepath.Join(dir, "base/*/*")) // the pattern is well formed
					return len(found) > rnd.IntN(600) || ended(p)
				})
				p.Signal(syscall.SIGKILL)
				if r := p.Wait(); r.Code != 137 {
					t.Fatalf("round %d was not killed, status %d:\n%s", round, r.Code, r.Stderr)
				}
				if exists(filepath.Join(dir, "global/pg_control")) {
					t.Fatal("there is a global/pg_control")
				}
				if _, err := harness.TryStart(t, dir, k.Major, nil); err == nil {
					t.Fatal("a server started on a half restored directory")
				} else if !strings.Contains(err.Error(), "pg_control") && !strings.Contains(err.Error(), "postgresql.conf") &&
					!strings.Contains(err.Error(), "configuration file") && !strings.Contains(err.Error(), "not a valid data directory") {
					t.Errorf("the server refuses for another reason: %v", err)
				}
			}
			must(t, k.restore(t, dir))
			verifyBackup(t, k.Server, dir)
			c := harness.StartExisting(t, dir, k.Major, nil)
			c.WaitRecovered(t)
			if got := c.QueryInt(t, "SELECT max(i) FROM a"); got != 4 {
				t.Errorf("%d rows", got)
			}
		})
	}
}

// TestTwoBackups runs two at once: from one host and, by another state
// directory, as if from two.
func TestTwoBackups(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{})
	other := append(s.env(), "AGENT_STATE_DIR="+filepath.Join(s.base, "other state"))
	first := harness.StartAgent(t, s.env(), "backup-push", "--read-rate", "10MB", "--json")
	awaitLine(t, first, "backup started")
	first.Signal(syscall.SIGSTOP)
	refusedBoth := func() {
		hinted(t, s.agent(t, "backup-push"), 8, "backup")
		hinted(t, harness.Agent(t, other, "backup-push"), 8, nameIn(t, first.Stderr()))
	}
	refusedBoth()
	same := parse[backup](t, must(t, s.agent(t, "backup-push", "--json", "--allow-concurrent")).Stdout)
	away := parse[backup](t, must(t, harness.Agent(t, other, "backup-push", "--json", "--allow-concurrent")).Stdout)
	refusedBoth()
	first.Signal(syscall.SIGCONT)
	slow := parse[backup](t, must(t, first.Wait()).Stdout)
	want := []string{slow.Name, same.Name, away.Name}
	got := s.backups(t)
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	s.switchWAL(t)
	for _, name := range want {
		dir := fresh(t)
		must(t, s.restore(t, dir, name))
		verifyBackup(t, s.Server, dir)
	}
	s.push(t) // all claims and locks are gone
}
