package e2e_test

import (
	"context"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/internal/postgres"
	"agent/testing/harness"
)

// variant is how the scenario differs between majors, so that together they
// try every codec, with and without encryption, and several segment sizes.
type variant struct {
	compression string
	sealed      bool
	segmentMB   int
	strategy    string // of CREATE DATABASE
}

func variants() map[int]variant {
	return map[int]variant{
		13: {compression: "none", segmentMB: 1},
		14: {compression: "lz4", sealed: true, segmentMB: 16},
		15: {compression: "zstd", sealed: true, segmentMB: 4},
		16: {compression: "zstd:3", segmentMB: 16, strategy: "STRATEGY file_copy"},
		17: {compression: "none", sealed: true, segmentMB: 16},
		18: {compression: "lz4:3", segmentMB: 2, strategy: "STRATEGY file_copy"},
	}
}

// TestScenario is the main job on every major: archive, back up under load,
// lose a table, restore to the moment before.
func TestScenario(t *testing.T) {
	for _, major := range harness.Majors() {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			v, ok := variants()[major]
			if !ok {
				t.Fatalf("no variant for PostgreSQL %d", major)
			}
			scenario(t, major, v)
		})
	}
}

func scenario(t *testing.T, major int, v variant) {
	s := newSite(t, plan{
		Options:     harness.Options{Major: major, WALSegSizeMB: v.segmentMB, Conf: map[string]string{"autovacuum_naptime": "1s"}},
		compression: v.compression, sealed: v.sealed,
	})
	space := filepath.Join(harness.TempDir(t), "old space")
	unlogged := prepare(t, s, space)
	work := startLoad(t, s.Server)
	work.more(t, 100)

	b := backupWhileChanging(t, s, v)
	work.more(t, 200)
	want := work.mark(t)
	work.more(t, 200)
	s.Exec(t, "DROP TABLE precious")
	work.more(t, 50)
	work.stop(t)
	s.switchWAL(t)
	s.Stop(t)
	before := objects(t, s.repo)

	dir, newSpace := fresh(t), filepath.Join(harness.TempDir(t), "new space")
	r := must(t, s.restore(t, dir, "--target-time", target(want.at), "--target-action", "promote",
		"--tablespace-map", space+"="+newSpace))
	if !strings.Contains(r.Stdout, b.Name) {
		t.Errorf("the backup %s is not named:\n%s", b.Name, r.Stdout)
	}
	verifyBackup(t, s.Server, dir)
	leftOut(t, dir, unlogged)

	c := harness.StartExisting(t, dir, major, nil)
	if c.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	want.check(t, c)
	restoredObjects(t, c, newSpace)
	healthy(t, c)

	// A clone must leave the repository alone, whatever it does.
	if got := c.QueryString(t, "SHOW archive_mode"); got != "off" {
		t.Errorf("archive_mode is %s in a clone", got)
	}
	c.Exec(t, "CREATE TABLE mine AS SELECT generate_series(1, 1000)", "CHECKPOINT", "SELECT pg_switch_wal()")
	c.Stop(t)
	checksums(t, c)
	if diff := cmp.Diff(keys(before), keys(objects(t, s.repo))); diff != "" {
		t.Errorf("the repository changed after the restore:\n%s", diff)
	}
}

// keys drops what the objects hold.
func keys(all map[string]string) map[string]int {
	sizes := make(map[string]int)
	for key, body := range all {
		sizes[key] = len(body)
	}
	return sizes
}

// prepare fills the cluster. It returns the path of the unlogged table's file.
func prepare(t *testing.T, s *site, space string) (unlogged string) {
	makeDir(t, space)
	s.Exec(t, "CREATE TABLESPACE fast LOCATION '"+space+"'", loadTables("fast"),
		"CREATE TABLE precious AS SELECT g AS i, md5(g::text) AS m FROM generate_series(1, 5000) g",
		"CREATE TABLE filler TABLESPACE fast AS SELECT g AS i, repeat(md5(g::text), 20) AS m FROM generate_series(1, 10000) g",
		"CREATE UNLOGGED TABLE scratch (i int PRIMARY KEY, t text)",
		"INSERT INTO scratch SELECT g, repeat('unlogged', 50) FROM generate_series(1, 5000) g",
		"CREATE DATABASE doomed", "VACUUM")
	doomed := database(t, s.Server, "doomed")
	if _, err := doomed.Exec(t.Context(), "CREATE TABLE a AS SELECT repeat('gone', 100) FROM generate_series(1, 10000)"); err != nil {
		t.Fatal(err)
	}
	if err := doomed.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Its session stays, so that its temporary table's files are there, too.
	conn := s.Conn(t)
	if _, err := conn.Exec(t.Context(), "SET temp_buffers = '800kB'"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "CREATE TEMPORARY TABLE passing AS SELECT repeat('temporary', 100) FROM generate_series(1, 20000)"); err != nil {
		t.Fatal(err)
	}
	s.Exec(t, "CHECKPOINT")
	unlogged = s.QueryString(t, "SELECT pg_relation_filepath('scratch')")
	temporary, err := filepath.Glob(filepath.Join(s.DataDir, "base/*/t[0-9]*_[0-9]*"))
	if err != nil || len(temporary) == 0 || !exists(filepath.Join(s.DataDir, unlogged)) {
		t.Fatalf("there is nothing to leave out: %q, %s (%v)", temporary, unlogged, err)
	}
	return unlogged
}

