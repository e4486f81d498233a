package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"agent/internal/compress"
	"agent/internal/config"
	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/repo"
)

// app is what all commands share.
type app struct {
	stdout, stderr io.Writer
	configPath     string
	log            *slog.Logger
	jsonLog        bool
	stores         []store
	identities     *crypto.Identities
}

func newApp(stdout, stderr io.Writer) *app {
	return &app{
		stdout: stdout, stderr: stderr,
		log: slog.New(slog.NewTextHandler(stderr, nil)),
	}
}

// root builds the command tree. Every option of the configuration is a flag of
// every command.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "agent",
		Short:         "WAL archiver and backup agent for PostgreSQL",
		Long:          longHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version,
		RunE:          func(cmd *cobra.Command, _ []string) error { return a.noCommand(cmd) },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return errs.Wrap(err, errs.Usage, seeHelp(cmd), "read the command line")
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.configPath, "config", "", "configuration file (AGENT_CONFIG; default "+config.DefaultFile+" if it exists)")
	for _, o := range config.Options() {
		if o.Flag != "" {
			flags.String(o.Flag, "", o.Help)
			if o.Type == "BOOL" {
				flags.Lookup(o.Flag).NoOptDefVal = "true"
			}
		}
	}
	root.AddGroup(
		&cobra.Group{ID: "wal", Title: "Archiving, called by PostgreSQL:"},
		&cobra.Group{ID: "backup", Title: "Backup and restore:"},
		&cobra.Group{ID: "setup", Title: "Setting up:"},
	)
	root.AddCommand(
		a.walPush(), a.walPushWorker(), a.walFetch(), a.walPrefetch(), a.walReceive(),
		a.backupPush(), a.backupFetch(), a.backupCompact(), a.backupList(), a.backupShow(), a.backupMark(), a.backupVerify(), a.deleteCommand(), a.walShow(), a.walVerify(),
		a.repoCommand(), a.keygen(), a.configCommand(), a.check(), a.versionCommand(),
	)
	root.SetHelpCommandGroupID("setup")
	root.SetCompletionCommandGroupID("setup")
	return root
}

const longHelp = `agent archives the WAL of PostgreSQL and takes backups, to a repository that
several servers may share, and restores them to any moment.

  1. Make a repository:   agent repo init --repository /backup
  2. In postgresql.conf:  archive_mode = on
                          archive_command = 'agent wal-push %p'
     (with AGENT_REPOSITORY in the server's environment, the repository in
     /etc/agent/agent.yaml, or --repository in the command)
  3. Take backups:        agent backup-push
  4. Restore:             agent backup-fetch DIRECTORY
     or to a moment:      agent backup-fetch DIRECTORY --target-time '2026-11-20 14:29:00+00'

Settings come from a YAML file, the environment (AGENT_...) and flags, in rising
priority; agent config show prints them. The connection to the server follows
libpq (PGHOST, PGPORT, PGUSER, PGSERVICE, .pgpass).`

// load reads the configuration and sets up logging by it.
func (a *app) load(cmd *cobra.Command) (*config.Config, error) {
	cfg, err := config.Load(config.Input{
		Flags: changedFlags(cmd), Env: os.LookupEnv, Environ: os.Environ(), ReadFile: os.ReadFile,
		Config: a.configPath, NumCPU: runtime.NumCPU(), Home: homeDir(),
	})
	if err != nil {
		return nil, err
	}
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if a.jsonLog = cfg.LogFormat == config.LogJSON; a.jsonLog {
		a.log = slog.New(slog.NewJSONHandler(a.stderr, options))
	} else {
		a.log = slog.New(slog.NewTextHandler(a.stderr, options))
	}
	for _, w := range cfg.Warnings() {
		a.log.Warn(w)
	}
	if cfg.StateDir == "" {
		cfg.StateDir, err = stateDir()
	}
	return cfg, err
}

// ready loads the configuration and opens the repository.
func (a *app) ready(cmd *cobra.Command) (*config.Config, *repo.Repository, error) {
	cfg, err := a.load(cmd)
	if err != nil {
		return nil, nil, err
	}
	r, err := a.open(cmd.Context(), cfg, opening{patience: longPatience})
	return cfg, r, err
}

// changedFlags are the options that were given as flags.
func changedFlags(cmd *cobra.Command) map[string]string {
	ours := make(map[string]bool)
	for _, o := range config.Options() {
		ours[o.Flag] = true
	}
	set := make(map[string]string)
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if ours[f.Name] {
			set[f.Name] = f.Value.String()
		}
	})
	return set
}

