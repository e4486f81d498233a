package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"agent/testing/harness"
)

// writers is the number of connections that write.
const writers = 3

// ledger is what must be in the database at some moment: what was committed
// before it, and nothing else.
type ledger struct {
	rows  map[int64]int64 // of tables load and load_ts: id to value
	total int64           // of all balances
	at    time.Time       // by the server's clock; no transaction was under way
}

// load writes to a server over several connections and keeps its own account
// of what was committed.
type load struct {
	server    *harness.Server
	gate      sync.RWMutex // writers hold it for reading during a transaction
	writers   []*writer
	committed atomic.Int64
	cancel    context.CancelFunc
	done      sync.WaitGroup
}

// writer is one connection. Its fields belong to its goroutine, and to whoever
// holds the gate.
type writer struct {
	conn  *pgx.Conn
	rnd   *rand.Rand
	next  int64
	rows  map[int64]int64
	total int64
	err   error
}

// loadTables makes the tables; load_ts lies in the given tablespace.
func loadTables(tablespace string) string {
	return `
CREATE TABLE load (id bigint PRIMARY KEY, v bigint NOT NULL, pad text);
CREATE TABLE load_ts (id bigint PRIMARY KEY USING INDEX TABLESPACE ` + tablespace + `, v bigint NOT NULL) TABLESPACE ` + tablespace + `;
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT g, 0 FROM generate_series(0, 999) g`
}

// startLoad begins to write. Stop must be called.
func startLoad(t testing.TB, s *harness.Server) *load {
	t.Helper()
	l := &load{server: s}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	t.Cleanup(l.end)
	for i := range writers {
		w := &writer{
			conn: s.Conn(t), rnd: rand.New(rand.NewPCG(uint64(i), 7)),
			next: int64(i+1) * 1_000_000_000, rows: make(map[int64]int64),
		}
		l.writers = append(l.writers, w)
		l.done.Go(func() { l.write(ctx, w) })
	}
	return l
}

// end stops the writers.
func (l *load) end() {
	l.cancel()
	l.done.Wait()
}

// stop ends the load and fails the test if a writer failed.
func (l *load) stop(t testing.TB) {
	t.Helper()
	l.end()
	for _, w := range l.writers {
		if w.err != nil {
			t.Fatalf("writer: %v", w.err)
		}
	}
}

// write runs transactions until ctx ends. It asks between transactions only:
// one that was sent is carried to its end, so that its outcome is known.
func (l *load) write(ctx context.Context, w *writer) {
	for ctx.Err() == nil && w.err == nil {
		l.gate.RLock()
		var committed bool
		committed, w.err = w.transaction(context.WithoutCancel(ctx))
		l.gate.RUnlock()
		if committed {
			l.committed.Add(1)
		}
	}
}

// transaction inserts a row into both tables and moves a balance; some delete
// an earlier row instead, some roll back.
func (w *writer) transaction(ctx context.Context) (committed bool, err error) {
	tx, err := w.conn.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback(ctx) // the first error is told
		}
	}()
	w.next++
	id, v := w.next, w.rnd.Int64N(1_000_000)
	insert := `WITH a AS (INSERT INTO load VALUES ($1, $2, repeat('x', $3::int))), b AS (INSERT INTO load_ts VALUES ($1, $2))
		UPDATE account SET balance = balance + $2 WHERE id = $4`
	if _, err := tx.Exec(ctx, insert, id, v, w.rnd.IntN(400), w.rnd.IntN(1000)); err != nil {
		return false, fmt.Errorf("insert: %w", err)
	}
	victim := int64(-1)
	if w.rnd.IntN(8) == 0 {
		for victim = range w.rows { // any
			break
		}
		if _, err := tx.Exec(ctx, "WITH a AS (DELETE FROM load WHERE id = $1) DELETE FROM load_ts WHERE id = $1", victim); err != nil {
			return false, fmt.Errorf("delete: %w", err)
		}
	}
	if w.rnd.IntN(10) == 0 {
		return false, tx.Rollback(ctx)
	}
	if err := tx.Commit(ctx); err != nil {
		return false, fmt.Errorf("commit: %w", err)
	}
	delete(w.rows, victim)
	w.rows[id] = v
	w.total += v
	return true, nil
}

// more waits until n more transactions have been committed.
func (l *load) more(t testing.TB, n int64) {
	t.Helper()
	until := l.committed.Load() + n
	await(t, "more commits", func() bool {
		return l.committed.Load() >= until || l.failed()
	})
	if l.failed() {
		l.stop(t)
	}
}

// failed tells whether a writer has given up.
func (l *load) failed() bool {
	l.gate.Lock()
	defer l.gate.Unlock()
	for _, w := range l.writers {
		if w.err != nil {
			return true
		}
	}
	return false
}

// mark waits for a moment without transactions and returns what is committed
// then.
func (l *load) mark(t testing.TB) ledger {
	t.Helper()
	l.gate.Lock()
	defer l.gate.Unlock()
	m := ledger{rows: make(map[int64]int64)}
	for _, w := range l.writers {
		maps.Copy(m.rows, w.rows)
		m.total += w.total
	}
	m.at = serverTime(t, l.server)
	return m
}

// serverTime is the server's clock.
func serverTime(t testing.TB, s *harness.Server) time.Time {
	t.Helper()
	var at time.Time
	conn := s.Conn(t)
	defer func() { _ = conn.Close(t.Context()) }() // an error was told by the query
	if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&at); err != nil {
		t.Fatal(err)
	}
	return at
}

// target writes a time for --target-time.
func target(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.999999+00") }

// check compares a server's tables with the ledger, row by row.
func (m ledger) check(t testing.TB, s *harness.Server) {
	t.Helper()
	for _, table := range []string{"load", "load_ts"} {
		if diff := cmp.Diff(m.rows, rowsOf(t, s, table)); diff != "" {
			t.Errorf("table %s differs (- committed, + found):\n%.4000s", table, diff)
		}
	}
	if got := s.QueryInt(t, "SELECT sum(balance)::bigint FROM account"); got != m.total {
		t.Errorf("the balances are %d, not %d", got, m.total)
	}
}

// rowsOf reads a table of the load.
func rowsOf(t testing.TB, s *harness.Server, table string) map[int64]int64 {
	t.Helper()
	conn := s.Conn(t)
	defer func() { _ = conn.Close(t.Context()) }() // an error was told by the query
	rows, err := conn.Query(t.Context(), "SELECT id, v FROM "+pgx.Identifier{table}.Sanitize())
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[int64]int64)
	var id, v int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &v}, func() error {
		got[id] = v
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}
