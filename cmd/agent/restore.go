package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/restore"
)

// targetFlags are the recovery target as given on the command line.
type targetFlags struct {
	time, lsn, xid, name string
	immediate            bool
	timeline, action     string
	inclusive            bool
	tablespaces          []string
	takeOver             bool
	cluster              uint64
}

func (a *app) backupFetch() *cobra.Command {
	var f targetFlags
	cmd := &cobra.Command{
		Use:     "backup-fetch DEST [NAME|LATEST]",
		GroupID: "backup",
		Short:   "Restore a backup into an empty directory",
		Long: `Restores a backup into DEST, which must be empty or not exist, and writes the
settings with which PostgreSQL then recovers by itself: to the end of the
archived WAL, or to a target. Without a name the newest backup that ended
before the target is taken.

At a target PostgreSQL pauses, so that you can look, unless --target-action
promote is given; SELECT pg_wal_replay_resume() goes on.

Unless DEST is the recorded directory on the recorded host, the restored server
gets archive_mode=off, so that a clone never archives into production;
--take-over leaves archiving on.

pg_control comes last: a restore that did not finish cannot be started. Run the
same command again; it clears what is unfinished.`,
		Example: `  agent backup-fetch /var/lib/postgresql/15/restored
  agent backup-fetch /srv/pg --target-time '2026-11-20 14:29:00+00' --target-action promote
  agent backup-fetch /srv/pg 20261120T101530Z-k3v7qa --tablespace-map /fast=/srv/fast`,
		Args: rangeArgs(1, 2, "backup-fetch DEST [NAME|LATEST]"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.fetchBackup(cmd, args, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.time, "target-time", "", "recover to this time, with a time zone: '2026-11-20 14:29:00+00'")
	flags.StringVar(&f.lsn, "target-lsn", "", "recover to this LSN")
	flags.StringVar(&f.xid, "target-xid", "", "recover to this transaction")
	flags.StringVar(&f.name, "target-name", "", "recover to this restore point (pg_create_restore_point)")
	flags.BoolVar(&f.immediate, "target-immediate", false, "stop as soon as the backup is consistent")
	flags.StringVar(&f.timeline, "target-timeline", "latest", "follow this timeline: latest, current or a number")
	flags.StringVar(&f.action, "target-action", "pause", "at the target: pause, promote or shutdown")
	flags.BoolVar(&f.inclusive, "target-inclusive", true, "stop just after the target; false: just before it")
	flags.StringArrayVar(&f.tablespaces, "tablespace-map", nil, "OLD=NEW: restore the tablespace at OLD to NEW (may be repeated)")
	flags.BoolVar(&f.takeOver, "take-over", false, "keep archiving on: this server replaces the recorded one")
	clusterFlag(cmd, &f.cluster)
	return cmd
}

func (a *app) fetchBackup(cmd *cobra.Command, args []string, f targetFlags) error {
	cfg, err := a.load(cmd)
	if err != nil {
		return err
	}
	target, err := f.target(cmd)
	if err != nil {
		return err
	}
	tablespaces, err := f.tablespaceMap()
	if err != nil {
		return err
	}
	dest, err := resolve(args[0])
	if err != nil {
		return err
	}
	name := ""
	if len(args) == 2 {
		name = args[1]
	}
	command, err := a.restoreCommand(cfg)
	if err != nil {
		return err
	}
	self, err := host.Read(cfg.StateDir)
	if err != nil {
		return err
	}
	r, err := a.open(cmd.Context(), cfg, opening{patience: longPatience})
	if err != nil {
		return err
	}
	cluster, err := chooseCluster(cmd, r, f.cluster)
	if err != nil {
		return err
	}
	a.warnOfIdentities()
	progress := a.progress()
	res, err := restore.Run(cmd.Context(), r, restore.Options{
		Cluster: cluster, Dest: dest, Name: name, Target: target, Tablespaces: tablespaces,
		RestoreCommand: command, TakeOver: f.takeOver, Concurrency: cfg.Concurrency, Host: self,
		Log: a.log, Now: time.Now,
		Progress: func(p restore.Progress) { progress.update("restoring", p.Written, p.Total, p.Elapsed) },
	})
	progress.end()
	if err != nil {
		return err
	}
	return a.fetchSummary(res, dest, target)
}

// warnOfIdentities loads the keys that were given, to say early what is wrong
// about them. Whether that matters shows when an object must be opened.
func (a *app) warnOfIdentities() {
	if !a.identities.Given() {
		return
	}
	warnings, err := a.identities.Load()
	if err != nil {
		a.log.Debug("load identities", "error", err.Error())
	}
	for _, w := range warnings {
		a.log.Warn(w)
	}
}

// target reads the flags; two targets are one too many, for PostgreSQL also.
func (f *targetFlags) target(cmd *cobra.Command) (restore.Target, error) {
	t := restore.Target{Exclusive: !f.inclusive, Action: f.action, Timeline: f.timeline}
	var given []string
	var err error
	for _, o := range []struct {
		flag string
		kind restore.TargetKind
		read func() error
	}{
		{"target-time", restore.TargetTime, func() (err error) { t.Time, err = restore.ParseTime(f.time); return err }},
		{"target-lsn", restore.TargetLSN, func() (err error) {
			t.LSN, err = postgres.ParseLSN(f.lsn)
			return errs.Wrap(err, errs.Usage, "Write it as pg_current_wal_lsn() prints it, such as 0/3000028.", "%q is not an LSN", f.lsn)
		}},
		{"target-xid", restore.TargetXID, func() (err error) { t.XID, err = restore.ParseXID(f.xid); return err }},
		{"target-name", restore.TargetName, func() error { t.Name = f.name; return nil }},
		{"target-immediate", restore.TargetImmediate, func() error { return nil }},
	} {
		if !cmd.Flags().Changed(o.flag) {
			continue
		}
		given = append(given, "--"+o.flag)
		t.Kind = o.kind
		if err = o.read(); err != nil {
			return t, errs.Wrap(err, errs.Usage, "", "read --%s", o.flag)
		}
	}
	if len(given) > 1 {
		return t, errs.New(errs.Usage, "Give one of them.", "%s cannot be used together", strings.Join(given, " and "))
	}
	switch f.action {
	case "pause", "promote", "shutdown":
	default:
		return t, errs.New(errs.Usage, "It is pause, promote or shutdown.", "--target-action %q is unknown", f.action)
	}
	return t, nil
}

func (f *targetFlags) tablespaceMap() (map[string]string, error) {
	m := make(map[string]string)
	for _, s := range f.tablespaces {
		from, to, ok := strings.Cut(s, "=")
		if !ok || !filepath.IsAbs(from) || !filepath.IsAbs(to) {
			return nil, errs.New(errs.Usage, "Write it as OLD=NEW with absolute paths.", "--tablespace-map %q is malformed", s)
		}
		m[filepath.Clean(from)] = filepath.Clean(to)
	}
	return m, nil
}

// resolve makes the destination absolute and resolves the links of what
// exists of it, so that it can be compared with the recorded directory.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolve destination: %w", err)
	}
	rest := ""
	for dir := abs; ; dir = filepath.Dir(dir) {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(resolved, rest), nil
		}
		if dir == "/" {
			return abs, nil
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// restoreCommand is what the restored server calls: this very binary, with the
// settings that it found outside of files in known places, since the server's
// environment may be another. Secrets are not among them: they stay in the
// environment, and PostgreSQL shows restore_command to everybody.
func (a *app) restoreCommand(cfg *config.Config) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the agent's own path: %w", err)
	}
	words := []string{shellQuote(exe), "wal-fetch", "%f", "%p", "--state-dir", shellQuote(cfg.StateDir)}
	if cfg.FilePath != "" {
		path, err := filepath.Abs(cfg.FilePath)
		if err != nil {
			return "", fmt.Errorf("resolve configuration file: %w", err)
		}
		words = append(words, "--config", shellQuote(path))
	}
	carried := map[string]bool{"repository": true, "identity_file": true, "standby_on_outage": true, "log_level": true, "log_format": true}
	flagOf := make(map[string]string)
	for _, o := range config.Options() {
		flagOf[o.Key] = o.Flag
		if o.Schemes != nil {
			carried[o.Key] = true // how the repository is reached
		}
	}
	for _, s := range cfg.Effective() {
		fromFile := strings.HasPrefix(s.Source, "file ") || s.Source == "default"
		if !carried[s.Key] || fromFile || s.Value == "" {
			continue
		}
		value := s.Value
		if s.Key == "identity_file" {
			if value, err = filepath.Abs(value); err != nil {
				return "", fmt.Errorf("resolve identity file: %w", err)
			}
		}
		words = append(words, "--"+flagOf[s.Key]+"="+shellQuote(value))
	}
	words = append(words, a.fromEnvironment(cfg)...)
	if cfg.Identity != "" || cfg.IdentityCommand != "" && cfg.FilePath == "" {
		a.log.Warn("the restored server needs AGENT_IDENTITY or AGENT_IDENTITY_COMMAND in its environment, as it was given here")
	}
	return strings.Join(words, " "), nil
}

