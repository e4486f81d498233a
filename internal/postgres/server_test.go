package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"agent/internal/errs"
)

func TestPreflight(t *testing.T) {
	good := Info{Major: 15, WALLevel: "replica", ArchiveMode: "on", ArchiveCommand: "agent wal-push %p", FullPageWrites: true, BlockSize: 8192}
	for _, c := range []struct {
		what   string
		change func(*Info)
		text   []string // of the error; none: no error
		hint   []string
	}{
		{"ready", func(*Info) {}, nil, nil},
		{"logical", func(i *Info) { i.WALLevel = "logical"; i.ArchiveMode = "always" }, nil, nil},
		{"library", func(i *Info) { i.ArchiveCommand = ""; i.ArchiveLibrary = "basic_archive" }, nil, nil},
		{"standby", func(i *Info) { i.InRecovery = true; i.ArchiveMode = "off" }, nil, nil},
		{"full_page_writes comes by itself on a primary", func(i *Info) { i.FullPageWrites = false }, nil, nil},
		{"received", func(i *Info) { i.ArchiveMode = "off"; i.Received = true }, nil, nil},
		{"no archiving", func(i *Info) { i.ArchiveMode = "off"; i.ArchiveCommand = "" }, []string{"archive_mode is off"}, []string{"archive_mode = on", "restart"}},
		{"no command", func(i *Info) { i.ArchiveCommand = "" }, []string{"archive_command is empty"}, []string{"reload"}},
		{
			"both", func(i *Info) { i.ArchiveMode = "off"; i.WALLevel = "minimal" },
			[]string{"wal_level is minimal", "archive_mode is off"},
			[]string{"wal_level = replica", "archive_mode = on"},
		},
		{"standby without images", func(i *Info) { i.InRecovery = true; i.FullPageWrites = false }, []string{"full_page_writes = off"}, []string{"on the primary"}},
		{"major", func(i *Info) { i.Major = 12 }, []string{"PostgreSQL 12 is not supported, 13 to 18 are"}, []string{"version of the agent"}},
		{"block size", func(i *Info) { i.BlockSize = 16384 }, []string{"block_size is 16384"}, []string{"default block size"}},
	} {
		info := good
		c.change(&info)
		err := Preflight(info)
		if (err == nil) != (c.text == nil) {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if err != nil && errs.KindOf(err) != errs.Server {
			t.Errorf("%s: kind %v", c.what, errs.KindOf(err))
		}
		for _, text := range c.text {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v lacks %q", c.what, err, text)
			}
		}
		for _, text := range c.hint {
			if !strings.Contains(errs.HintOf(err), text) {
				t.Errorf("%s: hint %q lacks %q", c.what, errs.HintOf(err), text)
			}
		}
	}
}

func TestGrants(t *testing.T) {
	all := []Privilege{PrivilegeSettings, PrivilegeBackup, PrivilegeSwitchWAL, PrivilegeRestorePoint}
	for major, want := range map[int]string{
		14: `GRANT pg_read_all_settings TO "a ""b"
GRANT EXECUTE ON FUNCTION pg_catalog.pg_start_backup(text, boolean, boolean) TO "a ""b"
GRANT EXECUTE ON FUNCTION pg_catalog.pg_stop_backup(boolean, boolean) TO "a ""b"
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO "a ""b"
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO "a ""b"`,
		15: `GRANT pg_read_all_settings TO "a ""b"
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO "a ""b"
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_stop(boolean) TO "a ""b"
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO "a ""b"
GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO "a ""b"`,
	} {
		if got := strings.Join(Grants(major, `a "b`, all...), "\n"); got != want {
			t.Errorf("%d:\n%s\nwant\n%s", major, got, want)
		}
	}
}

