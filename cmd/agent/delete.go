package main

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/report"
	"agent/internal/restore"
	"agent/internal/retention"
)

// deleting are the flags of all ways to delete.
type deleting struct {
	cluster         uint64
	all             bool
	confirm, asJSON bool
}

func (a *app) deleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete",
		GroupID: "backup",
		Short:   "Delete backups, and the WAL that nothing needs any more",
		Long: `Deletes backups, and what they leave behind. Nothing is deleted without --confirm:
until then it shows what would go, what stays and why.

Any backup can be deleted without hurting another: packs that others borrow stay
until the last of these goes. Backups that are marked (agent backup-mark), locked,
or needed by one that is being made stay. So do timeline histories, for ever.`,
	}
	var d deleting
	flags := cmd.PersistentFlags()
	flags.Uint64Var(&d.cluster, "system-identifier", 0, "the cluster, where the repository holds several (pg_controldata shows it)")
	flags.BoolVar(&d.confirm, "confirm", false, "delete; without it nothing is")
	flags.BoolVar(&d.asJSON, "json", false, "print an object for each cluster")
	flags.BoolVar(&d.all, "all-clusters", false, "in all clusters of the repository")
	cmd.AddCommand(
		a.deleting(&d, &cobra.Command{
			Use:   "expire",
			Short: "Delete what the policy does not want any more",
			Long: `Deletes what no rule of the policy wants: keep_window, keep_full, keep_daily,
keep_weekly, keep_monthly, keep_yearly and min_backups, in agent.yaml or as flags. A
backup goes only when none of them wants it, and never the newest, nor the newest
that is good.

WAL stays without a hole from the start of the newest backup that ended before
keep_window, or without keep_window from the oldest one that keep_full keeps. Of backups
that a calendar rule or a mark alone keeps, the WAL from start to stop stays: they
are restored to their own end.`,
			Args: exactArgs(0, "delete expire [--confirm]"),
		}, func([]string) (retention.Request, error) { return retention.Request{Verb: retention.Expire}, nil }),
		a.deleting(&d, &cobra.Command{
			Use:   "before [FIND_FULL] NAME|TIME",
			Short: "Delete backups that are older than one of them, or than a moment",
			Long: `Deletes the backups that are older than NAME, or that ended before TIME (such as
'2026-11-20 14:29:00+00'), and the WAL before the oldest one that stays. With FIND_FULL it
goes back to the full backup with which the chain of that one began.`,
			Args: rangeArgs(1, 2, "delete before [FIND_FULL] NAME|TIME [--confirm]"),
		}, beforeRequest),
		a.deleting(&d, &cobra.Command{
			Use:   "retain [FULL|FIND_FULL] N",
			Short: "Delete all but the newest backups",
			Long: `Deletes all but the N newest backups, and the WAL before the oldest of these. With
FULL, N counts full backups; with FIND_FULL it goes back to the full backup with which the
chain of the oldest one began.`,
			Args: rangeArgs(1, 2, "delete retain [FULL|FIND_FULL] N [--confirm]"),
		}, retainRequest),
		a.deleting(&d, &cobra.Command{
			Use:   "target [FIND_FULL] NAME...",
			Short: "Delete backups by name",
			Long: `Deletes the named backups and nothing else; what others borrow of them stays. With
FIND_FULL, all of the chains to which they belong. Their WAL goes with agent delete
expire, before, retain or garbage.

It is also the way to give up a backup whose backup.json or list of packs is damaged.`,
			Args: rangeArgs(1, 1000, "delete target [FIND_FULL] NAME... [--confirm]"),
		}, targetRequest),
		a.deleting(&d, &cobra.Command{
			Use:   "everything [FORCE]",
			Short: "Delete all backups and all WAL of a cluster",
			Long: `Deletes all backups and all WAL of a cluster, but for the timeline histories. Backups
that are marked stay, with the WAL from their start to their stop, unless FORCE is
given.`,
			Args: rangeArgs(0, 1, "delete everything [FORCE] [--confirm]"),
		}, everythingRequest),
		a.deleting(&d, &cobra.Command{
			Use:   "garbage",
			Short: "Delete what belongs to no backup",
			Long: `Deletes what nothing refers to: interrupted backups and packs that no backup borrows
any more, once they are older than a day, uploads that were never finished, and WAL from
before the oldest backup.`,
			Args: rangeArgs(0, 1, "delete garbage [--confirm]"),
		}, garbageRequest),
	)
	return a.group(cmd)
}

