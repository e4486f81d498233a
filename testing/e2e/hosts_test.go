package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agent/internal/postgres"
	"agent/testing/harness"
)

// hosts are servers of one cluster that archive into one repository, each with
// a state directory of its own, as on hosts of their own.
type hosts struct {
	*site      // the first primary
	number int // of the hosts that were added
}

// hostsSegment is the size of their segments in bytes.
const hostsSegment = 1 << 20

// newHosts makes the first primary, which standbys can stream from and which
// pg_rewind can follow.
func newHosts(t *testing.T, major int) *hosts {
	t.Helper()
	s := newSite(t, plan{Options: harness.Options{Major: major, WALSegSizeMB: 1, Conf: map[string]string{
		"wal_log_hints": "on", "archive_mode": "always", "max_wal_senders": "10",
	}}})
	h := &hosts{site: s}
	s.AppendConf(t, map[string]string{"restore_command": h.fetchCommand(t, s.state)})
	return h
}

// pushCommand and fetchCommand are what a host runs.
func (h *hosts) pushCommand(t testing.TB, state string) string {
	return harness.AgentBinary(t) + " wal-push %p --repository " + h.repo + " --state-dir " + state
}

func (h *hosts) fetchCommand(t testing.TB, state string) string {
	return harness.AgentBinary(t) + " wal-fetch %f %p --repository " + h.repo + " --state-dir " + state
}

// standby restores the newest backup on another host and starts it as a
// standby of a server; nil: of the archive alone. The settings of conf win.
func (h *hosts) standby(t *testing.T, of *harness.Server, conf map[string]string) *site {
	t.Helper()
	h.number++
	s := *h.site
	s.base = harness.TempDir(t)
	s.state = filepath.Join(s.base, "state")
	s.settings = []string{h.where(), "AGENT_STATE_DIR=" + s.state}
	dir := filepath.Join(s.base, fmt.Sprintf("host%d", h.number))
	must(t, harness.Agent(t, s.settings, "backup-fetch", dir))
	harness.MakeStandby(t, dir)
	all := map[string]string{
		"archive_mode": "always", "archive_command": h.pushCommand(t, s.state),
		"recovery_target_timeline": "latest", "wal_retrieve_retry_interval": "100ms",
	}
	if of != nil {
		for k, v := range of.StandbyConf() {
			all[k] = v
		}
	}
	for k, v := range conf {
		all[k] = v
	}
	s.Server = harness.StartExisting(t, dir, h.Major, all)
	return &s
}

// rows are the numbers in table a.
func rows(t testing.TB, s *harness.Server) string {
	t.Helper()
	return s.QueryString(t, "SELECT coalesce(string_agg(i::text, ' ' ORDER BY i), '') FROM a")
}

// hasRows fails the test unless table a has these numbers.
func hasRows(t testing.TB, s *harness.Server, want string) {
	t.Helper()
	if got := rows(t, s); got != want {
		t.Errorf("rows %q, not %q", got, want)
	}
}

// archivedAll waits until a host's server believes that a segment is archived,
// and fails the test if it ever failed to archive one.
func (s *site) archivedAll(t testing.TB, name string) {
	t.Helper()
	await(t, "the archiving of "+name, func() bool {
		return exists(filepath.Join(s.DataDir, "pg_wal/archive_status", name+".done")) ||
			s.QueryString(t, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= name
	})
	if n := s.QueryInt(t, "SELECT failed_count FROM pg_stat_archiver"); n != 0 {
		t.Errorf("archiving failed %d times:\n%s", n, s.Log())
	}
}

// partials are the names of the .partial objects.
func (h *hosts) partials(t testing.TB) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(h.repo, "cluster/*/wal/*/*.partial.*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range found {
		found[i] = filepath.Base(path)
	}
	return found
}

// recovered restores on yet another host, recovers and returns the rows.
func (h *hosts) recovered(t *testing.T, args ...string) string {
	t.Helper()
	dir := fresh(t)
	must(t, h.restore(t, append([]string{dir}, args...)...))
	c := harness.StartExisting(t, dir, h.Major, nil)
	if c.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	defer c.Stop(t)
	return rows(t, c)
}

