package harness

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestReplication streams to a standby, promotes it, and rewinds the old
// primary, which has gone its own way, to follow it.
func TestReplication(t *testing.T) {
	conf := map[string]string{"wal_log_hints": "on", "wal_keep_size": "64MB", "restore_command": "false"}
	first := Start(t, Options{NoFsync: true, WALSegSizeMB: 1, Conf: conf})
	first.Exec(t, "CREATE TABLE a AS SELECT 1 AS i")
	dir := filepath.Join(TempDir(t), "standby")
	first.Run(t, "pg_basebackup", "-D", dir, "-X", "stream", "-c", "fast")
	MakeStandby(t, dir)
	second := StartExisting(t, dir, first.Major, first.StandbyConf())
	second.WaitStreaming(t)
	first.Exec(t, "INSERT INTO a VALUES (2)")
	second.WaitReplayed(t, first.LSN(t))
	if got := second.QueryInt(t, "SELECT count(*) FROM a"); got != 2 {
		t.Errorf("%d rows on the standby", got)
	}
	second.Promote(t)
	first.Exec(t, "INSERT INTO a VALUES (3), (4)")
	second.Exec(t, "INSERT INTO a VALUES (5)")
	first.Stop(t)
	first.Rewind(t, second)
	MakeStandby(t, first.DataDir)
	back := StartExisting(t, first.DataDir, first.Major, second.StandbyConf())
	back.WaitReplayed(t, second.LSN(t))
	back.WaitStreaming(t)
	if got := back.QueryString(t, "SELECT string_agg(i::text, ' ' ORDER BY i) FROM a"); got != "1 2 5" {
		t.Errorf("rows %s after the rewind", got)
	}
	back.Stop(t)
	r := record(t, func(t testing.TB) { back.Rewind(t, second) }) // it follows already, which is no failure
	if r.failed {
		t.Errorf("a second rewind is reported as %q", r.text())
	}
	second.Exec(t, "INSERT INTO a VALUES (6)")
	r = record(t, func(t testing.TB) { second.Rewind(t, second) }) // it runs
	if !r.failed || !strings.Contains(r.text(), "pg_rewind: ") {
		t.Errorf("a rewind that is refused is reported as %q", r.text())
	}
}
