package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"agent/testing/harness"
)

// hazard is a change that some way to find changes misses. All SQL runs in the
// database postgres, each text as a query of its own.
type hazard struct {
	name   string
	since  int // first major that has it; 0: all
	before []string
	after  []string                     // the full incremental
	do     func(t *testing.T, h *wreck) // after that
	down   func(t *testing.T, h *wreck) // while the server is stopped, after all of these
	again  []string                     // after the server was started again
}

// wreck is a server to which the hazards happen.
type wreck struct {
	*site
	paths map[string]string // of tables whose files are changed while it is stopped
}

// filled makes a table of about 8 rows to a page.
func filled(name string, rows int) string {
	return fmt.Sprintf("CREATE TABLE %s AS SELECT g AS i, repeat(md5(g::text), 30) AS t FROM generate_series(1, %d) g", name, rows)
}

// hazards are those of docs/changes.md, and of the servers' own release notes.
func hazards() []hazard {
	return []hazard{
		{
			// The second backup of PostgreSQL 17 and 18 itself brings these rows back.
			name:   "truncated by vacuum and refilled",
			before: []string{filled("shrunk", 3000)},
			after:  []string{"DELETE FROM shrunk WHERE i > 40", "VACUUM (TRUNCATE) shrunk"},
			do: func(t *testing.T, h *wreck) {
				if n := h.QueryInt(t, "SELECT pg_relation_size('shrunk') / 8192"); n > 10 {
					t.Fatalf("the table has still %d pages", n)
				}
				refill(t, h.Server, "shrunk")
			},
		},
		{
			// As a crash leaves it while a table is extended.
			name:   "truncated by vacuum and extended with empty pages",
			before: []string{filled("emptied", 3000)},
			after:  []string{"DELETE FROM emptied WHERE i > 40", "VACUUM (TRUNCATE) emptied"},
			do:     func(t *testing.T, h *wreck) { h.note(t, "emptied") },
			down:   func(t *testing.T, h *wreck) { h.extend(t, "emptied", 10, 300) },
			again:  []string{"INSERT INTO emptied SELECT g, 'new' FROM generate_series(1, 20) g"},
		},
		{
			name:   "new empty pages",
			before: []string{filled("extended", 200)},
			do:     func(t *testing.T, h *wreck) { h.note(t, "extended") },
			down:   func(t *testing.T, h *wreck) { h.extend(t, "extended", 50, 60) },
			again:  []string{"INSERT INTO extended SELECT g, 'new' FROM generate_series(1, 20) g"},
		},
		{
			name: "truncate",
			before: []string{
				filled("truncated", 2000), filled("truncated_twice", 2000), filled("not_truncated", 500),
			},
			after: []string{
				"TRUNCATE truncated", "INSERT INTO truncated SELECT g, 'again' FROM generate_series(1, 5000) g",
				"BEGIN; TRUNCATE truncated_twice; INSERT INTO truncated_twice VALUES (1, 'x'); TRUNCATE truncated_twice; INSERT INTO truncated_twice VALUES (2, 'y'); COMMIT",
				"BEGIN; TRUNCATE not_truncated; INSERT INTO not_truncated VALUES (1, 'x'); ROLLBACK",
			},
		},
		{
			name:   "dropped and created again",
			before: []string{filled("recreated", 2000), filled("dropped", 500)},
			after: []string{
				"DROP TABLE recreated", filled("recreated", 700), "DROP TABLE dropped",
				"BEGIN; " + filled("never", 100) + "; ROLLBACK",
				"BEGIN; SAVEPOINT a; " + filled("neither", 100) + "; ROLLBACK TO a; " + filled("sub", 100) + "; COMMIT",
			},
		},
		{
			name:   "changed rows",
			before: []string{filled("updated", 3000), "CREATE UNIQUE INDEX ON updated (i)"},
			after: []string{
				"UPDATE updated SET t = 'short' WHERE i % 37 = 0", "UPDATE updated SET t = t WHERE i % 41 = 0",
				"BEGIN; SELECT * FROM updated WHERE i % 97 = 0 FOR SHARE; SAVEPOINT a; UPDATE updated SET t = 'back' WHERE i % 97 = 0; ROLLBACK TO a; COMMIT",
				"INSERT INTO updated VALUES (37, 'conflict') ON CONFLICT (i) DO UPDATE SET t = excluded.t",
			},
		},
		{
			// Which takes pages out of the visibility map, in no WAL before 17.11 and 18.6.
			name:   "all visible rows deleted",
			before: []string{filled("seen", 5000), "CREATE INDEX ON seen (i)", "VACUUM (FREEZE) seen"},
			after:  []string{"DELETE FROM seen WHERE i % 50 = 0", "SELECT * FROM seen WHERE i % 75 = 0 FOR UPDATE"},
		},
		{
			// Which moves no LSN of the table's pages where hints are not logged.
			name:   "rows made visible",
			before: []string{filled("unseen", 5000), "SELECT count(*) FROM unseen"},
			after:  []string{"VACUUM unseen"},
		},
		{
			name:   "hints",
			before: []string{filled("hinted", 2000), filled("frozen", 2000)},
			after:  []string{"SELECT count(*) FROM hinted", "VACUUM (FREEZE) frozen"},
		},
		{
			name:   "visibility map and free space map cut",
			before: []string{"CREATE TABLE wide AS SELECT g AS i FROM generate_series(1, 200000) g", "VACUUM wide"},
			after:  []string{"DELETE FROM wide WHERE i > 1000", "VACUUM (TRUNCATE) wide", "INSERT INTO wide SELECT g FROM generate_series(1, 3000) g"},
		},
		{
			name: "unlogged and back",
			before: []string{
				"CREATE UNLOGGED TABLE to_logged AS SELECT g AS i, repeat('u', 300) AS t FROM generate_series(1, 2000) g",
				"CREATE INDEX ON to_logged (i)",
				filled("to_unlogged", 500), filled("there_and_back", 500),
			},
			after: []string{
				"ALTER TABLE to_logged SET LOGGED", "ALTER TABLE to_unlogged SET UNLOGGED",
				"ALTER TABLE there_and_back SET UNLOGGED", "UPDATE there_and_back SET t = 'unlogged' WHERE i % 3 = 0",
				"ALTER TABLE there_and_back SET LOGGED",
			},
		},
		{
			name: "indexes of every kind",
			before: []string{
				"CREATE TABLE indexed AS SELECT g AS i, md5(g::text) AS t, point(g, g) AS p, string_to_array(md5(g::text), 'a') AS a, reverse(md5(g::text)) AS s, g AS n FROM generate_series(1, 6000) g",
				"CREATE INDEX indexed_btree ON indexed (i)", "CREATE INDEX indexed_hash ON indexed USING hash (t)",
				"CREATE INDEX indexed_gist ON indexed USING gist (p)", "CREATE INDEX indexed_spgist ON indexed USING spgist (s)",
				"CREATE INDEX indexed_gin ON indexed USING gin (a)", "CREATE INDEX indexed_brin ON indexed USING brin (n) WITH (pages_per_range = 4)",
			},
			after: []string{
				"UPDATE indexed SET t = md5(t), p = point(i, 1), a = a || '{new}', s = md5(s) WHERE i % 9 = 0", "VACUUM indexed",
				"DELETE FROM indexed WHERE i BETWEEN 2000 AND 3500", "VACUUM indexed",
				"INSERT INTO indexed SELECT g, md5(g::text), point(g, 2), '{late}', md5(g::text), g FROM generate_series(6001, 8000) g",
				"REINDEX INDEX indexed_gist", "CREATE INDEX indexed_later ON indexed USING gist (p)", "DROP INDEX indexed_later",
			},
		},
		{
			name:   "written anew",
			before: []string{filled("clustered", 1500), "CREATE INDEX clustered_i ON clustered (t)", filled("vacuumed", 1500), filled("altered", 800)},
			after: []string{
				"CLUSTER clustered USING clustered_i", "DELETE FROM vacuumed WHERE i % 2 = 0", "VACUUM FULL vacuumed",
				"ALTER TABLE altered ALTER i TYPE bigint", "REINDEX TABLE clustered", "REINDEX TABLE CONCURRENTLY clustered",
			},
		},
		{
			name:  "catalogs written anew",
			after: []string{"VACUUM FULL pg_class", "VACUUM FULL pg_database", "REINDEX TABLE pg_attribute", "CLUSTER pg_proc USING pg_proc_oid_index"},
		},
		{
			name: "big values",
			before: []string{
				"CREATE TABLE toasted AS SELECT g AS i, (SELECT string_agg(md5((g * 1000 + n)::text), '') FROM generate_series(1, 200) n) AS t FROM generate_series(1, 100) g",
				"SELECT lo_from_bytea(70001, decode(repeat('00ff', 20000), 'hex')), lo_from_bytea(70002, decode(repeat('ab', 9000), 'hex'))",
			},
			after: []string{
				"UPDATE toasted SET t = reverse(t) WHERE i % 10 = 0", "DELETE FROM toasted WHERE i % 10 = 1",
				"SELECT lo_put(70001, 5000, decode(repeat('cd', 3000), 'hex'))", "SELECT lo_unlink(70002)",
				"SELECT lo_from_bytea(70003, decode(repeat('ef', 9000), 'hex'))",
			},
		},
		{
			name:   "sequences and views",
			before: []string{"CREATE SEQUENCE counted", "SELECT nextval('counted')", filled("viewed", 200), "CREATE MATERIALIZED VIEW looked AS SELECT * FROM viewed"},
			after:  []string{"SELECT nextval('counted') FROM generate_series(1, 5)", "DELETE FROM viewed WHERE i < 50", "REFRESH MATERIALIZED VIEW looked"},
		},
		{
			name:   "tables moved",
			before: []string{filled("moved", 800), "CREATE INDEX moved_i ON moved (i)", filled("moved_for_good", 800)},
			after: []string{
				"ALTER TABLE moved SET TABLESPACE fast", "UPDATE moved SET t = 'there' WHERE i % 5 = 0", "ALTER TABLE moved SET TABLESPACE pg_default",
				"ALTER INDEX moved_i SET TABLESPACE fast", "ALTER TABLE moved_for_good SET TABLESPACE fast",
			},
		},
		{
			name:   "databases moved",
			before: []string{"CREATE DATABASE travels TEMPLATE source", "CREATE DATABASE emigrates TEMPLATE source"},
			do: func(t *testing.T, h *wreck) {
				h.Exec(t, "ALTER DATABASE travels SET TABLESPACE fast")
				in(t, h.Server, "travels", "UPDATE origin SET t = 'abroad' WHERE i % 4 = 0")
				h.Exec(t, "ALTER DATABASE travels SET TABLESPACE pg_default", "ALTER DATABASE emigrates SET TABLESPACE fast")
				in(t, h.Server, "emigrates", "DELETE FROM origin WHERE i % 3 = 0")
			},
		},
		{
			name:   "databases made and dropped",
			before: []string{"CREATE DATABASE gone TEMPLATE source"},
			after:  []string{"DROP DATABASE gone", "CREATE DATABASE copied TEMPLATE source"},
			do: func(t *testing.T, h *wreck) {
				in(t, h.Server, "copied", "UPDATE origin SET t = 'changed' WHERE i % 7 = 0")
			},
		},
		{
			name:  "databases made in both ways",
			since: 15,
			after: []string{
				"CREATE DATABASE by_copy TEMPLATE source STRATEGY file_copy", "CREATE DATABASE by_log TEMPLATE source STRATEGY wal_log",
			},
		},
		{
			// The new files have the names of the old ones, other rows, and LSNs of long ago.
			name:  "database made again with the same OID",
			since: 15,
			before: []string{
				"CREATE DATABASE same_copy OID = 50000 TEMPLATE source STRATEGY file_copy",
				"CREATE DATABASE same_log OID = 50001 TEMPLATE source STRATEGY file_copy",
			},
			do: func(t *testing.T, h *wreck) {
				for db, strategy := range map[string]string{"same_copy": "OID = 50000 TEMPLATE source STRATEGY file_copy", "same_log": "OID = 50001 TEMPLATE source STRATEGY wal_log"} {
					path := "SELECT pg_relation_filepath('origin')"
					before := queryIn(t, h.Server, db, path)
					h.Exec(t, "DROP DATABASE "+db, "CREATE DATABASE "+db+" "+strategy)
					if after := queryIn(t, h.Server, db, path); after != before {
						t.Fatalf("the table's file was %s and is %s", before, after)
					}
				}
			},
		},
	}
}

