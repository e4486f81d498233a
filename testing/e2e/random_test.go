package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"agent/testing/harness"
)

const (
	randomSessions = 3
	randomTables   = 6
	randomRounds   = 3
	seedVariable   = "AGENT_TEST_SEED"
)

// seed is what the random tests begin with: another one in every run, unless the
// variable gives the one of a run that failed.
func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv(seedVariable)
	if text == "" {
		text = strconv.FormatUint(rand.Uint64(), 10)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", seedVariable, err)
	}
	t.Logf("again with %s=%d", seedVariable, n)
	return n
}

// chaos runs random statements over several sessions.
type chaos struct {
	server *harness.Server
	gate   sync.RWMutex // held for reading during a statement
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	steps  int
	failed error
	woken  chan struct{} // after each statement, if somebody waits
}

// session is one connection and what it will do.
type session struct {
	conn *pgx.Conn
	rnd  *rand.Rand
	next int
}

// prepareChaos makes the tables.
func prepareChaos(t testing.TB, s *site) {
	t.Helper()
	for n := range randomTables {
		s.Exec(t, createTable(n), fmt.Sprintf("INSERT INTO r%d %s", n, someRows(0, 10000, 300)))
	}
	s.Exec(t, "CREATE SEQUENCE counter")
	makeSource(t, s)
}

func createTable(n int) string {
	return fmt.Sprintf("CREATE TABLE IF NOT EXISTS r%d (i int, t text, p point)", n)
}

// someRows is a query of rows up to a length.
func someRows(from, rows, length int) string {
	return fmt.Sprintf("SELECT g, left(repeat(md5(g::text), 20), (g * 7919) %% %d), point(g, g) FROM generate_series(%d, %d) g", length, from, from+rows-1)
}

// startChaos begins. The statements of each session are those of the seed; how
// the sessions meet is not.
func startChaos(t testing.TB, s *harness.Server, seed uint64) *chaos {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &chaos{server: s, cancel: cancel, woken: make(chan struct{}, 1)}
	t.Cleanup(c.stop)
	for n := range randomSessions {
		conn := s.Conn(t)
		if _, err := conn.Exec(ctx, "SET lock_timeout = '2s'"); err != nil {
			t.Fatal(err)
		}
		w := &session{conn: conn, rnd: rand.New(rand.NewPCG(seed, uint64(n)))}
		c.done.Go(func() { c.run(ctx, w) })
	}
	return c
}

func (c *chaos) stop() {
	c.cancel()
	c.done.Wait()
}

