package receive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/wal"
)

// store is the repository for a process that lives long. One goroutine at a
// time may use it.
type store struct {
	open   func(context.Context) (*repo.Repository, error)
	stored func(*repo.Repository)
	log    *slog.Logger
	now    func() time.Time
	// stateDir keeps summaries.
	stateDir string

	repo   *repo.Repository // nil: not open
	opened time.Time
	told   time.Time // when stored was called
}

// reopenAfter is for how long a repository stays open: a best-effort place that
// failed is left out until it is opened again.
const reopenAfter = 5 * time.Minute

// tellEvery is the shortest time between two calls of Options.Stored.
const tellEvery = time.Minute

// ready opens the repository if it is not open, and proves that it is the one
// it was.
func (s *store) ready(ctx context.Context) error {
	if s.repo != nil && s.now().Sub(s.opened) > reopenAfter {
		if err := s.close(); err != nil {
			s.log.Debug("close the repository", "error", err.Error())
		}
	}
	if s.repo == nil {
		r, err := s.open(ctx)
		if err != nil {
			return err
		}
		s.repo, s.opened = r, s.now()
	}
	return s.repo.Check(ctx)
}

func (s *store) close() error {
	if s.repo == nil {
		return nil
	}
	r := s.repo
	s.repo = nil
	return r.Close()
}

// isOutage reports whether the repository may take later what it did not take
// now.
func isOutage(err error) bool {
	return errors.Is(err, storage.ErrUnavailable) || errors.Is(err, repo.ErrGone) || errs.KindOf(err) == errs.Storage
}

// try repeats what failed because the repository could not be reached, until
// ctx ends.
func (s *store) try(ctx context.Context, do func(*repo.Repository) error) error {
	attempt := func() (struct{}, error) {
		err := s.ready(ctx)
		if err == nil {
			err = do(s.repo)
		}
		if err == nil {
			if s.stored != nil && s.now().Sub(s.told) > tellEvery {
				s.told = s.now()
				s.stored(s.repo)
			}
			return struct{}{}, nil
		}
		if !isOutage(err) || ctx.Err() != nil {
			return struct{}{}, backoff.Permanent(err)
		}
		s.log.Warn("the repository cannot be reached; what comes is kept on this host and the server", "error", err.Error(), "hint", errs.HintOf(err))
		// The handle holds a folder open that was there, which a mount that
		// comes back covers.
		if cerr := s.close(); cerr != nil {
			s.log.Debug("close the repository", "error", cerr.Error())
		}
		return struct{}{}, err
	}
	wait := &backoff.ExponentialBackOff{InitialInterval: time.Second, MaxInterval: 15 * time.Second, Multiplier: 2, RandomizationFactor: 0.3}
	_, err := backoff.Retry(ctx, attempt, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0))
	if err != nil && ctx.Err() != nil {
		// Not wrapped: it may say "cancelled" where the cause says why.
		return fmt.Errorf("%w: %s", context.Cause(ctx), err.Error())
	}
	return err
}

// history archives a timeline's history file.
func (s *store) history(ctx context.Context, cluster repo.ClusterID, t postgres.Timeline, body []byte) error {
	f, err := postgres.ParseWALFile(t.String() + ".history")
	if err != nil {
		return err
	}
	return s.put(ctx, cluster, f, bytes.NewReader(body), int64(len(body)), func() wal.Check { return wal.CheckHistory(f) })
}

// segment archives a whole segment, as wal-push does.
func (s *store) segment(ctx context.Context, cluster repo.ClusterID, f *segmentFile) error {
	name, err := postgres.ParseWALFile(f.segment.Name(f.size))
	if err != nil {
		return err
	}
	return s.put(ctx, cluster, name, f.section(f.start(), f.end()), int64(f.size), func() wal.Check {
		return wal.CheckSegment(name, int64(f.size), cluster, f.section(f.start(), f.end()))
	})
}

func (s *store) put(ctx context.Context, cluster repo.ClusterID, f postgres.WALFile, body io.ReadSeeker, size int64, check func() wal.Check) error {
	return s.try(ctx, func(r *repo.Repository) error {
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read %s again: %w", f.Name, err)
		}
		c := check()
		existed, err := r.PutWAL(ctx, cluster, f, body, size, c, nil)
		if err != nil {
			return fmt.Errorf("archive %s: %w", f.Name, err)
		}
		for _, w := range c.Warnings() {
			s.log.Warn(w, "wal", f.Name)
		}
		if existed {
			s.log.Debug("was archived already with the same bytes", "wal", f.Name)
		} else {
			s.log.Info("archived", "wal", f.Name)
		}
		wal.Summaries{Repo: r, StateDir: s.stateDir, Log: s.log, Now: s.now}.Store(ctx, cluster, f, c)
		return nil
	})
}

// ranges stores stretches of a segment that is not finished.
func (s *store) ranges(ctx context.Context, cluster repo.ClusterID, f *segmentFile, all []repo.StreamRange) error {
	for _, g := range all {
		err := s.try(ctx, func(r *repo.Repository) error {
			return r.PutStream(ctx, cluster, g, f.size, f.section(g.Start, g.End))
		})
		if err != nil {
			return err
		}
		s.log.Debug("stored", "from", g.Start.String(), "to", g.End.String(), "timeline", uint32(g.Timeline))
	}
	return nil
}
