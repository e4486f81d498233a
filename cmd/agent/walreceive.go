package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/receive"
	"agent/internal/repo"
)

func (a *app) walReceive() *cobra.Command {
	var o receive.Options
	var until, flushBytes string
	cmd := &cobra.Command{
		Use:     "wal-receive --slot NAME",
		GroupID: "wal",
		Short:   "Receive WAL by streaming replication and archive it",
		Long: `Receives WAL from the running server over a replication connection, with a slot,
and archives it: whole segments as wal-push does, and what has come of the
unfinished one every few seconds, so that no more than that is lost with the
host. Runs until SIGTERM, anywhere; the role needs REPLICATION alone.

A position is confirmed to the server only when all before it is durable in
every required repository, so that the agent may stand in
synchronous_standby_names: then with --synchronous no committed transaction can
be lost. It reconnects, follows timelines, and may run beside archive_command
and other receivers.`,
		Args: exactArgs(0, "wal-receive --slot NAME"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load(cmd)
			if err != nil {
				return err
			}
			if o.Until, o.FlushBytes, err = receiveLimits(until, flushBytes, o.FlushInterval); err != nil {
				return err
			}
			o.Open = func(ctx context.Context) (*repo.Repository, error) {
				a.stores = nil // those of the handle before
				return a.open(ctx, cfg, opening{hurry: true, write: true, patience: longPatience})
			}
			o.Stored = func(r *repo.Repository) { a.syncLater(cmd, cfg, r) }
			o.ConnInfo, o.StateDir, o.Log, o.Now = cfg.Connection, cfg.StateDir, a.log, time.Now
			return receive.Run(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Slot, "slot", "", "the physical replication slot to use; each receiver needs its own")
	flags.BoolVar(&o.CreateSlot, "create-slot", false, "make the slot if there is none")
	flags.BoolVar(&o.Synchronous, "synchronous", false, "store whatever comes at once, for synchronous_standby_names")
	flags.DurationVar(&o.FlushInterval, "flush-interval", 5*time.Second, "how old WAL of the unfinished segment may become before it is stored")
	flags.StringVar(&flushBytes, "flush-bytes", "0", "store it also when so much has come (256KiB, 1MiB; 0: by time alone)")
	flags.StringVar(&until, "until-lsn", "", "end when all WAL before this position is durable")
	flags.BoolVar(&o.Once, "once", false, "end when all WAL that the server has now is durable")
	flags.BoolVar(&o.AllowGap, "allow-gap", false, "go on behind WAL that the server has removed, which leaves a gap in the archive")
	return cmd
}

func receiveLimits(until, flushBytes string, interval time.Duration) (lsn postgres.LSN, size int64, err error) {
	if interval <= 0 {
		return 0, 0, errs.New(errs.Usage, "Give a duration such as 5s.", "--flush-interval %s is not possible", interval)
	}
	if size, err = config.ParseSize(flushBytes); err != nil {
		return 0, 0, errs.Wrap(err, errs.Usage, "Give a size such as 256KiB.", "read --flush-bytes %s", flushBytes)
	}
	if until != "" {
		if lsn, err = postgres.ParseLSN(until); err != nil {
			return 0, 0, errs.Wrap(err, errs.Usage, "Give a position such as 0/3000060.", "read --until-lsn")
		}
	}
	return lsn, size, nil
}
