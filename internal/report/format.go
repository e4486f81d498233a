package report

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"agent/internal/formatcheck"
	"agent/internal/repo"
)

// Format is what `repo check-format --json` prints of a repository.
type Format struct {
	Repository string          `json:"repository"`
	URL        string          `json:"url"`
	Status     string          `json:"status"`
	Format     int             `json:"format,omitempty"`
	Reads      int             `json:"agent_reads"`
	Created    *time.Time      `json:"created,omitempty"`
	CreatedBy  string          `json:"created_by,omitempty"`
	Kinds      []FormatKind    `json:"kinds"`
	Findings   []FormatFinding `json:"findings"`
	More       int             `json:"more_findings"`
	Notes      []string        `json:"notes"`
	Error      string          `json:"error,omitempty"`
}

// FormatKind is what was read of a kind of objects.
type FormatKind struct {
	Kind    string `json:"kind"`
	Format  int    `json:"format,omitempty"`
	Objects int64  `json:"objects"`
	Read    int64  `json:"read"`
	Opened  int64  `json:"opened"`
}

// FormatFinding is an object that is not understood.
type FormatFinding struct {
	Kind string `json:"kind"`
	Key  string `json:"key"`
	Text string `json:"text,omitempty"`
}

// The values of Format.Status.
const (
	formatUnderstood = "understood"
	formatNot        = "not understood"
	formatUnread     = "unread"
)

// FormatOf describes what was found in a repository.
func FormatOf(r *formatcheck.Result) Format {
	d := Format{
		Repository: r.Name, URL: r.URL, Status: formatUnderstood, Format: r.Marker.Format, Reads: repo.Format, CreatedBy: r.Marker.CreatedBy,
		Kinds: []FormatKind{}, Findings: []FormatFinding{}, More: r.More, Notes: append([]string{}, r.Notes...),
	}
	if at := r.Marker.Created; !at.IsZero() {
		d.Created = &at
	}
	for _, t := range r.Tallies {
		d.Kinds = append(d.Kinds, FormatKind{string(t.Kind), t.Format, t.Objects, t.Read, t.Opened})
	}
	for _, f := range r.Findings {
		one := FormatFinding{Kind: string(f.Kind), Key: f.Key}
		if f.Err != nil {
			one.Text = oneLine(f.Err)
		}
		d.Findings = append(d.Findings, one)
		d.Status = formatNot
	}
	if r.Err != nil {
		d.Error, d.Status = oneLine(r.Err), formatUnread
	}
	return d
}

// FormatJSON prints an array of objects.
func FormatJSON(w io.Writer, all []Format) error { return writeJSON(w, all) }

// FormatTable prints, for each repository, a line for each kind and finding.
func FormatTable(w io.Writer, all []Format) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, d := range all {
		line(t, "repository %s: %s", d.Repository, d.URL)
		if d.Format != 0 {
			line(t, "  format %d, made by agent %s; this agent reads format %d", d.Format, d.CreatedBy, d.Reads)
		}
		if len(d.Kinds) > 0 {
			row(t, "  kind", "format", "objects", "read", "opened")
		}
		for _, k := range d.Kinds {
			format := "-"
			if k.Format != 0 {
				format = number(int64(k.Format))
			}
			row(t, "  "+k.Kind, format, number(k.Objects), number(k.Read), number(k.Opened))
		}
		for _, f := range d.Findings {
			line(t, "  %s: %s %s", f.Kind, f.Key, f.Text)
		}
		if d.More > 0 {
			line(t, "  and %d more", d.More)
		}
		for _, n := range d.Notes {
			line(t, "  note: %s", n)
		}
		if d.Error != "" {
			line(t, "  not read to the end: %s", d.Error)
		}
		line(t, "  %s", d.Status)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}
