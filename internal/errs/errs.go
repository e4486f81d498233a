// Package errs is the one error type that reaches a user: what happened, to
// which object, and what to do now. It sits below every other package and
// knows none of them.
//
// Packages wrap verb-first with %w ("open segment: %w") and use sentinels for
// what callers branch on. Where an error is first understood well enough to
// advise somebody, it becomes an *Error with a Kind (which decides the exit
// code) and a Hint (which is printed on a line of its own).
package errs

import (
	"errors"
	"fmt"
	"syscall"
)

// Kind classifies an error for its reader and for scripts: each kind has one
// documented exit code (docs/exit-codes.md).
type Kind uint8

// The kinds. Their order is not their exit code; see ExitCode.
const (
	Other          Kind = iota // anything not classified
	Usage                      // wrong flags or arguments
	Config                     // a setting is unknown, malformed or contradictory
	NotInitialised             // there is no repository at the URL
	Foreign                    // repository, WAL or directory of another cluster, or not the pinned repository
	Storage                    // the store cannot be reached, or refuses (credentials, permission)
	Damaged                    // an object is missing a part, truncated or altered
	NotFound                   // no such backup or file in the repository
	Locked                     // another run holds the lock
	Server                     // PostgreSQL: connection, grants, settings, role
	Destination                // the place to restore to cannot be used
	Identity                   // an age identity is needed, or none of those given fits
	NoSpace                    // a disk is full
	BadPages                   // a backup was made, but pages with wrong checksums are in it
	Conflict                   // the object exists with other bytes
	Interrupted                // a signal or the deadline ended the run
	Gap                        // WAL that must be there is not
)

// ExitCode is the status with which a command other than wal-push and
// wal-fetch ends for an error of this kind. The two archiving commands have
// their own contract with PostgreSQL and do not use it.
func (k Kind) ExitCode() int {
	switch k {
	case Usage, Config:
		return 2
	case NotInitialised:
		return 3
	case Foreign:
		return 4
	case Storage:
		return 5
	case Damaged:
		return 6
	case NotFound:
		return 7
	case Locked:
		return 8
	case Server:
		return 9
	case Destination:
		return 10
	case Identity:
		return 11
	case NoSpace:
		return 12
	case BadPages:
		return 13
	case Conflict:
		return 14
	case Interrupted:
		return 15
	case Gap:
		return 16
	default:
		return 1
	}
}

// Error is an error that a person can act on.
type Error struct {
	Kind Kind
	What string // what happened, to which object; no capital, no full stop
	Hint string // what to do now, as a sentence; may be empty
	Err  error  // the cause; may be nil
}

// Error returns what happened and its cause, without the hint.
func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.What
	case e.What == "":
		return e.Err.Error()
	default:
		return e.What + ": " + e.Err.Error()
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error without a cause.
func New(kind Kind, hint, format string, args ...any) *Error {
	return &Error{Kind: kind, Hint: hint, What: fmt.Sprintf(format, args...)}
}

// Wrap makes an error with a cause. A nil cause gives a nil error.
func Wrap(err error, kind Kind, hint, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Hint: hint, What: fmt.Sprintf(format, args...), Err: err}
}

// State explains that the state directory could not be used.
func State(err error, what string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return Wrap(err, NoSpace, "Make room where the state directory is, or give another with AGENT_STATE_DIR.", "%s", what)
	}
	return Wrap(err, Config, "The agent keeps small files there; give it a directory that its user may write with AGENT_STATE_DIR.", "%s", what)
}

// KindOf returns the kind of the outermost classified error in the chain, or of
// the first branch of a joined error that has one.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) && e.Kind != Other {
		return e.Kind
	}
	// As looks at the first match alone; a classified error may be beside it.
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		for _, branch := range many.Unwrap() {
			if k := KindOf(branch); k != Other {
				return k
			}
		}
	}
	if e != nil {
		return KindOf(e.Err)
	}
	return Other
}

// HintOf returns the innermost hint of the chain: the deeper an error was
// understood, the more exact is its advice.
func HintOf(err error) string {
	hint := ""
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			break
		}
		if e.Hint != "" {
			hint = e.Hint
		}
		err = e.Err
	}
	return hint
}