// prepare makes what the hazards happen to.
func (h *wreck) prepare(t *testing.T, all []hazard) {
	t.Helper()
	makeSource(t, h.site)
	for _, z := range all {
		h.Exec(t, z.before...)
	}
	if h.Major >= 15 {
		for _, db := range []string{"same_copy", "same_log"} {
			in(t, h.Server, db, "UPDATE origin SET t = reverse(t)")
		}
	}
}

// strike lets the hazards happen, as far as the server runs meanwhile.
func (h *wreck) strike(t *testing.T, all []hazard) {
	t.Helper()
	for _, z := range all {
		h.Exec(t, z.after...)
		if z.do != nil {
			z.do(t, h)
		}
	}
}

// makeSource makes the database from which others are made.
func makeSource(t testing.TB, s *site) {
	t.Helper()
	s.Exec(t, "CREATE DATABASE source")
	in(t, s.Server, "source", filled("origin", 1500), "CREATE INDEX ON origin (i)", "SELECT count(*) FROM origin", "VACUUM origin")
	s.Exec(t, "CHECKPOINT")
}

// refill fills a table over several connections, as it needs to be extended by
// more than a page at a time.
func refill(t *testing.T, s *harness.Server, table string) {
	t.Helper()
	const sessions = 4
	failed := make(chan error, sessions)
	for n := range sessions {
		conn := s.Conn(t)
		go func() {
			_, err := conn.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf(
				"INSERT INTO %s SELECT %d + g, repeat(md5(g::text), 30) FROM generate_series(1, 120) g", table, (n+1)*100_000))
			failed <- err
		}()
	}
	for range sessions {
		if err := <-failed; err != nil {
			t.Fatalf("fill %s: %v", table, err)
		}
	}
}

