package e2e_test

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
	"agent/internal/summary"
	"agent/testing/harness"
)

// recordedServer is a server whose WAL stays in pg_wal.
func recordedServer(t *testing.T, major int, conf map[string]string) *harness.Server {
	t.Helper()
	all := map[string]string{"wal_keep_size": "1GB", "autovacuum": "off", "wal_log_hints": "on"}
	for k, v := range conf {
		all[k] = v
	}
	s := harness.Start(t, harness.Options{Major: major, WALSegSizeMB: 1, NoFsync: true, Conf: all})
	space := harness.TempDir(t)
	harness.Own(t, space)
	s.Exec(t, "CREATE TABLESPACE fast LOCATION '"+space+"'")
	return s
}

// change makes WAL with all that changes files beyond the blocks it names.
func change(t *testing.T, s *harness.Server) {
	t.Helper()
	s.Exec(t,
		"CREATE TABLE a AS SELECT i, md5(i::text) AS t FROM generate_series(1, 20000) i",
		"CREATE INDEX ON a (i)", "CREATE INDEX ON a USING hash (t)", "CREATE INDEX ON a USING brin (i)",
		"CREATE INDEX ON a USING gin (string_to_array(t, 'a'))", "CREATE INDEX ON a USING spgist (t)",
		"CREATE TABLE p AS SELECT point(i, i) AS p FROM generate_series(1, 5000) i", "CREATE INDEX ON p USING gist (p)",
		"UPDATE a SET t = t || 'x' WHERE i % 7 = 0", "VACUUM a",
		"DELETE FROM a WHERE i > 5000", "VACUUM (TRUNCATE) a", "VACUUM (FREEZE) p",
		"INSERT INTO a SELECT i, 'again' FROM generate_series(1, 9000) i",
		"CREATE TABLE gone AS SELECT generate_series(1, 1000) i", "DROP TABLE gone",
		"BEGIN; CREATE TABLE never AS SELECT generate_series(1, 1000) i; ROLLBACK",
		"BEGIN; SAVEPOINT s; CREATE TABLE sub AS SELECT 1 AS i; ROLLBACK TO s; CREATE TABLE kept AS SELECT 2 AS i; COMMIT",
		"TRUNCATE p", "INSERT INTO p SELECT point(i, 1) FROM generate_series(1, 3000) i",
		"CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000) i", "ALTER TABLE u SET LOGGED",
		"ALTER TABLE a SET TABLESPACE fast", "CREATE SEQUENCE q", "SELECT nextval('q') FROM generate_series(1, 100)",
		"SELECT pg_logical_emit_message(true, 'test', repeat('long', 700000))",
		"SELECT pg_create_restore_point('here')",
	)
	if s.Major >= 15 {
		s.Exec(t, "CREATE DATABASE logged STRATEGY wal_log", "CREATE DATABASE copied STRATEGY file_copy")
	} else {
		s.Exec(t, "CREATE DATABASE copied")
	}
	s.Exec(t, "ALTER DATABASE copied SET TABLESPACE fast", "DROP DATABASE copied")
}

// boundary goes to the next segment, and returns its start.
func boundary(t *testing.T, s *harness.Server) postgres.LSN {
	t.Helper()
	s.Exec(t, "SELECT pg_create_restore_point('boundary'), pg_switch_wal()")
	lsn, err := postgres.ParseLSN(s.QueryString(t, "SELECT pg_current_wal_insert_lsn()::text"))
	if err != nil {
		t.Fatal(err)
	}
	return lsn &^ (1<<20 - 1)
}

// decoded is what the segments of a stretch of WAL hold.
type decoded struct {
	blocks  []string // of each record: LSN, number, relation, fork, block
	records map[string]string
	merger  *summary.Merger
}

