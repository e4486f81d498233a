package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"agent/cmd/agent/early"
	"agent/internal/backlog"
	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/wal"
)

func (a *app) walPush() *cobra.Command {
	var cluster uint64
	var alone bool
	cmd := &cobra.Command{
		Use:     "wal-push PATH",
		GroupID: "wal",
		Short:   "Archive one WAL file (archive_command = 'agent wal-push %p')",
		Long: `Archives a WAL file: a segment, a timeline history, a .partial or a .backup file.

Exits 0 only when the file is durable in the repository, and 1 otherwise, upon
which PostgreSQL tries again. A segment is checked before it is stored. A file
that is archived already is never replaced: the same bytes again are success,
other bytes are an error.

Of several repositories each required one must have it. A best-effort one that
cannot be reached is left out; when it is back, a push starts agent repo sync
--pending beside itself and does not wait for it.

What the server has marked ready behind the file is archived with it, and
recorded in the state directory, so that the calls for those files end at once.
When more is ready than one call may archive, a process beside the server works
it off, and ends with it; what it says is in log/wal-push.log of the state
directory.`,
		Args: exactArgs(1, "wal-push PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.load(cmd)
			if err != nil {
				return err
			}
			defer backlog.Watch{StateDir: cfg.StateDir, Log: a.log, Now: time.Now}.Tell(cmd.Context(), args[0])
			ctx, cancel := pushDeadline(cmd.Context(), cfg.Timeout, args[0])
			defer cancel()
			p := &wal.Pusher{Log: a.log, Now: time.Now, StateDir: cfg.StateDir, Cluster: repo.ClusterID(cluster), Alone: alone}
			archiver := a.archiver(cfg, p)
			if done, err := a.archivedBefore(ctx, cfg, p, archiver.Done, args[0]); done || err != nil {
				return err
			}
			if p.Repo, err = a.open(ctx, cfg, opening{hurry: true, write: true, patience: longPatience}); err != nil {
				return err
			}
			w := a.pushWorker(cmd, cfg, args[0])
			if !alone {
				p.Worker = w.ask
			}
			if err := archiver.Push(ctx, args[0]); err != nil {
				return err
			}
			if after := p.More(); after != "" {
				w.start(after)
			}
			a.syncLater(cmd, cfg, p.Repo)
			return nil
		},
	}
	clusterFlag(cmd, &cluster)
	cmd.Flags().BoolVar(&alone, "no-batch", false, "archive this file alone, not what is ready behind it")
	return cmd
}

// archivedBefore asks whether a file was archived by an earlier call, for which
// no store is opened but those on this host.
func (a *app) archivedBefore(ctx context.Context, cfg *config.Config, p *wal.Pusher,
	ask func(ctx context.Context, path string) (bool, error), path string,
) (done bool, err error) {
	if p.Repo, err = a.open(ctx, cfg, opening{local: true}); err != nil {
		return false, err
	}
	done, err = ask(ctx, path)
	return done, errors.Join(err, p.Repo.Close())
}

// archiver is what archives files: with max_backlog, one that cannot be archived
// may be given up.
func (a *app) archiver(cfg *config.Config, p *wal.Pusher) interface {
	Done(ctx context.Context, path string) (bool, error)
	Push(ctx context.Context, path string) error
} {
	if cfg.MaxBacklog == 0 {
		return p
	}
	name, err := os.Hostname()
	if err != nil {
		a.log.Debug("ask for the name of this host", "error", err.Error())
	}
	return &wal.Dropper{Pusher: p, MaxBacklog: cfg.MaxBacklog, Host: name}
}

// gapWait is how long wal-fetch waits for a segment that arrives out of order.
const gapWait = 5 * time.Second

// The default of timeout: a push has this long, and as much more as its file
// takes at a megabyte per second.
const (
	pushBase = 60 * time.Second
	pushRate = 1_000_000 // bytes per second
)

// pushDeadline bounds a push in all, so that PostgreSQL is told why and tries
// again, and archive_command never hangs.
func pushDeadline(ctx context.Context, limit time.Duration, path string) (context.Context, context.CancelFunc) {
	if limit == 0 {
		limit = pushBase
		if info, err := os.Stat(path); err == nil {
			limit += time.Duration(info.Size()) * time.Second / pushRate
		}
	}
	return context.WithTimeoutCause(ctx, limit-early.Waited(), errs.New(errs.Storage,
		"The repository is too slow or cannot be reached; PostgreSQL tries again. The limit is the setting timeout (AGENT_TIMEOUT).",
		"gave up after %s", limit.Round(time.Second)))
}

func (a *app) walFetch() *cobra.Command {
	var cluster uint64
	var endBefore string
	var noPrefetch bool
	cmd := &cobra.Command{
		Use:     "wal-fetch NAME PATH",
		GroupID: "wal",
		Short:   "Fetch one WAL file (restore_command = 'agent wal-fetch %f %p')",
		Long: `Fetches an archived WAL file and places it at PATH, whole and checked.

Exits 0 when it is there; 74 only when the repository answered that it does not
exist and it is not missing from the middle of the archive, upon which PostgreSQL
ends recovery; 126 or above in every other case, upon which PostgreSQL stops
instead of opening a database with transactions missing.

Beside a standby.signal an outage of the repository is waited out
(standby_on_outage), and a gap is 74, since a standby can stream.

While a server recovers, a process beside it fetches the segments that it will
ask for next. It ends when nobody asks any more or the server ends; what it says
is in log/wal-prefetch.log of the state directory. For pg_rewind and everybody
else who names the segment himself there is none.`,
		Args: exactArgs(2, "wal-fetch NAME PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.load(cmd)
			if err != nil {
				return err
			}
			open := func(ctx context.Context) (*repo.Repository, error) {
				return a.open(ctx, cfg, opening{hurry: true, patience: quickPatience})
			}
			f := &wal.Fetcher{
				GapWait: gapWait, EndBefore: endBefore, Open: open, Log: a.log,
				OnOutage: wal.OutagePolicy(cfg.StandbyOnOutage), Cluster: repo.ClusterID(cluster),
			}
			if !noPrefetch && endBefore == "" {
				f.Found = func(cluster repo.ClusterID, segment postgres.Segment, size postgres.SegmentSize) {
					a.prefetchLater(cmd, cfg, cluster, segment.Name(size), args[1])
				}
			}
			return f.Fetch(cmd.Context(), args[0], args[1])
		},
	}
	clusterFlag(cmd, &cluster)
	cmd.Flags().BoolVar(&noPrefetch, early.NoPrefetch, false, "fetch this file alone, and start no process that fetches those behind it")
	cmd.Flags().StringVar(&endBefore, early.EndBefore, "", "answer that this segment and those behind it do not exist, for one that is lost for good")
	return cmd
}
