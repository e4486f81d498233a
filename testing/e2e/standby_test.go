package e2e_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"agent/internal/postgres"
	"agent/testing/harness"
)

// TestStandbyBackup takes backups from a standby that does not archive, while
// the primary is written to and while it is idle, and recovers from them.
func TestStandbyBackup(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, major)
			h.Exec(t, loadTables("pg_default"), "CREATE TABLE filler AS SELECT g AS i, repeat(md5(g::text), 20) AS m FROM generate_series(1, 10000) g")
			first := h.push(t)
			second := h.standby(t, h.Server, map[string]string{"archive_mode": "on"})
			second.WaitStreaming(t)
			work := startLoad(t, h.Server)
			work.more(t, 100)
			b := second.standbyPush(t, func() {
				h.Exec(t, "DELETE FROM filler WHERE i % 3 = 0", "VACUUM filler", "VACUUM (FREEZE) load")
				work.more(t, 200)
				h.Exec(t, "CHECKPOINT")
				second.WaitReplayed(t, h.LSN(t))
				second.Exec(t, "CHECKPOINT") // what was replayed gets into the files
			})
			work.more(t, 100)
			if b.BadPages != 0 {
				t.Errorf("%d pages are called bad", b.BadPages)
			}
			work.stop(t)
			want := work.mark(t)
			h.switchWAL(t)
			dir := h.standbyRecovered(t, b, want)
			if label := string(readFile(t, filepath.Join(dir, "backup_label.old"))); !strings.Contains(label, "BACKUP FROM: standby\n") {
				t.Errorf("backup_label:\n%s", label)
			}

			// Both begin with the same restartpoint, as the primary makes no checkpoint.
			h.Exec(t, "CHECKPOINT")
			second.WaitReplayed(t, h.LSN(t))
			one := second.push(t)
			two := second.push(t)
			if one.StartLSN != two.StartLSN || lsn(t, two.StopLSN) < lsn(t, one.StopLSN) {
				t.Errorf("one backup from %s to %s, the next from %s to %s", one.StartLSN, one.StopLSN, two.StartLSN, two.StopLSN)
			}
			h.standbyRecovered(t, two, want)
			if got, want := h.backups(t), []string{first.Name, b.Name, one.Name, two.Name}; !slices.Equal(got, want) {
				t.Errorf("backups %q, not %q", got, want)
			}
		})
	}
}

// standbyPush takes a backup during which something happens.
func (s *site) standbyPush(t *testing.T, meanwhile func()) backup {
	t.Helper()
	push := s.pushStopped(t)
	meanwhile()
	push.Signal(syscall.SIGCONT)
	return parse[backup](t, must(t, push.Wait()).Stdout)
}

// pushStopped begins a backup and stops the agent in the middle of copying.
func (s *site) pushStopped(t *testing.T) *harness.Process {
	t.Helper()
	push := harness.StartAgent(t, s.env(), "backup-push", "--json", "--read-rate", "12MB")
	awaitLine(t, push, "backup started")
	push.Signal(syscall.SIGSTOP)
	return push
}

// standbyRecovered restores a backup on another host, recovers to the end of
// the archive, compares with the primary and returns the directory.
func (h *hosts) standbyRecovered(t *testing.T, b backup, want ledger) string {
	t.Helper()
	dir := fresh(t)
	must(t, h.restore(t, dir, b.Name))
	c := harness.StartExisting(t, dir, h.Major, nil)
	if c.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	want.check(t, c)
	if got, want := fillers(t, c), fillers(t, h.Server); got != want {
		t.Errorf("table filler is %s, not %s", got, want)
	}
	healthy(t, c)
	c.Stop(t)
	checksums(t, c)
	return dir
}

// fillers tells two states of table filler apart.
func fillers(t testing.TB, s *harness.Server) string {
	t.Helper()
	return s.QueryString(t, "SELECT md5(string_agg(f::text, ',' ORDER BY i)) FROM filler f")
}

// newStandby makes a primary with something in it, and a standby that does not
// archive and has replayed all.
func newStandby(t *testing.T, major int, conf map[string]string) (*hosts, *site) {
	t.Helper()
	h := newHosts(t, major)
	h.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)",
		"CREATE TABLE filler AS SELECT g AS i, repeat(md5(g::text), 20) AS m FROM generate_series(1, 20000) g")
	h.push(t)
	all := map[string]string{"archive_mode": "on"}
	for k, v := range conf {
		all[k] = v
	}
	second := h.standby(t, h.Server, all)
	h.Exec(t, "INSERT INTO a VALUES (2)", "CHECKPOINT")
	second.WaitReplayed(t, h.LSN(t))
	return h, second
}

