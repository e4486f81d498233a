package receive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"agent/internal/postgres"
)

// message is what the server sends while it streams: WAL, a keepalive, the end
// of the timeline, or an error, after the last two of which nothing comes.
type message struct {
	wal       []byte
	start     postgres.LSN // of wal
	serverEnd postgres.LSN
	keepalive bool
	reply     bool // it wants an answer now
	copyDone  bool
	err       error
}

// read hands over messages until one is the last, or ctx ends. The reporter gets
// to know what the server asks for at once.
func read(ctx context.Context, c *conn, report *reporter, to chan<- message) {
	for {
		report.waits(true)
		m, ok := receive(ctx, c)
		report.waits(false)
		if !ok {
			continue
		}
		if m.reply {
			report.owe()
		}
		select {
		case to <- m:
		case <-ctx.Done():
			return
		}
		if m.err != nil || m.copyDone {
			return
		}
	}
}

// receive waits for the next message; ok is false for one that says nothing.
func receive(ctx context.Context, c *conn) (m message, ok bool) {
	raw, err := c.pg.ReceiveMessage(ctx)
	if err != nil {
		return message{err: serverError(ctx, err, "stream WAL")}, true
	}
	switch raw := raw.(type) {
	case *pgproto3.CopyData:
		return parseCopyData(raw.Data)
	case *pgproto3.CopyDone:
		return message{copyDone: true}, true
	case *pgproto3.ErrorResponse:
		return message{err: serverError(ctx, pgconn.ErrorResponseToPgError(raw), "stream WAL")}, true
	case *pgproto3.CommandComplete:
		return message{err: passing{errors.New("the server shuts down")}}, true
	default:
		return message{}, false
	}
}

// parseCopyData reads the body of a CopyData message (XLogData and Primary
// keepalive message, "Streaming Replication Protocol"). It keeps no part of b.
func parseCopyData(b []byte) (m message, ok bool) {
	if len(b) == 0 {
		return message{err: errors.New("the server sent an empty message")}, true
	}
	switch b[0] {
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(b[1:])
		if err != nil {
			return message{err: fmt.Errorf("read WAL message: %w", err)}, true
		}
		return message{wal: bytes.Clone(x.WALData), start: postgres.LSN(x.WALStart), serverEnd: postgres.LSN(x.ServerWALEnd)}, true
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(b[1:])
		if err != nil {
			return message{err: fmt.Errorf("read keepalive: %w", err)}, true
		}
		return message{keepalive: true, serverEnd: postgres.LSN(k.ServerWALEnd), reply: k.ReplyRequested}, true
	default:
		return message{}, false
	}
}

// endTimeline answers the server's end of the copy, and reads where the next
// timeline begins.
func (c *conn) endTimeline(ctx context.Context) (*timelineEnd, error) {
	stop := context.AfterFunc(ctx, func() {
		// Ends the reading, which takes no context.
		_ = c.pg.Conn().SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	end, err := pglogrepl.SendStandbyCopyDone(ctx, c.pg)
	if err != nil {
		return nil, serverError(ctx, err, "end the timeline")
	}
	if end == nil || end.Timeline < 1 {
		return nil, passing{errors.New("the server ended the stream without a next timeline")}
	}
	return &timelineEnd{postgres.Timeline(end.Timeline), postgres.LSN(end.LSN)}, nil
}
