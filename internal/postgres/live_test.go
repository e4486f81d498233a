package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/testing/harness"
)

func connect(t *testing.T, conninfo string) *postgres.Server {
	t.Helper()
	s, err := postgres.Connect(t.Context(), conninfo, "agent-test")
	if err != nil {
		t.Fatalf("%v (%s)", err, errs.HintOf(err))
	}
	t.Cleanup(func() {
		if err := s.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return s
}

// archiving are the settings of a server that is ready for backups.
func archiving() map[string]string {
	return map[string]string{"archive_mode": "on", "archive_command": "true"}
}

// TestLiveEveryMajor takes a role without privileges to a backup by running
// the statements that the hints give, on each supported major.
func TestLiveEveryMajor(t *testing.T) {
	t.Parallel()
	for _, major := range harness.Majors() {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			srv := harness.Start(t, harness.Options{Major: major, NoFsync: true, WALSegSizeMB: 1, Conf: archiving()})
			srv.Exec(t, `CREATE ROLE "Back Up" LOGIN REPLICATION`,
				`ALTER ROLE "Back Up" SET statement_timeout = '5min'`,
				`ALTER ROLE "Back Up" SET DateStyle = 'German'`,
				`CREATE SCHEMA trap`, `GRANT USAGE ON SCHEMA trap TO PUBLIC`,
				`CREATE FUNCTION trap.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'`,
				`ALTER ROLE "Back Up" SET search_path = trap, pg_catalog`)
			conninfo := strings.Replace(srv.ConnInfo(), "user=postgres", "user='Back Up'", 1)
			s := connect(t, conninfo)
			if timeout, err := s.Text(t.Context(), "SHOW statement_timeout"); err != nil || timeout != "0" {
				t.Errorf("statement_timeout is %s, %v", timeout, err)
			}
			if n := srv.QueryInt(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agent-test'"); n != 1 {
				t.Errorf("%d sessions", n)
			}
			checkInfo(t, srv, s)
			checkGrants(t, srv, s)
			checkBackup(t, srv, s)
		})
	}
}

