package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/gofrs/flock"
	"github.com/spf13/cobra"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/repo"
)

// copies is how many objects a copy between repositories has in memory at a
// time, at the most.
const copies = 4

func (a *app) repoSync() *cobra.Command {
	var o repo.SyncOptions
	var asJSON, background bool
	cmd := &cobra.Command{
		Use:   "sync [REPOSITORY...]",
		Short: "Bring repositories up to date from the others",
		Long: `Brings each of the configured repositories, or those that are named, up to date
from the others: all that one of them has and another lacks is copied, as it is
stored, and verified on the way. No identity is needed; with one, WAL that is
encrypted is verified wholly. Nothing that is there is ever replaced. A backup
appears in a repository only when everything that it needs is there.

With --pending only what this host has noted is copied: what a best-effort
repository missed while it could not be reached. wal-push and backup-push start
this by themselves when the repository is back; its messages are then in
log/repo-sync.log of the state directory.

The status is 0 if nothing stays behind.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.load(cmd)
			if err != nil {
				return err
			}
			if err := known(cmd, cfg, args); err != nil {
				return err
			}
			o.Targets = args
			err = a.sync(cmd.Context(), cfg, o, asJSON)
			if background {
				a.endBackground(err)
				return nil
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.Pending, "pending", false, "copy only what this host has noted as missing there")
	flags.BoolVar(&o.DryRun, "dry-run", false, "say what would be copied, and copy nothing")
	flags.BoolVar(&asJSON, "json", false, "print an array of objects")
	flags.BoolVar(&background, backgroundFlag, false, "end with status 0 whatever happens")
	// The flag is defined two lines above.
	_ = flags.MarkHidden(backgroundFlag)
	return cmd
}

// known refuses names of repositories that are not configured.
func known(cmd *cobra.Command, cfg *config.Config, names []string) error {
	have := make(map[string]bool)
	var all []string
	for _, r := range cfg.Repositories {
		have[r.Name] = true
		all = append(all, r.Name)
	}
	for _, name := range names {
		if !have[name] {
			return errs.New(errs.Usage, seeHelp(cmd), "no repository is called %q; configured are: %s", name, strings.Join(all, ", "))
		}
	}
	return nil
}

// sync runs one at a time on this host.
func (a *app) sync(ctx context.Context, cfg *config.Config, o repo.SyncOptions, asJSON bool) (err error) {
	if err := cfg.NeedRepository(); err != nil {
		return err
	}
	unlock, err := lockSync(cfg.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	r, err := a.open(ctx, cfg, opening{patience: longPatience})
	if err != nil {
		return err
	}
	o.Concurrency = min(cfg.Concurrency, copies)
	results, err := r.Sync(ctx, o)
	return errors.Join(err, a.printSync(results, o.DryRun, asJSON))
}

// lockSync takes the lock of the host's only sync.
func lockSync(stateDir string) (unlock func() error, err error) {
	dir := filepath.Join(stateDir, "lock")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.State(err, "make lock directory")
	}
	l := flock.New(filepath.Join(dir, "repo-sync"))
	got, err := l.TryLock()
	if err != nil {
		return nil, errs.State(err, "lock agent repo sync")
	}
	if !got {
		return nil, errs.New(errs.Locked, "Wait until it ends; what it does is in log/repo-sync.log of the state directory, if a push has started it.",
			"another agent repo sync runs on this host (lock %s)", l.Path())
	}
	return l.Unlock, nil
}

// synced is a repository in the output of sync and copy.
type synced struct {
	Repository string        `json:"repository"`
	URL        string        `json:"url"`
	Objects    int64         `json:"objects"`
	Bytes      int64         `json:"bytes"`
	Backups    []string      `json:"backups"`
	Lacking    int64         `json:"lacking"`
	Problems   []syncProblem `json:"problems"`
	Live       []string      `json:"left_alone"`
	Error      string        `json:"error,omitempty"`
	DryRun     bool          `json:"dry_run"`
	Requests   string        `json:"requests"` // of the whole command to this repository
}

type syncProblem struct {
	Key   string `json:"key"`
	Error string `json:"error"`
}

func syncedOf(r repo.SyncResult, dry bool) synced {
	s := synced{
		Repository: r.Name, URL: r.URL, Objects: r.Objects, Bytes: r.Bytes, Lacking: r.Lacking, DryRun: dry,
		Backups: names(r.Backups), Live: names(r.Live), Problems: []syncProblem{},
	}
	for _, p := range r.Problems {
		s.Problems = append(s.Problems, syncProblem{p.Key, p.Err.Error()})
	}
	if r.Err != nil {
		s.Error = r.Err.Error()
	}
	return s
}

func names(backups []repo.BackupName) []string {
	all := make([]string, len(backups))
	for i, b := range backups {
		all[i] = string(b)
	}
	return all
}

func (a *app) printSync(results []repo.SyncResult, dry, asJSON bool) error {
	all := make([]synced, len(results))
	for i, r := range results {
		all[i] = syncedOf(r, dry)
		for _, store := range a.stores {
			if store.name == r.Name {
				all[i].Requests = store.counter.Counts().String()
			}
		}
	}
	if asJSON {
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		return e.Encode(all)
	}
	if len(all) == 0 {
		return fprint(a.stdout, "nothing is owed\n")
	}
	done := "copied"
	if dry {
		done = "to copy"
	}
	for _, s := range all {
		state := "nothing is lacking"
		switch {
		case s.Error != "":
			state = "given up: " + s.Error
		case s.Lacking > 0:
			state = humanize.Comma(s.Lacking) + " objects stay behind"
		}
		err := fprint(a.stdout, "%s: %s objects %s, %s; %s\n", s.Repository, humanize.Comma(s.Objects), done, humanize.IBytes(uint64(s.Bytes)), state)
		for _, name := range s.Backups {
			err = errors.Join(err, fprint(a.stdout, "  backup %s\n", name))
		}
		for _, name := range s.Live {
			err = errors.Join(err, fprint(a.stdout, "  backup %s is being made and was left alone\n", name))
		}
		if err != nil {
			return err
		}
	}
	return fprint(a.stdout, "requests: %s\n", a.requests())
}

func (a *app) repoCopy() *cobra.Command {
	var o repo.SyncOptions
	var from, to, name string
	var cluster uint64
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "copy --from REPOSITORY --to REPOSITORY",
		Short: "Copy a repository, or one backup, to another place",
		Long: `Copies everything, or one backup with its WAL, from one repository to another,
without a database. Both are names of the configuration or URLs, to which the
settings for all repositories apply. The target is made if there is none. What is
copied is verified as by repo sync. Called again it goes on where it was cut off.`,
		Args: exactArgs(0, "repo copy --from REPOSITORY --to REPOSITORY [--backup NAME]"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if from == "" || to == "" {
				return errs.New(errs.Usage, seeHelp(cmd), "--from and --to are needed")
			}
			if name != "" {
				if o.Backup, err = repo.ParseBackupName(name); err != nil {
					return errs.Wrap(err, errs.Usage, "See what there is with: agent backup-list", "copy backup")
				}
			}
			if cluster != 0 {
				o.Clusters = []repo.ClusterID{repo.ClusterID(cluster)}
			}
			cfg, err := a.load(cmd)
			if err != nil {
				return err
			}
			source, err := a.single(cmd, cfg, "from", from, opening{patience: longPatience})
			if err != nil {
				return err
			}
			target, err := a.single(cmd, cfg, "to", to, opening{patience: longPatience, create: !o.DryRun})
			if err != nil {
				return err
			}
			if source.ID() == target.ID() {
				return errs.New(errs.Usage, seeHelp(cmd), "--from and --to are the same repository, %s", source.URL)
			}
			// Two repositories given by their URLs have the same name.
			source.Name, target.Name = "from", "to"
			r, err := a.repository(cmd.Context(), cfg, []repo.Place{source, target})
			if err != nil {
				return err
			}
			o.Concurrency = min(cfg.Concurrency, copies)
			res, err := r.Copy(cmd.Context(), target.Name, o)
			if res.URL == "" {
				return err
			}
			return errors.Join(err, a.printSync([]repo.SyncResult{res}, o.DryRun, asJSON))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&from, "from", "", "the repository to copy from: a name of the configuration or a URL")
	flags.StringVar(&to, "to", "", "the repository to copy to, the same way")
	flags.StringVar(&name, "backup", "", "copy this backup alone, with all that it needs")
	flags.BoolVar(&o.DryRun, "dry-run", false, "say what would be copied, and copy nothing")
	flags.BoolVar(&asJSON, "json", false, "print an array with one object")
	clusterFlag(cmd, &cluster)
	return cmd
}

// single opens one repository, by its name in the configuration or its URL, as
// if it were the only one.
func (a *app) single(cmd *cobra.Command, cfg *config.Config, flag, which string, how opening) (repo.Place, error) {
	set := changedFlags(cmd)
	set["repository"] = which
	own, err := config.Load(config.Input{
		Flags: set, Env: os.LookupEnv, Environ: os.Environ(), ReadFile: os.ReadFile,
		Config: a.configPath, NumCPU: runtime.NumCPU(), Home: homeDir(),
	})
	if err != nil {
		return repo.Place{}, errs.Wrap(err, errs.Config, "", "--%s", flag)
	}
	only := *cfg
	only.Repositories, only.Repository = own.Repositories, own.Repository
	places, err := a.places(cmd.Context(), &only, how)
	if err != nil {
		return repo.Place{}, err
	}
	a.stores[len(a.stores)-1].name = flag // in what is said of requests
	p := places[0]
	p.Required, p.URL = true, p.Bucket.String()
	return p, nil
}