func (c *chaos) run(ctx context.Context, w *session) {
	for ctx.Err() == nil {
		c.gate.RLock()
		err := w.step(context.WithoutCancel(ctx))
		c.gate.RUnlock()
		c.mu.Lock()
		c.steps++
		c.failed = errors.Join(c.failed, err)
		c.mu.Unlock()
		select {
		case c.woken <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// more waits for some statements.
func (c *chaos) more(t testing.TB, n int) {
	t.Helper()
	until := -1
	await(t, "more statements", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.failed != nil {
			t.Fatal(c.failed)
		}
		if until < 0 {
			until = c.steps + n
		}
		return c.steps >= until
	})
}

// paused runs something while no statement does.
func (c *chaos) paused(do func()) {
	c.gate.Lock()
	defer c.gate.Unlock()
	do()
}

// collisions are the errors of statements that meet others: dead lock, lock not
// available, in use, and a table or database that is gone or there already, which
// may show as an internal error.
func collisions() []string {
	return []string{"40P01", "55P03", "55006", "42P01", "42P04", "42P07", "42710", "3D000", "42704", "23505", "XX000"}
}

// step runs one random statement, or two.
func (w *session) step(ctx context.Context) error {
	for _, sql := range w.choose() {
		_, err := w.conn.PgConn().Exec(ctx, sql).ReadAll()
		var from *pgconn.PgError
		if errors.As(err, &from) && slices.Contains(collisions(), from.Code) {
			_, err = w.conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll()
			if err == nil {
				return nil
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// choose chooses the statements of a step.
func (w *session) choose() []string {
	table := fmt.Sprintf("r%d", w.rnd.IntN(randomTables))
	w.next += 1000
	from := w.rnd.IntN(10000)
	few := fmt.Sprintf("i BETWEEN %d AND %d", from, from+w.rnd.IntN(300))
	insert := fmt.Sprintf("INSERT INTO %s %s", table, someRows(w.rnd.IntN(12000), 1+w.rnd.IntN(600), 1+w.rnd.IntN(600)))
	switch n := w.rnd.IntN(100); {
	case n < 22:
		return []string{insert}
	case n < 36:
		return []string{fmt.Sprintf("UPDATE %s SET t = t || 'u', p = point(i, %d) WHERE %s", table, w.rnd.IntN(10), few)}
	case n < 46:
		return []string{fmt.Sprintf("DELETE FROM %s WHERE %s", table, few)}
	case n < 50: // the end of the table goes, and comes back
		return []string{
			fmt.Sprintf("DELETE FROM %s WHERE ctid >= '(%d,0)'", table, w.rnd.IntN(150)),
			"VACUUM (TRUNCATE) " + table, insert,
		}
	case n < 56:
		return []string{"VACUUM " + table}
	case n < 59:
		return []string{"VACUUM (FREEZE) " + table}
	case n < 62:
		return []string{"TRUNCATE " + table, insert}
	case n < 66:
		return []string{"SELECT count(*), sum(length(t)) FROM " + table}
	case n < 69:
		return []string{fmt.Sprintf("BEGIN; SELECT * FROM %s WHERE %s FOR SHARE; SAVEPOINT a; DELETE FROM %s WHERE %s; ROLLBACK TO a; COMMIT", table, few, table, few)}
	case n < 72:
		return []string{"BEGIN; " + insert + "; ROLLBACK"}
	case n < 78:
		return []string{w.index(table)}
	case n < 80:
		return []string{"REINDEX TABLE " + table}
	case n < 82:
		return []string{"VACUUM FULL " + table}
	case n < 84:
		return []string{"DROP TABLE IF EXISTS " + table, createTable(int(table[1] - '0')), insert}
	case n < 87:
		return []string{fmt.Sprintf("ALTER TABLE %s SET TABLESPACE %s", table, w.either("fast", "pg_default"))}
	case n < 89:
		return []string{fmt.Sprintf("ALTER TABLE r0 SET %s", w.either("LOGGED", "UNLOGGED"))}
	case n < 91:
		name := fmt.Sprintf("d%d", w.rnd.IntN(2))
		return []string{w.either("DROP DATABASE IF EXISTS "+name, "CREATE DATABASE "+name+" TEMPLATE source")}
	case n < 94:
		return []string{"SELECT nextval('counter')"}
	case n < 97:
		return []string{fmt.Sprintf("SELECT lo_from_bytea(0, decode(repeat('%02x', %d), 'hex'))", w.rnd.IntN(256), w.rnd.IntN(20000))}
	default:
		return []string{"CHECKPOINT"}
	}
}

// index makes an index or drops one.
func (w *session) index(table string) string {
	kinds := []string{"btree (i)", "hash (t)", "gist (p)", "spgist (t)", "brin (i)", "gin (string_to_array(left(t, 100), 'a'))"}
	n := w.rnd.IntN(len(kinds))
	name := fmt.Sprintf("%s_%d", table, n)
	return w.either("DROP INDEX IF EXISTS "+name, fmt.Sprintf("CREATE INDEX IF NOT EXISTS %s ON %s USING %s", name, table, kinds[n]))
}

func (w *session) either(a, b string) string {
	if w.rnd.IntN(2) == 0 {
		return a
	}
	return b
}

// TestRandomChain takes incremental backups by all detectors while random things
// happen. Each of them must hold every page that differs from its parent's, must
// be restored to what the server has, and must be sound.
func TestRandomChain(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			randomChain(t, major, seed(t))
		})
	}
}

func randomChain(t *testing.T, major int, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1000))
	checked := rnd.IntN(2) == 0
	conf := incrementalConf(major)
	if !checked {
		conf["wal_log_hints"] = []string{"on", "off"}[rnd.IntN(2)]
	}
	sealed := rnd.IntN(2) == 0
	t.Logf("page checksums: %v, wal_log_hints: %s, sealed: %v", checked, conf["wal_log_hints"], sealed)
	s := newSite(t, plan{sealed: sealed, Options: harness.Options{Major: major, NoChecksums: !checked, WALSegSizeMB: 1 << rnd.IntN(5), Conf: conf}})
	fast := space(t, s, "fast")
	prepareChaos(t, s)
	oid := s.QueryString(t, "SELECT oid::text FROM pg_database WHERE datname = current_database()")
	made := []incremental{s.pushed(t)}
	if rnd.IntN(2) == 0 { // so that more happens while files are read
		s.settings = append(s.settings, "AGENT_READ_RATE=25MB")
	}
	work := startChaos(t, s.Server, seed)
	all := seen{}
	for round := range randomRounds {
		work.more(t, 150)
		parent := made[len(made)-1]
		if !sealed && rnd.IntN(3) == 0 { // a host that can open nothing knows the last one alone
			parent = made[rnd.IntN(len(made))]
		}
		ways := detectors(major)
		if conf["wal_log_hints"] == "off" {
			ways = slices.DeleteFunc(ways, func(d detector) bool { return d.name == "page-lsn" })
		}
		way := ways[(round+rnd.IntN(len(ways)))%len(ways)]
		b := s.incremental(t, parent.Name, way)
		made = append(made, b)
		t.Logf("%s of %s by %s", b.Name, parent.Name, way.name)
		work.more(t, 5)

		work.paused(func() {
			want := read(t, s.Server)
			s.Exec(t, "CHECKPOINT")
			s.switchWAL(t)
			c := s.recoverIt(t, b.Name, func(dir string) {
				i := image{start: lsn(t, b.StartLSN), since: lsn(t, parent.StartLSN), database: oid, unlogged: conf["wal_log_hints"] == "off"}
				got := i.compare(t, dir, s.DataDir)
				all.pages, all.changed = all.pages+got.pages, all.changed+got.changed
			}, "--tablespace-map", fast+"="+filepath.Join(harness.TempDir(t), "fast"))
			want.check(t, c)
			healthy(t, c)
			c.Stop(t)
			if checked {
				checksums(t, c)
			}
		})
		if t.Failed() {
			return
		}
	}
	work.stop()
	if all.changed < 10 {
		t.Errorf("of %d pages that were compared only %d had changed", all.pages, all.changed)
	}
}