// queryIn returns the text that a query yields in a database.
func queryIn(t testing.TB, s *harness.Server, db, sql string) (text string) {
	t.Helper()
	conn := database(t, s, db)
	defer func() { _ = conn.Close(t.Context()) }() // an error was told by the query
	if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

// note remembers where a table is.
func (h *wreck) note(t *testing.T, table string) {
	t.Helper()
	h.paths[table] = filepath.Join(h.DataDir, h.QueryString(t, "SELECT pg_relation_filepath($1::regclass)", table))
}

// extend makes the file of a table as long as pages, with empty ones. It must
// have had no more than a number of them.
func (h *wreck) extend(t *testing.T, table string, most, pages int64) {
	t.Helper()
	info, err := os.Stat(h.paths[table])
	if err != nil || info.Size() > most*pageSize {
		t.Fatalf("the file of %s: %v, %d bytes", table, err, info.Size())
	}
	if err := os.Truncate(h.paths[table], pages*pageSize); err != nil {
		t.Fatal(err)
	}
}

// logging is whether a cluster of the hazards has page checksums, and whether it
// logs hints without them.
type logging struct{ checksums, hints bool }

// hazardLogging gives all kinds of clusters to some major.
func hazardLogging() map[int]logging {
	return map[int]logging{
		13: {checksums: true}, 14: {}, 15: {checksums: true}, 16: {hints: true}, 17: {checksums: true}, 18: {},
	}
}

// TestHazards lets everything happen between a full backup and incremental ones
// by each detector that changes files in an unusual way.
func TestHazards(t *testing.T) {
	t.Parallel()
	for _, major := range harness.Majors() {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			happen(t, major, hazardLogging()[major])
		})
	}
}

