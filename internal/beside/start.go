package beside

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"agent/internal/errs"
)

// maxLog is the size from which a log begins anew, in bytes.
const maxLog = 1 << 20

// Command is a process to start.
type Command struct {
	Program string   // path
	Argv0   string   // what it is called by
	Args    []string // without argv[0]
	Env     []string
	Log     string // path of the file that takes what it says; made, with its folder
}

// Start starts a process in a session of its own, which outlives the caller, and
// does not wait for it. It returns the process's id.
func Start(ctx context.Context, c Command) (pid int, err error) {
	log, err := openLog(c.Log)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if err := closeInherited(); err != nil {
		return 0, err
	}
	// It outlives this command and its deadline.
	child := exec.CommandContext(context.WithoutCancel(ctx), c.Program, c.Args...)
	child.Args[0] = c.Argv0
	child.Dir = "/"
	child.Env = c.Env
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", c.Program, err)
	}
	pid = child.Process.Pid // which Release forgets
	return pid, child.Process.Release()
}

// openLog opens the log to append to it; one that has become too long begins
// anew.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, errs.State(err, "make log directory")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
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
