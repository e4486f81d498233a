package postgres_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"agent/internal/postgres"
	"agent/testing/harness"
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
	second := recoverTo("late", "1")
	// The archiver may only just have been started.
	history := filepath.Join(archive, "00000002.history")
	for _, err := os.Stat(history); err != nil; _, err = os.Stat(history) {
		if !second.Running() {
			t.Fatal("the server ended before it archived its history")
		}
	}
	second.Stop(t)
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

// A standby with archive_mode = always archives the unfinished last segment of
// the timeline that it leaves. The checker refuses it, and the history says
// that it may be missing.
func TestLiveAlwaysArchivesUnfinishedSegment(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	archive := harness.TempDir(t)
	keep := map[string]string{"wal_keep_size": "200MB", "wal_retrieve_retry_interval": "100ms"}
	first := harness.Start(t, harness.Options{NoFsync: true, WALSegSizeMB: 1, Conf: keep})
	follow := func(upstream *harness.Server, conf map[string]string) *harness.Server {
		t.Helper()
		dir := filepath.Join(harness.TempDir(t), "data")
		upstream.Run(t, "pg_basebackup", "-D", dir, "-X", "stream", "-R", "-c", "fast")
		return harness.StartExisting(t, dir, first.Major, conf)
	}
	second := follow(first, keep)
	third := follow(second, map[string]string{"archive_mode": "always", "archive_command": "cp %p " + archive + "/%f", "wal_retrieve_retry_interval": "100ms", "wal_keep_size": "0", "min_wal_size": "20MB"})
	caughtUp := func(upstream *harness.Server, standbys ...*harness.Server) {
		t.Helper()
		lsn := upstream.QueryString(t, "SELECT pg_current_wal_lsn()::text")
		for _, s := range standbys {
			for s.QueryString(t, "SELECT (pg_last_wal_replay_lsn() >= $1::pg_lsn)::text FROM pg_sleep(0.02)", lsn) != "true" {
				if t.Context().Err() != nil {
					t.Fatal("the standby does not follow")
				}
			}
		}
	}
	archived := func(name string) {
		t.Helper()
		for third.QueryString(t, "SELECT (coalesce(last_archived_wal, '') >= $1)::text FROM pg_stat_archiver, pg_sleep(0.02)", name) != "true" {
			if t.Context().Err() != nil {
				t.Fatalf("%s is not archived", name)
			}
		}
	}
	const fill = "INSERT INTO x SELECT repeat('x', 500) FROM generate_series(1, 5000)"
	first.Exec(t, "CREATE TABLE x (t text)", fill, fill, "CHECKPOINT", fill, fill, "CHECKPOINT")
	caughtUp(first, second, third)
	// Recycle segments, so that new ones hold old pages; only what is archived
	// may be recycled.
	filled, err := postgres.ParseLSN(first.QueryString(t, "SELECT pg_current_wal_lsn()::text"))
	if err != nil {
		t.Fatal(err)
	}
	archived(postgres.Segment{Timeline: 1, Number: filled.Segment(size) - 1}.Name(size))
	third.Exec(t, "CHECKPOINT")
	first.Exec(t, fill, "SELECT pg_switch_wal()", "INSERT INTO x VALUES ('in the middle')")
	caughtUp(first, second, third)
	first.Stop(t)
	second.Exec(t, "SELECT pg_promote()", fill, "SELECT pg_switch_wal()")
	caughtUp(second, third)
	archived("000000020")
	data, err := os.ReadFile(filepath.Join(third.DataDir, "pg_wal", "00000002.history"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := postgres.ParseHistory(2, data)
	if err != nil {
		t.Fatal(err)
	}
	at, _ := h.SwitchPoint(1)
	last := postgres.SegmentOf(1, at, size)
	if left, ok := h.LeavesIn(last, size); !ok || left != at {
		t.Fatalf("%v leaves %v at %v", h, last, left)
	}
	data, err = os.ReadFile(filepath.Join(archive, last.Name(size)))
	if err != nil {
		t.Fatal(err)
	}
	name, err := postgres.ParseWALFile(last.Name(size))
	if err != nil {
		t.Fatal(err)
	}
	_, err = postgres.NewSegmentChecker(name, size, 0).Write(data)
	var se *postgres.SegmentError
	if !errors.As(err, &se) || !errors.Is(err, postgres.ErrTorn) || se.Offset < int64(at.Offset(size)) {
		t.Errorf("left at %v: %v", at, err)
	}
}
