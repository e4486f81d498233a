package report

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"agent/internal/verify"
)

// BackupsVerified is what `backup-verify --json` prints.
type BackupsVerified struct {
	SystemIdentifier string          `json:"system_identifier"`
	Status           string          `json:"status"`
	Depth            string          `json:"depth"`
	ToLatest         bool            `json:"to_latest"`
	Backups          []BackupState   `json:"backups"`
	Objects          int64           `json:"objects"`
	StoredBytes      int64           `json:"stored_bytes"`
	Skipped          int64           `json:"skipped"`
	NotOpened        string          `json:"not_opened,omitempty"`
	Repaired         int             `json:"repaired"`
	Findings         []BackupFinding `json:"findings"`
	Lost             []LostBackup    `json:"lost"`
	LostMoments      []LostMoment    `json:"lost_moments"`
}

// BackupState is one backup that was verified.
type BackupState struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Marked bool   `json:"marked"`
}

// BackupFinding is one thing that is wrong.
type BackupFinding struct {
	Kind        string   `json:"kind"`
	Repository  string   `json:"repository,omitempty"`
	Key         string   `json:"key,omitempty"`
	First       string   `json:"first,omitempty"`
	Last        string   `json:"last,omitempty"`
	Segments    uint64   `json:"segments,omitempty"`
	Everywhere  bool     `json:"everywhere"`
	Repaired    string   `json:"repaired_from,omitempty"`
	NotRepaired string   `json:"not_repaired,omitempty"`
	Text        string   `json:"text"`
	Backups     []string `json:"backups"`
}

// LostBackup is a backup that cannot be restored.
type LostBackup struct {
	Name    string `json:"name"`
	Why     string `json:"why"`
	Instead string `json:"instead,omitempty"`
}

// LostMoment is a stretch of WAL that cannot be recovered.
type LostMoment struct {
	Timeline uint32    `json:"timeline"`
	From     string    `json:"from_lsn"`
	To       string    `json:"to_lsn"`
	Since    time.Time `json:"since,omitzero"`
	Until    time.Time `json:"until,omitzero"`
}

// BackupsVerifiedOf describes what a verification has found.
func BackupsVerifiedOf(r *verify.Result) BackupsVerified {
	d := BackupsVerified{
		SystemIdentifier: r.Cluster.String(), Status: r.Status(), Depth: r.Depth.String(), ToLatest: r.ToLatest, Backups: []BackupState{},
		Objects: r.Objects, StoredBytes: r.Bytes, Skipped: r.Skipped, NotOpened: r.NotOpened, Repaired: r.Repaired(),
		Findings: []BackupFinding{}, Lost: []LostBackup{}, LostMoments: []LostMoment{},
	}
	for _, b := range r.Backups {
		d.Backups = append(d.Backups, BackupState{string(b.Name), b.Status, b.Marked})
	}
	for _, f := range r.Findings {
		one := BackupFinding{
			Kind: string(f.Kind), Repository: f.Repository, Key: f.Key, First: f.First, Last: f.Last, Segments: f.Segments,
			Everywhere: f.Everywhere, Repaired: f.Repaired, Text: f.Text, Backups: texts(f.Backups),
		}
		if f.NotRepaired != nil {
			one.NotRepaired = f.NotRepaired.Error()
		}
		d.Findings = append(d.Findings, one)
	}
	for _, l := range r.Lost {
		d.Lost = append(d.Lost, LostBackup{string(l.Backup), l.Why, string(l.Instead)})
	}
	for _, m := range r.Moments {
		d.LostMoments = append(d.LostMoments, LostMoment{uint32(m.Timeline), m.From.String(), m.To.String(), m.Since.UTC(), m.Until.UTC()})
	}
	return d
}

// BackupsVerifiedJSON prints an object.
func BackupsVerifiedJSON(w io.Writer, d BackupsVerified) error { return writeJSON(w, d) }

// BackupsVerifiedTable prints a line for each finding, what it means, and what was
// looked at.
func BackupsVerifiedTable(w io.Writer, d BackupsVerified) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range d.Findings {
		what := f.Kind
		switch {
		case f.Repaired != "":
			what = "repaired from " + f.Repaired
		case f.NotRepaired != "":
			what += ", not repaired"
		}
		row(t, what, f.Text, concerns(f.Backups))
	}
	for _, l := range d.Lost {
		instead := "no other backup leads there"
		if l.Instead != "" {
			instead = "recover its moments from " + l.Instead
		}
		row(t, "lost", "backup "+l.Name+" cannot be restored: "+l.Why, instead)
	}
	for _, m := range d.LostMoments {
		row(t, "lost", fmt.Sprintf("timeline %d from %s to %s cannot be recovered", m.Timeline, m.From, m.To), between(m.Since, m.Until))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return sumOf(w, d)
}

// sumOf prints the last lines.
func sumOf(w io.Writer, d BackupsVerified) error {
	line := fmt.Sprintf("%s: %d backups were verified (%s), %d objects of %s read", d.Status, len(d.Backups), d.Depth, d.Objects, size(d.StoredBytes))
	if d.Skipped > 0 {
		line += fmt.Sprintf(", %d left out that were verified before", d.Skipped)
	}
	if d.Repaired > 0 {
		line += fmt.Sprintf(", %d findings repaired", d.Repaired)
	}
	if d.NotOpened != "" {
		line = "not verified: what is in the manifests, which takes an identity (" + d.NotOpened + ")\n" + line
	}
	if _, err := fmt.Fprintln(w, line); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return nil
}

// between is a stretch of time of which an end may not be known.
func between(since, until time.Time) string {
	text := func(t time.Time) string {
		if t.IsZero() {
			return "?"
		}
		return t.UTC().Format(time.RFC3339)
	}
	return "moments between " + text(since) + " and " + text(until)
}