// TestHostsArchiveTogether lets a primary and two standbys archive the same
// WAL. One is promoted in the middle of a segment, the other follows.
func TestHostsArchiveTogether(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, major)
			h.Exec(t, "CREATE TABLE a (i int, t text)", "INSERT INTO a VALUES (1)")
			h.push(t)
			second := h.standby(t, h.Server, nil)
			third := h.standby(t, second.Server, nil)
			third.WaitStreaming(t)
			var last string
			for i := 2; i <= 6; i++ {
				h.Exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d, repeat('x', 200000))", i))
				last = h.switchWAL(t)
			}
			for _, s := range []*site{second, third} {
				s.WaitReplayed(t, h.LSN(t))
			}
			for _, s := range []*site{h.site, second, third} {
				s.archivedAll(t, last)
			}
			h.walObject(t, last) // one object, whoever was first

			h.Exec(t, "INSERT INTO a VALUES (7)")
			at := h.LSN(t)
			second.WaitReplayed(t, at)
			third.WaitReplayed(t, at)
			h.Kill(t) // or its last segment would be finished
			second.Promote(t)
			second.Exec(t, "INSERT INTO a VALUES (8)")
			end := second.switchWAL(t)
			third.WaitReplayed(t, second.LSN(t))
			for _, s := range []*site{second, third} {
				s.archivedAll(t, end)
			}
			hasRows(t, third.Server, "1 2 3 4 5 6 7 8")
			h.one(t, "cluster/*/history/00000002.history")
			left := postgres.SegmentOf(1, lsn(t, at), hostsSegment).Name(hostsSegment)
			// That of the new primary, and that of the one that followed.
			got := h.partials(t)
			if len(got) == 0 {
				t.Error("there is no partial segment")
			}
			for _, name := range got {
				if !strings.HasPrefix(name, left+".partial.") {
					t.Errorf("the partial segment is %s, not of %s", name, left)
				}
			}
			if !strings.Contains(third.Log(), "archiving an unfinished segment as partial") {
				t.Errorf("the standby that followed has not archived %s as partial:\n%s", left, third.Log())
			}
			if segment := filepath.Join(h.repo, "cluster"); len(segmentNamed(t, segment, left)) != 0 {
				t.Errorf("%s is there as a whole segment", left)
			}
			if got := h.recovered(t); got != "1 2 3 4 5 6 7 8" {
				t.Errorf("recovered rows %s", got)
			}
		})
	}
}

// segmentNamed finds the objects of a segment.
func segmentNamed(t testing.TB, clusters, name string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(clusters, "*/wal", name[:16], name))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestHostsTwoPrimaries promotes a standby while the old primary lives, and
// both write: nobody's WAL replaces the other's.
func TestHostsTwoPrimaries(t *testing.T) {
	t.Parallel()
	h := newHosts(t, harness.DefaultMajor)
	h.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	h.push(t)
	second := h.standby(t, h.Server, nil)
	h.Exec(t, "INSERT INTO a VALUES (2)")
	second.WaitReplayed(t, h.LSN(t))
	second.Promote(t)
	h.Exec(t, "INSERT INTO a VALUES (31)")
	second.Exec(t, "INSERT INTO a VALUES (32)")
	old, latest := h.switchWAL(t), second.switchWAL(t)
	if old[:8] != "00000001" || latest[:8] != "00000002" || old[8:] != latest[8:] {
		t.Fatalf("they wrote %s and %s", old, latest)
	}
	if got := h.recovered(t, "--target-timeline", "latest"); got != "1 2 32" {
		t.Errorf("rows %s on the new timeline", got)
	}
	if got := h.recovered(t, "--target-timeline", "1"); got != "1 2 31" {
		t.Errorf("rows %s on the old timeline", got)
	}

	// A clone of the old primary that was told to archive, too, is the second
	// writer of segments that differ.
	h.Stop(t)
	clone := filepath.Join(harness.TempDir(t), "clone")
	if err := os.CopyFS(clone, os.DirFS(h.DataDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(clone, 0o700); err != nil {
		t.Fatal(err)
	}
	harness.Own(t, clone)
	h.Restart(t)
	h.Exec(t, "INSERT INTO a VALUES (41)")
	mine := h.switchWAL(t)
	before := readFile(t, h.walObject(t, mine))
	c := harness.StartExisting(t, clone, h.Major, map[string]string{
		"archive_command": h.pushCommand(t, filepath.Join(harness.TempDir(t), "state")),
	})
	c.Exec(t, "INSERT INTO a VALUES (42)", "SELECT pg_switch_wal()")
	await(t, "the clone's archiver to fail", func() bool {
		return c.QueryInt(t, "SELECT count(*) FROM pg_stat_archiver WHERE last_failed_wal = $1", mine) > 0
	})
	if !strings.Contains(c.Log(), "holds other bytes than this file") || !strings.Contains(c.Log(), "exit code 1\n") {
		t.Errorf("the second writer is not told:\n%s", c.Log())
	}
	if string(readFile(t, h.walObject(t, mine))) != string(before) {
		t.Error("the segment was replaced")
	}
}
