package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"agent/internal/errs"
)

// goodbye is how long the server is given to see that a session ends.
const goodbye = 5 * time.Second

// errSessionEnded: the context that the session was made with has ended.
var errSessionEnded = errors.New("the session has ended")

// Server is one session with a running PostgreSQL server of a supported major.
// A backup lives and dies with the session that started it, so everything goes
// over a single connection. Its methods may not be called concurrently.
//
// The session ends when the context given to Connect ends, also between two
// calls, and when the context of a call ends during that call. The server then
// leaves backup mode by itself.
type Server struct {
	conn    *pgx.Conn
	version int // server_version_num
	detach  func() bool

	mu      sync.Mutex
	running context.CancelFunc // ends the call in progress; nil between calls
	ended   bool
}

// Connect opens a session. conninfo is a connection string or URL as libpq
// takes it; what it does not say comes from the PG* environment variables, the
// service file and the password file, so that it may be empty. appName is the
// session's application_name unless conninfo or the environment gives one.
//
// All timeouts are switched off for the session, since a backup may be idle in
// SQL for hours. Errors are *errs.Error of Kind Server (Config for a conninfo
// that cannot be understood, Interrupted for an ended ctx) and never contain a
// password.
func Connect(ctx context.Context, conninfo, appName string) (*Server, error) {
	config, err := pgx.ParseConfig(conninfo)
	if err != nil {
		return nil, ConnInfoError(err)
	}
	return connect(ctx, config, appName)
}

// connect is Connect with a connection string that has been read.
func connect(ctx context.Context, config *pgx.ConnConfig, appName string) (*Server, error) {
	// Without prepared statements each query is one round trip, and nothing is
	// left in the session.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	if _, set := config.RuntimeParams["application_name"]; !set && appName != "" {
		config.RuntimeParams["application_name"] = appName
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, connectError(ctx, config, err)
	}
	s := &Server{conn: conn}
	if err := s.prepare(ctx); err != nil {
		s.hangUp(ctx)
		return nil, err
	}
	s.detach = context.AfterFunc(ctx, func() { s.end(ctx) })
	return s, nil
}

// prepare settles what the session relies on: a supported major, no timeouts,
// no objects that shadow the system's, text in UTF-8.
func (s *Server) prepare(ctx context.Context) error {
	var version string
	if err := s.row(ctx, `SELECT pg_catalog.current_setting('server_version_num')`, nil, &version); err != nil {
		return serverError(err, "read the server's version", "")
	}
	v, err := strconv.Atoi(version)
	if err != nil {
		return errs.Wrap(err, errs.Server, "", "read the server's version")
	}
	s.version = v
	if err := requireSupported(s.Major()); err != nil {
		return err
	}
	var path, encoding, dates string
	err = s.row(ctx, `SELECT pg_catalog.set_config('search_path', 'pg_catalog', false),
		pg_catalog.set_config('client_encoding', 'UTF8', false), pg_catalog.set_config('DateStyle', 'ISO', false)`,
		nil, &path, &encoding, &dates)
	if err == nil {
		// Only the timeouts that this major has: idle_session_timeout came
		// with 14, transaction_timeout with 17.
		var n int
		err = s.row(ctx, `SELECT count(set_config(name, '0', false)) FROM pg_settings WHERE name IN ('statement_timeout',
			'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')`, nil, &n)
	}
	return serverError(err, "set up the session", "")
}

// requireSupported refuses a major that this package does not know.
func requireSupported(major int) error {
	if SupportedMajor(major) {
		return nil
	}
	return errs.New(errs.Server,
		fmt.Sprintf("This agent supports PostgreSQL %d to %d; use a version of it that knows this server.", MinMajor, MaxMajor),
		"the server is PostgreSQL %d, which is not supported", major)
}

// Major is the server's major version.
func (s *Server) Major() int { return s.version / 10000 }

// Close ends the session, and with it a backup that was not stopped, and waits
// until the connection is closed or ctx ends.
func (s *Server) Close(ctx context.Context) error {
	s.detach()
	s.mu.Lock()
	s.ended = true
	err := s.conn.Close(ctx)
	s.mu.Unlock()
	if err != nil {
		return serverError(err, "close the session", "")
	}
	select {
	case <-s.conn.PgConn().CleanupDone():
		return nil
	case <-ctx.Done():
		return serverError(ctx.Err(), "close the session", "")
	}
}

// end is called when the session's context ends: at any time, beside a call.
func (s *Server) end(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	if s.running != nil {
		// The driver cancels the query at the server and closes.
		s.running()
		return
	}
	s.hangUp(ctx)
}

// hangUp closes an idle connection although ctx may have ended.
func (s *Server) hangUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	// The server sees the end of the connection in any case.
	_ = s.conn.Close(ctx)
}

// begin makes the context of a call, which ends with the session as well.
func (s *Server) begin(ctx context.Context) (call context.Context, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		return nil, nil, errSessionEnded
	}
	call, cancel := context.WithCancel(ctx)
	s.running = cancel
	return call, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running = nil
		cancel()
		if s.ended {
			s.hangUp(ctx)
		}
	}, nil
}

// row runs a query that gives one row and scans it.
func (s *Server) row(ctx context.Context, sql string, args []any, dest ...any) error {
	call, done, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return s.conn.QueryRow(call, sql, args...).Scan(dest...)
}

// rows runs a query and calls scan for each of its rows.
func (s *Server) rows(ctx context.Context, sql string, scan func(pgx.Rows) error) error {
	call, done, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	rows, err := s.conn.Query(call, sql)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// address names where a configuration leads to: user, database, and each host
// and port or socket, and nothing secret.
func address(config *pgx.ConnConfig) string {
	seen := map[string]bool{}
	var places []string
	add := func(host string, port uint16) {
		place := fmt.Sprintf("host %s port %d", host, port)
		if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") {
			place = fmt.Sprintf("socket %s/.s.PGSQL.%d", host, port)
		}
		if !seen[place] {
			seen[place] = true
			places = append(places, place)
		}
	}
	add(config.Host, config.Port)
	for _, f := range config.Fallbacks {
		add(f.Host, f.Port)
	}
	database := config.Database
	if database == "" {
		database = config.User
	}
	return fmt.Sprintf("database %q as user %q at %s", database, config.User, strings.Join(places, ", "))
}
