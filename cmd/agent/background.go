package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"agent/internal/beside"
	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/repo"
)

// backgroundFlag marks a sync that a push has started.
const backgroundFlag = "background"

// syncLater starts agent repo sync --pending beside this process, and does not
// wait for it, if a best-effort repository that missed something can be reached
// again. That it cannot be started is no failure of the push.
func (a *app) syncLater(cmd *cobra.Command, cfg *config.Config, r *repo.Repository) {
	if len(cfg.Repositories) < 2 || !r.SyncDue() {
		return
	}
	// One that runs already will do.
	unlock, err := lockSync(cfg.StateDir)
	if errs.KindOf(err) == errs.Locked {
		return
	}
	if err == nil {
		err = unlock()
	}
	if err == nil {
		err = a.startSync(cmd, cfg)
	}
	if err != nil {
		a.log.Warn("cannot start agent repo sync, which brings the other repositories up to date", "error", err.Error())
	}
}

func (a *app) startSync(cmd *cobra.Command, cfg *config.Config) error {
	return a.startBeside(cmd, cfg, "repo-sync", "repo", "sync", "--pending", "--"+backgroundFlag)
}

// inherits reports whether a server of that process id would be the parent of a
// process that outlives the call: as the first process of a container it would
// take its death for that of one of its own (postmaster.c, CleanupBackend).
func inherits(postmaster int) bool { return postmaster == 1 }

// startBeside starts a command of this program beside this process, with the
// same settings. What it says goes to log/NAME.log of the state directory.
func (a *app) startBeside(cmd *cobra.Command, cfg *config.Config, name string, args ...string) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	settings, err := a.sameSettings(cmd)
	if err != nil {
		return err
	}
	log := filepath.Join(cfg.StateDir, "log", name+".log")
	pid, err := beside.Start(cmd.Context(), beside.Command{
		Program: program, Argv0: os.Args[0], Args: slices.Concat(args, settings), Env: os.Environ(), Log: log,
	})
	if err != nil {
		return err
	}
	a.log.Debug("started a process beside this one", "command", strings.Join(args, " "), "pid", pid, "log", log)
	return nil
}

// sameSettings are the flags of this command that are settings. Paths become
// absolute, since the child runs elsewhere.
func (a *app) sameSettings(cmd *cobra.Command) ([]string, error) {
	var args []string
	given := changedFlags(cmd)
	for _, o := range config.Options() {
		value, ok := given[o.Flag]
		if !ok || o.Flag == "" {
			continue
		}
		var err error
		switch {
		case o.Type == "PATH":
			value, err = absolute(value)
		case strings.HasPrefix(o.Key, "recipients"):
			value, err = absoluteRecipients(value)
		}
		if err != nil {
			return nil, err
		}
		args = append(args, "--"+o.Flag+"="+value)
	}
	if a.configPath != "" {
		path, err := absolute(a.configPath)
		if err != nil {
			return nil, err
		}
		args = append(args, "--config="+path)
	}
	return args, nil
}

func absolute(path string) (string, error) {
	if strings.HasPrefix(path, "~") {
		return path, nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("make path absolute: %w", err)
	}
	return abs, nil
}

// absoluteRecipients treats each item of a list that is no key as a path.
func absoluteRecipients(list string) (string, error) {
	items := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' })
	for i, item := range items {
		item = strings.TrimSpace(item)
		isKey := slices.ContainsFunc([]string{"age1", "ssh-"}, func(p string) bool { return strings.HasPrefix(item, p) })
		if isKey || item == "" {
			continue
		}
		abs, err := absolute(item)
		if err != nil {
			return "", err
		}
		items[i] = abs
	}
	return strings.Join(items, ","), nil
}

// endBackground tells the log how a process beside another one ended, whose status is always 0. In a
// container the server may be process 1 and so inherit the child, and takes an
// end with any status but 0 and 1 for the crash of one of its own, upon which it
// ends all sessions (PostgreSQL, postmaster.c, CleanupBackend).
func (a *app) endBackground(err error) {
	if err != nil && errs.KindOf(err) != errs.Locked {
		a.fail(storeAdvice(err), 0)
	}
}