// sessionless fails the test unless the agent has left the server, and with it
// backup mode.
func (s *site) sessionless(t *testing.T) {
	t.Helper()
	await(t, "the end of the backup's session", func() bool {
		return s.QueryInt(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'agent%'") == 0
	})
}

// TestStandbyArchives takes a backup from a standby that archives itself,
// while the primary's archiving fails.
func TestStandbyArchives(t *testing.T) {
	t.Parallel()
	h, second := newStandby(t, harness.DefaultMajor, map[string]string{"archive_mode": "always"})
	h.Exec(t, "ALTER SYSTEM SET archive_command = 'false'", "SELECT pg_reload_conf()")
	h.Exec(t, "INSERT INTO a VALUES (3)", "CHECKPOINT")
	second.WaitReplayed(t, h.LSN(t))
	b := second.push(t)
	h.walObject(t, b.StopWAL)
	if got := h.recovered(t, b.Name); got != "1 2 3" {
		t.Errorf("recovered rows %s", got)
	}
}

// TestStandbyPrimary tries what can be wrong with the way to the primary, and
// what is right.
func TestStandbyPrimary(t *testing.T) {
	t.Parallel()
	h, second := newStandby(t, harness.DefaultMajor, nil)
	before := h.backups(t)
	segment := h.QueryString(t, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	for _, c := range []struct {
		what, primary string
		code          int
		texts         []string
	}{
		{"unreachable", "host=127.0.0.1 port=1 user=postgres password=hunter2", 9, []string{
			"WAL " + segment + " did not arrive in", "within 2s: the primary could not be asked to complete it", "port 1", "SELECT pg_switch_wal()",
		}},
		{"a standby", second.ConnInfo(), 9, []string{segment, "it is a standby, too", "--primary"}},
		{"another cluster", harness.Start(t, harness.Options{NoFsync: true}).ConnInfo(), 4, []string{"the standby is of cluster"}},
	} {
		r := second.agent(t, "backup-push", "--wal-timeout", "2s", "--primary", c.primary)
		hinted(t, r, c.code, c.texts...)
		if strings.Contains(r.Stdout+r.Stderr, "hunter2") {
			t.Errorf("the password is told:\n%s", r.Stderr)
		}
		if t.Failed() {
			t.Fatal(c.what)
		}
		second.sessionless(t)
	}
	if got := h.backups(t); !slices.Equal(got, before) {
		t.Errorf("backups %q, not %q", got, before)
	}

	c := second.check(t, 0, []string{"AGENT_PRIMARY_CONNINFO=host=127.0.0.1 port=1 user=postgres"})
	c.wants(t, "skipped", "archiving.switch", "its primary, which ends segments, could not be asked", "port 1")
	c.wants(t, "skipped", "server.archiver", "its primary archives")

	// Without the right to switch the backup waits, and somebody else switches.
	h.Exec(t, "CREATE ROLE streamer LOGIN REPLICATION")
	weak := strings.Replace(h.ConnInfo(), "user=postgres", "user=streamer", 1)
	push := harness.StartAgent(t, second.env(), "backup-push", "--json", "--primary", weak)
	awaitLine(t, push, `GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO`)
	h.Exec(t, "SELECT pg_switch_wal()")
	b := parse[backup](t, must(t, push.Wait()).Stdout)
	if b.StopWAL != segment {
		t.Errorf("the backup ends in %s, not in %s", b.StopWAL, segment)
	}

	// Of several hosts the primary is taken.
	h.Exec(t, "INSERT INTO a VALUES (3)", "CHECKPOINT")
	second.WaitReplayed(t, h.LSN(t))
	both := fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres keepalives=1 gssencmode=prefer", second.Port, h.Port)
	b = parse[backup](t, must(t, second.agent(t, "backup-push", "--json", "--primary", both)).Stdout)
	if got := h.recovered(t, b.Name); got != "1 2 3" {
		t.Errorf("recovered rows %s", got)
	}
	c = second.check(t, 0, nil) // by the standby's own setting
	c.wants(t, "ok", "archiving.switch", "the primary ended the segment 00000001")
	c.wants(t, "ok", "archiving.arrival main", "arrived after")
}

// TestStandbyOfArchive takes a backup from a standby that does not stream: what
// it has replayed is in the archive, so nobody need be asked.
func TestStandbyOfArchive(t *testing.T) {
	t.Parallel()
	h := newHosts(t, harness.DefaultMajor)
	h.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	h.push(t)
	second := h.standby(t, nil, map[string]string{"archive_mode": "on"})
	h.Exec(t, "INSERT INTO a VALUES (2)", "CHECKPOINT")
	at := h.LSN(t)
	h.switchWAL(t)
	second.WaitReplayed(t, at)
	h.Stop(t)
	r := must(t, second.agent(t, "backup-push", "--json"))
	if strings.Contains(r.Stderr, "could not be asked") {
		t.Errorf("the primary was missed:\n%s", r.Stderr)
	}
	if got := h.recovered(t, parse[backup](t, r.Stdout).Name); got != "1 2" {
		t.Errorf("recovered rows %s", got)
	}
}

// TestStandbyPromoted promotes the standby during a backup: there is no such
// backup, and the server takes the next one.
func TestStandbyPromoted(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			h, second := newStandby(t, major, nil)
			before := h.backups(t)
			push := second.pushStopped(t)
			second.Promote(t)
			push.Signal(syscall.SIGCONT)
			hinted(t, push.Wait(), 9, "the standby was promoted during the backup (timeline 1, then 2)")
			second.sessionless(t)
			if got := h.backups(t); !slices.Equal(got, before) {
				t.Errorf("backups %q, not %q", got, before)
			}
			second.Exec(t, "INSERT INTO a VALUES (3)")
			b := second.push(t)
			if b.Timeline != 2 {
				t.Errorf("the next backup is on timeline %d", b.Timeline)
			}
			if got := h.recovered(t, b.Name); got != "1 2 3" {
				t.Errorf("recovered rows %s", got)
			}
		})
	}
}