func (a *app) fetchSummary(res *restore.Result, dest string, target restore.Target) error {
	rate := float64(res.Bytes) / max(res.Elapsed.Seconds(), 0.001)
	out := &strings.Builder{}
	fmt.Fprintf(out, "restored backup %s into %s\n", res.Backup.Name, dest)
	fmt.Fprintf(out, "  %s files, %s in %s (%s/s)\n", humanize.Comma(res.Files), humanize.IBytes(uint64(res.Bytes)),
		res.Elapsed.Round(10*time.Millisecond), humanize.IBytes(uint64(rate)))
	fmt.Fprintf(out, "  requests: %s\n", a.requests())
	fmt.Fprintf(out, "  it will recover to %s, along timeline %d\n", target, res.Timeline)
	if res.ArchivingOff {
		fmt.Fprintf(out, "  archive_mode=off was set, since this is not the recorded primary in its place (--take-over leaves it on)\n")
	}
	fmt.Fprintf(out, "next:\n")
	if res.ConfigGone {
		fmt.Fprintf(out, "  there is no postgresql.conf in the backup: the server kept it elsewhere. Give yours, with\n    the restored directory, since that file names the old one, and a free port:\n    pg_ctl -D %[1]s -o '-c config_file=/etc/postgresql/... -c data_directory=%[1]s -p 5433' start\n", shellQuote(dest))
	} else {
		fmt.Fprintf(out, "  pg_ctl -D %s start        (as the user that runs PostgreSQL)\n", shellQuote(dest))
	}
	if target.Kind != restore.TargetEnd && target.Action == "pause" {
		fmt.Fprintf(out, "  the server pauses at the target, for you to look; to open it for writing: SELECT pg_wal_replay_resume();\n")
		fmt.Fprintf(out, "  (a table that was locked at that moment, as by DROP or TRUNCATE, can be read only after it)\n")
	}
	return fprint(a.stdout, "%s", out)
}

// latest is the backup that a restore without a name would take.
func latest(cmd *cobra.Command, r *repo.Repository, id repo.ClusterID) (restore.Choice, error) {
	histories, unreadable, err := r.Histories(cmd.Context(), id)
	if err != nil {
		return restore.Choice{}, err
	}
	backups, err := r.BackupsToRead(cmd.Context(), id)
	if err != nil {
		return restore.Choice{}, err
	}
	return restore.Choose(backups, histories, unreadable, restore.Target{}, "")
}
