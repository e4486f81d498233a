package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/archive"
	"agent/internal/backlog"
	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/report"
)

func (a *app) walShow() *cobra.Command {
	var cluster uint64
	var asJSON, backups bool
	cmd := &cobra.Command{
		Use:     "wal-show",
		GroupID: "backup",
		Short:   "Show the archived WAL: timelines, ranges, gaps, rates, and what waits",
		Long: `Shows what the repositories hold of a cluster's WAL: each row of segments without
a hole, what is missing or was dropped, when it was archived, how much there is a
day, which backups can be recovered to the end of each row, and what one of
several repositories lacks. It lists, and reads backup.json of each backup.

Where the data directory is known (PGDATA), it shows what waits there to be
archived, and ends with status 9 if that is critical (docs/wal.md).`,
		Args: exactArgs(0, "wal-show [--json] [--backups=false]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, r, err := a.looking(cmd)
			if cfg == nil {
				return err
			}
			waiting := a.backlog(cfg)
			alarm := alarmOf(waiting)
			if err != nil {
				a.tellBacklog(waiting)
				return errors.Join(alarm, err)
			}
			s, err := survey(cmd, cfg, r, cluster, !backups)
			if err != nil {
				a.tellBacklog(waiting)
				return errors.Join(alarm, err)
			}
			w, err := report.WALOf(s, waiting)
			if err != nil {
				return err
			}
			if asJSON {
				err = report.WALJSON(a.stdout, w)
			} else {
				err = report.WALTable(a.stdout, w, waiting)
			}
			return errors.Join(err, alarm, unlisted(s), s.Unread)
		},
	}
	clusterFlag(cmd, &cluster)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	cmd.Flags().BoolVar(&backups, "backups", true, "show which backups each range serves")
	return cmd
}

func (a *app) walVerify() *cobra.Command {
	var cluster uint64
	var asJSON, deep bool
	var name string
	cmd := &cobra.Command{
		Use:     "wal-verify",
		GroupID: "backup",
		Short:   "Verify that the WAL of every backup is there, and with --deep that it can be read",
		Long: `Verifies that the WAL of every backup, from its start to the end of its timeline
and along those that came of it, is there without a gap, in every required
repository. With --deep, every WAL object is read once, opened, decoded and
hashed, must be what its name says, and must join the one before it; that needs an
identity where WAL is encrypted.

All findings are told. Ends with 6 if an object is damaged, else with 5 if a
required repository cannot be asked, else with 16 if there is a gap, else with 0.`,
		Args: exactArgs(0, "wal-verify [--json] [--deep] [--backup NAME]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, r, err := a.looking(cmd)
			if err != nil {
				return err
			}
			s, err := survey(cmd, cfg, r, cluster, false)
			if err != nil {
				return err
			}
			backups := s.Backups
			if name != "" {
				b, err := findBackup(cmd, r, s.Cluster, name)
				if err != nil {
					return err
				}
				backups = []*repo.Backup{b}
			}
			v, err := a.verified(cmd.Context(), cfg, r, s, backups, deep, name == "")
			if err != nil {
				return err
			}
			d := report.VerifiedOf(s, v, deep)
			if asJSON {
				err = report.VerifiedJSON(a.stdout, d)
			} else {
				err = report.VerifiedTable(a.stdout, d)
			}
			return errors.Join(err, s.Err(v))
		},
	}
	clusterFlag(cmd, &cluster)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	cmd.Flags().BoolVar(&deep, "deep", false, "read every object")
	cmd.Flags().StringVar(&name, "backup", "", "verify the WAL of this backup alone (a name, or LATEST)")
	return cmd
}

func (a *app) verified(ctx context.Context, cfg *config.Config, r *repo.Repository, s *archive.Survey, backups []*repo.Backup, deep, all bool) (*archive.Verdict, error) {
	if !deep {
		return s.Verify(backups)
	}
	return s.Deep(ctx, r, backups, archive.DeepOptions{All: all, Concurrency: cfg.Concurrency})
}

// looking is ready for a command that tells what cannot be reached.
func (a *app) looking(cmd *cobra.Command) (*config.Config, *repo.Repository, error) {
	cfg, err := a.load(cmd)
	if err != nil {
		return nil, nil, err
	}
	r, err := a.open(cmd.Context(), cfg, opening{patience: quickPatience, brief: true})
	if err == nil {
		err = r.CheckNow(cmd.Context())
	}
	return cfg, r, err
}

// survey takes the survey of the cluster that is named, or of the data
// directory's, or of the only one there is.
func survey(cmd *cobra.Command, cfg *config.Config, r *repo.Repository, given uint64, noBackups bool) (*archive.Survey, error) {
	o := archive.Options{NoBackups: noBackups}
	var err error
	if o.Cluster, o.Size, err = ownCluster(cmd, cfg, r, given); err != nil {
		return nil, err
	}
	return archive.Take(cmd.Context(), r, o)
}

// ownControl is the control file of the configured data directory, if it is on
// this host and can be read.
func ownControl(ctx context.Context, cfg *config.Config) (*postgres.Control, bool) {
	if cfg.DataDirectory == "" {
		return nil, false
	}
	control, _, err := postgres.ReadControl(ctx, cfg.DataDirectory)
	return control, err == nil
}

// backlog is what waits in the configured data directory, or nil.
func (a *app) backlog(cfg *config.Config) *backlog.Backlog {
	if cfg.DataDirectory == "" {
		return nil
	}
	b, err := backlog.Look(filepath.Join(cfg.DataDirectory, "pg_wal"), time.Now())
	if err != nil {
		a.log.Warn("the backlog of this host is not known", "error", err.Error())
		return nil
	}
	return &b
}

// tellBacklog tells it where there is nothing to print it in.
func (a *app) tellBacklog(b *backlog.Backlog) {
	if b == nil {
		return
	}
	level, _ := b.Level()
	a.log.Warn("backlog of this host", "status", level, "backlog", b.String())
}

// alarmOf is an error if the backlog is critical.
func alarmOf(b *backlog.Backlog) error {
	if b == nil {
		return nil
	}
	level, reasons := b.Level()
	if level != backlog.Critical {
		return nil
	}
	return errs.New(errs.Server, backlog.Hint, "archiving has fallen far behind: %s (%s)", strings.Join(reasons, "; "), b)
}

// unlisted is an error if a required repository could not be listed.
func unlisted(s *archive.Survey) error {
	var all []error
	for _, p := range s.Scan.Places {
		if p.Required && p.Err != nil {
			all = append(all, errs.Wrap(p.Err, errs.Storage, "Look whether the repository can be reached, and run the same command again.", "list repository %s", p.Name))
		}
	}
	return errors.Join(all...)
}