// stateDir is the default state directory. Where the environment's cannot be
// used (a server that was started by root's hand has root's HOME, or none), it
// is that of the user's own home, so that a repository URL is all that must be
// configured.
func stateDir() (string, error) {
	dir, err := config.DefaultStateDir(os.LookupEnv, isDir)
	if err == nil && usable(dir) {
		return dir, nil
	}
	if home := passwdHome(); home != "" {
		if own := filepath.Join(home, ".local", "state", "agent"); usable(own) {
			return own, nil
		}
	}
	return dir, err
}

// passwdHome is the user's home by the password database, or "".
func passwdHome() string {
	u, err := user.Current()
	if err != nil || !filepath.IsAbs(u.HomeDir) {
		return ""
	}
	return u.HomeDir
}

// homeDir is the user's home by the environment, or else as passwdHome.
func homeDir() string {
	if home, err := os.UserHomeDir(); err == nil {
		return home
	}
	return passwdHome()
}

func currentUser() string {
	u, err := user.Current()
	if err != nil {
		return os.Getenv("USER")
	}
	return u.Username
}

// usable reports whether the directory can be written, or made.
func usable(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			return unix.Access(dir, unix.W_OK|unix.X_OK) == nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return false
		}
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// open opens the configured repositories as one.
func (a *app) open(ctx context.Context, cfg *config.Config, how opening) (*repo.Repository, error) {
	places, err := a.places(ctx, cfg, how)
	if err != nil {
		return nil, err
	}
	return a.repository(ctx, cfg, places)
}

// repository makes the handle with the keys of the configuration.
func (a *app) repository(ctx context.Context, cfg *config.Config, places []repo.Place) (*repo.Repository, error) {
	codec, err := compress.Parse(cfg.Compression)
	if err != nil {
		return nil, err
	}
	a.identities = crypto.NewIdentities(ctx, crypto.Sources{
		File: cfg.IdentityFile, Text: cfg.Identity, Command: cfg.IdentityCommand,
	})
	keys := repo.Keys{Identities: a.identities}
	for _, class := range []struct {
		values []string
		to     *crypto.Recipients
	}{{cfg.Recipients, &keys.Data}, {cfg.RecipientsWAL, &keys.WAL}, {cfg.RecipientsMeta, &keys.Meta}} {
		if *class.to, err = crypto.ParseRecipients(class.values); err != nil {
			return nil, err
		}
	}
	return repo.New(places, repo.Options{
		Keys: keys, Codec: codec, Pins: repo.NewPins(cfg.StateDir), Debts: repo.NewDebts(cfg.StateDir),
		SpoolDir: filepath.Join(cfg.StateDir, "spool"), Log: a.log, Now: time.Now, Version: version,
	}), nil
}

// clusterFlag adds --system-identifier, for repositories of several clusters.
func clusterFlag(cmd *cobra.Command, to *uint64) {
	cmd.Flags().Uint64Var(to, "system-identifier", 0, "the cluster, where the repository holds several (pg_controldata shows it)")
}

func exactArgs(n int, usage string) cobra.PositionalArgs { return rangeArgs(n, n, usage) }

func rangeArgs(low, high int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			return errs.New(errs.Usage, seeHelp(cmd), "usage: agent %s", usage)
		}
		return nil
	}
}

// seeHelp is the hint for a command that was called the wrong way.
func seeHelp(cmd *cobra.Command) string {
	path := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name())
	return "See: agent help" + path
}

// group makes a command that only holds others: called alone, or with a
// misspelt subcommand, it is a failure.
func (a *app) group(cmd *cobra.Command) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return errs.New(errs.Usage, seeHelp(cmd), "unknown command %q for %q", args[0], cmd.CommandPath())
		}
		return a.noCommand(cmd)
	}
	return cmd
}

// noCommand prints the help, but not as a success: an archive_command that is
// just "agent" must not make PostgreSQL throw WAL away.
func (a *app) noCommand(cmd *cobra.Command) error {
	cmd.SetOut(a.stderr)
	return errors.Join(errs.New(errs.Usage, "", "no command was given"), cmd.Help())
}

// fprint writes to the user; a closed pipe is the reader's choice.
func fprint(w io.Writer, format string, args ...any) error {
	if _, err := fmt.Fprintf(w, format, args...); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// shellQuote makes a word of a shell command, for restore_command, where a
// percent sign is special to PostgreSQL besides.
func shellQuote(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