// incrementalConf are the settings of a server of which incremental backups are
// taken: nothing happens in it by itself.
func incrementalConf(major int) map[string]string {
	conf := map[string]string{"autovacuum": "off", "max_prepared_transactions": "10"}
	if major >= 17 {
		conf["summarize_wal"] = "on"
	}
	return conf
}

func happen(t *testing.T, major int, l logging) {
	conf := incrementalConf(major)
	if l.hints {
		conf["wal_log_hints"] = "on"
	}
	h := &wreck{
		site:  newSite(t, plan{Options: harness.Options{Major: major, NoChecksums: !l.checksums, WALSegSizeMB: 4, Conf: conf}}),
		paths: make(map[string]string),
	}
	fast := space(t, h.site, "fast")
	var all []hazard
	for _, z := range hazards() {
		if major >= z.since {
			all = append(all, z)
		}
	}
	h.prepare(t, all)
	h.Exec(t, filled("prepared", 300), "BEGIN; INSERT INTO prepared VALUES (1, 'before'); PREPARE TRANSACTION 'before'")
	full := h.pushed(t)
	if full.Type != "full" {
		t.Fatalf("the first backup is %q", full.Type)
	}

	h.Exec(t, "COMMIT PREPARED 'before'") // or vacuum could remove nothing
	h.strike(t, all)
	// Page LSNs are believed only of a server that was not started in between.
	var unbroken []incremental
	if l.checksums || l.hints {
		h.switchWAL(t)
		unbroken = append(unbroken, h.incremental(t, full.Name, detector{"lsn", "page-lsn"}))
	}
	h.Stop(t)
	for _, z := range all {
		if z.down != nil {
			z.down(t, h)
		}
	}
	h.Restart(t)
	for _, z := range all {
		h.Exec(t, z.again...)
	}
	h.Exec(t, "BEGIN; INSERT INTO prepared VALUES (2, 'after'); PREPARE TRANSACTION 'after'")
	state := read(t, h.Server) // which changes pages, too
	h.Exec(t, "CHECKPOINT")

	var made []incremental
	for _, d := range detectors(major) {
		if d.name == "page-lsn" {
			// Vacuum may have marked pages as all visible without a new LSN.
			hinted(t, h.agent(t, "backup-push", "--parent", full.Name, "--detect", d.flag), 2, "wal_log_hints")
			continue
		}
		h.switchWAL(t)
		made = append(made, h.incremental(t, full.Name, d))
	}
	h.Exec(t, "CHECKPOINT")
	live := snapshot(t, h.DataDir)
	h.Exec(t, "INSERT INTO updated SELECT g, 'late' FROM generate_series(10001, 10500) g", "DELETE FROM shrunk WHERE i % 10 = 0",
		"COMMIT PREPARED 'after'", "VACUUM updated")
	later := read(t, h.Server)
	h.switchWAL(t)

	for _, b := range unbroken {
		t.Run(b.Detector, func(t *testing.T) {
			c := h.recoverIt(t, b.Name, func(dir string) {
				got := image{start: lsn(t, b.StartLSN), since: lsn(t, full.StartLSN)}.compare(t, dir, live)
				if got.changed < 500 {
					t.Errorf("of %d pages that were compared only %d had changed", got.pages, got.changed)
				}
			}, "--tablespace-map", fast+"="+filepath.Join(harness.TempDir(t), "fast"))
			later.check(t, c)
			sound(t, c)
			c.Stop(t)
			if l.checksums {
				checksums(t, c)
			}
		})
	}
	for i, b := range made {
		t.Run(b.Detector, func(t *testing.T) {
			compare := func(dir string) {
				got := image{start: lsn(t, b.StartLSN), since: lsn(t, full.StartLSN), quiet: true}.compare(t, dir, live)
				if got.changed < 500 || got.empty < 200 {
					t.Errorf("of %d pages that were compared only %d had changed, and %d are empty", got.pages, got.changed, got.empty)
				}
				verifyBackup(t, h.Server, dir)
			}
			spaces := []string{"--tablespace-map", fast + "=" + filepath.Join(harness.TempDir(t), "fast")}
			if i == major%len(made) { // each detector on some major
				c := h.recoverIt(t, b.Name, nil, append(spaces, "--target-immediate", "--target-action", "promote")...)
				state.check(t, c)
				c.Stop(t)
				spaces = []string{"--tablespace-map", fast + "=" + filepath.Join(harness.TempDir(t), "fast")}
			}
			c := h.recoverIt(t, b.Name, compare, spaces...)
			later.check(t, c)
			sound(t, c)
			c.Stop(t)
			if l.checksums {
				checksums(t, c)
			}
		})
	}
}

