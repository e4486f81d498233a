package main

import (
	"errors"

	"github.com/spf13/cobra"

	"agent/internal/errs"
	"agent/internal/formatcheck"
	"agent/internal/report"
)

// defaultSample is how many objects are read of the kinds of which there are
// many.
const defaultSample = 20

func (a *app) repoCheckFormat() *cobra.Command {
	o := formatcheck.Options{Sample: defaultSample}
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "check-format",
		Short: "Read the repository, and say whether this agent understands all of it",
		Long: `Reads what the repository holds, such as one that an older version of the agent has
written, and says of each kind of objects which version of the format it has, what
of it this agent does not understand, and what does not read. Without an identity
it reads what is not encrypted, and compares the rest with the hashes that are
known; with one it opens everything.

Of WAL, summaries, ranges of WAL and packs it reads a sample of each, with the first
and the last; with --all every one. Another repository is read with --repository.

Ends with 0 only if all that was read is understood; with 2 if something is of a
newer format or no object of ours, with 6 if something is damaged.`,
		Args: exactArgs(0, "repo check-format [--sample N | --all] [--json]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Sample < 1:
				return errs.New(errs.Usage, seeHelp(cmd), "--sample is %d; it must be at least 1", o.Sample)
			case all && cmd.Flags().Changed("sample"):
				return errs.New(errs.Usage, seeHelp(cmd), "--sample and --all exclude each other")
			case all:
				o.Sample = 0
			}
			cfg, r, err := a.looking(cmd)
			if err != nil {
				return err
			}
			o.Concurrency = min(cfg.Concurrency, copies)
			var found []report.Format
			var failed []error
			for _, p := range r.Places() {
				res, err := formatcheck.Check(cmd.Context(), r, p, o)
				if err != nil {
					return err
				}
				found = append(found, report.FormatOf(res))
				if err := res.Failure(); err != nil && (p.Required || p.Err == nil) {
					failed = append(failed, err)
				}
			}
			if asJSON {
				err = report.FormatJSON(a.stdout, found)
			} else {
				err = report.FormatTable(a.stdout, found)
			}
			return errors.Join(append(failed, err)...)
		},
	}
	cmd.Flags().IntVar(&o.Sample, "sample", o.Sample, "how many objects to read of each kind of which there are many")
	cmd.Flags().BoolVar(&all, "all", false, "read every object")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an array of objects, one for each repository")
	return cmd
}
