package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"agent/cmd/agent/early"
	"agent/internal/backlog"
	"agent/internal/beside"
	"agent/internal/config"
	"agent/internal/repo"
	"agent/internal/wal"
)

// pushWorker is the process that archives a backlog beside the server, as one
// wal-push sees it.
type pushWorker struct {
	*app
	cmd  *cobra.Command
	cfg  *config.Config
	dir  string // pg_wal
	name beside.Name
	err  error // why there cannot be one
}

func (a *app) pushWorker(cmd *cobra.Command, cfg *config.Config, path string) *pushWorker {
	w := &pushWorker{app: a, cmd: cmd, cfg: cfg}
	call, ok := early.Find(os.Args[1:])
	if !ok || call.Command != early.Push || call.Path != path {
		w.err = errors.New("the arguments name two WAL files")
		return w
	}
	name, err := call.Name(os.Getenv)
	if err == nil {
		w.dir, err = filepath.Abs(filepath.Dir(path))
	}
	w.name, w.err = beside.Name(name), err
	return w
}

// ask reports whether there is a worker, and waits until it has ended with the
// file, if it has taken it.
func (w *pushWorker) ask(ctx context.Context, file string) bool {
	if w.err != nil {
		return false
	}
	// One that hangs leaves time to archive the file here.
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	var answer wal.FileAnswer
	err := beside.Ask(ctx, w.name, wal.FileQuestion{File: file}, &answer)
	if err != nil && !errors.Is(err, beside.ErrNone) {
		w.log.Debug("ask the process that archives beside the server", "error", err.Error())
	}
	return err == nil
}

// start starts the worker behind a file. That it cannot is no failure: each call
// archives what it may.
func (w *pushWorker) start(after string) {
	pid, err := beside.Postmaster(filepath.Dir(w.dir))
	if err != nil || inherits(pid) {
		return
	}
	if err = w.err; err == nil {
		err = w.startBeside(w.cmd, w.cfg, "wal-push", "wal-push-worker", string(w.name), w.dir, after)
	}
	if err != nil {
		w.log.Warn("cannot start the process that archives a backlog", "error", err.Error())
	}
}

// walPushWorker is what wal-push starts; nobody else calls it.
func (a *app) walPushWorker() *cobra.Command {
	return &cobra.Command{
		Use:    "wal-push-worker NAME DIRECTORY FILE",
		Hidden: true,
		Short:  "Archive a backlog beside the server (started by wal-push)",
		Args:   exactArgs(3, "wal-push-worker NAME DIRECTORY FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			debug.SetMemoryLimit(pushMemory)
			a.endBackground(a.workOff(cmd, beside.Name(args[0]), args[1], args[2]))
			return nil
		},
	}
}

// answerCalls is what the worker does for a call whose file is archived: the same
// as wal-push. It leaves to the call itself whatever wal-push would tell the
// server's log.
func (a *app) answerCalls(cfg *config.Config) func(ctx context.Context, path string) bool {
	if a.log.Enabled(context.Background(), slog.LevelDebug) || len(cfg.Warnings()) > 0 {
		return nil
	}
	return func(ctx context.Context, path string) bool {
		if (backlog.Watch{StateDir: cfg.StateDir, Log: a.log, Now: time.Now}).Due(path) {
			return false
		}
		call := &app{stdout: a.stdout, stderr: a.stderr, log: a.log}
		p := &wal.Pusher{Log: call.log, Now: time.Now, StateDir: cfg.StateDir}
		done, err := call.archivedBefore(ctx, cfg, p, p.Done, path)
		return done && err == nil // else the call tells
	}
}

func (a *app) workOff(cmd *cobra.Command, name beside.Name, dir, after string) (err error) {
	l, err := beside.Listen(cmd.Context(), name, os.Environ())
	if errors.Is(err, beside.ErrTaken) {
		return nil
	}
	if err != nil {
		return err
	}
	cfg, err := a.load(cmd)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, stop := whileServer(cmd.Context(), filepath.Dir(dir))
	defer stop()
	var r *repo.Repository
	if r, err = a.open(ctx, cfg, opening{hurry: true, write: true, patience: longPatience}); err != nil {
		return errors.Join(err, l.Close())
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	p := &wal.Pusher{Repo: r, Log: a.log, Now: time.Now, StateDir: cfg.StateDir}
	worker := &wal.Worker{Pusher: p, Dir: dir, Answer: a.answerCalls(cfg)}
	if err := worker.Run(ctx, l, after); err != nil {
		return err
	}
	a.syncLater(cmd, cfg, r)
	return nil
}
