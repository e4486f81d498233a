package delta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"agent/internal/postgres"
	"agent/internal/summary"
)

const (
	// summarizerPatience is how long the server may take to summarise the WAL
	// up to the start of the backup, and summarizerPoll how often it is asked.
	summarizerPatience = 20 * time.Second
	summarizerPoll     = 50 * time.Millisecond
)

// byServer reads the summaries that PostgreSQL 17 and newer makes with
// summarize_wal (src/backend/postmaster/walsummarizer.c).
func byServer(ctx context.Context, server *postgres.Server, geo Geometry, r Range) (*Changes, error) {
	if r.Major < 17 {
		return nil, errors.New("the server makes no WAL summaries before PostgreSQL 17")
	}
	info, err := server.Info(ctx)
	if err != nil {
		return nil, err
	}
	if !info.SummarizeWAL {
		return nil, errors.New("summarize_wal is off")
	}
	if err := awaitSummarizer(ctx, server, r.To); err != nil {
		return nil, err
	}
	all, err := server.WALSummaries(ctx)
	if err != nil {
		return nil, err
	}
	chosen, err := cover(all, r)
	if err != nil {
		return nil, err
	}
	table := summary.NewTable()
	for _, s := range chosen {
		err := server.WALSummaryContents(ctx, s, func(c postgres.WALSummaryRow) {
			key := summary.Key{Fork: c.Fork}
			key.Tablespace, key.Database, key.Relation = c.Tablespace, c.Database, c.Relation
			if c.Limit {
				table.Cut(key, c.Block)
			} else {
				table.Touch(key, c.Block)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return &Changes{method: ByServerSummaries, geo: geo, table: table}, nil
}

// awaitSummarizer waits until the server has summarised the WAL up to an LSN. It
// is a background process that follows the checkpoint which began the backup.
func awaitSummarizer(ctx context.Context, server *postgres.Server, to postgres.LSN) error {
	ctx, cancel := context.WithTimeoutCause(ctx, summarizerPatience, fmt.Errorf("the server has not summarised the WAL up to %s within %s", to, summarizerPatience))
	defer cancel()
	tick := time.NewTicker(summarizerPoll)
	defer tick.Stop()
	for {
		done, err := server.SummarizedLSN(ctx)
		if err != nil || done >= to {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// cover chooses summaries that cover the range without a hole, each timeline as
// far as it belongs to the history.
func cover(all []postgres.WALSummary, r Range) ([]postgres.WALSummary, error) {
	slices.SortFunc(all, func(a, b postgres.WALSummary) int {
		switch {
		case a.Start != b.Start:
			if a.Start < b.Start {
				return -1
			}
			return 1
		case a.End > b.End:
			return -1
		}
		return 1
	})
	var chosen []postgres.WALSummary
	at := r.From
	for i, e := range r.History {
		end := r.To
		if i < len(r.History)-1 {
			left, _ := r.History.SwitchPoint(e.Timeline)
			end = min(left, r.To)
		}
		for _, s := range all {
			if s.Timeline == e.Timeline && s.Start <= at && s.End > at && at < end {
				chosen = append(chosen, s)
				at = s.End
			}
		}
		if at < end {
			return nil, fmt.Errorf("the server has no summary of the WAL at %s of timeline %d", at, e.Timeline)
		}
		// What lies behind belongs to nobody; the child begins where it was left.
		at = max(min(at, end), r.From)
	}
	return chosen, nil
}