// TestStandbyFollows lets a standby follow a failover during a backup, which is
// thrown away, and takes one on the new timeline.
func TestStandbyFollows(t *testing.T) {
	t.Parallel()
	h, second := newStandby(t, harness.DefaultMajor, nil)
	third := h.standby(t, second.Server, map[string]string{"archive_mode": "on"})
	third.WaitStreaming(t)
	third.WaitReplayed(t, h.LSN(t))
	before := h.backups(t)
	push := third.pushStopped(t)
	second.Promote(t)
	second.Exec(t, "INSERT INTO a VALUES (3)", "CHECKPOINT")
	third.WaitReplayed(t, second.LSN(t))
	third.Exec(t, "CHECKPOINT")
	push.Signal(syscall.SIGCONT)
	hinted(t, push.Wait(), 9, "the server went to another timeline during the backup (timeline 1, then 2)")
	third.sessionless(t)
	if got := h.backups(t); !slices.Equal(got, before) {
		t.Errorf("backups %q, not %q", got, before)
	}
	b := third.push(t)
	if b.Timeline != 2 || !strings.HasPrefix(b.StopWAL, postgres.Timeline(2).String()) {
		t.Errorf("the next backup is on timeline %d and ends in %s", b.Timeline, b.StopWAL)
	}
	if got := h.recovered(t, b.Name); got != "1 2 3" {
		t.Errorf("recovered rows %s", got)
	}
}

// TestStandbyChain makes a chain of which some backups are from the primary and
// some from its standby, also one that starts before the last one has ended, and
// one behind a failover.
func TestStandbyChain(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, major)
			h.Exec(t, loadTables("pg_default"), "CREATE TABLE filler AS SELECT g AS i, repeat(md5(g::text), 20) AS m FROM generate_series(1, 10000) g")
			full := h.pushed(t)
			second := h.standby(t, h.Server, map[string]string{"archive_mode": "on"})
			second.WaitStreaming(t)
			work := startLoad(t, h.Server)
			change := func(n int) {
				t.Helper()
				work.more(t, 100)
				h.Exec(t, fmt.Sprintf("DELETE FROM filler WHERE i %% 50 = %d", n), "VACUUM filler", "CHECKPOINT")
				second.WaitReplayed(t, h.LSN(t))
			}
			last := full
			for n, s := range []*site{second, h.site, second} {
				change(n)
				b := s.pushed(t, "--parent", last.Name)
				if b.Type != "incremental" || b.Parent != last.Name || b.Inherited == 0 {
					t.Fatalf("backup %d is %+v, and not an incremental one of %s: %s", n, b, last.Name, strings.Join(b.Reasons, "\n"))
				}
				last = b
			}
			work.stop(t)
			want := work.mark(t)
			h.switchWAL(t)
			h.standbyRecovered(t, backup{Name: last.Name}, want)

			// No checkpoint since: the last backup ended behind where this one starts.
			again := second.pushed(t)
			if again.Type != "incremental" || again.Parent == last.Name {
				t.Errorf("without a checkpoint the backup is %+v", again)
			}
			h.standbyRecovered(t, backup{Name: again.Name}, want)

			h.Stop(t)
			second.Promote(t)
			second.Exec(t, "DELETE FROM filler WHERE i % 50 = 9")
			promoted := second.pushed(t)
			if promoted.Type != "incremental" || promoted.Parent != again.Name {
				t.Errorf("behind the failover the backup is %+v", promoted)
			}
			h.Server = second.Server
			h.standbyRecovered(t, backup{Name: promoted.Name}, want)
		})
	}
}
