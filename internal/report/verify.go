package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"agent/internal/archive"
	"agent/internal/repo"
)

// Verified is what `wal-verify --json` prints.
type Verified struct {
	SystemIdentifier string    `json:"system_identifier"`
	Status           string    `json:"status"`
	Deep             bool      `json:"deep"`
	Backups          []string  `json:"backups"`
	Objects          int64     `json:"objects"`
	StoredBytes      int64     `json:"stored_bytes"`
	Findings         []Finding `json:"findings"`
}

// Finding is one thing that is wrong.
type Finding struct {
	Kind       string   `json:"kind"`
	Repository string   `json:"repository,omitempty"`
	Key        string   `json:"key,omitempty"`
	First      string   `json:"first,omitempty"`
	Last       string   `json:"last,omitempty"`
	Segments   uint64   `json:"segments,omitempty"`
	Dropped    bool     `json:"dropped"`
	Text       string   `json:"text"`
	Backups    []string `json:"backups"`
}

// VerifiedOf describes what a verification has found.
func VerifiedOf(s *archive.Survey, v *archive.Verdict, deep bool) Verified {
	d := Verified{
		SystemIdentifier: s.Cluster.String(), Status: s.Status(v), Deep: deep, Backups: []string{},
		Objects: v.Objects, StoredBytes: v.Bytes, Findings: []Finding{},
	}
	for _, b := range v.Backups {
		d.Backups = append(d.Backups, string(b.Name))
	}
	for _, f := range v.Findings {
		one := Finding{Kind: string(f.Kind), Repository: f.Repository, Key: f.Key, Dropped: f.Dropped, Text: f.Text(s.Size), Backups: texts(f.Backups)}
		if f.Missing != nil {
			one.First, one.Last, one.Segments = f.Missing.First.Name(s.Size), f.Missing.Last.Name(s.Size), f.Missing.Segments()
		}
		d.Findings = append(d.Findings, one)
	}
	return d
}

func texts(names []repo.BackupName) []string {
	all := make([]string, len(names))
	for i, n := range names {
		all[i] = string(n)
	}
	return all
}

// VerifiedJSON prints an object.
func VerifiedJSON(w io.Writer, d Verified) error { return writeJSON(w, d) }

// VerifiedTable prints a line for each finding, and what was looked at.
func VerifiedTable(w io.Writer, d Verified) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range d.Findings {
		row(t, f.Kind, f.Text, concerns(f.Backups))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	read := ""
	if d.Deep {
		read = fmt.Sprintf(", %d objects of %s read", d.Objects, size(d.StoredBytes))
	}
	if _, err := fmt.Fprintf(w, "%s: the WAL of %d backups was verified%s\n", d.Status, len(d.Backups), read); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return nil
}

func concerns(backups []string) string {
	if len(backups) == 0 {
		return ""
	}
	return "backups: " + strings.Join(backups, ",")
}