// deleting makes a way to delete.
func (a *app) deleting(d *deleting, cmd *cobra.Command, request func([]string) (retention.Request, error)) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q, err := request(args)
		if err != nil {
			return err
		}
		cfg, r, err := a.ready(cmd)
		if err != nil {
			return err
		}
		if err := r.Check(cmd.Context()); err != nil {
			return err
		}
		ids, size, err := d.clusters(cmd, cfg, r)
		if err != nil {
			return err
		}
		var failed []error
		for _, id := range ids {
			failed = append(failed, a.deleteFrom(cmd, cfg, r, id, size, q, *d))
		}
		return errors.Join(failed...)
	}
	return cmd
}

// clusters are ownCluster, or all.
func (d *deleting) clusters(cmd *cobra.Command, cfg *config.Config, r *repo.Repository) ([]repo.ClusterID, postgres.SegmentSize, error) {
	if d.all {
		ids, err := r.Clusters(cmd.Context())
		return ids, 0, err
	}
	id, size, err := ownCluster(cmd, cfg, r, d.cluster)
	return []repo.ClusterID{id}, size, err
}

func (a *app) deleteFrom(cmd *cobra.Command, cfg *config.Config, r *repo.Repository, id repo.ClusterID, size postgres.SegmentSize, q retention.Request, d deleting) error {
	self, err := host.Read(cfg.StateDir)
	if err != nil {
		return err
	}
	res, err := retention.Run(cmd.Context(), r, retention.Options{
		Cluster: id, SegmentSize: size, Request: q, Confirm: d.confirm, Command: "delete " + cmd.Name(),
		Rules: retention.Rules{
			Full: cfg.Keep.Full, Window: cfg.Keep.Window, Daily: cfg.Keep.Daily, Weekly: cfg.Keep.Weekly,
			Monthly: cfg.Keep.Monthly, Yearly: cfg.Keep.Yearly, Least: cfg.Keep.Least,
		},
		Host: self, StateDir: cfg.StateDir, Log: a.log, Now: time.Now,
	})
	if res == nil {
		return err
	}
	deleted := report.DeletedOf(res)
	if d.asJSON {
		return errors.Join(err, report.DeletedJSON(a.stdout, deleted))
	}
	return errors.Join(err, report.DeletedTable(a.stdout, deleted), fprint(a.stdout, "requests: %s\n", a.requests()))
}

// modifier takes a word of WAL-G's off the arguments.
func modifier(args []string, words ...retention.Widen) (retention.Widen, []string) {
	for _, w := range words {
		if len(args) > 1 && args[0] == string(w) {
			return w, args[1:]
		}
	}
	return retention.Exact, args
}

func beforeRequest(args []string) (q retention.Request, err error) {
	q.Verb = retention.Before
	if q.Widen, args = modifier(args, retention.FindFull); len(args) != 1 {
		return q, errs.New(errs.Usage, "See: agent help delete before", "usage: agent delete before [FIND_FULL] NAME|TIME [--confirm]")
	}
	if name, err := repo.ParseBackupName(args[0]); err == nil {
		q.Names = []repo.BackupName{name}
		return q, nil
	}
	q.Time, err = restore.ParseTime(args[0])
	return q, err
}

func retainRequest(args []string) (q retention.Request, err error) {
	q.Verb = retention.Retain
	if q.Widen, args = modifier(args, retention.Full, retention.FindFull); len(args) == 1 {
		q.Count, err = strconv.Atoi(args[0])
	}
	if len(args) != 1 || err != nil || q.Count < 1 {
		return q, errs.New(errs.Usage, "To delete all: agent delete everything", "%q is not a number of backups to retain, of 1 or more", strings.Join(args, " "))
	}
	return q, nil
}

func targetRequest(args []string) (q retention.Request, err error) {
	q.Verb = retention.Target
	q.Widen, args = modifier(args, retention.FindFull)
	for _, arg := range args {
		name, err := repo.ParseBackupName(arg)
		if err != nil {
			return q, errs.Wrap(err, errs.Usage, "See: agent help delete target, and what there is with: agent backup-list", "delete backup")
		}
		q.Names = append(q.Names, name)
	}
	return q, nil
}

func everythingRequest(args []string) (retention.Request, error) {
	q := retention.Request{Verb: retention.Everything}
	if len(args) == 1 && args[0] != "FORCE" {
		return q, errs.New(errs.Usage, "See: agent help delete everything", "%q is not FORCE", args[0])
	}
	q.Force = len(args) == 1
	return q, nil
}

// garbageRequest takes the words with which WAL-G tells kinds of garbage apart,
// and removes all of it.
func garbageRequest(args []string) (retention.Request, error) {
	if len(args) == 1 && args[0] != "ARCHIVES" && args[0] != "BACKUPS" {
		return retention.Request{}, errs.New(errs.Usage, "See: agent help delete garbage", "%q is neither ARCHIVES nor BACKUPS", args[0])
	}
	return retention.Request{Verb: retention.Garbage}, nil
}
