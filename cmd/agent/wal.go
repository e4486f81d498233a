package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"walagent/internal/repo"
	"walagent/internal/wal"
)

func (a *app) walPush() *cobra.Command {
	var cluster uint64
	cmd := &cobra.Command{
		Use:     "wal-push PATH",
		GroupID: "wal",
		Short:   "Archive one WAL file (archive_command = 'agent wal-push %p')",
		Long: `Archives a WAL file: a segment, a timeline history, a .partial or a .backup file.

Exits 0 only when the file is durable in the repository, and 1 otherwise, upon
which PostgreSQL tries again. A segment is checked before it is stored. A file
that is archived already is never replaced: the same bytes again are success,
other bytes are an error.`,
		Args: exactArgs(1, "wal-push PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, r, err := a.ready(cmd)
			if err != nil {
				return err
			}
			p := &wal.Pusher{Repo: r, Log: a.log, SpoolDir: filepath.Join(cfg.StateDir, "spool"), Cluster: repo.ClusterID(cluster)}
			return p.Push(cmd.Context(), args[0])
		},
	}
	clusterFlag(cmd, &cluster)
	return cmd
}

func (a *app) walFetch() *cobra.Command {
	var cluster uint64
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
(standby_on_outage), and a gap is 74, since a standby can stream.`,
		Args: exactArgs(2, "wal-fetch NAME PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.load(cmd)
			if err != nil {
				return err
			}
			open := func(ctx context.Context) (*repo.Repository, error) { return a.open(ctx, cfg) }
			f := &wal.Fetcher{Open: open, Log: a.log, OnOutage: wal.OutagePolicy(cfg.StandbyOnOutage), Cluster: repo.ClusterID(cluster)}
			return f.Fetch(cmd.Context(), args[0], args[1])
		},
	}
	clusterFlag(cmd, &cluster)
	return cmd
}
