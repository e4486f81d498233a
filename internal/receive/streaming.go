package receive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// maxWhole is how many whole segments wait to be archived, in files of the
// state directory. Then no more is read from the server.
const maxWhole = 2

// timelineEnd is that the server has left the timeline.
type timelineEnd struct {
	next postgres.Timeline
	at   postgres.LSN // where it was left
}

// streaming receives one timeline over one connection. The loop owns all
// fields; a reader hands messages to it, an uploader takes jobs from it, and a
// reporter tells the server of it.
type streaming struct {
	*receiver
	conn   *conn
	server *server
	from   position
	report *reporter

	received postgres.LSN // all before it has come
	durable  postgres.LSN // all before it is stored in every required place
	ahead    postgres.LSN // the server's end, as far as it was told

	file    *segmentFile // being received; nil: the next byte begins one
	files   []*segmentFile
	jobs    chan job
	results chan result
	waiting int // jobs without a result
	wholes  int // of these, whole segments
	ranges  int // of these, ranges

	urgent bool        // what has come is to be stored now
	armed  bool        // flush will say so
	flush  *time.Timer // measures the age of the oldest byte that is not under way

	over   bool         // nothing more is read: what has come is to be made durable
	cause  error        // why it is over; nil: end, or asked to
	end    *timelineEnd // not nil: CopyDone has come
	closed bool         // the connection is of no use any more
}

// job is something to be stored.
type job struct {
	file   *segmentFile
	ranges []repo.StreamRange // nil: the whole segment
	end    postgres.LSN       // all before it is durable then
}

type result struct {
	job
	err error
}

// run streams until the timeline ends (end says where to go on), the connection
// does (an error), or ctx does or all is there that was asked for (neither).
// What has come is durable then, unless the error says why not.
func (s *streaming) run(ctx, work context.Context) (end *timelineEnd, err error) {
	s.received, s.durable, s.ahead = s.from.start, s.from.start, s.server.flushed
	if s.Until != 0 && s.durable >= s.Until {
		return nil, nil
	}
	err = pglogrepl.StartReplication(ctx, s.conn.pg, s.Slot, pglogrepl.LSN(s.from.start), pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.PhysicalReplication, Timeline: int32(s.from.segment.Timeline),
	})
	if next, at, ok := pglogrepl.IsErrEndTimeline(err); ok {
		return &timelineEnd{postgres.Timeline(next), postgres.LSN(at)}, nil
	}
	if err != nil {
		return nil, serverError(ctx, err, fmt.Sprintf("start streaming at %s on timeline %d", s.from.start, uint32(s.from.segment.Timeline)))
	}
	s.Log.Info("receiving WAL", "system_identifier", s.cluster.String(), "timeline", uint32(s.from.segment.Timeline), "from", s.from.start.String(),
		"server_flushed", s.server.flushed.String(), "slot", s.Slot, "application_name", s.conn.pg.ParameterStatus("application_name"))
	s.jobs, s.results = make(chan job, maxWhole+2), make(chan result, maxWhole+2)
	s.flush = time.NewTimer(time.Hour)
	s.flush.Stop()
	reading, stopReading := context.WithCancel(work)
	reporting, stopReporting := context.WithCancel(work)
	messages := make(chan message)
	s.report = newReporter(s.conn, s.Now, s.Silence, s.from.start)
	var all, reports sync.WaitGroup
	all.Go(func() { read(reading, s.conn, s.report, messages) })
	all.Go(func() { s.upload(work) })
	reports.Go(func() { s.report.run(reporting) })
	err = s.loop(ctx, messages)
	close(s.jobs)
	stopReporting()
	reports.Wait()
	stopReading() // sets deadlines on the connection, which would hit a report
	all.Wait()
	for _, f := range s.files {
		err = errors.Join(err, f.close())
	}
	s.flush.Stop()
	if err != nil {
		return nil, err
	}
	if s.closed {
		return nil, s.cause
	}
	if err := s.report.send(ctx, s.progress(), false); err != nil {
		return nil, passing{err}
	}
	if s.end == nil {
		return nil, s.cause
	}
	return s.conn.endTimeline(ctx)
}

// loop is the only one that decides. Its error is one that a person has to
// resolve.
func (s *streaming) loop(ctx context.Context, messages <-chan message) error {
	asked := ctx.Done()
	for {
		s.schedule()
		if s.over && s.waiting == 0 {
			return nil
		}
		in := messages
		if s.over || s.wholes >= maxWhole {
			in = nil
		}
		select {
		case m := <-in:
			if err := s.take(m); err != nil {
				s.fail(err) // what has come before is stored nevertheless
			}
		case r := <-s.results:
			if err := s.took(r); err != nil {
				return err
			}
		case <-s.flush.C:
			s.armed, s.urgent = false, true
		case err := <-s.report.failed:
			s.fail(passing{errs.Wrap(err, errs.Server, "The connection to the server was lost; look into its log.", "stream WAL")})
		case <-asked:
			asked = nil
			s.over, s.urgent = true, true
		}
		s.report.set(s.progress())
	}
}

