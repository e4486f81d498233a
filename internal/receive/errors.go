package receive

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"agent/internal/errs"
)

// SQLSTATE codes that are told apart (src/backend/utils/errcodes.txt).
const (
	codeInvalidAuth     = "28000"
	codeInvalidPassword = "28P01"
	codeNoDatabase      = "3D000"
	codeNoPrivilege     = "42501"
	codeNoObject        = "42704"
	codeDuplicate       = "42710"
	codeSyntax          = "42601"
	codeInUse           = "55006"
	codeNotReady        = "55000"
	codeNoFile          = "58P01"
	codeTooMany         = "53300"
	codeSlotsUsed       = "53400"
)

// What sessions end with and Run goes on after.
var (
	// errRemoved: the server has no more the WAL that comes next.
	errRemoved = errors.New("the server has removed WAL that was not received")
	// errGapSkipped: it was accepted that WAL is missing.
	errGapSkipped = errors.New("going on behind a gap")
)

// passing marks an error that may be gone a moment later.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

const hintLost = "It fell behind more than max_slot_wal_keep_size allows or was idle for too long, if it is not new. Drop it (SELECT pg_drop_replication_slot('...')) and start again with --create-slot: what the server still has is received first, and what it has removed is told."

// passes reports whether a session's end is worth another connection.
func passes(err error) bool {
	var p passing
	return errors.As(err, &p) || errors.Is(err, errGapSkipped)
}

func codeOf(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// permanent are the codes that do not go away by themselves.
func permanent(code string) bool {
	switch code {
	case codeInvalidAuth, codeInvalidPassword, codeNoDatabase, codeNoPrivilege, codeNoObject, codeDuplicate, codeSyntax,
		codeNotReady, codeNoFile, codeSlotsUsed:
		return true
	}
	return false
}

// connectError explains why there is no replication connection.
func connectError(ctx context.Context, config *pgconn.Config, err error) error {
	what := fmt.Sprintf("connect for replication as user %q to %s port %d", config.User, config.Host, config.Port)
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		var connect *pgconn.ConnectError
		if errors.As(err, &connect) {
			err = connect.Unwrap() // its text repeats the address
		}
		return errs.Wrap(passing{err}, errs.Server,
			"Is the server running, and are host and port right? They come from the connection setting or PGHOST and PGPORT.", "%s", what)
	}
	hint := pg.Hint
	switch pg.Code {
	case codeInvalidAuth, codeInvalidPassword:
		hint = fmt.Sprintf("pg_hba.conf needs a line for replication (host replication %s ADDRESS scram-sha-256; all does not include it), and the password must be right (.pgpass with the database name replication, or PGPASSWORD).", config.User)
	case codeNoPrivilege:
		hint = fmt.Sprintf("Run as superuser: ALTER ROLE %s REPLICATION", config.User)
	case codeTooMany:
		hint = "Raise max_wal_senders and restart the server. With wal_level = minimal it is 0: set wal_level = replica as well."
	}
	return errs.Wrap(mark(pg), errs.Server, hint, "%s", what)
}

// mark adds that an error passes, unless it does not.
func mark(pg *pgconn.PgError) error {
	if permanent(pg.Code) {
		return pg
	}
	return passing{pg}
}

// serverError explains the error of a command.
func serverError(ctx context.Context, err error, what string) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return errs.Wrap(passing{err}, errs.Server, "The connection to the server was lost; look into its log.", "%s", what)
	}
	hint := pg.Hint
	switch pg.Code {
	case codeNoPrivilege:
		hint = "The role needs the attribute REPLICATION: run as superuser: ALTER ROLE ... REPLICATION"
	case codeSlotsUsed:
		hint = "Raise max_replication_slots and restart the server, or drop a slot that nobody uses."
	case codeInUse:
		hint = "Another receiver or standby uses this slot (pg_replication_slots.active_pid): each needs its own. One that was killed is noticed by the server after wal_sender_timeout."
	case codeNotReady:
		if strings.Contains(pg.Message, "wal_level") {
			hint = "Set wal_level = replica and restart the server."
		} else {
			hint = hintLost
		}
	case codeNoObject:
		return noSlot(pg, what)
	case codeNoFile:
		return fmt.Errorf("%w: %w", errRemoved, pg)
	}
	return errs.Wrap(mark(pg), errs.Server, hint, "%s", what)
}

func noSlot(err error, name string) error {
	const hint = "Make it with --create-slot. After a failover the new primary does not have the slots of the old one: give --create-slot in the service, too."
	if err != nil {
		return errs.Wrap(err, errs.Server, hint, "%s", name)
	}
	return errs.New(errs.Server, hint, "the server has no replication slot %s", name)
}
