package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"agent/internal/repo"
	"agent/internal/retention"
)

// Deleted is what `delete ... --json` prints: what was deleted, or without
// --confirm would be.
type Deleted struct {
	SystemIdentifier string              `json:"system_identifier"`
	Confirmed        bool                `json:"confirmed"`
	Backups          []DeletedBackup     `json:"backups"`
	WALStays         string              `json:"wal_stays,omitempty"`
	Extended         int64               `json:"extended"`
	Repositories     []DeletedRepository `json:"repositories"`
}

// DeletedBackup is what becomes of a backup.
type DeletedBackup struct {
	Name       string    `json:"name"`
	Type       string    `json:"type"`
	StopTime   time.Time `json:"stop_time"`
	Timeline   uint32    `json:"timeline"`
	Keep       bool      `json:"keep"`
	Reasons    []string  `json:"reasons"`
	Continuous bool      `json:"continuous"`
}

// DeletedRepository is what was deleted in one repository.
type DeletedRepository struct {
	Repository string      `json:"repository"`
	Backups    DeletedKind `json:"backups"`
	Garbage    DeletedKind `json:"garbage"`
	WAL        DeletedKind `json:"wal"`
	Unfinished DeletedKind `json:"unfinished"`
	Requests   int64       `json:"requests"`
	Error      string      `json:"error,omitempty"`
}

// DeletedKind counts objects of a kind.
type DeletedKind struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
	// Locked are left until their locks end, Failed were refused by the store.
	Locked int64    `json:"locked"`
	Failed int64    `json:"failed"`
	Errors []string `json:"errors"`
}

// DeletedOf describes the result of a delete.
func DeletedOf(res *retention.Result) Deleted {
	d := Deleted{
		SystemIdentifier: res.Cluster.String(), Confirmed: res.Confirmed, WALStays: res.WALStays, Extended: res.Extended,
		Backups: []DeletedBackup{}, Repositories: []DeletedRepository{},
	}
	for _, b := range res.Decisions {
		reasons := slices.Compact(slices.Clone(b.Reasons))
		if reasons == nil {
			reasons = []string{}
		}
		d.Backups = append(d.Backups, DeletedBackup{
			Name: string(b.Name), Type: b.Type, StopTime: b.Stopped, Timeline: uint32(b.Timeline), Keep: b.Keep(), Reasons: reasons, Continuous: b.Continuous,
		})
	}
	for _, p := range res.Places {
		one := DeletedRepository{
			Repository: p.Name, Backups: deletedKind(p.Backups), Garbage: deletedKind(p.Garbage), WAL: deletedKind(p.WAL), Unfinished: deletedKind(p.Unfinished),
			Requests: p.Backups.Requests + p.Garbage.Requests + p.WAL.Requests + p.Unfinished.Requests,
		}
		if p.Err != nil {
			one.Error = oneLine(p.Err)
		}
		d.Repositories = append(d.Repositories, one)
	}
	return d
}

func deletedKind(s repo.Swept) DeletedKind {
	k := DeletedKind{Objects: s.Objects, Bytes: s.Bytes, Locked: s.Locked, Failed: s.Failed, Errors: []string{}}
	for _, p := range s.Problems {
		k.Errors = append(k.Errors, oneLine(p.Err))
	}
	return k
}

// DeletedJSON prints an object.
func DeletedJSON(w io.Writer, d Deleted) error { return writeJSON(w, d) }

// DeletedTable prints a line for each backup, and one for each kind of object in
// each repository.
func DeletedTable(w io.Writer, d Deleted) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	verdict := map[bool]string{true: "keep", false: "delete"}
	row(t, "name", "type", "stop_time", "timeline", "verdict", "wal", "why")
	for _, b := range d.Backups {
		wal, why := "-", "no rule wants it"
		if b.Keep {
			wal, why = "its own", strings.Join(b.Reasons, "; ")
		}
		if b.Continuous {
			wal = "from here on"
		}
		row(t, b.Name, b.Type, b.StopTime.UTC().Format(time.RFC3339), fmt.Sprint(b.Timeline), verdict[b.Keep], wal, why)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	var b strings.Builder
	if d.WALStays != "" {
		fmt.Fprintf(&b, "no WAL is deleted: %s\n", d.WALStays)
	}
	verb := "would go"
	if d.Confirmed {
		verb = "deleted"
	}
	for _, p := range d.Repositories {
		for _, k := range []struct {
			name string
			DeletedKind
		}{{"of backups", p.Backups}, {"of no backup", p.Garbage}, {"of WAL", p.WAL}, {"of unfinished uploads", p.Unfinished}} {
			if k.Objects+k.Locked+k.Failed > 0 {
				fmt.Fprintf(&b, "repository %s: %s %s: %s, %s%s%s\n", p.Repository, k.name, verb, objects(k.Objects), humanize.IBytes(uint64(k.Bytes)),
					some(", %d are locked and stay", k.Locked), some(", %d could not be removed", k.Failed))
			}
		}
		if p.Error != "" {
			fmt.Fprintf(&b, "repository %s: %s\n", p.Repository, p.Error)
		}
	}
	if d.Extended > 0 {
		fmt.Fprintf(&b, "locks of what is kept were made longer: %s\n", objects(d.Extended))
	}
	if !d.Confirmed {
		b.WriteString("nothing was deleted: this is what --confirm would do\n")
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func objects(n int64) string {
	if n == 1 {
		return "1 object"
	}
	return humanize.Comma(n) + " objects"
}

func some(format string, n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(format, n)
}
