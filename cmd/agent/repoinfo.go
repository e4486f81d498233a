package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/config"
	"agent/internal/errs"
	"agent/internal/inventory"
	"agent/internal/report"
)

func (a *app) repoInfo() *cobra.Command {
	var asJSON, deep bool
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Show what is in the repository, how it grows, and what it costs",
		Long: `Shows of each repository how many objects and bytes of each kind it holds, what was
stored in the last days, the cost where prices are configured (price_...), and for
which backups its packs are needed; and of each cluster which moments can be
recovered, and which packs its backups borrow from each other (docs/repository.md).

It lists everything, a request for some thousand objects, and reads backup.json
and the list of packs of each backup. With --deep it reads the manifests, too,
which needs an identity where they are encrypted, and tells how much of the packs
that are needed nothing uses.`,
		Args: exactArgs(0, "repo info [--json] [--deep]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, r, err := a.looking(cmd)
			if err != nil {
				return err
			}
			inv, err := inventory.Take(cmd.Context(), r, inventory.Options{Now: time.Now(), Deep: deep, Concurrency: cfg.Concurrency})
			if err != nil {
				return err
			}
			d := report.InfoOf(inv, prices(cfg))
			if asJSON {
				err = report.InfoJSON(a.stdout, d)
			} else {
				err = report.InfoTable(a.stdout, d)
			}
			return errors.Join(err, notListed(inv))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	cmd.Flags().BoolVar(&deep, "deep", false, "read the manifests, and tell what in the packs nothing uses")
	return cmd
}

// prices are those of each repository.
func prices(cfg *config.Config) map[string]report.Prices {
	all := make(map[string]report.Prices)
	for _, r := range cfg.Repositories {
		all[r.Name] = report.Prices(r.Prices)
	}
	return all
}

// notListed is an error if a required repository could not be listed, or
// something of what is stored could not be read.
func notListed(inv *inventory.Inventory) error {
	var all []error
	for _, p := range inv.Places {
		if p.Required && p.Err != nil {
			all = append(all, errs.Wrap(p.Err, errs.Storage, "Look whether the repository can be reached, and run the same command again.", "list repository %s", p.Name))
		}
	}
	for _, c := range inv.Clusters {
		all = append(all, c.NoWindows, c.Unread)
	}
	return errors.Join(all...)
}
