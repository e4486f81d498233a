package harness

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// WaitRecovered waits until recovery has ended or is paused at its target, and
// tells whether it is paused. A server that ends first fails the test with the
// end of its log.
func (s *Server) WaitRecovered(t testing.TB) (paused bool) {
	t.Helper()
	paused, err := s.AwaitRecovery(t)
	if err != nil {
		t.Fatal(err)
	}
	return paused
}

// AwaitRecovery is WaitRecovered for a recovery that may fail: if the server
// ends first, the error holds the end of its log.
func (s *Server) AwaitRecovery(t testing.TB) (paused bool, err error) {
	t.Helper()
	ctx, cancel := waitContext(t)
	defer cancel()
	// Recovery may end between the two calls; then the second is an error, and
	// the question is asked again. pg_is_wal_replay_paused exists in all majors,
	// its successor of 14 would tell "requested" from "paused", but at a target
	// both come at once.
	const query = `SELECT CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END`
	err = s.poll(ctx, func() (bool, error) {
		conn, err := pgx.Connect(ctx, s.ConnInfo())
		if err != nil {
			return false, err
		}
		defer func() { _ = conn.Close(ctx) }() // asked again if it mattered
		var state *bool
		if err := conn.QueryRow(ctx, query).Scan(&state); err != nil {
			return false, err
		}
		paused = state != nil && *state
		return state == nil || paused, nil
	})
	return paused, err
}
