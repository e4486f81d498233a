package main

import (
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"agent/internal/compact"
	"agent/internal/compress"
	"agent/internal/host"
	"agent/internal/repo"
	"agent/internal/report"
)

func (a *app) backupCompact() *cobra.Command {
	var cluster uint64
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "backup-compact NAME|LATEST",
		GroupID: "backup",
		Short:   "Make a backup that stands alone out of one that borrows from others",
		Long: `Makes a new, full backup of an incremental one, from the repository alone: the
database is not asked. It has the same LSNs, times, timeline and WAL, restores to
the same bytes, and needs no other backup. The old one stays as it is.

It runs on any host that can read the backup: it needs an identity of the classes
data and meta, and public keys for both. What is stored is copied as it is where all
of it is still needed; the rest is compressed again.

Of a backup that borrows nothing it makes none, and ends with status 0.`,
		Args: exactArgs(1, "backup-compact NAME|LATEST [--json]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, r, b, err := a.named(cmd, cluster, args[0])
			if err != nil {
				return err
			}
			codec, err := compress.Parse(cfg.Compression)
			if err != nil {
				return err
			}
			self, err := host.Read(cfg.StateDir)
			if err != nil {
				return err
			}
			a.warnOfIdentities()
			progress := a.progress()
			res, err := compact.Run(cmd.Context(), r, compact.Options{
				Backup: b, Concurrency: cfg.Concurrency, Codec: codec, StateDir: cfg.StateDir, Host: self,
				Log: a.log, Now: time.Now, Version: version,
				Progress: func(p compact.Progress) { progress.update("compacting", p.Done, p.Total, p.Elapsed) },
			})
			progress.end()
			if err != nil {
				return err
			}
			a.syncLater(cmd, cfg, r)
			return a.compactSummary(res, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the new backup as a JSON object")
	clusterFlag(cmd, &cluster)
	return cmd
}

func (a *app) compactSummary(res *compact.Result, asJSON bool) error {
	b := res.Backup
	if asJSON {
		if len(res.Incomplete) > 0 {
			a.log.Warn("the backup does not exist yet in some repositories; agent repo sync brings it there", "repositories", strings.Join(res.Incomplete, ", "))
		}
		return report.ShowJSON(a.stdout, report.Of(b, repo.Marks{}, time.Now()))
	}
	if res.Nothing {
		return fprint(a.stdout, "backup %s borrows nothing from others: there is nothing to do\n", b.Name)
	}
	return fprint(a.stdout, `backup %s is complete, and stands alone; it was made of %s
  %s files, %s, %s stored, in %s
  %s copied as it was stored, %s compressed again
  requests: %s
%s`, b.Name, b.CompactedFrom, humanize.Comma(b.Files), humanize.IBytes(uint64(b.DataBytes)), humanize.IBytes(uint64(b.StoredBytes)),
		res.Elapsed.Round(10*time.Millisecond), humanize.IBytes(uint64(res.Copied)), humanize.IBytes(uint64(res.Reframed)),
		a.requests(), incompleteLine(res.Incomplete))
}
