package harness

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Conn returns a connection of the superuser, closed when the test ends.
func (s *Server) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.ConnInfo())
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() {
		_ = conn.Close(context.Background()) // the server may have been stopped
	})
	return conn
}

// Exec runs SQL over one new connection. Each argument is sent as one simple
// query: it may hold several statements, which then are one transaction.
func (s *Server) Exec(t testing.TB, sql ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.ConnInfo())
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer func() { _ = conn.Close(t.Context()) }() // an error was told by the query
	for _, query := range sql {
		if _, err := conn.PgConn().Exec(t.Context(), query).ReadAll(); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
}

// QueryInt returns the one number that a query yields.
func (s *Server) QueryInt(t testing.TB, sql string, args ...any) int64 {
	t.Helper()
	return queryRow[int64](t, s, sql, args...)
}

// QueryString returns the one text that a query yields; other types than text
// are cast in the query.
func (s *Server) QueryString(t testing.TB, sql string, args ...any) string {
	t.Helper()
	return queryRow[string](t, s, sql, args...)
}

// queryRow runs a query that yields one value.
func queryRow[T any](t testing.TB, s *Server, sql string, args ...any) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.ConnInfo())
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer func() { _ = conn.Close(t.Context()) }() // an error was told by the query
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}
