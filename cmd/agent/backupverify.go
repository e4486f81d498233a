package main

import (
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/repo"
	"agent/internal/report"
	"agent/internal/verify"
)

// verifyFlags are those of backup-verify.
type verifyFlags struct {
	cluster                                                     uint64
	all, quick, deep, toLatest, repair, since, unmarked, asJSON bool
	maxAge, rate                                                string
}

func (a *app) backupVerify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:     "backup-verify [NAME|LATEST...]",
		GroupID: "backup",
		Short:   "Verify that backups can be restored, and repair what another repository has",
		Long: `Verifies all backups of the cluster, or those that are named, in every repository:
backup.json, the manifest, that its runs cover every file, each pack by its size and
SHA-256, and the WAL from start to stop. Each object is read once, also where several
backups need it. Without an identity that opens manifests these are compared by their
hash alone, which is told.

With --deep every frame is decoded, page checksums are checked, and the WAL is opened
and must join; that needs identities. With --quick packs are not read: their sizes are
those of a listing. With --to-latest the WAL behind the backups counts, too.

With --repair a damaged or missing object is replaced by a good copy of another
repository, or an older version in the bucket, which is proved before anything is
deleted.

All findings are told, with the backups that need the object and the moments that are
lost. Ends with 6 if an object is damaged or missing, else with 5 if a required
repository cannot be asked, else with 16 if there is a gap, else with 0.`,
		Args: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if _, err := repo.ParseBackupName(arg); err != nil && arg != "LATEST" {
					return errs.Wrap(err, errs.Usage, seeHelp(cmd), "verify backups")
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.verifyBackups(cmd, args, f) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.all, "all", false, "verify all backups of the cluster, as without names")
	flags.BoolVar(&f.quick, "quick", false, "do not read packs: compare their sizes with a listing")
	flags.BoolVar(&f.deep, "deep", false, "open every object, decode it, and check the pages")
	flags.BoolVar(&f.toLatest, "to-latest", false, "verify the WAL behind the backups, too, along all timelines")
	flags.BoolVar(&f.repair, "repair", false, "replace what is damaged or missing by a good copy of another repository")
	flags.BoolVar(&f.since, "since-last", false, "leave out what this host has verified as deeply within --max-age")
	flags.StringVar(&f.maxAge, "max-age", "30d", "how old that may be: `DURATION`")
	flags.StringVar(&f.rate, "rate-limit", "", "read at most this much a second from each repository, instead of bandwidth: `SIZE`")
	flags.BoolVar(&f.unmarked, "no-mark", false, "do not note in the repository that a backup was verified")
	flags.BoolVar(&f.asJSON, "json", false, "print an object")
	clusterFlag(cmd, &f.cluster)
	return cmd
}

func (a *app) verifyBackups(cmd *cobra.Command, args []string, f verifyFlags) error {
	cfg, err := a.load(cmd)
	if err != nil {
		return err
	}
	o, err := f.options(cmd, cfg, args)
	if err != nil {
		return err
	}
	r, err := a.open(cmd.Context(), cfg, opening{patience: longPatience, brief: true})
	if err != nil {
		return err
	}
	if err := r.CheckNow(cmd.Context()); err != nil {
		return err
	}
	if o.Cluster, o.SegmentSize, err = ownCluster(cmd, cfg, r, f.cluster); err != nil {
		return err
	}
	if o.Backups, err = namedBackups(cmd, r, o.Cluster, args); err != nil {
		return err
	}
	a.warnOfIdentities()
	progress := a.progress()
	o.Log = a.log
	o.Progress = func(p verify.Progress) { progress.update("verifying", p.Done, p.Total, p.Elapsed) }
	res, err := verify.Run(cmd.Context(), r, o)
	progress.end()
	if err != nil {
		return err
	}
	d := report.BackupsVerifiedOf(res)
	if f.asJSON {
		err = report.BackupsVerifiedJSON(a.stdout, d)
	} else {
		err = report.BackupsVerifiedTable(a.stdout, d)
	}
	return errors.Join(err, res.Err())
}

// options reads the flags.
func (f *verifyFlags) options(cmd *cobra.Command, cfg *config.Config, args []string) (verify.Options, error) {
	o := verify.Options{
		Depth: verify.Stored, ToLatest: f.toLatest, Repair: f.repair, SinceLast: f.since, Mark: !f.unmarked,
		Concurrency: cfg.Concurrency, StateDir: cfg.StateDir, Now: time.Now,
	}
	switch {
	case f.quick && f.deep:
		return o, errs.New(errs.Usage, seeHelp(cmd), "--quick and --deep exclude each other")
	case f.all && len(args) > 0:
		return o, errs.New(errs.Usage, seeHelp(cmd), "--all does not go with names of backups")
	case f.quick && f.since:
		return o, errs.New(errs.Usage, seeHelp(cmd), "--quick reads nothing that --since-last could leave out")
	case f.quick:
		o.Depth = verify.Quick
	case f.deep:
		o.Depth = verify.Deep
	}
	var err error
	if o.MaxAge, err = config.ParseDuration(f.maxAge); err != nil {
		return o, errs.Wrap(err, errs.Usage, seeHelp(cmd), "read --max-age %q", f.maxAge)
	}
	if f.rate != "" {
		if cfg.Bandwidth, err = config.ParseSize(f.rate); err != nil {
			return o, errs.Wrap(err, errs.Usage, seeHelp(cmd), "read --rate-limit %q", f.rate)
		}
	}
	self, err := host.Read(cfg.StateDir)
	o.Host = self.Name
	return o, err
}

// namedBackups finds the backups that are named.
func namedBackups(cmd *cobra.Command, r *repo.Repository, id repo.ClusterID, args []string) ([]repo.BackupName, error) {
	var names []repo.BackupName
	for _, arg := range args {
		name := repo.BackupName(arg)
		if arg == "LATEST" {
			b, err := findBackup(cmd, r, id, arg)
			if err != nil {
				return nil, err
			}
			name = b.Name
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}
