package postgres_test

import (
	"os"
	"path/filepath"
	"testing"

	"walagent/internal/postgres"
	"walagent/testing/harness"
)

// A recovery towards timeline 2 that stops on timeline 1, before 2 began,
// makes a timeline 3 whose history has switches in the wrong order. Histories
// like that must be read as the server does.
func TestLiveHistoryStoppedBeforeTarget(t *testing.T) {
	t.Parallel()
	archive := harness.TempDir(t)
	conf := map[string]string{
		"archive_mode": "on", "archive_command": "cp %p " + archive + "/%f",
		"restore_command": "cp " + archive + "/%f %p",
	}
	first := harness.Start(t, harness.Options{NoFsync: true, WALSegSizeMB: 1, Conf: conf})
	base := filepath.Join(harness.TempDir(t), "base")
	first.Run(t, "pg_basebackup", "-D", base, "-X", "stream", "-c", "fast")
	early := first.QueryString(t, "SELECT pg_create_restore_point('early')::text")
	first.Exec(t, "CREATE TABLE later (i int)", "SELECT pg_create_restore_point('late')", "SELECT pg_switch_wal()")
	first.Stop(t)

	recoverTo := func(name, timeline string) *harness.Server {
		t.Helper()
		dir := filepath.Join(harness.TempDir(t), name)
		if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "recovery.signal"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		harness.Own(t, dir)
		s := harness.StartExisting(t, dir, first.Major, map[string]string{
			"recovery_target_name": name, "recovery_target_timeline": timeline, "recovery_target_action": "promote",
		})
		s.WaitRecovered(t)
		return s
	}
	recoverTo("late", "1").Stop(t)
	third := recoverTo("early", "2")
	data, err := os.ReadFile(filepath.Join(third.DataDir, "pg_wal", "00000003.history"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := postgres.ParseHistory(3, data)
	if err != nil {
		t.Fatal(err)
	}
	stopped, err := postgres.ParseLSN(early)
	if err != nil {
		t.Fatal(err)
	}
	if len(h) != 3 || h[1].Switch != stopped || h[0].Switch <= stopped {
		t.Fatalf("%q", data)
	}
	if at, ok := h.SwitchPoint(1); !ok || at != stopped || h.TimelineAt(stopped-1) != 1 || h.TimelineAt(stopped) != 3 || h.TimelineAt(h[0].Switch) != 3 {
		t.Errorf("%v leaves timeline 1 at %v", h, at)
	}
}