func checkInfo(t *testing.T, srv *harness.Server, s *postgres.Server) {
	t.Helper()
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	control, raw, err := postgres.ReadControl(t.Context(), srv.DataDir)
	if err != nil || len(raw) != postgres.ControlFileSize {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	if info.Major != srv.Major || control.Major != srv.Major || s.Major() != srv.Major || info.VersionNum/10000 != srv.Major ||
		info.SystemIdentifier != control.SystemIdentifier || info.CatalogVersion != control.CatalogVersion ||
		info.Timeline != 1 || info.InRecovery || !info.DataChecksums || !control.DataChecksums() ||
		info.WALSegmentSize != 1<<20 || control.WALSegmentSize != 1<<20 || info.BlockSize != control.BlockSize ||
		info.WALLevel != "replica" || info.ArchiveMode != "on" || info.ArchiveCommand != "true" || !info.FullPageWrites ||
		info.Role != "Back Up" || info.Database != "postgres" || control.State != postgres.StateInProduction {
		t.Errorf("%+v\n%+v", info, control)
	}
	if info.DataDirectory != "" || info.ConfigFile != "" {
		t.Errorf("paths without the privilege: %+v", info)
	}
	if err := postgres.Preflight(info); err != nil {
		t.Error(err)
	}
}

// checkGrants runs into each missing privilege and does what the hint says.
func checkGrants(t *testing.T, srv *harness.Server, s *postgres.Server) {
	t.Helper()
	do := func(what string, call func() error) {
		t.Helper()
		err := call()
		if errs.KindOf(err) != errs.Server {
			t.Fatalf("%s without privilege: %v", what, err)
		}
		prefix, sql, ok := strings.Cut(errs.HintOf(err), ": ")
		if !ok || prefix != `As a superuser run in database "postgres"` {
			t.Fatalf("%s: hint %q", what, errs.HintOf(err))
		}
		srv.Exec(t, sql)
		if err := call(); err != nil {
			t.Fatalf("%s after %s: %v", what, sql, err)
		}
	}
	do("privileges", func() error {
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.DataDirectory != "" && (info.DataDirectory != srv.DataDir || info.HBAFile != filepath.Join(srv.DataDir, "pg_hba.conf") || info.ConfigFile == "" || info.IdentFile == "") {
			t.Errorf("%+v", info)
		}
		return info.RequirePrivileges()
	})
	do("switch", func() error { _, err := s.SwitchWAL(t.Context()); return err })
	do("restore point", func() error { _, err := s.CreateRestorePoint(t.Context(), "rp"); return err })
	if _, err := s.StartBackup(t.Context(), "first", true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.StopBackup(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func checkBackup(t *testing.T, srv *harness.Server, s *postgres.Server) {
	t.Helper()
	dir := harness.TempDir(t)
	srv.Exec(t, fmt.Sprintf("CREATE TABLESPACE elsewhere LOCATION '%s'", dir), "CREATE TABLE there (i int) TABLESPACE elsewhere")
	spaces, err := s.Tablespaces(t.Context())
	if err != nil || len(spaces) != 1 || spaces[0].Location != dir {
		t.Fatalf("%+v, %v", spaces, err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Fatalf("%v, %v", names, err)
	} else if info, err := s.Info(t.Context()); err != nil || names[0].Name() != postgres.TablespaceVersionDir(info.Major, info.CatalogVersion) {
		t.Errorf("%s, %v", names[0].Name(), err)
	}
	start, err := s.StartBackup(t.Context(), `it's a "label" $1`, true)
	if err != nil {
		t.Fatal(err)
	}
	current, err := s.InsertLSN(t.Context())
	if err != nil || current <= start {
		t.Fatalf("InsertLSN %v after start %v, %v", current, start, err)
	}
	stop, err := s.StopBackup(t.Context())
	if err != nil || stop.LSN <= start {
		t.Fatalf("%+v, %v", stop, err)
	}
	label, err := postgres.ParseBackupLabel(stop.Label)
	if err != nil || label.Start != start || label.Label != `it's a "label" $1` || label.From != "primary" || label.StartTimeline != 1 ||
		label.StartFile != postgres.SegmentOf(1, start, 1<<20).Name(1<<20) || label.CheckPoint < start {
		t.Errorf("%+v, %v", label, err)
	}
	// The server leaves one, too, where the WAL starts.
	name := fmt.Sprintf("%s.%08X.backup", label.StartFile, start.Offset(1<<20))
	history, err := os.ReadFile(filepath.Join(srv.DataDir, "pg_wal", name))
	if err != nil {
		t.Fatal(err)
	}
	if left, err := postgres.ParseBackupLabel(history); err != nil || left.Start != start || left.Stop != stop.LSN || left.StopTimeline != 1 {
		t.Errorf("%+v, %v", left, err)
	}
	mapped, err := postgres.ParseTablespaceMap(stop.TablespaceMap)
	if err != nil || len(mapped) != 1 || mapped[0] != spaces[0] || !bytes.Equal(postgres.FormatTablespaceMap(spaces), stop.TablespaceMap) {
		t.Errorf("%q, %v", stop.TablespaceMap, err)
	}
	// The stop switched to a new segment, so the last one needed is whole.
	seg := postgres.Segment{Timeline: 1, Number: stop.LSN.LastSegment(1 << 20)}
	checkSegmentFile(t, filepath.Join(srv.DataDir, "pg_wal", seg.Name(1<<20)))
}

func checkSegmentFile(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name, err := postgres.ParseWALFile(filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	c := postgres.NewSegmentChecker(name, int64(len(data)), 0)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil || len(c.Warnings()) != 0 {
		t.Fatalf("%v, %v", err, c.Warnings())
	}
}

// awaitGone waits until the server has ended every session of the tests.
func awaitGone(t *testing.T, srv *harness.Server) {
	t.Helper()
	for srv.QueryInt(t, "SELECT count(*) FROM pg_stat_activity, pg_sleep(0.02) WHERE application_name = 'agent-test'") > 0 {
		if t.Context().Err() != nil {
			t.Fatal("the session does not end")
		}
	}
}

// The session ends with its context although no call is in progress, and with
// it the backup.
func TestLiveCancelBetweenCalls(t *testing.T) {
	t.Parallel()
	srv := harness.Start(t, harness.Options{NoFsync: true, Conf: archiving()})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := postgres.Connect(ctx, srv.ConnInfo(), "agent-test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StartBackup(t.Context(), "cancelled", true); err != nil {
		t.Fatal(err)
	}
	cancel()
	awaitGone(t, srv)
	if _, err := s.StopBackup(t.Context()); errs.KindOf(err) != errs.Interrupted {
		t.Errorf("stop after the end: %v", err)
	}
	if _, err := s.InsertLSN(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with the ended context: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A start that waits for a slow checkpoint is given up, whichever context ends.
func TestLiveCancelDuringStart(t *testing.T) {
	t.Parallel()
	srv := harness.Start(t, harness.Options{NoFsync: true, Conf: archiving()})
	for _, which := range []string{"session", "call"} {
		srv.Exec(t, "CREATE TABLE IF NOT EXISTS dirty (t text)", "INSERT INTO dirty SELECT repeat('x', 500) FROM generate_series(1, 20000)")
		session, endSession := context.WithCancel(t.Context())
		call, endCall := context.WithCancel(t.Context())
		s, err := postgres.Connect(session, srv.ConnInfo(), "agent-test")
		if err != nil {
			t.Fatal(err)
		}
		started := make(chan error, 1)
		go func() {
			_, err := s.StartBackup(call, "slow", false)
			started <- err
		}()
		for srv.QueryInt(t, "SELECT count(*) FROM pg_stat_activity, pg_sleep(0.02) WHERE application_name = 'agent-test' AND wait_event LIKE 'Checkpoint%'") == 0 {
			if t.Context().Err() != nil {
				t.Fatal("the backup does not wait for a checkpoint")
			}
		}
		if which == "session" {
			endSession()
		} else {
			endCall()
		}
		if err := <-started; errs.KindOf(err) != errs.Interrupted || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", which, err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
		awaitGone(t, srv)
		endCall()
		endSession()
	}
}

func TestLiveConnectErrors(t *testing.T) {
	t.Parallel()
	srv := harness.Start(t, harness.Options{NoFsync: true})
	srv.Exec(t, "CREATE ROLE bob LOGIN PASSWORD 'right'")
	hba := "local all postgres trust\nhost all postgres 127.0.0.1/32 trust\nhost all bob 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(srv.DataDir, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		t.Fatal(err)
	}
	srv.Restart(t)
	bob := strings.Replace(srv.ConnInfo(), "user=postgres", "user=bob", 1)
	for _, c := range []struct {
		what, conninfo, text, hint string
	}{
		{"password", bob + " password=hunter2", `as user "bob" at host 127.0.0.1 port`, `role "bob"`},
		{"no line", strings.Replace(bob, "bob", "eve", 1), "pg_hba.conf", "pg_hba.conf"},
		{"database", strings.Replace(srv.ConnInfo(), "dbname=postgres", "dbname=nowhere", 1), `database "nowhere"`, "PGDATABASE"},
		{"socket", "host=/nonexistent port=1 user=postgres", "socket /nonexistent/.s.PGSQL.1", "Is the server running"},
	} {
		s, err := postgres.Connect(t.Context(), c.conninfo, "agent-test")
		if s != nil || errs.KindOf(err) != errs.Server {
			t.Fatalf("%s: %v", c.what, err)
		}
		all := err.Error() + errs.HintOf(err)
		if !strings.Contains(err.Error(), c.text) || !strings.Contains(errs.HintOf(err), c.hint) || strings.Contains(all, "hunter2") {
			t.Errorf("%s: %v; hint %q", c.what, err, errs.HintOf(err))
		}
	}
	connect(t, bob+" password=right")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := postgres.Connect(ctx, srv.ConnInfo(), ""); errs.KindOf(err) != errs.Interrupted || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	srv.Stop(t)
	if _, err := postgres.Connect(t.Context(), srv.ConnInfo(), ""); errs.KindOf(err) != errs.Server ||
		!strings.Contains(err.Error(), fmt.Sprintf("host 127.0.0.1 port %d", srv.Port)) || !strings.Contains(errs.HintOf(err), "Is the server running") {
		t.Errorf("stopped server: %v", err)
	}
}

// What the server refuses at wal_level minimal comes with its own advice, and
// Preflight would have told before.
func TestLiveMinimal(t *testing.T) {
	t.Parallel()
	srv := harness.Start(t, harness.Options{NoFsync: true, Conf: map[string]string{"wal_level": "minimal", "max_wal_senders": "0"}})
	s := connect(t, srv.ConnInfo())
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.ArchiveCommand != "" || info.ArchiveMode != "off" {
		t.Errorf("%+v", info)
	}
	if err := postgres.Preflight(info); err == nil || !strings.Contains(err.Error(), "wal_level is minimal") || !strings.Contains(err.Error(), "archive_mode is off") {
		t.Errorf("Preflight: %v", err)
	}
	if _, err := s.StartBackup(t.Context(), "x", true); errs.KindOf(err) != errs.Server || !strings.Contains(errs.HintOf(err), "wal_level") {
		t.Errorf("%v; hint %q", err, errs.HintOf(err))
	}
	// The session is none the worse for it.
	if _, err := s.InsertLSN(t.Context()); err != nil {
		t.Error(err)
	}
}

// nextXIDOfStandby: the next id is behind those of transactions that have not
// ended, too.
func nextXIDOfStandby(t *testing.T, primary, standby *harness.Server, s *postgres.Server) {
	t.Helper()
	conn := primary.Conn(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; CREATE TABLE unfinished ()"); err != nil {
		t.Fatal(err)
	}
	var xid string
	if err := conn.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text").Scan(&xid); err != nil {
		t.Fatal(err)
	}
	primary.Exec(t, "SELECT pg_switch_wal()")
	standby.WaitReplayed(t, primary.LSN(t))
	next, err := s.NextXID(t.Context())
	if err != nil || fmt.Sprint(next-1) != xid {
		t.Errorf("the next transaction id is %d (%v), the last one was %s", next, err, xid)
	}
	if _, err := conn.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
}

// primaryOfStandby goes the way of the standby's own setting to the primary.
func primaryOfStandby(t *testing.T, primary, standby *harness.Server, s *postgres.Server) {
	t.Helper()
	conninfo, err := s.PrimaryConnInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := postgres.ConnectPrimary(t.Context(), conninfo, "agent-test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.SwitchWAL(t.Context()); err != nil {
		t.Error(err)
	}
	if n := primary.QueryInt(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agent-test'"); n != 1 {
		t.Errorf("%d sessions on the primary", n)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := postgres.ConnectPrimary(t.Context(), standby.ConnInfo(), ""); errs.KindOf(err) != errs.Server || !strings.Contains(err.Error(), "it is a standby, too") {
		t.Errorf("a standby: %v", err)
	}
	if _, err := connect(t, primary.ConnInfo()).PrimaryConnInfo(t.Context()); errs.KindOf(err) != errs.Server || !strings.Contains(err.Error(), "has no primary_conninfo") {
		t.Errorf("none: %v", err)
	}
}

// A backup on a standby, and the timeline after its promotion.
func TestLiveStandby(t *testing.T) {
	t.Parallel()
	primary := harness.Start(t, harness.Options{NoFsync: true, Conf: archiving()})
	dir := filepath.Join(harness.TempDir(t), "standby")
	primary.Run(t, "pg_basebackup", "-D", dir, "-X", "stream", "-R", "-c", "fast")
	standby := harness.StartExisting(t, dir, primary.Major, map[string]string{"archive_mode": "off"})
	s := connect(t, standby.ConnInfo())
	info, err := s.Info(t.Context())
	if err != nil || !info.InRecovery || info.Timeline != 1 || !info.FullPageWrites {
		t.Fatalf("%+v, %v", info, err)
	}
	if err := postgres.Preflight(info); err != nil {
		t.Error(err)
	}
	start, err := s.StartBackup(t.Context(), "on a standby", true)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := s.InsertLSN(t.Context()); err != nil || now < start {
		t.Errorf("InsertLSN %v before %v, %v", now, start, err)
	}
	stop, err := s.StopBackup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if label, err := postgres.ParseBackupLabel(stop.Label); err != nil || label.From != "standby" || stop.LSN < start {
		t.Errorf("%+v, %v", label, err)
	}
	if _, err := s.SwitchWAL(t.Context()); errs.KindOf(err) != errs.Server {
		t.Errorf("switch on a standby: %v", err)
	}
	nextXIDOfStandby(t, primary, standby, s)
	primaryOfStandby(t, primary, standby, s)
	standby.Exec(t, "SELECT pg_promote()")
	if info, err = s.Info(t.Context()); err != nil || info.InRecovery || info.Timeline != 2 {
		t.Errorf("after promotion: %+v, %v", info, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "pg_wal", "00000002.history"))
	if err != nil {
		t.Fatal(err)
	}
	if h, err := postgres.ParseHistory(2, data); err != nil || !h.Contains(1) {
		t.Errorf("%+v, %v", h, err)
	}
}
