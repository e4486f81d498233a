package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"agent/internal/backup"
	"agent/internal/compress"
	"agent/internal/config"
	"agent/internal/delta"
	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/report"
	"agent/internal/wal"
)

func (a *app) backupPush() *cobra.Command {
	var concurrent, asJSON bool
	var incremental backup.Incremental
	cmd := &cobra.Command{
		Use:     "backup-push [PGDATA]",
		GroupID: "backup",
		Short:   "Take a backup of the running server",
		Long: `Takes a backup of the running server, on its host and as its user. Finds the
server by libpq's variables (PGHOST, PGPORT, PGUSER, ...) or the connection
setting. PGDATA, if given, must be the data directory that the server reports.

Where a fitting earlier backup exists only what has changed since is read and
stored; the backup is complete all the same, and is restored like any other. A
full backup is made where there is none, where what has changed cannot be told
for certain (the log says why), after full_every or max_incrementals, and with
--full.

Page checksums are checked while reading. A backup with damaged pages is made
and marked, and the command ends with status 13.

On a standby the backup costs the primary nothing but its WAL. The primary, or the
standby with archive_mode = always, archives it; to complete the last segment
pg_switch_wal is run on the primary, which the standby's primary_conninfo leads
to, or the setting of that name (--primary).

The backup exists when its WAL has been archived and backup.json is written,
last of all. Ctrl-C or kill -9 leave the server out of backup mode, and no
backup.`,
		Args: rangeArgs(0, 1, "backup-push [PGDATA]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, r, err := a.ready(cmd)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				cfg.DataDirectory = args[0]
			}
			opts, err := a.backupOptions(cfg)
			if err != nil {
				return err
			}
			if incremental.Full && (incremental.Parent != "" || cmd.Flags().Changed("detect")) {
				return errs.New(errs.Usage, "Give --full, or --parent and --detect.", "a full backup (--full) builds on no other and detects nothing: it does not go with --parent or --detect")
			}
			if err := delta.CheckMode(incremental.Detect); err != nil {
				return err
			}
			opts.AllowConcurrent = concurrent
			incremental.FullEvery, incremental.Most = cfg.FullEvery, cfg.MaxIncrementals
			opts.Incremental = incremental
			progress := a.progress()
			opts.Progress = func(p backup.Progress) {
				progress.update(p.Phase, p.Read, p.Total, p.Elapsed, "stored", humanize.IBytes(uint64(p.Stored)))
			}
			res, err := backup.Run(cmd.Context(), r, opts)
			progress.end()
			if res == nil {
				return err
			}
			a.clean(cmd.Context())
			a.syncLater(cmd, cfg, r)
			return errors.Join(err, a.pushSummary(res, asJSON))
		},
	}
	cmd.Flags().BoolVar(&incremental.Full, "full", false, "read and store everything, whatever earlier backups there are")
	cmd.Flags().StringVar(&incremental.Parent, "parent", "", "the backup to build on, instead of the newest that fits: `NAME`")
	cmd.Flags().StringVar(&incremental.Detect, "detect", delta.Auto, "how to find out what has changed: `auto`, summaries (ours), server (17 and newer), or lsn (by reading everything)")
	cmd.Flags().BoolVar(&concurrent, "allow-concurrent", false, "do not refuse while another backup of this cluster is being made")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the backup as a JSON object")
	return cmd
}

// leftoversAge is when a file that is still not whole is nobody's any more.
const leftoversAge = 24 * time.Hour

// clean removes what killed runs left unfinished in repositories whose stores
// cannot do without a name for it, such as NFS and SFTP.
func (a *app) clean(ctx context.Context) {
	for _, s := range a.stores {
		cleaner, ok := s.base.(interface {
			Clean(ctx context.Context, before time.Time) (int, error)
		})
		if !ok {
			continue
		}
		n, err := cleaner.Clean(ctx, time.Now().Add(-leftoversAge))
		if err != nil {
			a.log.Warn("clean the repository of unfinished files", "repository", s.name, "error", err.Error())
		}
		if n > 0 {
			a.log.Info("removed unfinished files of killed runs", "repository", s.name, "files", n)
		}
	}
}

