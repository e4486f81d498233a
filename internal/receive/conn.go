package receive

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// conn is one replication connection. The protocol is that of "Streaming
// Replication Protocol" in PostgreSQL's documentation. Its methods may not be
// called concurrently; streaming says what may.
type conn struct {
	pg *pgconn.PgConn
}

// goodbye is how long the server is given to see that a connection ends.
const goodbye = 5 * time.Second

// appName is the connection's application_name unless the connection string or
// the environment gives one.
const appName = "agent"

// connect opens a replication connection. mode is "true" for a physical one,
// "database" for one that also takes SQL.
func dial(ctx context.Context, conninfo, mode string) (*pgconn.PgConn, error) {
	config, err := pgconn.ParseConfig(conninfo)
	if err != nil {
		return nil, postgres.ConnInfoError(err)
	}
	config.RuntimeParams["replication"] = mode
	if _, set := config.RuntimeParams["application_name"]; !set {
		config.RuntimeParams["application_name"] = appName
	}
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, connectError(ctx, config, err)
	}
	return pg, nil
}

func connect(ctx context.Context, conninfo string) (*conn, error) {
	pg, err := dial(ctx, conninfo, "true")
	if err != nil {
		return nil, err
	}
	return &conn{pg}, nil
}

// close ends the connection, also when ctx has ended.
func (c *conn) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	// The server sees the end of the connection in any case.
	_ = c.pg.Close(ctx)
}

// major is the server's major version, or 0.
func (c *conn) major() int {
	digits, _, _ := strings.Cut(c.pg.ParameterStatus("server_version"), ".")
	n, err := strconv.Atoi(strings.TrimRight(digits, "abcdefghijklmnopqrstuvwxyz"))
	if err != nil {
		return 0
	}
	return n
}

// server is what the server says of itself.
type server struct {
	cluster     repo.ClusterID
	timeline    postgres.Timeline
	history     postgres.History // of timeline; nil for the first
	flushed     postgres.LSN
	segmentSize postgres.SegmentSize
	slot        slot
}

// path is the line of descent of the server's timeline.
func (s *server) path() postgres.History {
	if s.history == nil {
		return postgres.History{{Timeline: s.timeline}}
	}
	return s.history
}

// slot is where a slot stands; the zero value is "not known".
type slot struct {
	restart postgres.LSN // from here on the server keeps WAL
}

func (c *conn) identify(ctx context.Context) (*server, error) {
	id, err := pglogrepl.IdentifySystem(ctx, c.pg)
	if err != nil {
		return nil, serverError(ctx, err, "ask the server who it is")
	}
	cluster, err := strconv.ParseUint(id.SystemID, 10, 64)
	if err != nil || id.Timeline < 1 {
		return nil, errs.New(errs.Server, "", "the server has an impossible system identifier %q or timeline %d", id.SystemID, id.Timeline)
	}
	s := &server{cluster: repo.ClusterID(cluster), timeline: postgres.Timeline(id.Timeline), flushed: postgres.LSN(id.XLogPos)}
	text, err := c.value(ctx, "SHOW wal_segment_size")
	if err != nil {
		return nil, serverError(ctx, err, "ask for wal_segment_size")
	}
	s.segmentSize, err = parseSegmentSize(text)
	return s, err
}

// value is the first column of the one row that a command gives.
func (c *conn) value(ctx context.Context, command string) (string, error) {
	results, err := c.pg.Exec(ctx, command).ReadAll()
	if err != nil {
		return "", err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) == 0 {
		return "", fmt.Errorf("%s: unexpected answer", command)
	}
	return string(results[0].Rows[0][0]), nil
}

