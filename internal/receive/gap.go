package receive

import (
	"context"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"agent/internal/errs"
	"agent/internal/postgres"
)

// skipGap decides what happens when the server has no more the WAL that comes
// next: an error, unless a gap is allowed. Then the next session begins with the
// oldest WAL behind it that the server has: a backup may have begun there. No
// connection may be open, as the server may have a place for one alone.
func (r *receiver) skipGap(ctx context.Context, s *server, from position, cause error) error {
	next, err := r.oldest(ctx, s, from.segment.Number)
	if err != nil {
		return err
	}
	last := s.segmentAt(postgres.LSN((max(next, from.segment.Number+1) - 1) * uint64(s.segmentSize)))
	gap := fmt.Sprintf("%s to %s (%s to %s)", from.segment.Name(s.segmentSize), last.Name(s.segmentSize), from.start, last.End(s.segmentSize))
	if !r.AllowGap || next <= from.segment.Number {
		return errs.Wrap(cause, errs.Server,
			"No recovery could cross it. Bring these segments with agent wal-push from a copy of pg_wal or from another server, and start again. If they are lost, start once with --allow-gap, which goes on behind the gap, and take a new backup at once.",
			"there would be a gap in the archive: the server does not have the WAL %s any more", gap)
	}
	r.Log.Warn("there is a gap in the archive, which no recovery can cross: take a new backup", "missing", gap)
	r.behind = last.End(s.segmentSize)
	return fmt.Errorf("%w: %s", errGapSkipped, gap)
}

// oldest is the number of the first segment behind the missing one that the
// server has, or that of the missing one if there is none. WAL is removed in
// its order, so that some sixteen questions are enough for a terabyte.
func (r *receiver) oldest(ctx context.Context, s *server, missing uint64) (uint64, error) {
	there := s.flushed.Segment(s.segmentSize)
	if kept := s.slot.restart.Segment(s.segmentSize); kept > missing {
		there = min(there, kept)
	}
	for gone := missing; there > gone+1; {
		middle := gone + (there-gone)/2
		has, err := r.serverHas(ctx, s.segmentAt(postgres.LSN(middle*uint64(s.segmentSize))), s.segmentSize)
		if err != nil {
			return 0, err
		}
		if has {
			there = middle
		} else {
			gone = middle
		}
	}
	return max(there, missing), nil
}

// serverHas asks whether the server has a segment behind which there is more:
// it begins to stream, over a connection of its own and without the slot.
func (r *receiver) serverHas(ctx context.Context, seg postgres.Segment, size postgres.SegmentSize) (bool, error) {
	c, err := connect(ctx, r.ConnInfo)
	if err != nil {
		return false, err
	}
	defer c.close(ctx)
	what := "ask for " + seg.Name(size)
	c.pg.Frontend().SendQuery(&pgproto3.Query{String: fmt.Sprintf("START_REPLICATION PHYSICAL %s TIMELINE %d", seg.Start(size), uint32(seg.Timeline))})
	if err := c.pg.Frontend().Flush(); err != nil {
		return false, serverError(ctx, err, what)
	}
	for {
		answer, err := c.pg.ReceiveMessage(ctx)
		if err != nil {
			return false, serverError(ctx, err, what)
		}
		switch answer := answer.(type) {
		case *pgproto3.CopyData:
			if len(answer.Data) > 0 && answer.Data[0] == pglogrepl.XLogDataByteID {
				return true, nil
			}
		case *pgproto3.ErrorResponse:
			err := pgconn.ErrorResponseToPgError(answer)
			if err.Code == codeNoFile {
				return false, nil
			}
			return false, serverError(ctx, err, what)
		case *pgproto3.CopyDone, *pgproto3.ReadyForQuery:
			// Its timeline ends with it, so that there is nothing to send.
			return true, nil
		}
	}
}