func (a *app) backupOptions(cfg *config.Config) (backup.Options, error) {
	codec, err := compress.Parse(cfg.Compression)
	if err != nil {
		return backup.Options{}, err
	}
	self, err := host.Read(cfg.StateDir)
	if err != nil {
		return backup.Options{}, err
	}
	label := cfg.Label
	if label == "" {
		label = "agent backup-push"
	}
	return backup.Options{
		ConnInfo: cfg.Connection, PrimaryConnInfo: cfg.PrimaryConnInfo, DataDir: cfg.DataDirectory, Label: label,
		Spread: cfg.Checkpoint == config.CheckpointSpread, Concurrency: cfg.Concurrency, Codec: codec,
		ReadRate: cfg.ReadRate, WALTimeout: cfg.WALTimeout, StateDir: cfg.StateDir,
		RepositoryDirs: localDirs(cfg), Host: self, Log: a.log, Now: time.Now, Version: version,
	}, nil
}

func (a *app) pushSummary(res *backup.Result, asJSON bool) error {
	b := res.Backup
	if asJSON {
		if len(res.Incomplete) > 0 {
			a.log.Warn("the backup does not exist yet in some repositories; agent repo sync brings it there", "repositories", strings.Join(res.Incomplete, ", "))
		}
		return report.ShowJSON(a.stdout, report.Of(b, repo.Marks{}, time.Now()))
	}
	d := report.Of(b, repo.Marks{}, time.Now())
	return fprint(a.stdout, `backup %s is complete: %s
  %s files, %s (%s read%s), %s stored, ratio %.1f, in %s
  start %s, stop %s, timeline %d, WAL %s to %s
  requests: %s
%s`, d.Name, what(d), humanize.Comma(d.Files), humanize.IBytes(uint64(d.DataBytes)), humanize.IBytes(uint64(res.BytesRead)), inherited(d),
		humanize.IBytes(uint64(d.StoredBytes)), d.Ratio, res.Elapsed.Round(10*time.Millisecond),
		d.StartLSN, d.StopLSN, d.Timeline, d.StartWAL, d.StopWAL, a.requests(), incompleteLine(res.Incomplete))
}

// what says of a backup what it is and why.
func what(d report.Backup) string {
	s := d.Type
	if d.Parent != "" {
		s += " since " + d.Parent + ", changes by " + d.Detector
	}
	if d.Resumed != "" {
		s += ", goes on with the interrupted " + d.Resumed
	}
	if len(d.Reasons) > 0 {
		s += " (" + strings.Join(d.Reasons, "; ") + ")"
	}
	return s
}

func inherited(d report.Backup) string {
	if d.InheritedBytes == 0 {
		return ""
	}
	return ", " + humanize.IBytes(uint64(d.InheritedBytes)) + " as before"
}

// incompleteLine names the repositories in which the backup does not exist yet.
func incompleteLine(repositories []string) string {
	if len(repositories) == 0 {
		return ""
	}
	return "  not yet in: " + strings.Join(repositories, ", ") + " (agent repo sync brings it there, and a later push by itself)\n"
}