// decode reads the segments [from, to), of timeline 2 from left on.
func decode(t *testing.T, s *harness.Server, from, to, left postgres.LSN) decoded {
	t.Helper()
	const size = postgres.SegmentSize(1 << 20)
	d := decoded{records: make(map[string]string), merger: summary.NewMerger()}
	take := func(r *xlog.Record) {
		text := fmt.Sprintf("len %d xid %d prev %s", r.Length, r.XID, r.Prev)
		for _, b := range r.Blocks {
			ref := fmt.Sprintf("#%d %d/%d/%d %s %d", b.ID, b.Tablespace, b.Database, b.Relation, b.Fork, b.Block)
			text += " " + ref
			d.blocks = append(d.blocks, r.LSN.String()+" "+ref)
		}
		d.records[r.LSN.String()] = text
	}
	var j xlog.Joiner
	for n := from.Segment(size); n < to.Segment(size); n++ {
		seg := postgres.Segment{Timeline: 1, Number: n}
		if left != 0 && n >= left.Segment(size) {
			seg.Timeline = 2
		}
		body := readFile(t, filepath.Join(s.DataDir, "pg_wal", seg.Name(size)))
		edges, b := xlog.NewDecoder(func(*xlog.Record) {}), summary.NewBuilder()
		edges.Write(body)
		b.Write(body)
		res := edges.Result()
		if res.Ending == xlog.NotOwn || res.Undecoded != nil {
			t.Errorf("%s: %s (%s), %v", seg.Name(size), res.Ending, res.Reason, res.Undecoded)
		}
		if j.Open() {
			if err := j.Add(res.Head); err != nil {
				t.Fatal(err)
			}
			if !j.Open() {
				r, err := j.Record(res.Major)
				if err != nil {
					t.Fatal(err)
				}
				take(r)
			}
		}
		xlog.NewDecoder(take).Write(body)
		if res.Tail.Length > 0 {
			if err := j.Begin(res.TailStart, res.Tail); err != nil {
				t.Fatal(err)
			}
		}
		made, err := b.Finish([32]byte{})
		if err != nil {
			t.Fatal(err)
		}
		stored, err := summary.Decode(made.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if err := d.merger.Add(stored); err != nil {
			t.Fatal(err)
		}
	}
	if d.merger.End() != to {
		t.Errorf("merged up to %s, not %s", d.merger.End(), to)
	}
	return d
}

// TestDecoderAndWaldump compares every record of a server that changes, is
// promoted and changes again with what pg_waldump makes of it.
func TestDecoderAndWaldump(t *testing.T) {
	t.Parallel()
	s := recordedServer(t, 15, nil)
	from := boundary(t, s)
	change(t, s)
	s.Stop(t)
	writeFile(t, filepath.Join(s.DataDir, "standby.signal"), nil)
	harness.Own(t, filepath.Join(s.DataDir, "standby.signal"))
	s.Restart(t)
	s.Exec(t, "SELECT pg_promote()")
	history, err := postgres.ParseHistory(2, readFile(t, filepath.Join(s.DataDir, "pg_wal", "00000002.history")))
	if err != nil {
		t.Fatal(err)
	}
	left, _ := history.SwitchPoint(1)
	s.Exec(t, "INSERT INTO a SELECT i, 'promoted' FROM generate_series(1, 20000) i")
	to := boundary(t, s)

	got := decode(t, s, from, to, left)
	want := make(map[string]string)
	line := regexp.MustCompile(`len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: (\S+), prev (\S+), desc:`)
	ref := regexp.MustCompile(`blkref #(\d+): rel (\S+)(?: fork (\w+))? blk (\d+)`)
	lsn := func(text string) string {
		v, err := postgres.ParseLSN(text)
		if err != nil {
			t.Fatal(err)
		}
		return v.String()
	}
	for _, r := range [][]string{{"1", from.String(), left.String()}, {"2", left.String(), to.String()}} {
		out := s.Run(t, "pg_waldump", "-p", filepath.Join(s.DataDir, "pg_wal"), "-t", r[0], "-s", r[1], "-e", r[2])
		for l := range strings.Lines(out) {
			m := line.FindStringSubmatch(l)
			if m == nil {
				continue
			}
			text := fmt.Sprintf("len %s xid %s prev %s", m[1], m[2], lsn(m[4]))
			for _, b := range ref.FindAllStringSubmatch(l, -1) {
				if b[3] == "" {
					b[3] = "main"
				}
				text += fmt.Sprintf(" #%s %s %s %s", b[1], b[2], b[3], b[4])
			}
			want[lsn(m[3])] = text
		}
	}
	if diff := cmp.Diff(want, got.records); diff != "" || len(want) < 10_000 {
		t.Errorf("of %d records, pg_waldump (-) and the decoder (+) differ:\n%s", len(want), diff)
	}
	if points := got.merger.RestorePoints(); len(points) != 2 || points[0].Name != "here" {
		t.Errorf("restore points %v", points)
	}
}

// TestDecoderAndServer compares the blocks with what the servers find in their
// own WAL, and from 17 on the merged table with what they summarise.
func TestDecoderAndServer(t *testing.T) {
	t.Parallel()
	for _, major := range []int{16, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			conf := make(map[string]string)
			if major >= 17 {
				conf["summarize_wal"] = "on"
			}
			s := recordedServer(t, major, conf)
			s.Exec(t, "CREATE EXTENSION pg_walinspect")
			from := boundary(t, s)
			s.Exec(t, "CHECKPOINT")
			first := redo(t, s)
			change(t, s)
			to := boundary(t, s)
			s.Exec(t, "CHECKPOINT")
			last := redo(t, s)

			got := decode(t, s, from, to, 0)
			rows := queryStrings(t, s, `SELECT format('%s #%s %s/%s/%s %s %s', start_lsn, block_id, reltablespace, reldatabase, relfilenode,
				(ARRAY['main','fsm','vm','init'])[relforknumber + 1], relblocknumber)
				FROM pg_get_wal_block_info($1::text::pg_lsn, $2::text::pg_lsn) ORDER BY start_lsn, block_id`, from.String(), to.String())
			if diff := cmp.Diff(rows, got.blocks); diff != "" || len(rows) < 10_000 {
				t.Errorf("of %d blocks, the server (-) and the decoder (+) differ:\n%s", len(rows), diff)
			}
			if major >= 17 {
				theirs := serverTable(t, s, first, last)
				if diff := cmp.Diff(known(theirs), known(got.merger.Table())); diff != "" {
					t.Errorf("the server's summaries (-) and ours (+) differ:\n%s", diff)
				}
			}
		})
	}
}

