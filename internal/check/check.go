// Package check tries out whether a setup will work: configuration, keys, each
// repository, the state directory, the server, and the way of a WAL segment
// from the server into every repository. Nothing is believed that can be tried:
// objects are put, read, listed and deleted, and a segment is switched.
//
// What it finds is a list of Checks with stable names (names.go, docs/check.md).
// A failed check does not stop the others; one that makes no sense after it is
// skipped, and says why.
package check

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"agent/internal/errs"
	"agent/internal/repo"
)

// Status is how a check ended.
type Status string

// The statuses. Skipped says nothing of the setup: the check was not wanted,
// does not apply, or could not be made because of another one.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Failed  Status = "failed"
	Skipped Status = "skipped"
)

// Check is one thing that was looked at. Nothing in it is secret.
type Check struct {
	Name       Name
	Repository string // name of the repository that it is about; "" if none
	Status     Status
	Text       string // what was found, one line
	Hint       string // what to do; only if the status is not OK
	Facts      Facts  // for scripts; may be nil
	Kind       errs.Kind
}

// Facts are what a check measured, for JSON: strings, numbers, booleans and
// times.
type Facts map[Fact]any

// Options are what is checked.
type Options struct {
	ConfigFile string   // that was read; "" if none
	Warnings   []string // of the configuration
	Keys       Keys
	StateDir   string // absolute
	StateErr   error  // why there is no StateDir
	// DataDirectory is the one that is configured; "" if none is.
	DataDirectory string
	ConnInfo      string // libpq connection string; "": PG* variables
	// PrimaryConnInfo is that of a standby's primary; "": the standby's own setting.
	PrimaryConnInfo string
	Places          []Place
	Program         string // path of this agent, for archive_command
	// NoSwitch leaves the server's WAL alone.
	NoSwitch bool
	// WALTimeout is how long a switched segment may take to every repository.
	WALTimeout time.Duration
	// Advise gives an error of a store, which knows none, a kind and a hint.
	Advise  func(error) error
	Log     *slog.Logger
	Now     func() time.Time
	Version string // of the agent
}

// Place is a repository to check.
type Place struct {
	repo.Place
	// Dir is the folder of a repository that is one on this host; else "".
	Dir string
}

// Keys are the settings that say who may open objects.
type Keys struct {
	Data, WAL, Meta []string // recipients, as crypto.ParseRecipients takes them
	// Identity says that there is one on this host; LoadIdentity loads it and
	// returns warnings. It is nil where loading might ask somebody.
	Identity     bool
	LoadIdentity func() (warnings []string, err error)
}

// Limits of the parts, so that a store or a server that does not answer costs
// its own lines and not the others.
const (
	placeLimit  = 45 * time.Second
	serverLimit = 20 * time.Second
)

// run is one run of all checks.
type run struct {
	Options
	sys system
}

// pins and debts remember nothing where there is no state directory.
func (r *run) pins() *repo.Pins {
	if r.StateErr != nil {
		return nil
	}
	return repo.NewPins(r.StateDir)
}

func (r *run) debts() *repo.Debts {
	if r.StateErr != nil {
		return nil
	}
	return repo.NewDebts(r.StateDir)
}

// Run makes all checks. It changes nothing but a few objects below probe/ in
// each repository, which it deletes where it may, files in the state directory,
// and, unless NoSwitch is set, the server's current WAL segment. It takes some
// seconds; WALTimeout, and limits for whatever does not answer, bound it.
//
// The report of a run whose ctx ended is not complete.
func Run(ctx context.Context, o Options) Report {
	r := &run{Options: o, sys: linux()}
	return r.all(ctx)
}

func (r *run) all(ctx context.Context) Report {
	var all list
	r.config(&all)
	r.keys(&all)

	places := make([]*probe, len(r.Places))
	var wait sync.WaitGroup
	for i, p := range r.Places {
		places[i] = &probe{run: r, place: p}
		wait.Go(func() {
			ctx, cancel := context.WithTimeoutCause(ctx, placeLimit, errTooLong(placeLimit))
			defer cancel()
			places[i].all(ctx)
		})
	}
	s := &server{run: r}
	wait.Go(func() { s.connect(ctx) })
	wait.Wait()
	defer s.disconnect(ctx)

	for _, p := range places {
		wait.Go(func() { p.cluster(ctx, s.info.SystemIdentifier) })
	}
	wait.Wait()
	for _, p := range places {
		p.inside(s.dataDir())
		all = append(all, p.list...)
	}
	r.state(&all, s.dataDir())
	s.checks(ctx, &all)
	s.archiving(ctx, &all, places)
	return Report{Checks: all}
}

// Unconfigured is the report of a setup whose configuration cannot be used.
func Unconfigured(err error) Report {
	var all list
	all.fail(Config, "", err, errs.Config, "")
	for _, n := range []Name{Recipients, RepositoryOpen, StateDirectory, ServerConnection, ArchivingSwitch} {
		all.skip(n, "", "the configuration cannot be used")
	}
	return Report{Checks: all}
}

func errTooLong(limit time.Duration) error {
	return errs.New(errs.Storage, "Look whether the repository can be reached, and how long an answer takes.", "gave up after %s", limit)
}

// list is what the checks of a part write to.
type list []Check

func (l *list) add(c Check) { *l = append(*l, c) }

func (l *list) ok(n Name, place string, facts Facts, format string, args ...any) {
	l.add(Check{Name: n, Repository: place, Status: OK, Text: fmt.Sprintf(format, args...), Facts: facts})
}

func (l *list) warn(n Name, place string, facts Facts, hint, format string, args ...any) {
	l.add(Check{Name: n, Repository: place, Status: Warning, Text: fmt.Sprintf(format, args...), Hint: hint, Facts: facts})
}

func (l *list) skip(n Name, place, reason string) {
	l.add(Check{Name: n, Repository: place, Status: Skipped, Text: reason})
}

// bad is a failure that was found out here.
func (l *list) bad(n Name, place string, kind errs.Kind, facts Facts, hint, format string, args ...any) {
	l.add(Check{Name: n, Repository: place, Status: Failed, Text: fmt.Sprintf(format, args...), Hint: hint, Kind: kind, Facts: facts})
}

// fail is a failure that an error tells; kind and hint are for one that has
// none.
func (l *list) fail(n Name, place string, err error, kind errs.Kind, hint string) {
	if k := errs.KindOf(err); k != errs.Other {
		kind = k
	}
	if h := errs.HintOf(err); h != "" {
		hint = h
	}
	l.add(Check{Name: n, Repository: place, Status: Failed, Text: oneLine(err.Error()), Hint: hint, Kind: kind})
}

// oneLine joins the lines of a joined error.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// cause is why ctx ended, if err is about that, else err itself.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && errors.Is(err, ctx.Err()) && !errors.Is(err, c) {
		return fmt.Errorf("%w: %w", c, err)
	}
	return err
}