func (a *app) backupList() *cobra.Command {
	var cluster uint64
	var asJSON bool
	var noted []string
	cmd := &cobra.Command{
		Use:     "backup-list",
		GroupID: "backup",
		Short:   "List the backups, the oldest first",
		Args:    exactArgs(0, "backup-list [--json] [--note KEY[=VALUE]]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, r, err := a.ready(cmd)
			if err != nil {
				return err
			}
			if err := r.CheckAny(cmd.Context()); err != nil {
				return err
			}
			ids := []repo.ClusterID{repo.ClusterID(cluster)}
			if cluster == 0 {
				if ids, err = r.Clusters(cmd.Context()); err != nil {
					return err
				}
			}
			var backups []report.Backup
			var failures []error
			for _, id := range ids {
				of, err := r.BackupsToRead(cmd.Context(), id)
				marks, merr := r.MarksSeen(cmd.Context(), id)
				failures = append(failures, err, merr)
				report.Sort(of)
				for _, b := range of {
					d := report.Of(b, marks[b.Name], time.Now())
					failures = append(failures, marks[b.Name].Unread)
					if d.Noted(noted) {
						backups = append(backups, d)
					}
				}
			}
			// What can be read is shown, whatever else is damaged.
			if asJSON {
				return errors.Join(append(failures, report.JSON(a.stdout, backups))...)
			}
			if len(backups) == 0 && errors.Join(failures...) == nil {
				a.log.Info("there are no backups", "repository", r.String())
			}
			return errors.Join(append(failures, report.Table(a.stdout, backups))...)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an array of objects")
	cmd.Flags().StringArrayVar(&noted, "note", nil, "only those with this note, `KEY` or KEY=VALUE; of several, with all of them")
	clusterFlag(cmd, &cluster)
	return cmd
}

func (a *app) backupShow() *cobra.Command {
	var cluster uint64
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "backup-show NAME|LATEST",
		GroupID: "backup",
		Short:   "Show one backup in detail",
		Args:    exactArgs(1, "backup-show NAME|LATEST [--json]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, r, b, err := a.named(cmd, cluster, args[0])
			if err != nil {
				return err
			}
			marks, err := r.MarksSeen(cmd.Context(), b.Cluster)
			if err != nil {
				return err
			}
			d := report.Of(b, marks[b.Name], time.Now())
			if asJSON {
				err = report.ShowJSON(a.stdout, d)
			} else {
				err = report.Show(a.stdout, d)
			}
			return errors.Join(err, marks[b.Name].Unread)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	clusterFlag(cmd, &cluster)
	return cmd
}

// chooseCluster is the one that was named, or the only one there is.
func chooseCluster(cmd *cobra.Command, r *repo.Repository, given uint64) (repo.ClusterID, error) {
	if err := r.CheckAny(cmd.Context()); err != nil {
		return 0, err
	}
	if given != 0 {
		return repo.ClusterID(given), nil
	}
	return wal.OnlyCluster(cmd.Context(), r)
}

// named is ready with the backup that a command is about.
func (a *app) named(cmd *cobra.Command, cluster uint64, name string) (*config.Config, *repo.Repository, *repo.Backup, error) {
	cfg, r, err := a.ready(cmd)
	if err != nil {
		return nil, nil, nil, err
	}
	id, err := chooseCluster(cmd, r, cluster)
	if err != nil {
		return nil, nil, nil, err
	}
	b, err := findBackup(cmd, r, id, name)
	return cfg, r, b, err
}

// ownCluster is the cluster that is named, or that of the data directory, or the
// only one there is; and the size of its segments, if the data directory tells.
func ownCluster(cmd *cobra.Command, cfg *config.Config, r *repo.Repository, given uint64) (repo.ClusterID, postgres.SegmentSize, error) {
	control, own := ownControl(cmd.Context(), cfg)
	if given == 0 && own {
		given = control.SystemIdentifier
	}
	id, err := chooseCluster(cmd, r, given)
	if err != nil || !own || control.SystemIdentifier != uint64(id) {
		return id, 0, err
	}
	return id, control.WALSegmentSize, nil
}

func findBackup(cmd *cobra.Command, r *repo.Repository, id repo.ClusterID, name string) (*repo.Backup, error) {
	if name != "LATEST" {
		n, err := repo.ParseBackupName(name)
		if err != nil {
			return nil, errs.Wrap(err, errs.Usage, "See what there is with: agent backup-list", "show backup")
		}
		return r.LoadBackup(cmd.Context(), id, n)
	}
	choice, err := latest(cmd, r, id)
	return choice.Backup, err
}
