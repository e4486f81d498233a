package format_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agent/internal/repo"
	"agent/testing/harness"
)

var update = flag.Bool("update", false, "write a repository of the current format into testdata; one that is there stays")

// shrink takes out of a cluster of PostgreSQL 17 what it runs without, so that
// the fixture is small: template databases, views, comments, statistics.
func shrink() []string {
	return []string{
		"UPDATE pg_database SET datistemplate = false WHERE datistemplate",
		"DROP DATABASE template0",
		"DROP DATABASE template1",
		"DROP SCHEMA information_schema CASCADE",
		"DELETE FROM pg_description",
		"DELETE FROM pg_init_privs",
		"DELETE FROM pg_collation WHERE collname NOT IN ('default', 'C', 'POSIX', 'ucs_basic', 'unicode', 'pg_c_utf8')",
		`DO $$
		DECLARE v record;
		BEGIN
			FOR v IN SELECT cfgname FROM pg_ts_config WHERE cfgname <> 'simple' LOOP
				EXECUTE 'DROP TEXT SEARCH CONFIGURATION pg_catalog.' || quote_ident(v.cfgname) || ' CASCADE';
			END LOOP;
			FOR v IN SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = 'pg_catalog'::regnamespace AND relname NOT IN
				('pg_settings', 'pg_hba_file_rules', 'pg_file_settings', 'pg_roles', 'pg_stat_archiver', 'pg_stat_activity', 'pg_stat_replication', 'pg_replication_slots') LOOP
				EXECUTE 'DROP VIEW IF EXISTS pg_catalog.' || quote_ident(v.relname) || ' CASCADE';
			END LOOP;
		END $$`,
		"DELETE FROM pg_statistic",
		"VACUUM FULL",
		"CHECKPOINT",
	}
}

// place is a repository that is being written.
type place struct {
	name  string
	dir   string
	flags string
	fixture
}

// TestMakeFixture writes, with -update, a repository of the format that is
// written now, sealed and not: what TestReleasedFormats reads. Without it there
// must be one.
func TestMakeFixture(t *testing.T) {
	dest := fmt.Sprintf("testdata/format%d", repo.Format)
	_, err := os.Stat(dest)
	switch {
	case err == nil && *update:
		t.Fatalf("%s is there: what was released is never written again", dest)
	case err != nil && !*update:
		t.Fatalf("there is no fixture of the format that is written: make fixture (%v)", err)
	case err == nil:
		return
	}
	base := harness.TempDir(t)
	places := []*place{{name: "plain"}, {name: "sealed"}}
	var commands []string
	for _, p := range places {
		p.Major = 17
		p.dir = filepath.Join(base, p.name)
		if err := os.Mkdir(p.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		harness.Own(t, p.dir)
		p.flags = "--repository " + filepath.Join(p.dir, "repository") + " --state-dir " + filepath.Join(base, "state-"+p.name) + " --compression zstd:19"
		if p.name == "sealed" {
			res := harness.Agent(t, nil, "keygen", "-o", filepath.Join(p.dir, "identity.txt"))
			p.flags += " --recipients " + strings.TrimSpace(res.Stdout)
		}
		run(t, nil, append([]string{"repo", "init"}, strings.Fields(p.flags)...)...)
		commands = append(commands, harness.AgentBinary(t)+" wal-push %p "+p.flags)
	}
	s := harness.Start(t, harness.Options{
		Major: 17, WALSegSizeMB: 1,
		Conf: map[string]string{"archive_mode": "on", "archive_command": "true", "allow_system_table_mods": "on", "autovacuum": "off"},
	})
	s.Exec(t, shrink()...)
	s.Stop(t)
	s.AppendConf(t, map[string]string{"archive_command": strings.Join(commands, " && "), "allow_system_table_mods": "off"})
	s.Restart(t)

	s.Exec(t, "CREATE TABLE kept AS SELECT g AS i, 'row ' || g AS t FROM generate_series(1, 1000) g")
	backUp(t, s, places)
	s.Exec(t, "UPDATE kept SET t = 'changed' WHERE i % 100 = 0", "CHECKPOINT")
	backUp(t, s, places)
	// A new timeline, with its history, and with the unfinished segment of the
	// old one.
	s.Exec(t, "INSERT INTO kept VALUES (2000, 'before the promotion')")
	s.Stop(t)
	harness.MakeStandby(t, s.DataDir)
	s.Restart(t)
	s.Promote(t)
	s.Exec(t, "INSERT INTO kept VALUES (3000, 'after the promotion')")
	awaitArchived(t, s, s.QueryString(t, "SELECT pg_walfile_name(pg_switch_wal())"))
	// What comes last is in a range of an unfinished segment alone.
	s.Exec(t, "INSERT INTO kept VALUES (4000, 'streamed')")
	for _, p := range places {
		run(t, s.Env(), append([]string{"wal-receive", "--slot", p.name, "--create-slot", "--once"}, strings.Fields(p.flags)...)...)
	}
	final := s.QueryString(t, fixtureQuery)
	s.Kill(t)
	for _, p := range places {
		p.Final = final
		keep(t, p, filepath.Join(dest, p.name))
	}
}

// backUp backs up into every place.
func backUp(t *testing.T, s *harness.Server, places []*place) {
	t.Helper()
	for _, p := range places {
		res := harness.Agent(t, s.Env(), append([]string{"backup-push", "--json"}, strings.Fields(p.flags)...)...)
		if res.Code != 0 {
			t.Fatalf("status %d: %s", res.Code, res.Stderr)
		}
		var b fixtureBackup
		if err := json.Unmarshal([]byte(res.Stdout), &b); err != nil {
			t.Fatal(err)
		}
		b.Rows = s.QueryString(t, fixtureQuery)
		p.Backups = append(p.Backups, b)
	}
}

// awaitArchived waits until the server has archived a segment.
func awaitArchived(t *testing.T, s *harness.Server, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for s.QueryString(t, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") < name {
		select {
		case <-ctx.Done():
			t.Fatalf("%s was not archived", name)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// keep copies what was written to where it stays.
func keep(t *testing.T, p *place, dest string) {
	t.Helper()
	body, err := json.MarshalIndent(p.fixture, "", "  ")
	if err == nil {
		err = os.CopyFS(dest, os.DirFS(p.dir))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dest, "fixture.json"), append(body, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
