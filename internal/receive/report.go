package receive

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"agent/internal/postgres"
)

// A server cuts off who says nothing for wal_sender_timeout, and asks for a sign
// of life after half of that (WalSndKeepaliveIfNecessary in
// src/backend/replication/walsender.c). Its question waits in the network behind
// WAL that was sent before, so that it is not relied on: a wal_sender_timeout of
// a second is enough.
const (
	reportBusy = 200 * time.Millisecond
	reportIdle = 500 * time.Millisecond // when nothing has come for idleAfter
	idleAfter  = time.Second
	// replyPause is between two reports that say the same, and how often is
	// looked whether one is due: a server that shuts down asks again as soon as
	// it is answered.
	replyPause = 100 * time.Millisecond
)

// silenceLimit is the default of Options.Silence: a host that is gone ends no
// connection.
const silenceLimit = time.Minute

// progress is how far WAL has come, and how far it is durable in every required
// place.
type progress struct{ received, durable postgres.LSN }

// reporter tells the server the progress, beside the loop that makes it: whatever
// that has to wait for, a slow disk or store, the server hears of us. It owns
// the sending side of the connection while it runs.
type reporter struct {
	conn    *conn
	now     func() time.Time
	silence time.Duration
	// failed holds the error of a connection that is of no use any more.
	failed chan error

	poke chan struct{} // something is due, perhaps

	mu      sync.Mutex
	at      progress
	owed    bool      // the server asked for a report
	reading bool      // the reader waits for the server
	since   time.Time // since when

	sent time.Time // when the last report was; used by run alone
	said progress  // what it was
}

func newReporter(c *conn, now func() time.Time, silence time.Duration, from postgres.LSN) *reporter {
	return &reporter{
		conn: c, now: now, silence: silence, at: progress{from, from},
		failed: make(chan error, 1), poke: make(chan struct{}, 1),
	}
}

// set gives the progress to be told.
func (p *reporter) set(at progress) {
	p.mu.Lock()
	news := at.durable != p.at.durable
	p.at = at
	p.mu.Unlock()
	if news {
		p.wake()
	}
}

// owe is that the server wants a report.
func (p *reporter) owe() {
	p.mu.Lock()
	p.owed = true
	p.mu.Unlock()
	p.wake()
}

// waits is that from now on the reader waits for the server, or that it got
// something.
func (p *reporter) waits(reading bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reading, p.since = reading, p.now()
}

func (p *reporter) wake() {
	select {
	case p.poke <- struct{}{}:
	default: // it will look anyway
	}
}

// run reports until ctx ends or the connection fails.
func (p *reporter) run(ctx context.Context) {
	tick := time.NewTicker(replyPause)
	defer tick.Stop()
	for {
		at, ask, due, err := p.due()
		if err == nil && due {
			err = p.send(ctx, at, ask)
		}
		if err != nil {
			p.failed <- err
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-p.poke:
		case <-tick.C:
		}
	}
}

// due says whether it is time for a report, and whether the server is to answer
// it.
func (p *reporter) due() (at progress, ask, due bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	passed, silent := now.Sub(p.sent), time.Duration(0)
	if p.reading {
		silent = now.Sub(p.since)
	}
	if silent > p.silence {
		return p.at, false, false, fmt.Errorf("nothing has come from the server for %s", p.silence)
	}
	switch {
	case p.at.durable != p.said.durable:
		due = true
	case p.owed:
		due = p.at != p.said || passed >= replyPause
	case silent > idleAfter:
		due = passed >= reportIdle
	default:
		due = passed >= reportBusy
	}
	if due {
		p.owed = false
	}
	return p.at, silent > p.silence/2, due, nil
}

// send tells the server how far WAL has come and how far it is durable. Apply
// is the same as flush, so that synchronous_commit = remote_apply does not wait
// for ever.
func (p *reporter) send(ctx context.Context, at progress, ask bool) error {
	// A server that takes nothing any more is as silent as one that sends
	// nothing.
	err := p.conn.pg.Conn().SetWriteDeadline(p.now().Add(p.silence))
	if err == nil {
		// What follows on the connection has its own limits.
		defer func() { _ = p.conn.pg.Conn().SetWriteDeadline(time.Time{}) }()
		err = pglogrepl.SendStandbyStatusUpdate(ctx, p.conn.pg, pglogrepl.StandbyStatusUpdate{
			WALWritePosition: pglogrepl.LSN(at.received), WALFlushPosition: pglogrepl.LSN(at.durable), WALApplyPosition: pglogrepl.LSN(at.durable),
			ClientTime: p.now(), ReplyRequested: ask,
		})
	}
	if err != nil {
		return fmt.Errorf("tell the server the position: %w", err)
	}
	p.sent, p.said = p.now(), at
	return nil
}