func (s *streaming) progress() progress { return progress{s.received, s.durable} }

// take handles one message of the server.
func (s *streaming) take(m message) error {
	switch {
	case m.err != nil:
		s.fail(m.err)
	case m.copyDone:
		s.end = new(timelineEnd)
		s.over, s.urgent = true, true
	case m.keepalive:
		s.ahead = max(s.ahead, m.serverEnd)
		// A server that has nothing more and wants to know may be waiting for
		// us to shut down.
		s.urgent = s.urgent || m.reply && s.received >= m.serverEnd
	default:
		s.ahead = max(s.ahead, m.serverEnd)
		if m.start != s.received {
			return errs.New(errs.Server, "Report this, with the log of the server.", "the server sent WAL from %s where %s comes next", m.start, s.received)
		}
		if err := s.write(m.wal); err != nil {
			return err
		}
		s.urgent = s.urgent || s.Synchronous && !s.repeating()
	}
	if s.Until != 0 && s.received >= s.Until {
		s.urgent = true
	}
	return nil
}

// fail ends the connection: what has come is stored now, as the server may be
// lost. The first reason counts.
func (s *streaming) fail(err error) {
	if !s.closed {
		s.over, s.urgent, s.closed, s.cause = true, true, true, err
	}
}

// write puts WAL into the files of its segments.
func (s *streaming) write(wal []byte) error {
	for len(wal) > 0 {
		if s.file == nil {
			f, err := newSegmentFile(s.StateDir, postgres.SegmentOf(s.from.segment.Timeline, s.received, s.server.segmentSize), s.server.segmentSize)
			if err != nil {
				return err
			}
			if s.received == s.from.start {
				f.known = s.from.known
			}
			s.file, s.files = f, append(s.files, f)
		}
		n := min(len(wal), int(s.file.end()-s.received))
		if err := s.file.write(s.received, wal[:n]); err != nil {
			return err
		}
		s.received += postgres.LSN(n)
		wal = wal[n:]
		if s.received == s.file.end() {
			s.send(job{file: s.file, end: s.received})
			s.wholes++
			s.file = nil
			s.disarm()
			continue
		}
		if !s.armed && len(s.file.known) == 0 {
			s.armed = true
			s.flush.Reset(s.FlushInterval)
		}
	}
	return nil
}

// repeating reports whether what comes of the segment at hand is in the
// repository already.
func (s *streaming) repeating() bool {
	if s.file == nil || len(s.file.known) == 0 {
		return false
	}
	return s.received < s.file.known[len(s.file.known)-1].End
}

func (s *streaming) disarm() {
	s.flush.Stop()
	s.armed, s.urgent = false, false
}

func (s *streaming) send(j job) {
	s.jobs <- j // never waits: there is room for all that may be under way
	s.waiting++
}

// schedule sends off what has come of the segment at hand, if it is time. One
// such job is under way at a time; what comes meanwhile goes together.
func (s *streaming) schedule() {
	f := s.file
	if f == nil || s.received == f.stored.end || s.ranges > 0 {
		if f == nil || s.received == f.stored.end {
			s.urgent = false
		}
		return
	}
	if len(f.known) > 0 {
		// A server may have less, such as a standby that is behind, and wait for
		// the confirmation of that before it ends; so may whoever gave Until.
		if s.repeating() && s.end == nil && (s.over || !s.urgent) {
			return
		}
		s.urgent = true
	}
	full := s.FlushBytes > 0 && int64(s.received-f.stored.end) >= s.FlushBytes && s.received >= s.ahead
	if !s.urgent && !full {
		return
	}
	g := f.stored.next(f.segment.Timeline, f.start(), s.received)
	all := []repo.StreamRange{g}
	if n := len(f.known); n > 0 && f.known[n-1].End <= s.received && f.known[n-1] != g {
		// The newest bytes of what was streamed before must be these: if not,
		// it was another server.
		all = []repo.StreamRange{f.known[n-1], g}
	}
	f.known = nil
	s.send(job{file: f, ranges: all, end: s.received})
	s.ranges++
	s.disarm()
}

// took handles what the uploader has done.
func (s *streaming) took(r result) error {
	s.waiting--
	if r.err != nil {
		return r.err
	}
	s.durable = max(s.durable, r.end)
	if r.ranges != nil {
		s.ranges--
	} else {
		s.wholes--
		s.files = slices.DeleteFunc(s.files, func(f *segmentFile) bool { return f == r.file })
		if err := r.file.close(); err != nil {
			return errs.State(err, "close a file of received WAL")
		}
	}
	if s.Until != 0 && s.durable >= s.Until {
		s.over, s.urgent = true, true
	}
	return nil
}

// upload stores one job after the other, and after a failure none.
func (s *streaming) upload(ctx context.Context) {
	var failed error
	for j := range s.jobs {
		if failed == nil {
			if j.ranges == nil {
				failed = s.store.segment(ctx, s.cluster, j.file)
			} else {
				failed = s.store.ranges(ctx, s.cluster, j.file, j.ranges)
			}
		}
		s.results <- result{j, failed} // never waits, as jobs does not
	}
}
