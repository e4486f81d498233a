package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"agent/internal/crypto"
)

func (a *app) repoCommand() *cobra.Command {
	cmd := a.group(&cobra.Command{Use: "repo", GroupID: "setup", Short: "Work with the repository itself"})
	cmd.AddCommand(&cobra.Command{
		Use:   "init",
		Short: "Make the repository",
		Long: `Makes the repository at the configured URL and pins its id in the state directory.
Every other command refuses a place without repository.json, or with another id:
an empty mount point or a wrong path is noticed. A second init is refused.`,
		Args: exactArgs(0, "repo init"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load(cmd)
			if err != nil {
				return err
			}
			r, err := a.open(cmd.Context(), cfg, opening{create: true})
			if err != nil {
				return err
			}
			ids, err := r.Init(cmd.Context())
			for _, url := range slices.Sorted(maps.Keys(ids)) {
				err = errors.Join(err, fprint(a.stdout, "made repository %s (id %s)\n", url, ids[url]))
			}
			if err != nil {
				return err
			}
			if !r.Sealed() {
				a.log.Warn("data will not be encrypted: no recipients are configured (agent keygen, AGENT_RECIPIENTS)")
			}
			return fprint(a.stdout, "next: archive_command = 'agent wal-push %%p', then agent backup-push\n")
		},
	})
	cmd.AddCommand(a.repoInfo(), a.repoCheckFormat(), a.repoSync(), a.repoCopy())
	return cmd
}

func (a *app) keygen() *cobra.Command {
	var output string
	var postQuantum bool
	cmd := &cobra.Command{
		Use:     "keygen",
		GroupID: "setup",
		Short:   "Make an age identity and its recipient",
		Long: `Makes an age identity, the secret that opens backups, and prints its recipient,
the public key that seals them. Keep the identity away from the database host,
in more than one place: without it no backup can be restored.

  agent keygen -o identity.txt
  export AGENT_RECIPIENTS=age1...          # on the database host
  export AGENT_IDENTITY_FILE=identity.txt  # where backups are restored`,
		Args: exactArgs(0, "keygen [-o FILE]"),
		RunE: func(_ *cobra.Command, _ []string) error {
			identity, recipient, err := crypto.Generate(postQuantum)
			if err != nil {
				return err
			}
			now := time.Now()
			if output == "" {
				return fprint(a.stdout, "# created: %s\n# public key: %s\n%s\n", now.UTC().Format(time.RFC3339), recipient, identity)
			}
			if err := crypto.WriteIdentityFile(output, identity, recipient, now); err != nil {
				return err
			}
			return fprint(a.stdout, "%s\n", recipient)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write the identity to this new file, with mode 0600, and print the recipient alone")
	cmd.Flags().BoolVar(&postQuantum, "pq", false, "make a post-quantum key (ML-KEM-768 with X25519)")
	return cmd
}

func (a *app) configCommand() *cobra.Command {
	cmd := a.group(&cobra.Command{Use: "config", GroupID: "setup", Short: "Look at the configuration"})
	var asJSON bool
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the effective settings and where each came from",
		Args:  exactArgs(0, "config show"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load(cmd)
			if err != nil {
				return err
			}
			settings := cfg.Effective()
			if asJSON {
				e := json.NewEncoder(a.stdout)
				e.SetIndent("", "  ")
				return e.Encode(settings)
			}
			t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			for _, s := range settings {
				fmt.Fprintf(t, "%s\t%s\t%s\n", s.Key, s.Value, s.Source)
			}
			return t.Flush()
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print an array of objects")
	cmd.AddCommand(show)
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", GroupID: "setup", Short: "Print the version",
		Args: exactArgs(0, "version"),
		RunE: func(_ *cobra.Command, _ []string) error { return fprint(a.stdout, "agent %s\n", version) },
	}
}
