package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"agent/testing/harness"
)

// TestHostsRejoin is the lab of three instances: failover, a third that
// follows, an old primary that was started by mistake and is rewound with WAL
// from the archive, and a standby that was promoted by mistake and is restored.
func TestHostsRejoin(t *testing.T) {
	t.Parallel()
	h := newHosts(t, harness.DefaultMajor)
	h.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	h.push(t)
	second := h.standby(t, h.Server, nil)
	third := h.standby(t, h.Server, nil)
	h.Exec(t, "INSERT INTO a VALUES (2)")
	for _, s := range []*site{second, third} {
		s.WaitStreaming(t)
		s.WaitReplayed(t, h.LSN(t))
	}

	// 1. The primary is stopped, the second takes over.
	h.Stop(t)
	second.Promote(t)
	second.Exec(t, "INSERT INTO a VALUES (3)")
	second.switchWAL(t)
	h.one(t, "cluster/*/history/00000002.history")

	// 2. The third follows it.
	third.Stop(t)
	third.Server = harness.StartExisting(t, third.DataDir, h.Major, h.conf(t, third, second.Server))
	third.WaitReplayed(t, second.LSN(t))
	third.WaitStreaming(t)
	hasRows(t, third.Server, "1 2 3")

	// 3. The old primary is started by mistake and written to. Its WAL from
	// where the histories part is in the archive alone when it is rewound.
	h.Restart(t)
	h.Exec(t, "CREATE TABLE diverged (t text)")
	var last string
	for range 3 {
		h.Exec(t, "INSERT INTO diverged VALUES ('x')")
		last = h.switchWAL(t)
	}
	h.Stop(t) // whose checkpoint removes what is archived
	if exists(filepath.Join(h.DataDir, "pg_wal", last)) {
		t.Fatalf("%s is not in the archive alone", last)
	}
	h.Rewind(t, second.Server)
	harness.MakeStandby(t, h.DataDir)
	h.Server = harness.StartExisting(t, h.DataDir, h.Major, h.conf(t, h.site, second.Server))
	h.WaitReplayed(t, second.LSN(t))
	h.WaitStreaming(t)
	hasRows(t, h.Server, "1 2 3")
	if got := h.QueryInt(t, "SELECT count(*) FROM pg_class WHERE relname = 'diverged'"); got != 0 {
		t.Error("the table of the old timeline is still there")
	}

	// 4. The third is promoted by mistake and restored.
	if b := second.push(t); b.Timeline != 2 {
		t.Errorf("the backup is on timeline %d", b.Timeline)
	}
	second.Exec(t, "INSERT INTO a SELECT g + 3 FROM generate_series(1, 1000001) g")
	second.switchWAL(t)
	third.Promote(t)
	third.Exec(t, "CREATE TABLE mistake (i int)")
	third.Stop(t)
	again := h.standby(t, second.Server, map[string]string{"recovery_target_timeline": "2"})
	again.WaitReplayed(t, second.LSN(t))
	again.WaitStreaming(t)
	second.Exec(t, "INSERT INTO a VALUES (0)")
	again.WaitReplayed(t, second.LSN(t))
	if got := again.QueryInt(t, "SELECT count(*) FROM a"); got != 1_000_005 {
		t.Errorf("%d rows on the standby that was restored", got)
	}
	if got := again.QueryInt(t, "SELECT count(*) FROM pg_class WHERE relname = 'mistake'"); got != 0 {
		t.Error("the table of the mistake is there")
	}
}

// conf are the settings of a host that is a standby of another one.
func (h *hosts) conf(t testing.TB, s *site, of *harness.Server) map[string]string {
	t.Helper()
	conf := of.StandbyConf()
	conf["archive_mode"] = "always"
	conf["archive_command"] = h.pushCommand(t, s.state)
	conf["restore_command"] = h.fetchCommand(t, s.state)
	return conf
}

// TestHostsArchiveOnly is a standby that lives of the archive alone, falls
// behind, catches up, streams and is promoted.
func TestHostsArchiveOnly(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, major)
			h.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
			h.push(t)
			s := h.standby(t, nil, nil)
			s.WaitReplayed(t, "0/0")
			h.Exec(t, "INSERT INTO a VALUES (2)")
			last := h.switchWAL(t)
			await(t, "what is archived on the standby", func() bool { return rows(t, s.Server) == "1 2" })

			s.Stop(t) // and falls behind
			for i := 3; i <= 7; i++ {
				h.Exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d)", i))
				last = h.switchWAL(t)
			}
			conf := h.conf(t, s, h.Server)
			s.Server = harness.StartExisting(t, s.DataDir, major, conf)
			s.WaitStreaming(t)
			if !strings.Contains(s.Log(), `restored log file "`+last+`" from archive`) {
				t.Errorf("%s did not come from the archive:\n%s", last, s.Log())
			}
			h.Exec(t, "INSERT INTO a VALUES (8)")
			s.WaitReplayed(t, h.LSN(t))

			h.Stop(t)
			s.Promote(t)
			s.Exec(t, "INSERT INTO a VALUES (9)")
			if name := s.switchWAL(t); name[:8] != "00000002" {
				t.Errorf("it archives %s", name)
			}
			if got := h.recovered(t); got != "1 2 3 4 5 6 7 8 9" {
				t.Errorf("recovered rows %s", got)
			}
		})
	}
}
