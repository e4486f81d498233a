package delta

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"agent/internal/errs"
	"agent/internal/postgres"
)

// The modes of Detect.
const (
	Auto      = "auto"
	Summaries = "summaries"
	Server    = "server"
	LSN       = "lsn"
)

// CheckMode refuses what is no mode.
func CheckMode(mode string) error {
	switch mode {
	case "", Auto, Summaries, Server, LSN:
		return nil
	}
	return errs.New(errs.Usage, "Allowed are auto, summaries, server and lsn.", "--detect %q is unknown", mode)
}

// Detector finds out what has changed in a range of WAL.
type Detector struct {
	Source
	Geometry
	Server *postgres.Server
	// Hints says why page LSNs may not tell all changes of hints since the
	// parent; empty: they do.
	Hints string
	// Archives: this server's archiver is to archive what it writes.
	Archives bool
	// Databases finds the databases that were made since the parent; it is asked
	// when page LSNs decide.
	Databases func(ctx context.Context) (Databases, error)
}

// Detect takes the first method that covers the range: all in the order of their
// cost, or the one of the mode. refused says why those before it do not; err that
// none does.
func (d Detector) Detect(ctx context.Context, mode string, r Range) (c *Changes, refused []string, err error) {
	for _, m := range []struct {
		mode string
		run  func() (*Changes, error)
	}{
		{Summaries, func() (*Changes, error) {
			c, err := bySummaries(ctx, d.Source, d.Geometry, r)
			return d.ours(ctx, r, c, err)
		}},
		{Server, func() (*Changes, error) {
			c, err := byServer(ctx, d.Server, d.Geometry, r)
			return d.ours(ctx, r, c, err)
		}},
		{LSN, func() (*Changes, error) {
			databases, err := d.Databases(ctx)
			if err != nil {
				return nil, err
			}
			return byPageLSN(ctx, d, r, databases.whole)
		}},
	} {
		if mode != "" && mode != Auto && mode != m.mode {
			continue
		}
		c, err := m.run()
		if err == nil {
			return c, refused, nil
		}
		if ctx.Err() != nil {
			return nil, refused, context.Cause(ctx)
		}
		refused = append(refused, fmt.Sprintf("%s: %s", m.mode, oneLine(err)))
	}
	return nil, refused, errors.New(strings.Join(refused, "; "))
}

// ours refuses changes of a server that archives, and whose WAL from behind the
// parent's end has not gone into the archive: it may have gone another way since
// the parent than the one from which that came. Where nothing is archived from here
// the chain of the records is the proof.
func (d Detector) ours(ctx context.Context, r Range, c *Changes, err error) (*Changes, error) {
	if err == nil && d.Archives {
		err = d.sameServer(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