// parseSegmentSize reads what SHOW prints: a number with its unit, MB or GB.
func parseSegmentSize(text string) (postgres.SegmentSize, error) {
	digits, unit := strings.TrimRight(text, "kMGB"), uint64(1)
	switch text[len(digits):] {
	case "kB":
		unit = 1 << 10
	case "MB":
		unit = 1 << 20
	case "GB":
		unit = 1 << 30
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	if size := postgres.SegmentSize(n * unit); err == nil && n*unit <= uint64(postgres.MaxSegmentSize) && size.Valid() {
		return size, nil
	}
	return 0, errs.New(errs.Server, "", "the server has an impossible wal_segment_size %q", text)
}

// createSlot makes a physical slot that keeps WAL from now on. That there is
// one of this name already is fine.
func (c *conn) createSlot(ctx context.Context, name string) error {
	_, err := c.pg.Exec(ctx, "CREATE_REPLICATION_SLOT "+name+" PHYSICAL RESERVE_WAL").ReadAll()
	if codeOf(err) == codeDuplicate {
		return nil
	}
	return serverError(ctx, err, "create replication slot "+name)
}

// readSlot asks where the slot stands. Before PostgreSQL 15 that takes SQL, and
// so the right to connect to a database; without it the slot is not known.
func (c *conn) readSlot(ctx context.Context, conninfo, name string, log *slog.Logger) (slot, error) {
	if c.major() >= 15 {
		results, err := c.pg.Exec(ctx, "READ_REPLICATION_SLOT "+name).ReadAll()
		if err != nil {
			return slot{}, serverError(ctx, err, "read replication slot "+name)
		}
		if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < 2 {
			return slot{}, errs.New(errs.Server, "", "read replication slot %s: unexpected answer", name)
		}
		row := results[0].Rows[0]
		if row[0] == nil {
			return slot{}, noSlot(nil, name)
		}
		return parseSlot(name, string(row[1]), "")
	}
	pg, err := dial(ctx, conninfo, "database")
	if err != nil {
		log.Debug("cannot ask where the slot stands", "slot", name, "error", err.Error())
		return slot{}, nil
	}
	sql := &conn{pg}
	defer sql.close(ctx)
	results, err := pg.Exec(ctx, "SELECT restart_lsn, wal_status FROM pg_catalog.pg_replication_slots WHERE slot_name = '"+name+"'").ReadAll()
	if err != nil {
		return slot{}, serverError(ctx, err, "read replication slot "+name)
	}
	if len(results) != 1 || len(results[0].Rows) == 0 {
		return slot{}, noSlot(nil, name)
	}
	row := results[0].Rows[0]
	return parseSlot(name, string(row[0]), string(row[1]))
}

// parseSlot reads where the slot stands. One that keeps no WAL has fallen behind
// more than max_slot_wal_keep_size (InvalidatePossiblyObsoleteSlot in
// src/backend/replication/slot.c takes its restart_lsn away), or it was made so:
// then the next connection would set it, but WAL goes until then. From PostgreSQL
// 16 one that has fallen behind can be streamed from, and keeps nothing for ever
// (ReplicationSlotsComputeRequiredLSN).
func parseSlot(name, restart, status string) (slot, error) {
	if restart == "" || status == "lost" {
		return slot{}, errs.New(errs.Server, hintLost, "replication slot %s keeps no WAL: it was invalidated, or made without reserving WAL", name)
	}
	lsn, err := postgres.ParseLSN(restart)
	if err != nil {
		return slot{}, errs.Wrap(err, errs.Server, "", "read the slot's restart_lsn")
	}
	return slot{restart: lsn}, nil
}

// history asks for a timeline's history file.
func (c *conn) history(ctx context.Context, t postgres.Timeline) ([]byte, error) {
	res, err := pglogrepl.TimelineHistory(ctx, c.pg, int32(t))
	what := fmt.Sprintf("ask for the history of timeline %d", uint32(t))
	if codeOf(err) == codeNoFile {
		return nil, errs.Wrap(err, errs.Server,
			fmt.Sprintf("The server's pg_wal lacks %s.history: bring it there from another server or with agent wal-fetch, and start again.", t), "%s", what)
	}
	if err != nil {
		return nil, serverError(ctx, err, what)
	}
	return res.Content, nil
}
