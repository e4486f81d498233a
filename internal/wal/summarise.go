package wal

import (
	"context"
	"errors"
	"path/filepath"

	"walagent/internal/summary"
)

// summarise stores which blocks a segment touches, now that the segment is
// durable: in the repository and on this host, which may not be able to open what
// it has sealed. That it cannot is no failure of the push: a backup finds another
// way to tell what has changed.
func (p *Pusher) summarise(ctx context.Context, c *candidate) {
	check, ok := c.check.(*segmentCheck)
	if !ok || check.builder == nil {
		return
	}
	s, err := check.builder.Finish(check.sum)
	if errors.Is(err, summary.ErrNone) {
		p.Log.Debug("no summary", "wal", c.name.Name, "reason", err.Error())
		return
	}
	if err == nil {
		encoded := s.Encode()
		err = p.Repo.PutSummary(ctx, c.cluster, c.name, encoded)
		if p.StateDir != "" {
			err = errors.Join(err, summary.NewLocal(filepath.Join(p.StateDir, "summary")).Put(c.cluster.String(), c.name.Name, encoded, p.Now()))
		}
	}
	if err != nil {
		p.Log.Warn("the segment is archived, its summary is not", "wal", c.name.Name, "error", err.Error())
	}
}
