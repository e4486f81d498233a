package postgres

import (
	"context"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// WALSummary is a file of the server's own summaries of WAL (17 and newer,
// summarize_wal).
type WALSummary struct {
	Timeline   Timeline
	Start, End LSN
}

// WALSummaryRow is a block that a summary names, or with Limit the smallest
// length of the fork, in blocks.
type WALSummaryRow struct {
	Tablespace, Database, Relation uint32
	Fork                           Fork
	Block                          uint32
	Limit                          bool
}

const summariesDenied = "Allow it with: GRANT pg_monitor, or EXECUTE on the pg_*_wal_summar* functions, to the agent's role."

// WALSummaries lists the server's summaries (pg_available_wal_summaries).
func (s *Server) WALSummaries(ctx context.Context) ([]WALSummary, error) {
	var all []WALSummary
	err := s.rows(ctx, `SELECT tli::bigint, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()`, func(rows pgx.Rows) error {
		var tli int64
		var start, end string
		if err := rows.Scan(&tli, &start, &end); err != nil {
			return err
		}
		one := WALSummary{Timeline: Timeline(tli)}
		var err error
		if one.Start, err = ParseLSN(start); err != nil {
			return err
		}
		if one.End, err = ParseLSN(end); err != nil {
			return err
		}
		all = append(all, one)
		return nil
	})
	return all, serverError(err, "list the server's WAL summaries", summariesDenied)
}

// WALSummaryContents gives the rows of a summary, of each fork its limit first
// (pg_wal_summary_contents).
func (s *Server) WALSummaryContents(ctx context.Context, one WALSummary, use func(WALSummaryRow)) error {
	sql := `SELECT reltablespace::bigint, reldatabase::bigint, relfilenode::bigint, relforknumber::int, relblocknumber, is_limit_block
		FROM pg_wal_summary_contents(` + strconv.FormatUint(uint64(one.Timeline), 10) + `, '` + one.Start.String() + `', '` + one.End.String() + `')`
	err := s.rows(ctx, sql, func(rows pgx.Rows) error {
		var tablespace, database, relation, block int64
		var fork int32
		var limit bool
		if err := rows.Scan(&tablespace, &database, &relation, &fork, &block, &limit); err != nil {
			return err
		}
		use(WALSummaryRow{uint32(tablespace), uint32(database), uint32(relation), Fork(fork), uint32(block), limit})
		return nil
	})
	return serverError(err, "read a WAL summary of the server", summariesDenied)
}

// SummarizedLSN is how far the server has summarised its WAL
// (pg_get_wal_summarizer_state).
func (s *Server) SummarizedLSN(ctx context.Context) (LSN, error) {
	return s.lsn(ctx, "ask how far WAL is summarised", summariesDenied, `SELECT summarized_lsn::text FROM pg_get_wal_summarizer_state()`)
}
