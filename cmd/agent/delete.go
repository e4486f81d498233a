package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/host"
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
		ids, err := d.clusters(cmd, cfg, r)
		if err != nil {
			return err
		}
		var failed []error
		for _, id := range ids {
			failed = append(failed, a.deleteFrom(cmd, cfg, r, id, q, *d))
		}
		return errors.Join(failed...)
	}
	return cmd
}

// clusters are the one that is named, or that of the data directory, or the only
// one; or all.
func (d *deleting) clusters(cmd *cobra.Command, cfg *config.Config, r *repo.Repository) ([]repo.ClusterID, error) {
	if d.all {
		return r.Clusters(cmd.Context())
	}
	given := d.cluster
	if control, own := ownControl(cmd.Context(), cfg); given == 0 && own {
		given = control.SystemIdentifier
	}
	id, err := chooseCluster(cmd, r, given)
	return []repo.ClusterID{id}, err
}

func (a *app) deleteFrom(cmd *cobra.Command, cfg *config.Config, r *repo.Repository, id repo.ClusterID, q retention.Request, d deleting) error {
	self, err := host.Read(cfg.StateDir)
	if err != nil {
		return err
	}
	res, err := retention.Run(cmd.Context(), r, retention.Options{
		Cluster: id, Request: q, Confirm: d.confirm, Command: "delete " + cmd.Name(),
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

func (a *app) backupMark() *cobra.Command {
	var cluster uint64
	var keep, release bool
	var until string
	var notes []string
	cmd := &cobra.Command{
		Use:     "backup-mark NAME|LATEST",
		GroupID: "backup",
		Short:   "Keep a backup whatever the policy says, release it, or note something about it",
		Long: `Marks a backup. One that is marked with --keep is not deleted by any policy, nor by
hand, until it is released or the time of --until has come; its WAL from start to stop
stays with it. --note KEY=VALUE notes something, which backup-list and backup-show
print and backup-list --note selects by; --note KEY= takes it away.`,
		Args: exactArgs(1, "backup-mark NAME|LATEST --keep [--until TIME|DURATION] | --release | --note KEY=VALUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			marks, err := marksOf(keep, release, until, notes, time.Now())
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
			id, err := chooseCluster(cmd, r, cluster)
			if err != nil {
				return err
			}
			b, err := findBackup(cmd, r, id, args[0])
			if err != nil {
				return err
			}
			self, err := host.Read(cfg.StateDir)
			if err != nil {
				return err
			}
			for _, m := range marks {
				m.Backup, m.Host = b.Name, self.Name
				if err := r.PutMark(cmd.Context(), id, m); err != nil {
					return err
				}
				if err := fprint(a.stdout, "backup %s: %s\n", b.Name, said(m)); err != nil {
					return err
				}
			}
			return a.lockKept(cmd.Context(), r, b, marks)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "keep it")
	cmd.Flags().BoolVar(&release, "release", false, "let policies delete it again")
	cmd.Flags().StringVar(&until, "until", "", "keep it until `TIME`, such as '2027-11-20 00:00:00+00', or for a duration, such as 365d")
	cmd.Flags().StringArrayVar(&notes, "note", nil, "note `KEY=VALUE`; may be given several times")
	clusterFlag(cmd, &cluster)
	return cmd
}

// lockKept makes the locks of a backup that is kept as long as it is, where objects
// are locked; without an end, as long as was promised, counted from now, and agent
// delete expire goes on with that.
func (a *app) lockKept(ctx context.Context, r *repo.Repository, b *repo.Backup, marks []repo.Mark) error {
	if marks[0].Kind != repo.MarkKeep {
		return nil
	}
	n, err := r.ExtendLocks(ctx, b, func(i repo.Immutable) (least, until time.Time) {
		if until := marks[0].Until; !until.IsZero() {
			return until, until
		}
		return i.Renewed(time.Now())
	})
	if n > 0 {
		err = errors.Join(err, fprint(a.stdout, "backup %s: locks made longer: %d objects\n", b.Name, n))
	}
	return errs.Wrap(err, errs.Storage, "The mark is made; run the same command again with rights to change locks (s3:PutObjectRetention and its like).", "lock what is kept")
}

func marksOf(keep, release bool, until string, notes []string, now time.Time) ([]repo.Mark, error) {
	var all []repo.Mark
	usage := func(format string, args ...any) error {
		return errs.New(errs.Usage, "See: agent help backup-mark", format, args...)
	}
	switch {
	case keep && release:
		return nil, usage("--keep and --release do not go together")
	case until != "" && !keep:
		return nil, usage("--until goes with --keep")
	case keep:
		m := repo.Mark{Kind: repo.MarkKeep}
		if until != "" {
			t, err := moment(until, now)
			if err != nil {
				return nil, err
			}
			if !t.After(now) {
				return nil, usage("--until %s has passed", until)
			}
			m.Until = t.UTC().Truncate(time.Second)
		}
		all = append(all, m)
	case release:
		all = append(all, repo.Mark{Kind: repo.MarkRelease})
	}
	for _, n := range notes {
		key, value, err := keyValue(n)
		if err != nil {
			return nil, err
		}
		all = append(all, repo.Mark{Kind: repo.MarkNote, Key: key, Value: value})
	}
	if len(all) == 0 {
		return nil, usage("nothing to mark: give --keep, --release or --note")
	}
	return all, nil
}

// moment is a time, or one that is so long from now.
func moment(s string, now time.Time) (time.Time, error) {
	if d, err := config.ParseDuration(s); err == nil {
		return now.Add(d), nil
	}
	return restore.ParseTime(s)
}

func keyValue(s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" || strings.ContainsAny(s, "\r\n\x00") || strings.ContainsAny(key, " \t") {
		return "", "", errs.New(errs.Usage, "Write it as KEY=VALUE, on one line.", "%q is not a note", s)
	}
	return key, value, nil
}

func said(m repo.Mark) string {
	switch {
	case m.Kind == repo.MarkRelease:
		return "released"
	case m.Kind == repo.MarkNote && m.Value == "":
		return fmt.Sprintf("note %s taken away", m.Key)
	case m.Kind == repo.MarkNote:
		return fmt.Sprintf("noted %s=%s", m.Key, m.Value)
	case m.Until.IsZero():
		return "kept until it is released"
	default:
		return "kept until " + m.Until.Format(time.RFC3339)
	}
}