// sound checks a restored server of the hazards, and that it goes on working.
func sound(t *testing.T, c *harness.Server) {
	t.Helper()
	throughIndexes(t, c, map[string]string{
		"indexed_btree":  "SELECT count(*) FROM indexed WHERE i BETWEEN 100 AND 7000",
		"indexed_hash":   "SELECT count(*) FROM indexed WHERE t = md5('4000') OR t = md5(md5('9'))",
		"indexed_gist":   "SELECT count(*) FROM indexed WHERE p <@ box(point(0, 0), point(7000, 5000))",
		"indexed_gin":    "SELECT count(*) FROM indexed WHERE a @> '{new}' OR a @> '{late}'",
		"indexed_spgist": "SELECT count(*) FROM indexed WHERE s > 'a'",
		"indexed_brin":   "SELECT count(*) FROM indexed WHERE n BETWEEN 500 AND 5000",
	})
	if n := c.QueryInt(t, "SELECT nextval('counted')"); n <= 6 {
		t.Errorf("the sequence goes on with %d", n)
	}
	// Where a page does not say that it is all visible its bit in the map stays.
	c.Exec(t, "DELETE FROM unseen WHERE i % 3 = 0", "DELETE FROM seen WHERE i % 3 = 0")
	healthy(t, c)
	c.Exec(t, "VACUUM seen", "VACUUM unseen", "VACUUM shrunk", "VACUUM emptied", "INSERT INTO shrunk SELECT g, 'more' FROM generate_series(1, 3000) g", "INSERT INTO emptied SELECT g, 'more' FROM generate_series(1, 3000) g")
	for line := range strings.Lines(c.Log()) {
		if strings.Contains(line, "WARNING:") || strings.Contains(line, "PANIC:") {
			t.Errorf("the server says: %s", line)
		}
	}
}

// snapshot copies the relations of a data directory.
func snapshot(t testing.TB, dir string) (copied string) {
	t.Helper()
	copied = harness.TempDir(t)
	for _, rel := range relationNames(t, dir) {
		if err := os.MkdirAll(filepath.Join(copied, filepath.Dir(rel)), 0o755); err != nil {
			t.Fatal(err)
		}
		body, err := os.ReadFile(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, rel), body, 0o600); err != nil {
			t.Fatal(err)
		}
		if unlogged(t, dir, rel) {
			number := strings.FieldsFunc(filepath.Base(rel), func(r rune) bool { return r == '.' || r == '_' })[0]
			if err := os.WriteFile(filepath.Join(copied, filepath.Dir(rel), number+"_init"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return copied
}
