// Package report tells people and scripts what is in a repository.
package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"agent/internal/repo"
)

// Backup is a backup as `backup-list --json` and `backup-show --json` print
// it. The names of the fields are a contract (docs/json.md): fields may be
// added, none is renamed or removed.
type Backup struct {
	Name             string            `json:"name"`
	Type             string            `json:"type"`
	Parent           string            `json:"parent,omitempty"`
	Full             string            `json:"full,omitempty"`
	Depth            int               `json:"depth"`
	Detector         string            `json:"detector,omitempty"`
	Resumed          string            `json:"resumed,omitempty"`
	Reasons          []string          `json:"reasons,omitempty"`
	CompactedFrom    string            `json:"compacted_from,omitempty"`
	SystemIdentifier string            `json:"system_identifier"`
	StartTime        time.Time         `json:"start_time"`
	StopTime         time.Time         `json:"stop_time"`
	DurationSeconds  float64           `json:"duration_seconds"`
	StartLSN         string            `json:"start_lsn"`
	StopLSN          string            `json:"stop_lsn"`
	Timeline         uint32            `json:"timeline"`
	StartWAL         string            `json:"start_wal"`
	StopWAL          string            `json:"stop_wal"`
	DataBytes        int64             `json:"data_bytes"`
	ReadBytes        int64             `json:"read_bytes"`
	InheritedBytes   int64             `json:"inherited_bytes"`
	StoredBytes      int64             `json:"stored_bytes"`
	Ratio            float64           `json:"ratio"`
	Files            int64             `json:"files"`
	Packs            int64             `json:"packs"`
	Tablespaces      int               `json:"tablespaces"`
	PostgresVersion  string            `json:"postgres_version"`
	Label            string            `json:"label"`
	Permanent        bool              `json:"permanent"`
	KeptUntil        *time.Time        `json:"kept_until,omitempty"`
	Annotations      map[string]string `json:"annotations"`
	VerifiedTime     *time.Time        `json:"verified_time,omitempty"`
	DataChecksums    bool              `json:"data_checksums"`
	BadPages         int64             `json:"bad_pages"`
	BadPageSample    []string          `json:"bad_page_sample,omitempty"`
	Encrypted        bool              `json:"encrypted"`
	Host             string            `json:"host"`
	DataDirectory    string            `json:"data_directory"`
	Standby          bool              `json:"standby"`
	Agent            string            `json:"agent"`
}

// Of describes a backup; now decides whether a mark still holds.
func Of(b *repo.Backup, m repo.Marks, now time.Time) Backup {
	d := of(b)
	d.Permanent = m.Kept(now)
	if m.Keep != nil && !m.Keep.Until.IsZero() && d.Permanent {
		d.KeptUntil = &m.Keep.Until
	}
	if m.Notes != nil {
		d.Annotations = m.Notes
	}
	if m.Verified != nil {
		d.VerifiedTime = &m.Verified.Time
	}
	return d
}

func of(b *repo.Backup) Backup {
	return Backup{
		Name: string(b.Name), Type: b.Type, Parent: string(b.Parent), Full: string(b.Full), CompactedFrom: string(b.CompactedFrom), Depth: b.Depth, Detector: b.Detector,
		Resumed: string(b.Resumed), Reasons: b.Notes, ReadBytes: b.ReadBytes, InheritedBytes: b.InheritedBytes, SystemIdentifier: b.Cluster.String(),
		StartTime: b.Started, StopTime: b.Stopped, DurationSeconds: b.Stopped.Sub(b.Started).Seconds(),
		StartLSN: b.StartLSN.String(), StopLSN: b.StopLSN.String(), Timeline: uint32(b.Timeline),
		StartWAL: b.StartSegment, StopWAL: b.StopSegment, DataBytes: b.DataBytes, StoredBytes: b.StoredBytes,
		Ratio: ratio(b), Files: b.Files, Packs: b.PackCount, Tablespaces: b.Tablespaces,
		PostgresVersion: version(b.PostgresVersion), Label: b.Label,
		DataChecksums: b.Checksums, BadPages: b.BadPages, BadPageSample: b.BadPageSample,
		Encrypted: b.Sealed, Host: b.Host, DataDirectory: b.Directory, Standby: b.Standby, Agent: b.Agent,
		Annotations: map[string]string{},
	}
}

// ratio is how many times smaller the stored bytes are, to two places.
func ratio(b *repo.Backup) float64 {
	if b.StoredBytes == 0 {
		return 0
	}
	return float64(b.DataBytes*100/b.StoredBytes) / 100
}

// Noted reports whether the backup has all of these notes, each a key, or a key
// and its value behind "=".
func (d Backup) Noted(notes []string) bool {
	for _, n := range notes {
		key, value, valued := strings.Cut(n, "=")
		if have, ok := d.Annotations[key]; !ok || valued && have != value {
			return false
		}
	}
	return true
}

// version writes server_version_num as the server names itself since 10.
func version(num int) string { return fmt.Sprintf("%d.%d", num/10000, num%10000) }

