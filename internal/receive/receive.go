// Package receive streams WAL from a running server into the repository, by
// PostgreSQL's physical replication protocol, as pg_receivewal does into a
// directory. Whole segments are archived as wal-push archives them; of the
// segment that is not finished what has come is stored every few seconds as
// ranges, so that no more than that is lost with the host. A position is
// confirmed to the server only when all before it is durable.
package receive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Options say what to receive and how often to store it.
type Options struct {
	// Open opens the repository: at the start, and again when it could not be
	// reached or was open for long, so that a mount that came back and a
	// best-effort place that was left out are found.
	Open func(context.Context) (*repo.Repository, error)
	// Stored, if it is not nil, is called now and then after something was
	// stored, with the repository it is in.
	Stored func(*repo.Repository)

	ConnInfo   string // as libpq takes it; what it leaves open comes from PG*
	Slot       string // name of the physical replication slot
	CreateSlot bool   // make the slot if there is none
	AllowGap   bool   // go on where the server's WAL begins, if that is behind the repository's end

	// Synchronous stores at once whatever has come.
	Synchronous   bool
	FlushInterval time.Duration // how old a byte may become before it is stored
	FlushBytes    int64         // how many bytes are stored at the latest

	Once  bool         // end when all that the server has now is durable
	Until postgres.LSN // end when all before it is durable; 0: never

	// Silence is for how long nothing may come from a server that was asked for
	// an answer, before it counts as gone; 0: a minute, as wal_receiver_timeout.
	Silence time.Duration

	StateDir string
	Log      *slog.Logger
	Now      func() time.Time
}

// Waits between two connections. The first is short: a server that restarts is
// back in a second.
const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 15 * time.Second
)

// stopLimit is how long, after it was asked to end, a receiver tries to make
// durable what it has got.
const stopLimit = 30 * time.Second

// Run receives until ctx ends, or until what the options say is durable. What
// came until then is durable and confirmed when Run returns without error.
//
// A server that goes away is tried again for ever. Errors are what only a
// person can resolve: a gap, another cluster, other bytes in the repository, a
// missing slot or privilege.
func Run(ctx context.Context, o Options) (err error) {
	if err := checkSlotName(o.Slot); err != nil {
		return err
	}
	o.Silence = cmp.Or(o.Silence, silenceLimit)
	unlock, err := lock(o.StateDir, o.Slot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	work, cancel := workContext(ctx)
	defer cancel()
	r := &receiver{Options: o, store: &store{open: o.Open, stored: o.Stored, log: o.Log, now: o.Now, stateDir: o.StateDir}}
	defer func() { err = errors.Join(err, r.store.close()) }()
	if err := r.store.ready(ctx); err != nil {
		return err
	}
	wait := &backoff.ExponentialBackOff{InitialInterval: retryFirst, MaxInterval: retryMost, Multiplier: 2, RandomizationFactor: 0.3}
	wait.Reset()
	for {
		streamed, err := r.session(ctx, work)
		switch {
		case err == nil, ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))):
			return nil
		case !passes(err):
			return err
		}
		if streamed {
			wait.Reset()
		}
		pause := wait.NextBackOff()
		o.Log.Warn("will connect to the server again", "error", err.Error(), "hint", errs.HintOf(err), "wait", pause)
		if sleep(ctx, pause) != nil {
			return nil
		}
	}
}

// workContext is for what must go on for a while when ctx has ended.
func workContext(ctx context.Context) (context.Context, context.CancelFunc) {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(stopLimit, func() {
			cancel(errs.New(errs.Storage, "What was not stored is still on the server, if the slot is there: start it again when the repository can be reached.",
				"the repository did not take what was received within %s", stopLimit))
		})
		context.AfterFunc(work, func() { timer.Stop() })
	})
	return work, func() {
		stop()
		cancel(nil)
	}
}

// receiver is what stays over several connections.
type receiver struct {
	Options
	store   *store
	cluster repo.ClusterID // 0: not known yet
	behind  postgres.LSN   // where to go on behind a gap that was allowed; else 0
}

// session is one connection, over as many timelines as come. streamed says that
// some WAL has come.
func (r *receiver) session(ctx, work context.Context) (streamed bool, err error) {
	c, err := connect(ctx, r.ConnInfo)
	if err != nil {
		return false, err
	}
	defer func() { c.close(work) }()
	s, err := r.identify(ctx, c)
	if err != nil {
		return false, err
	}
	from, err := r.position(ctx, s)
	for err == nil {
		st := &streaming{receiver: r, conn: c, server: s, from: from}
		var end *timelineEnd
		end, err = st.run(ctx, work)
		streamed = streamed || st.received > from.start
		if errors.Is(err, errRemoved) {
			c.close(work)
			err = r.skipGap(ctx, s, from, err)
		}
		if err != nil || end == nil {
			break
		}
		from, err = r.follow(ctx, c, s, end)
	}
	return streamed, err
}

// identify asks who the server is, and makes sure that it is the one it was.
func (r *receiver) identify(ctx context.Context, c *conn) (*server, error) {
	s, err := c.identify(ctx)
	if err != nil {
		return nil, err
	}
	if r.cluster == 0 {
		if err := pinCluster(r.StateDir, r.Slot, s.cluster); err != nil {
			return nil, err
		}
		r.cluster = s.cluster
	}
	if s.cluster != r.cluster {
		return nil, foreignServer(r.cluster, s.cluster, "")
	}
	if s.timeline > 1 {
		if s.history, err = r.archiveHistory(ctx, c, s.timeline); err != nil {
			return nil, err
		}
	}
	if r.CreateSlot {
		if err := c.createSlot(ctx, r.Slot); err != nil {
			return nil, err
		}
	}
	if s.slot, err = c.readSlot(ctx, r.ConnInfo, r.Slot, r.Log); err != nil {
		return nil, err
	}
	if r.Once {
		r.Once, r.Until = false, s.flushed
	}
	return s, nil
}

// archiveHistory brings the history of a timeline before any WAL of it.
func (r *receiver) archiveHistory(ctx context.Context, c *conn, t postgres.Timeline) (postgres.History, error) {
	body, err := c.history(ctx, t)
	if err != nil {
		return nil, err
	}
	h, err := postgres.ParseHistory(t, body)
	if err != nil {
		return nil, errs.Wrap(err, errs.Server, "", "read the history of timeline %d from the server", uint32(t))
	}
	return h, r.store.history(ctx, r.cluster, t, body)
}

// follow goes on with the timeline that the server names at the end of one.
func (r *receiver) follow(ctx context.Context, c *conn, s *server, end *timelineEnd) (position, error) {
	h, err := r.archiveHistory(ctx, c, end.next)
	if err != nil {
		return position{}, err
	}
	if !s.path().Contains(end.next) { // it was promoted meanwhile
		s.timeline, s.history = end.next, h
	}
	r.Log.Info("following to the next timeline", "timeline", uint32(end.next), "switch_lsn", end.at.String())
	return r.at(ctx, s, postgres.SegmentOf(end.next, end.at, s.segmentSize))
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait: %w", context.Cause(ctx))
	}
}