// backupWhileChanging takes a backup during which a database is created and
// one dropped.
func backupWhileChanging(t *testing.T, s *site, v variant) backup {
	push := harness.StartAgent(t, s.env(), "backup-push", "--json", "--read-rate", "12MB")
	awaitLine(t, push, "backup started")
	push.Signal(syscall.SIGSTOP) // in the middle of copying, however fast this machine is
	first := insertLSN(t, s.Server)
	// From template0, which nobody changes: when a template is changed during a
	// backup, here by autovacuum, replay copies that into the new database, half
	// of it (PostgreSQL documentation, "Continuous Archiving", caveats).
	s.Exec(t, "CREATE DATABASE born TEMPLATE template0 "+v.strategy)
	born := database(t, s.Server, "born")
	if _, err := born.Exec(t.Context(), "CREATE TABLE b AS SELECT g AS i FROM generate_series(1, 2000) g"); err != nil {
		t.Fatal(err)
	}
	if err := born.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	s.Exec(t, "DROP DATABASE doomed", "VACUUM (FREEZE) load", "DELETE FROM filler WHERE i % 100 = 0")
	last := insertLSN(t, s.Server)
	push.Signal(syscall.SIGCONT)
	b := parse[backup](t, must(t, push.Wait()).Stdout)
	start, stop := lsn(t, b.StartLSN), lsn(t, b.StopLSN)
	if start > first || last > stop {
		t.Fatalf("the databases changed between %s and %s, outside of the backup, %s to %s", first, last, start, stop)
	}
	if b.BadPages != 0 {
		t.Errorf("%d pages are called bad", b.BadPages)
	}
	return b
}

func insertLSN(t testing.TB, s *harness.Server) postgres.LSN {
	t.Helper()
	return lsn(t, s.QueryString(t, "SELECT pg_current_wal_insert_lsn()::text"))
}

func lsn(t testing.TB, text string) postgres.LSN {
	t.Helper()
	v, err := postgres.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var temporaryFile = regexp.MustCompile(`(^|/)(t[0-9]+_[0-9]+[^/]*|pgsql_tmp[^/]*/.*)$`)

// leftOut checks that what a backup must leave out is not in the restored
// directory, before a server has cleaned up there.
func leftOut(t *testing.T, dir, unlogged string) {
	t.Helper()
	if exists(filepath.Join(dir, unlogged)) || !exists(filepath.Join(dir, unlogged+"_init")) {
		t.Errorf("of the unlogged table just the init fork must be there")
	}
	for path := range objects(t, dir) {
		if temporaryFile.MatchString(path) {
			t.Errorf("a temporary file was restored: %s", path)
		}
		if strings.HasPrefix(path, "pg_wal/") || path == "postmaster.pid" {
			t.Errorf("%s was restored", path)
		}
	}
}

// restoredObjects looks at all that is no part of the load.
func restoredObjects(t *testing.T, c *harness.Server, space string) {
	t.Helper()
	for query, want := range map[string]int64{
		"SELECT count(*) FROM precious WHERE m = md5(i::text)":                                   5000,
		"SELECT count(*) FROM filler WHERE m = repeat(md5(i::text), 20)":                         9900,
		"SELECT count(*) FROM scratch":                                                           0,
		"SELECT count(*) FROM pg_database WHERE datname = 'doomed'":                              0,
		"SELECT count(*) FROM pg_tablespace WHERE pg_tablespace_location(oid) = '" + space + "'": 1,
	} {
		if got := c.QueryInt(t, query); got != want {
			t.Errorf("%s: %d, not %d", query, got, want)
		}
	}
	c.Exec(t, "INSERT INTO scratch VALUES (1, 'works')")
	born := database(t, c, "born")
	var n int64
	if err := born.QueryRow(t.Context(), "SELECT count(*) FROM b").Scan(&n); err != nil || n != 2000 {
		t.Errorf("the database created during the backup has %d rows (%v)", n, err)
	}
	if err := born.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
