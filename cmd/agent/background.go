package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"walagent/internal/config"
	"walagent/internal/errs"
	"walagent/internal/repo"
)

// backgroundFlag marks a sync that a push has started.
const backgroundFlag = "background"

// maxLog is the size from which the log of such syncs begins anew.
const maxLog = 1 << 20

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

func (a *app) startSync(cmd *cobra.Command, cfg *config.Config) (err error) {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	log, err := openLog(filepath.Join(cfg.StateDir, "log"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if err := closeInherited(); err != nil {
		return err
	}
	args, err := a.syncArgs(cmd)
	if err != nil {
		return err
	}
	// It outlives this command and its deadline.
	child := exec.CommandContext(context.WithoutCancel(cmd.Context()), program, args...)
	child.Args[0] = os.Args[0]
	child.Dir = "/"
	child.Env = os.Environ()
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("start agent repo sync: %w", err)
	}
	a.log.Debug("started agent repo sync --pending", "pid", child.Process.Pid, "log", log.Name())
	return child.Process.Release()
}

// openLog opens the log to append to it; one that has become too long begins
// anew.
func openLog(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.State(err, "make log directory")
	}
	f, err := os.OpenFile(filepath.Join(dir, "repo-sync.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, errs.State(err, "open log")
	}
	info, err := f.Stat()
	if err == nil && info.Size() > maxLog {
		err = f.Truncate(0)
	}
	if err != nil {
		return nil, errs.State(errors.Join(err, f.Close()), "open log")
	}
	return f, nil
}

// closeInherited keeps files and sockets that the server has left open in this
// process from the child: it would hold them when the server is long gone. What
// Go opens is closed on exec anyway.
func closeInherited() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// syncArgs are the arguments of the child: the flags of this command that are
// settings. Paths become absolute, since the child runs elsewhere.
func (a *app) syncArgs(cmd *cobra.Command) ([]string, error) {
	args := []string{"repo", "sync", "--pending", "--" + backgroundFlag}
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

// endBackground tells the log how a sync ended, whose status is always 0. In a
// container the server may be process 1 and so inherit the child, and takes an
// end with any status but 0 and 1 for the crash of one of its own, upon which it
// ends all sessions (PostgreSQL, postmaster.c, CleanupBackend).
func (a *app) endBackground(err error) {
	if err != nil && errs.KindOf(err) != errs.Locked {
		a.fail(storeAdvice(err), 0)
	}
}
