package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"agent/internal/errs"
)

// SQLSTATE codes that users can do something about
// (src/backend/utils/errcodes.txt).
const (
	codeInvalidAuth       = "28000"
	codeInvalidPassword   = "28P01"
	codeNoDatabase        = "3D000"
	codeNoPrivilege       = "42501"
	codeTooManySessions   = "53300"
	codeAdminShutdown     = "57P01"
	codeCrashShutdown     = "57P02"
	codeCannotConnectNow  = "57P03"
	codeIdleSessionKilled = "57P05"
)

const hintStarting = "The server is starting up, shutting down or not yet consistent; try again when it accepts connections."

// ConnInfoError explains the driver's error about a connection string, and
// hides the string, which may hold a password: the driver redacts on a
// best-effort basis only. It is an *errs.Error of Kind Config.
func ConnInfoError(err error) error {
	const what = "the connection string or the PG* environment cannot be understood"
	const hint = "Write it as key=value words or as postgresql://user@host:port/database; passwords belong into the password file."
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		if cause := parse.Unwrap(); cause != nil && !strings.Contains(parse.ConnString, "://") && !hasPassword(parse.ConnString) {
			return errs.Wrap(cause, errs.Config, hint, what)
		}
		return errs.New(errs.Config, hint, what)
	}
	return errs.Wrap(err, errs.Config, hint, what)
}

// hasPassword tells whether a text could contain one.
func hasPassword(s string) bool { return strings.Contains(strings.ToLower(s), "pass") }

// connectError explains why no session could be opened.
func connectError(ctx context.Context, config *pgx.ConnConfig, err error) error {
	what := "connect to " + address(config)
	if ctx.Err() != nil {
		return errs.Wrap(context.Cause(ctx), errs.Interrupted, "", "%s", what)
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return errs.Wrap(pg, errs.Server, connectHint(pg, config), "%s", what)
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		err = connect.Unwrap()
	}
	return errs.Wrap(err, errs.Server,
		"Is the server running, and are host and port (or the socket's directory) right? They come from the connection string or PGHOST and PGPORT.", "%s", what)
}

func connectHint(pg *pgconn.PgError, config *pgx.ConnConfig) string {
	switch pg.Code {
	case codeInvalidAuth, codeInvalidPassword:
		return fmt.Sprintf("Check that role %q may log in, its password (password file, service file or PGPASSWORD) and the line of pg_hba.conf for it.", config.User)
	case codeNoDatabase:
		return "Name an existing database in the connection string or PGDATABASE, for example dbname=postgres."
	}
	return codeHint(pg)
}

// codeHint is the advice that depends on the SQLSTATE alone; else the server's
// own hint.
func codeHint(pg *pgconn.PgError) string {
	switch pg.Code {
	case codeCannotConnectNow:
		return hintStarting
	case codeAdminShutdown, codeCrashShutdown:
		return "The server ended the session because it shuts down or an administrator asked for it."
	case codeIdleSessionKilled:
		return "The server or something between ended the idle session; look for a timeout set for this role."
	case codeTooManySessions:
		return "All connections of the server or the role are in use; raise max_connections or the role's limit."
	}
	return pg.Hint
}

// serverError classifies the error of a query. denied is the hint for a
// missing privilege. A nil err gives nil.
func serverError(err error, what, denied string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errSessionEnded) {
		return errs.Wrap(err, errs.Interrupted, "", "%s", what)
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return errs.Wrap(err, errs.Server, "The connection to the server was lost; look into its log.", "%s", what)
	}
	if pg.Code == codeNoPrivilege && denied != "" {
		return errs.Wrap(pg, errs.Server, denied, "%s", what)
	}
	return errs.Wrap(pg, errs.Server, codeHint(pg), "%s", what)
}
