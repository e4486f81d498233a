package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/check"
	"agent/internal/config"
	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/storage"
)

const (
	// checkPatience is how long one question to a repository is tried.
	checkPatience = 5 * time.Second
	// arrivalDefault is how long a switched segment may take.
	arrivalDefault = time.Minute
)

func (a *app) check() *cobra.Command {
	var asJSON, nagios, noSwitch bool
	cmd := &cobra.Command{
		Use:     "check",
		GroupID: "setup",
		Short:   "Try out whether this setup will work",
		Long: `Tries out whether archiving and backups will work: the configuration, each
repository (a probe object is put, read, listed, put again, deleted), its clock
and locks, the state directory, the server's settings and grants, and whether a
segment that the server is made to switch arrives in every repository, within
--wal-timeout (default here 60s). Each line is ok, warning, failed or skipped.

Ends with 0 if nothing failed, else with the status of the first failure's kind
(docs/check.md). With --nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.`,
		Args: exactArgs(0, "check [--json | --nagios] [--no-switch] [--wal-timeout DURATION]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON && nagios {
				return errs.New(errs.Usage, seeHelp(cmd), "--json and --nagios exclude each other")
			}
			if nagios {
				// The one line is all that a monitoring server is told.
				a.stderr = io.Discard
			}
			report := a.checked(cmd, noSwitch)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			switch {
			case nagios:
				return a.nagios(report)
			case asJSON:
				if err := report.JSON(a.stdout); err != nil {
					return err
				}
			default:
				if err := report.Text(a.stdout); err != nil {
					return err
				}
			}
			return report.Err()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	cmd.Flags().BoolVar(&nagios, "nagios", false, "print one line and end as a monitoring plugin does")
	cmd.Flags().BoolVar(&noSwitch, "no-switch", false, "do not make the server switch to a new WAL segment")
	return cmd
}

// nagios prints the line of a monitoring plugin and ends with its status.
func (a *app) nagios(report check.Report) error {
	line, status := report.Nagios()
	if err := fprint(a.stdout, "%s\n", line); err != nil {
		return err
	}
	if status == check.NagiosOK {
		return nil
	}
	return pluginError(status)
}

// checked makes all checks.
func (a *app) checked(cmd *cobra.Command, noSwitch bool) check.Report {
	cfg, err := a.load(cmd)
	if cfg == nil {
		return check.Unconfigured(err)
	}
	if err := cfg.NeedRepository(); err != nil {
		return check.Unconfigured(err)
	}
	ctx := cmd.Context()
	o := check.Options{
		ConfigFile: cfg.FilePath, Warnings: cfg.Warnings(), Keys: a.checkedKeys(ctx, cfg),
		StateDir: cfg.StateDir, StateErr: err, DataDirectory: cfg.DataDirectory, ConnInfo: cfg.Connection, PrimaryConnInfo: cfg.PrimaryConnInfo,
		Places: a.checkedPlaces(ctx, cfg), NoSwitch: noSwitch, WALTimeout: arrivalDefault,
		Advise: storeAdvice, Log: a.log, Now: time.Now, Version: version,
	}
	if o.Program, err = os.Executable(); err != nil {
		o.Program = os.Args[0]
	}
	if cmd.Flags().Changed("wal-timeout") {
		o.WALTimeout = cfg.WALTimeout
	}
	report := check.Run(ctx, o)
	for _, s := range a.stores {
		if err := s.base.Close(); err != nil {
			a.log.Debug("close repository", "repository", s.name, "error", err.Error())
		}
	}
	return report
}

// checkedKeys gives the settings of the keys. A command for an identity is not
// run: it may ask somebody.
func (a *app) checkedKeys(ctx context.Context, cfg *config.Config) check.Keys {
	ids := crypto.NewIdentities(ctx, crypto.Sources{File: cfg.IdentityFile, Text: cfg.Identity, Command: cfg.IdentityCommand})
	keys := check.Keys{Data: cfg.Recipients, WAL: cfg.RecipientsWAL, Meta: cfg.RecipientsMeta, Identity: ids.Given()}
	if cfg.IdentityCommand == "" {
		keys.LoadIdentity = ids.Load
	}
	return keys
}

// checkedPlaces opens each repository; what is wrong with one is told of that
// one.
func (a *app) checkedPlaces(ctx context.Context, cfg *config.Config) []check.Place {
	var all []check.Place
	for _, r := range cfg.Repositories {
		p := check.Place{Place: placeOf(cfg, r)}
		if scheme, _, path, err := storage.ParseURL(r.URL); err == nil && scheme == storage.SchemeFile {
			p.Dir = path
		}
		how := opening{patience: checkPatience}
		if base, err := a.openStore(ctx, cfg, r, how); err != nil {
			p.Err = err
		} else {
			// Told of several, it is patient for as long as how says.
			p.Bucket = a.decorated(cfg, r, base, how, true)
		}
		all = append(all, p)
	}
	return all
}
