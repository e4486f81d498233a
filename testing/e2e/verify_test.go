package e2e_test

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"agent/internal/postgres"
	"agent/testing/harness"
)

// healthy checks a running server with the tools that PostgreSQL has for it:
// every index against its table, and every visibility map.
func healthy(t testing.TB, s *harness.Server) {
	t.Helper()
	for _, db := range databases(t, s) {
		conn := database(t, s, db)
		for _, sql := range []string{"CREATE EXTENSION IF NOT EXISTS amcheck", "CREATE EXTENSION IF NOT EXISTS pg_visibility"} {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s in %s: %v", sql, db, err)
			}
		}
		visibility(t, conn, db)
		if s.Major < 14 { // pg_amcheck wants functions that came with 14
			if _, err := conn.Exec(t.Context(), `SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
				WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p'`); err != nil {
				t.Errorf("bt_index_check in %s: %v", db, err)
			}
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s.Major >= 14 {
		s.Run(t, "pg_amcheck", "--all", "--heapallindexed", "--no-strict-names")
	}
}

// visibility lets pg_visibility compare all visibility maps with their tables.
func visibility(t testing.TB, conn *pgx.Conn, db string) {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT c.oid::regclass::text, count(v.*), count(f.*) FROM pg_class c
		LEFT JOIN LATERAL pg_check_visible(c.oid) v ON true LEFT JOIN LATERAL pg_check_frozen(c.oid) f ON true
		WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' GROUP BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	var table string
	var visible, frozen, n int
	if _, err := pgx.ForEachRow(rows, []any{&table, &visible, &frozen}, func() error {
		if n++; visible+frozen != 0 {
			t.Errorf("the visibility map of %s in %s is wrong: %d tuples not visible, %d not frozen", table, db, visible, frozen)
		}
		return nil
	}); err != nil {
		t.Fatalf("pg_visibility in %s: %v", db, err)
	}
	if n < 50 {
		t.Errorf("pg_visibility saw %d tables in %s", n, db)
	}
}

// databases lists those that take connections.
func databases(t testing.TB, s *harness.Server) []string {
	t.Helper()
	return strings.Split(s.QueryString(t, "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database WHERE datallowconn"), ",")
}

// database connects to a database by its name.
func database(t testing.TB, s *harness.Server, name string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(s.ConnInfo())
	if err != nil {
		t.Fatal(err)
	}
	config.Database = name
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatalf("connect to %s: %v", name, err)
	}
	return conn
}

// verifyBackup lets pg_verifybackup compare a restored directory, never
// started, with its manifest.
func verifyBackup(t testing.TB, s *harness.Server, dir string) {
	t.Helper()
	out := s.Run(t, "pg_verifybackup", "-n", dir)
	if !strings.Contains(out, "backup successfully verified") {
		t.Errorf("pg_verifybackup says: %s", out)
	}
}

// checksums checks the page checksums of a stopped cluster: with pg_checksums
// where this major's is there, and in any case by itself.
func checksums(t testing.TB, s *harness.Server) {
	t.Helper()
	if s.Running() {
		t.Fatal("the server runs")
	}
	if s.Major == harness.DefaultMajor {
		s.Run(t, "pg_checksums", "--check", "-D", s.DataDir)
	}
	pages := 0
	for _, file := range relationFiles(t, s.DataDir) {
		pages += pageChecksums(t, file)
	}
	if pages < 2000 { // initdb alone makes more
		t.Errorf("only %d pages were checked", pages)
	}
}

// relationFile matches a relation's main fork and others, and its segment.
var relationFile = regexp.MustCompile(`^[0-9]+(_fsm|_vm|_init)?(\.[0-9]+)?$`)

// relationFiles lists the files of all relations, those of tablespaces too.
func relationFiles(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"global/*", "base/*/*", "pg_tblspc/*/*/*/*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if relationFile.MatchString(filepath.Base(path)) {
				files = append(files, path)
			}
		}
	}
	return files
}

// pageChecksums checks one file and returns its number of pages.
func pageChecksums(t testing.TB, path string) int {
	t.Helper()
	segment := 0
	if _, number, ok := strings.Cut(filepath.Base(path), "."); ok {
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		segment = n
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only read
	page := make([]byte, 8192)
	for n := 0; ; n++ {
		_, err := io.ReadFull(f, page)
		if err == io.EOF {
			return n
		}
		if err != nil {
			t.Fatalf("read %s: %v", path, err)
		}
		upper := binary.LittleEndian.Uint16(page[14:])
		if upper == 0 { // a new page, which has none
			continue
		}
		got, want := binary.LittleEndian.Uint16(page[8:]), postgres.PageChecksum(page, uint32(segment*131072+n))
		if got != want {
			t.Errorf("%s block %d has checksum %04x, not %04x", path, n, got, want)
		}
	}
}