func redo(t *testing.T, s *harness.Server) postgres.LSN {
	t.Helper()
	lsn, err := postgres.ParseLSN(s.QueryString(t, "SELECT redo_lsn::text FROM pg_control_checkpoint()"))
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// queryStrings returns the texts of all rows.
func queryStrings(t *testing.T, s *harness.Server, sql string, args ...any) []string {
	t.Helper()
	rows, err := s.Conn(t).Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// serverTable reads the server's summaries of [from, to), in their order.
func serverTable(t *testing.T, s *harness.Server, from, to postgres.LSN) *summary.Table {
	t.Helper()
	await(t, "the server's summaries up to "+to.String(), func() bool {
		return s.QueryInt(t, "SELECT count(*) FROM pg_get_wal_summarizer_state() WHERE summarized_lsn >= $1::text::pg_lsn", to.String()) == 1
	})
	table := summary.NewTable()
	rows, err := s.Conn(t).Query(t.Context(), `SELECT c.relfilenode::int8, c.reltablespace::int8, c.reldatabase::int8, c.relforknumber, c.relblocknumber, c.is_limit_block
		FROM pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c
		WHERE s.start_lsn >= $1::text::pg_lsn AND s.end_lsn <= $2::text::pg_lsn
		ORDER BY s.start_lsn, c.is_limit_block DESC`, from.String(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	var relation, tablespace, database, block int64
	var fork int16
	var limit bool
	_, err = pgx.ForEachRow(rows, []any{&relation, &tablespace, &database, &fork, &block, &limit}, func() error {
		k := summary.Key{Locator: xlog.Locator{Tablespace: uint32(tablespace), Database: uint32(database), Relation: uint32(relation)}, Fork: postgres.Fork(fork)}
		if limit {
			table.Cut(k, uint32(block))
		} else {
			table.Touch(k, uint32(block))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// known is what a table says: of blocks behind a limit the limit says enough.
func known(table *summary.Table) []string {
	var all []string
	for _, k := range table.Keys() {
		name := fmt.Sprintf("%d/%d/%d %s", k.Tablespace, k.Database, k.Relation, k.Fork)
		limit := table.Limit(k)
		if limit != summary.NoLimit {
			all = append(all, fmt.Sprintf("%s limit %d", name, limit))
		}
		for block := range table.Blocks(k, 0, min(limit, math.MaxUint32)) {
			all = append(all, fmt.Sprintf("%s block %d", name, block))
		}
	}
	slices.Sort(all)
	return all
}
