package wal

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/summary"
)

// Summaries stores what was found out about segments while they were archived.
type Summaries struct {
	Repo *repo.Repository
	// StateDir keeps them on this host, too; empty: it does not.
	StateDir string
	Log      *slog.Logger
	Now      func() time.Time
}

// Store stores which blocks a segment touches, now that the segment is
// durable: in the repository and on this host, which may not be able to open what
// it has sealed. That it cannot is no failure of the push: a backup finds another
// way to tell what has changed.
//
// The check is the one that has seen the segment's bytes; of what is no segment
// there is no summary.
func (s Summaries) Store(ctx context.Context, cluster repo.ClusterID, f postgres.WALFile, c Check) {
	check, ok := c.(*segmentCheck)
	// What was stored as a partial segment was not hashed as a whole one.
	if !ok || check.builder == nil || check.sum == [32]byte{} {
		return
	}
	var encoded []byte
	err := summary.ErrNone
	check.guarded(func() {
		made, ferr := check.builder.Finish(check.sum)
		if ferr == nil {
			encoded = made.Encode()
		}
		err = ferr
	})
	if errors.Is(err, summary.ErrNone) {
		s.Log.Debug("no summary", "wal", f.Name, "reason", err.Error())
		return
	}
	if err == nil {
		err = s.Repo.PutSummary(ctx, cluster, f, encoded)
		if s.StateDir != "" {
			err = errors.Join(err, summary.NewLocal(filepath.Join(s.StateDir, "summary")).Put(cluster.String(), f.Name, encoded, s.Now()))
		}
	}
	if err != nil {
		s.Log.Warn("the segment is archived, its summary is not", "wal", f.Name, "error", err.Error())
	}
}

func (p *Pusher) summarise(ctx context.Context, c *candidate) {
	Summaries{p.Repo, p.StateDir, p.Log, p.Now}.Store(ctx, c.cluster, c.name, c.check)
}
