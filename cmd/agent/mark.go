package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/repo"
	"agent/internal/restore"
)

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
			cfg, r, b, err := a.named(cmd, cluster, args[0])
			if err != nil {
				return err
			}
			if err := r.Check(cmd.Context()); err != nil {
				return err
			}
			self, err := host.Read(cfg.StateDir)
			if err != nil {
				return err
			}
			for _, m := range marks {
				m.Backup, m.Host = b.Name, self.Name
				if err := r.PutMark(cmd.Context(), b.Cluster, m); err != nil {
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
