package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"agent/cmd/agent/early"
	"agent/internal/beside"
	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/prefetch"
	"agent/internal/repo"
	"agent/internal/wal"
)

// prefetchLater starts the process that fetches what follows a segment, beside
// this one. That it cannot is no failure of wal-fetch.
func (a *app) prefetchLater(cmd *cobra.Command, cfg *config.Config, cluster repo.ClusterID, segment, dest string) {
	call, ok := early.Find(os.Args[1:])
	if !ok || call.Command != early.Fetch || call.Path != dest || !recovering(filepath.Dir(filepath.Dir(dest))) {
		return // it would never be asked
	}
	dir := filepath.Dir(dest)
	if pid, err := beside.Postmaster(filepath.Dir(dir)); err == nil && inherits(pid) {
		return
	}
	name, err := call.Name(os.Getenv)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err == nil {
		err = a.startBeside(cmd, cfg, "wal-prefetch", "wal-prefetch", "--system-identifier", cluster.String(), name, dir, segment)
	}
	if err != nil {
		a.log.Warn("cannot start the process that fetches WAL ahead", "error", err.Error())
	}
}

// prefetchMemory is where the process that fetches ahead begins to collect
// garbage at once, in bytes: it runs beside the server.
const prefetchMemory = 96 << 20

// prefetchNice is its scheduling priority, as nice(1) takes it.
const prefetchNice = 5

// walPrefetch is what wal-fetch starts; nobody else calls it.
func (a *app) walPrefetch() *cobra.Command {
	var cluster uint64
	cmd := &cobra.Command{
		Use:    "wal-prefetch NAME DIRECTORY SEGMENT",
		Hidden: true,
		Short:  "Fetch the segments that recovery will ask for next (started by wal-fetch)",
		Args:   exactArgs(3, "wal-prefetch NAME DIRECTORY SEGMENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			debug.SetMemoryLimit(prefetchMemory)
			// Replay decides how long a recovery takes, and comes first. It is all of
			// this process, alone in its group; that it cannot is no reason to stop.
			_ = unix.Setpriority(unix.PRIO_PGRP, 0, prefetchNice)
			a.endBackground(a.prefetch(cmd, repo.ClusterID(cluster), beside.Name(args[0]), args[1], args[2]))
			return nil
		},
	}
	clusterFlag(cmd, &cluster)
	return cmd
}

func (a *app) prefetch(cmd *cobra.Command, cluster repo.ClusterID, name beside.Name, dir, segment string) (err error) {
	// The name first: whoever asks from now on waits for the answer instead of
	// starting another one.
	l, err := beside.Listen(cmd.Context(), name, os.Environ())
	if errors.Is(err, beside.ErrTaken) {
		return nil
	}
	if err != nil {
		return err
	}
	cfg, err := a.load(cmd)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	owner, err := wal.Owner(cmd.Context(), filepath.Join(dir, segment))
	if err == nil && owner == nil {
		err = errs.New(errs.Usage, "wal-fetch starts this command; nobody else needs it.", "%s is not in a data directory", dir)
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	first, err := postgres.ParseSegment(segment, owner.WALSegmentSize)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, stop := whileServer(cmd.Context(), filepath.Dir(dir))
	defer stop()
	r, err := a.open(ctx, cfg, opening{hurry: true, patience: quickPatience})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p := &prefetch.Prefetcher{
		Repo: r, Cluster: cluster, Size: owner.WALSegmentSize, Dir: dir, Loads: prefetchLoads(cfg.Concurrency),
		Free: freeSpace, Over: func() bool { return !recovering(filepath.Dir(dir)) }, Standby: signalled(filepath.Dir(dir), "standby.signal"),
		Log: a.log, Now: time.Now,
	}
	return p.Run(ctx, l, first)
}

// prefetchLoads is how many segments are fetched at a time: some more than there
// are processors, so that waiting for the store costs nothing.
func prefetchLoads(concurrency int) int { return concurrency + 2 }

// whileServer gives a context that ends with the server of a data directory. One
// that cannot be watched is missed when nobody asks any more.
func whileServer(ctx context.Context, dataDir string) (context.Context, func()) {
	pid, err := beside.Postmaster(dataDir)
	if err != nil {
		return ctx, func() {}
	}
	watched, stop, err := beside.WithServer(ctx, pid)
	if err != nil {
		return ctx, func() {}
	}
	return watched, stop
}

// recovering reports whether a signal file is beside pg_wal: PostgreSQL removes
// it when recovery has ended.
func recovering(dataDir string) bool {
	return signalled(dataDir, "recovery.signal") || signalled(dataDir, "standby.signal")
}

func signalled(dataDir, name string) bool {
	_, err := os.Stat(filepath.Join(dataDir, name))
	return !errors.Is(err, fs.ErrNotExist)
}

func freeSpace(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}
