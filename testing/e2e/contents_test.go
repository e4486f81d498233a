package e2e_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"agent/testing/harness"
)

// detector is a way to find out what has changed: its name for --detect, and in
// a backup.
type detector struct{ flag, name string }

// detectors are those that a major has.
func detectors(major int) []detector {
	all := []detector{{"summaries", "summaries"}, {"lsn", "page-lsn"}}
	if major >= 17 {
		all = append(all, detector{"server", "server-summaries"})
	}
	return all
}

// incremental takes a backup that must be an incremental one, built on a given
// parent, by the given detector.
func (s *site) incremental(t testing.TB, parent string, d detector) incremental {
	t.Helper()
	r := must(t, s.agent(t, "backup-push", "--json", "--parent", parent, "--detect", d.flag))
	b := parse[incremental](t, r.Stdout)
	if b.Type != "incremental" || b.Parent != parent || b.Detector != d.name {
		t.Fatalf("with --detect %s: %q of %q by %q\n%s%s", d.flag, b.Type, b.Parent, b.Detector, r.Stdout, r.Stderr)
	}
	if b.Inherited == 0 {
		t.Errorf("with --detect %s nothing is inherited", d.flag)
	}
	return b
}

// mustBeFull takes a backup that must be a full one although there are others,
// and must say why with one of the given texts, which stand with a "|" between.
func (s *site) mustBeFull(t testing.TB, why string) incremental {
	t.Helper()
	r := must(t, s.agent(t, "backup-push", "--json"))
	b := parse[incremental](t, r.Stdout)
	if b.Type != "full" || b.Parent != "" || b.Inherited != 0 {
		t.Errorf("%s: %q of %q by %q, %d bytes inherited", why, b.Type, b.Parent, b.Detector, b.Inherited)
	}
	said := strings.ToLower(strings.Join(b.Reasons, "\n"))
	if !slices.ContainsFunc(strings.Split(why, "|"), func(text string) bool { return strings.Contains(said, text) }) {
		t.Errorf("it is not said why the backup is a full one (%s):\n%s\n%s", why, strings.Join(b.Reasons, "\n"), r.Stderr)
	}
	return b
}

// recoverIt restores a backup and starts it. What was restored can be looked
// at between the two.
func (s *site) recoverIt(t testing.TB, name string, compare func(dir string), args ...string) *harness.Server {
	t.Helper()
	dir := fresh(t)
	must(t, s.restore(t, append([]string{dir, name}, args...)...))
	if compare != nil {
		compare(dir)
	}
	c := harness.StartExisting(t, dir, s.Major, map[string]string{"autovacuum": "off", "max_prepared_transactions": "10", "fsync": "off"})
	if c.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	return c
}

// in runs SQL in a database, each text as a query of its own.
func in(t testing.TB, s *harness.Server, db string, sql ...string) {
	t.Helper()
	conn := database(t, s, db)
	defer func() { _ = conn.Close(t.Context()) }() // an error was told by the query
	for _, query := range sql {
		if _, err := conn.PgConn().Exec(t.Context(), query).ReadAll(); err != nil {
			t.Fatalf("%s: in database %s: %v", query, db, err)
		}
	}
}

// contents is what a cluster holds, by names that tell what differs.
type contents map[string]string

// read reads all that a cluster holds: rows of all tables, indexes and their
// order, large objects, prepared transactions. It reads through hints and
// visibility maps as users do.
func read(t testing.TB, s *harness.Server) contents {
	t.Helper()
	all := contents{}
	all.take(t, s.Conn(t), "database ", "SELECT datname, spcname FROM pg_database d JOIN pg_tablespace s ON s.oid = d.dattablespace")
	for _, db := range databases(t, s) {
		conn := database(t, s, db)
		all.take(t, conn, db+".", `SELECT format('%I.%I', n.nspname, c.relname), format('%s %s in %s with %s indexes', c.relkind, c.relpersistence,
			coalesce((SELECT spcname FROM pg_tablespace WHERE oid = c.reltablespace), 'default'),
			(SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid))
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'm', 'S', 'i') AND `+ownSchema)
		tables := contents{}
		tables.take(t, conn, "", `SELECT format('%I.%I', n.nspname, c.relname), c.relpersistence::text
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'm') AND `+ownSchema)
		for table, persistence := range tables {
			if persistence == "u" {
				continue // empty after a recovery
			}
			all.take(t, conn, db+".", `SELECT 'rows of `+table+`', format('%s, hash %s', count(*), sum(hashtextextended(r::text, 0))) FROM `+table+` r`)
		}
		all.take(t, conn, db+".", `SELECT 'large object ' || oid, md5(lo_get(oid)) FROM pg_largeobject_metadata`)
		all.take(t, conn, db+".", `SELECT 'prepared ' || gid, owner::text FROM pg_prepared_xacts WHERE database = current_database()`)
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// ownSchema is true of what no extension and no catalog made.
const ownSchema = `n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND NOT EXISTS
	(SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')`

// take adds the rows of a query, of a name and a text.
func (c contents) take(t testing.TB, conn *pgx.Conn, prefix, sql string) {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	var name, text string
	if _, err := pgx.ForEachRow(rows, []any{&name, &text}, func() error {
		c[prefix+name] = text
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// check compares a server with what was read.
func (c contents) check(t testing.TB, s *harness.Server) {
	t.Helper()
	if diff := cmp.Diff(c, read(t, s)); diff != "" {
		t.Errorf("the primary (-) and the restored server (+) differ:\n%.6000s", diff)
	}
}

// throughIndexes runs a query for each of some indexes, with it and without, since
// amcheck knows B-trees alone.
func throughIndexes(t testing.TB, s *harness.Server, queries map[string]string) {
	t.Helper()
	conn := s.Conn(t)
	for _, key := range slices.Sorted(maps.Keys(queries)) {
		var counts [2]int64
		for i, set := range []string{
			"SET enable_seqscan = on; SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off",
			"SET enable_seqscan = off; SET enable_indexscan = on; SET enable_indexonlyscan = on; SET enable_bitmapscan = on",
		} {
			if _, err := conn.PgConn().Exec(t.Context(), set).ReadAll(); err != nil {
				t.Fatal(err)
			}
			if err := conn.QueryRow(t.Context(), queries[key]).Scan(&counts[i]); err != nil {
				t.Fatalf("%s: %v", queries[key], err)
			}
			if i == 1 {
				var plan []string
				rows, err := conn.Query(t.Context(), "EXPLAIN (COSTS off) "+queries[key])
				if err != nil {
					t.Fatal(err)
				}
				if plan, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(strings.Join(plan, "\n"), key) {
					t.Errorf("%s is not read:\n%s", key, strings.Join(plan, "\n"))
				}
			}
		}
		if counts[0] != counts[1] || counts[0] == 0 {
			t.Errorf("by %s %d rows are found, the table has %d", key, counts[1], counts[0])
		}
	}
}

// space makes a tablespace.
func space(t testing.TB, s *site, name string) (dir string) {
	t.Helper()
	dir = filepath.Join(harness.TempDir(t), name)
	makeDir(t, dir)
	s.Exec(t, fmt.Sprintf("CREATE TABLESPACE %s LOCATION '%s'", name, dir))
	return dir
}
