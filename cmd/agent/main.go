// Command agent archives the WAL of PostgreSQL, takes backups and restores
// them. See `agent help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	_ "agent/cmd/agent/crash"
	"agent/cmd/agent/early"
	"agent/internal/errs"
	"agent/internal/wal"
)

// version is set by the build.
var version = "development"

func main() { os.Exit(run()) }

// What PostgreSQL makes of exit codes rules the two archiving commands
// (docs/exit-codes.md).
const (
	// exitNotFound of wal-fetch: there is no such file. PostgreSQL ends
	// recovery, or streams.
	exitNotFound = 74
	// exitStop of wal-fetch: anything else. Above 125 PostgreSQL stops instead
	// of opening a database with transactions missing.
	exitStop = 126
	// exitUnknown of a command that does not exist, which may be a misspelt
	// wal-fetch in a restore_command: it must not look like "not found".
	exitUnknown = 127
)

// pushMemory is where wal-push begins to collect garbage at once, in bytes.
const pushMemory = 96 << 20

func run() int {
	if slices.Contains(os.Args[1:], early.Push) {
		// Beside the database what is no longer needed goes at once.
		debug.SetMemoryLimit(pushMemory)
	}
	return execute(os.Args[1:], os.Stdout, os.Stderr)
}

// execute runs one command line and returns its exit status.
func execute(args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	root := app.root()
	root.SetArgs(args)
	command := commandOf(root, args)
	ctx, stop := app.signals(command)
	defer stop()
	err := storeAdvice(root.ExecuteContext(ctx))
	if err != nil && ctx.Err() != nil {
		err = errs.Wrap(err, errs.Interrupted, "", "interrupted")
	}
	code := exitCode(command, err)
	if err != nil {
		app.fail(err, code)
	}
	return code
}

// commandOf is the name of the command that the arguments call, or "". An
// unknown flag before wal-push hides it; the archiver must get its status all
// the same.
func commandOf(root *cobra.Command, args []string) string {
	cmd, _, err := root.Find(args)
	switch {
	case err == nil && cmd != root:
		return cmd.Name()
	case slices.Contains(args, "wal-push") && !slices.Contains(args, "wal-fetch"):
		return "wal-push"
	default:
		return ""
	}
}

// pluginError is the outcome of a monitoring plugin: an exit status of its
// own, and no error to print.
type pluginError int

func (pluginError) Error() string { return "not all is well" }

func exitCode(command string, err error) int {
	var plugin pluginError
	switch {
	case errors.As(err, &plugin):
		return int(plugin)
	case err == nil:
		return 0
	case command == "wal-push":
		return 1
	case command == "wal-fetch" && errors.Is(err, wal.ErrNotFound):
		return exitNotFound
	case command == "wal-fetch":
		return exitStop
	case command == "":
		return exitUnknown
	default:
		return errs.KindOf(err).ExitCode()
	}
}

// signals ends the context on SIGINT and SIGTERM, so that a backup leaves the
// server's backup mode and a push ends with status 1 rather than by a signal,
// which would kill PostgreSQL's archiver. wal-fetch dies of SIGTERM, as
// PostgreSQL expects when it shuts down.
func (a *app) signals(command string) (context.Context, func()) {
	switch command {
	case "wal-fetch":
		return context.Background(), func() {}
	case "wal-push":
		signal.Ignore(syscall.SIGPIPE)
	}
	if command == "wal-push" {
		return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	return ctx, stop
}

// fail tells the user what happened and what to do.
func (a *app) fail(err error, code int) {
	if plugin := pluginError(0); errors.As(err, &plugin) {
		return // all was said
	}
	if errors.Is(err, wal.ErrNotFound) {
		// The normal end of every recovery: not an error to worry about.
		a.log.Info(err.Error())
		return
	}
	hint := errs.HintOf(err)
	if a.jsonLog {
		a.log.Error(err.Error(), "hint", hint, "exit_code", code)
		return
	}
	fmt.Fprintf(a.stderr, "agent: error: %v\n", err)
	if hint != "" {
		fmt.Fprintf(a.stderr, "agent: hint: %s\n", hint)
	}
}