// Sort orders backups by when they ended, the oldest first.
func Sort(backups []*repo.Backup) {
	slices.SortFunc(backups, func(a, b *repo.Backup) int {
		return cmp.Or(a.Stopped.Compare(b.Stopped), cmp.Compare(a.Name, b.Name))
	})
}

// JSON prints an array of objects.
func JSON(w io.Writer, backups []Backup) error {
	if backups == nil {
		backups = []Backup{}
	}
	return writeJSON(w, backups)
}

// ShowJSON prints one object.
func ShowJSON(w io.Writer, b Backup) error { return writeJSON(w, b) }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// Table prints a line for each backup. The header begins with "name modified"
// and the first three columns are name, time and first WAL file, as scripts
// written for WAL-G's backup-list expect them.
func Table(w io.Writer, backups []Backup) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row(t, "name", "modified", "wal_file", "type", "stop_lsn", "timeline", "size", "stored", "ratio", "duration", "postgres", "permanent", "notes")
	for _, d := range backups {
		row(t, d.Name, d.StopTime.UTC().Format(time.RFC3339), d.StartWAL, d.Type, d.StopLSN, strconv.FormatUint(uint64(d.Timeline), 10),
			size(d.DataBytes), size(d.StoredBytes), strconv.FormatFloat(d.Ratio, 'f', 1, 64),
			duration(d), d.PostgresVersion, yesNo(d.Permanent), notes(d))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// row writes cells; what cannot be written is reported by Flush.
func row(t *tabwriter.Writer, cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }

func notes(d Backup) string {
	var all []string
	if d.BadPages > 0 {
		all = append(all, fmt.Sprintf("%d damaged pages", d.BadPages))
	}
	if d.KeptUntil != nil {
		all = append(all, "kept until "+d.KeptUntil.UTC().Format(time.RFC3339))
	}
	for _, key := range slices.Sorted(maps.Keys(d.Annotations)) {
		all = append(all, key+"="+d.Annotations[key])
	}
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, ", ")
}

// Show prints everything about one backup.
func Show(w io.Writer, d Backup) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row(t, "name", d.Name)
	row(t, "type", d.Type)
	if d.CompactedFrom != "" {
		row(t, "compacted from", d.CompactedFrom)
	}
	if d.Parent != "" {
		row(t, "parent", d.Parent)
		row(t, "chain", fmt.Sprintf("incremental %d since %s", d.Depth, d.Full))
		row(t, "changes by", d.Detector)
	}
	if d.Resumed != "" {
		row(t, "resumed", d.Resumed)
	}
	for _, r := range d.Reasons {
		row(t, "reason", r)
	}
	row(t, "label", d.Label)
	row(t, "cluster", d.SystemIdentifier)
	row(t, "postgres", d.PostgresVersion)
	row(t, "start", d.StartTime.UTC().Format(time.RFC3339))
	row(t, "stop", d.StopTime.UTC().Format(time.RFC3339))
	row(t, "duration", duration(d))
	row(t, "start lsn", d.StartLSN)
	row(t, "stop lsn", d.StopLSN)
	row(t, "timeline", strconv.FormatUint(uint64(d.Timeline), 10))
	row(t, "wal needed", d.StartWAL+" to "+d.StopWAL)
	row(t, "files", humanize.Comma(d.Files))
	row(t, "tablespaces", strconv.Itoa(d.Tablespaces))
	row(t, "size", size(d.DataBytes))
	if d.InheritedBytes > 0 {
		row(t, "inherited", size(d.InheritedBytes))
	}
	row(t, "read", size(d.ReadBytes))
	row(t, "stored", fmt.Sprintf("%s in %d packs", size(d.StoredBytes), d.Packs))
	row(t, "ratio", strconv.FormatFloat(d.Ratio, 'f', 2, 64))
	row(t, "encrypted", yesNo(d.Encrypted))
	row(t, "permanent", yesNo(d.Permanent))
	if d.KeptUntil != nil {
		row(t, "kept until", d.KeptUntil.UTC().Format(time.RFC3339))
	}
	for _, key := range slices.Sorted(maps.Keys(d.Annotations)) {
		row(t, "note", key+"="+d.Annotations[key])
	}
	if d.VerifiedTime != nil {
		row(t, "verified", d.VerifiedTime.UTC().Format(time.RFC3339))
	}
	row(t, "data checksums", yesNo(d.DataChecksums))
	row(t, "damaged pages", strconv.FormatInt(d.BadPages, 10))
	for _, p := range d.BadPageSample {
		row(t, "", p)
	}
	row(t, "host", d.Host)
	row(t, "data directory", d.DataDirectory)
	row(t, "from a standby", yesNo(d.Standby))
	row(t, "agent", d.Agent)
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	return nil
}

func size(n int64) string { return strings.ReplaceAll(humanize.IBytes(uint64(n)), " ", "") }

func duration(d Backup) string {
	return d.StopTime.Sub(d.StartTime).Round(100 * time.Millisecond).String()
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}
