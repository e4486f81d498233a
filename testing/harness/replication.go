package harness

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"
)

// StandbyConf returns the settings with which a server streams from this one
// and follows it to new timelines, also over its restarts, which keep the port.
// A standby that has caught up with the archive asks again soon.
func (s *Server) StandbyConf() map[string]string {
	return map[string]string{
		"primary_conninfo":            s.ConnInfo() + " application_name=standby",
		"recovery_target_timeline":    "latest",
		"wal_retrieve_retry_interval": "100ms",
	}
}

// MakeStandby turns a stopped server's directory, such as a restored one, into
// that of a standby. How it gets WAL is a matter of its settings.
func MakeStandby(t testing.TB, dataDir string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dataDir, "recovery.signal")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("make a standby: %v", err)
	}
	signal := filepath.Join(dataDir, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatalf("make a standby: %v", err)
	}
	Own(t, signal)
}

// Promote ends a standby's recovery and waits until it takes writes, on a new
// timeline.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	s.Exec(t, "SELECT pg_promote(false)")
	if s.WaitRecovered(t) {
		t.Fatalf("the standby on port %d is paused", s.Port)
	}
}

// LSN returns the position behind the last WAL that a primary has written.
func (s *Server) LSN(t testing.TB) string {
	t.Helper()
	return s.QueryString(t, "SELECT pg_current_wal_insert_lsn()::text")
}

// WaitReplayed waits until a standby has replayed all WAL before an LSN. A
// server that ends first fails the test with the end of its log.
func (s *Server) WaitReplayed(t testing.TB, lsn string) {
	t.Helper()
	ctx, cancel := waitContext(t)
	defer cancel()
	err := s.poll(ctx, func() (bool, error) {
		conn, err := pgx.Connect(ctx, s.ConnInfo())
		if err != nil {
			return false, err
		}
		defer func() { _ = conn.Close(ctx) }() // asked again if it mattered
		var there bool
		err = conn.QueryRow(ctx, "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)", lsn).Scan(&there)
		return there, err
	})
	if err != nil {
		t.Fatalf("wait for %s on the standby: %v", lsn, err)
	}
}

// WaitStreaming waits until a standby receives WAL from a server.
func (s *Server) WaitStreaming(t testing.TB) {
	t.Helper()
	ctx, cancel := waitContext(t)
	defer cancel()
	err := s.poll(ctx, func() (bool, error) {
		conn, err := pgx.Connect(ctx, s.ConnInfo())
		if err != nil {
			return false, err
		}
		defer func() { _ = conn.Close(ctx) }() // asked again if it mattered
		var n int
		err = conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'").Scan(&n)
		return n == 1, err
	})
	if err != nil {
		t.Fatalf("wait for the standby to stream: %v", err)
	}
}

// Rewind makes a stopped server follow another one, which runs, from where
// their histories part. What it lacks of its own WAL it gets by the
// restore_command in its postgresql.conf. The settings that the other one has
// in its files replace its own. It is for majors whose pg_rewind is installed.
func (s *Server) Rewind(t testing.TB, to *Server) {
	t.Helper()
	path, err := findProgram(s.Major, "pg_rewind")
	if err != nil {
		t.Fatal(err)
	}
	server, err := findProgram(s.Major, "postgres")
	if err != nil {
		t.Fatal(err)
	}
	// Before 16 pg_rewind finds the timeline of the other one in its last
	// checkpoint, which may be of before its promotion.
	to.Exec(t, "CHECKPOINT")
	// It runs a server of its own to recover what was killed.
	env := append(s.Env(), "PATH="+filepath.Dir(server)+":/usr/bin:/bin")
	cmd := Command(t.Context(), t, s.base, env, path, "-D", s.DataDir, "--source-server", to.ConnInfo(), "-c", "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pg_rewind: %v\n%s", err, out)
	}
}