func TestServerError(t *testing.T) {
	pg := func(code string) error {
		return fmt.Errorf("query: %w", &pgconn.PgError{Severity: "ERROR", Code: code, Message: "text of the server", Hint: "server's hint"})
	}
	for _, c := range []struct {
		what string
		err  error
		kind errs.Kind
		hint string
	}{
		{"denied", pg("42501"), errs.Server, "GRANT x"},
		{"starting up", pg("57P03"), errs.Server, "starting up"},
		{"administrator", pg("57P01"), errs.Server, "shuts down"},
		{"crash", pg("57P02"), errs.Server, "shuts down"},
		{"idle", pg("57P05"), errs.Server, "idle session"},
		{"too many", pg("53300"), errs.Server, "max_connections"},
		{"wal_level", pg("55000"), errs.Server, "server's hint"},
		{"connection", io.ErrUnexpectedEOF, errs.Server, "connection to the server was lost"},
		{"cancelled", fmt.Errorf("timeout: %w", context.Canceled), errs.Interrupted, ""},
		{"deadline", context.DeadlineExceeded, errs.Interrupted, ""},
		{"ended", errSessionEnded, errs.Interrupted, ""},
	} {
		err := serverError(c.err, "do it", "GRANT x")
		if errs.KindOf(err) != c.kind || !strings.Contains(errs.HintOf(err), c.hint) || c.hint == "" && errs.HintOf(err) != "" || !strings.HasPrefix(err.Error(), "do it: ") {
			t.Errorf("%s: kind %v, hint %q, %v", c.what, errs.KindOf(err), errs.HintOf(err), err)
		}
	}
	if err := serverError(nil, "do it", ""); err != nil {
		t.Error(err)
	}
}

func TestConnectErrorPlaces(t *testing.T) {
	config, err := pgx.ParseConfig("postgresql://bob:hunter2@db1.example:5433,db2.example/shop?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	got := address(config)
	if want := `database "shop" as user "bob" at host db1.example port 5433, host db2.example port 5432`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for code, want := range map[string]string{"28P01": `role "bob"`, "28000": "pg_hba.conf", "3D000": "PGDATABASE", "57P03": "starting up", "53300": "max_connections"} {
		err := connectError(t.Context(), config, &pgconn.PgError{Code: code})
		if errs.KindOf(err) != errs.Server || !strings.Contains(errs.HintOf(err), want) || strings.Contains(err.Error()+errs.HintOf(err), "hunter2") {
			t.Errorf("%s: %v, hint %q", code, err, errs.HintOf(err))
		}
	}
}

// Whatever is wrong with a connection string, its password stays hidden.
func TestConninfoErrors(t *testing.T) {
	for _, conninfo := range []string{
		"host=x password=hunter2 sslmode=maybe", "host=x password='hunter2", "postgresql://bob:hunter2@h:port/db", "postgresql://bob:hun/ter2@h/db",
		"postgresql://h/db?password=hunter2&sslmode=maybe", "password = hunter2 oops", "hunter2pass",
	} {
		s, err := Connect(t.Context(), conninfo, "test")
		if s != nil || errs.KindOf(err) != errs.Config || errs.HintOf(err) == "" {
			t.Errorf("%q: %v", conninfo, err)
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			if strings.Contains(e.Error(), "hunter2") || strings.Contains(e.Error(), "ter2") {
				t.Errorf("%q: %v", conninfo, e)
			}
		}
	}
	_, err := Connect(t.Context(), "host=x sslmode=maybe", "test")
	if errs.KindOf(err) != errs.Config {
		t.Errorf("%v", err)
	}
}

func TestStartBackupLabel(t *testing.T) {
	for _, label := range []string{"two\nlines", "a\rb", "a\x00b", strings.Repeat("x", 1025)} {
		if _, err := (&Server{}).StartBackup(t.Context(), label, true); errs.KindOf(err) != errs.Usage {
			t.Errorf("%q: %v", label, err)
		}
	}
}

func TestRequirePrivileges(t *testing.T) {
	if err := (Info{DataDirectory: "/data"}).RequirePrivileges(); err != nil {
		t.Error(err)
	}
	err := Info{Major: 15, Role: "bob", Database: "shop", BackupDenied: true}.RequirePrivileges()
	if want := `As a superuser run in database "shop": GRANT pg_read_all_settings TO "bob"; GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO "bob"; GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_stop(boolean) TO "bob";`; errs.HintOf(err) != want {
		t.Errorf("%q, want %q", errs.HintOf(err), want)
	}
}

func TestRequireSupported(t *testing.T) {
	for major := 11; major <= 20; major++ {
		err := requireSupported(major)
		if (err == nil) != (major >= 13 && major <= 18) {
			t.Errorf("%d: %v", major, err)
		}
		if err != nil && (errs.KindOf(err) != errs.Server || !strings.Contains(errs.HintOf(err), "13 to 18")) {
			t.Errorf("%d: kind %v, hint %q", major, errs.KindOf(err), errs.HintOf(err))
		}
	}
}
