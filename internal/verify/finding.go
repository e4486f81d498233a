package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"agent/internal/errs"
	"agent/internal/repo"
)

// Kind says what is wrong.
type Kind string

// The kinds of findings. The last four are told and are no failures.
const (
	Damaged     Kind = "damaged"     // an object is not what was stored
	Missing     Kind = "missing"     // an object is not there
	Unreachable Kind = "unreachable" // a repository could not be asked
	Gap         Kind = "gap"         // WAL is not there
	Behind      Kind = "behind"      // a best-effort repository lacks it; agent repo sync brings it
	BadPages    Kind = "bad-pages"   // pages were damaged already when the backup was made
	Dropped     Kind = "dropped"     // WAL that was given up on purpose, and a backup has begun behind it
	Unfinished  Kind = "unfinished"  // what may be a backup has no backup.json
)

// kinds are all of them in the order in which they are told.
func kinds() []Kind {
	return []Kind{Damaged, Missing, Unreachable, Gap, Behind, BadPages, Dropped, Unfinished}
}

// Finding is one thing that is wrong.
type Finding struct {
	Kind       Kind
	Repository string // name; empty for what is wrong in all of them
	Key        string // of the object; empty if it is about none, or about WAL that is missing
	Text       string // what is wrong, in one line
	// First and Last are the WAL segments that are missing; empty if it is about
	// none.
	First, Last string
	Segments    uint64
	// Everywhere says that no repository has a good copy, as far as it was looked
	// for.
	Everywhere bool
	// Backups of the cluster that need it, whether they were to be verified or not.
	Backups []repo.BackupName
	// Repaired says from where a good copy was brought; empty: none was.
	Repaired string
	// NotRepaired is why that was tried in vain.
	NotRepaired error

	// pack is the one that it is about; nil: none, and Backups is complete.
	pack *repo.PackID
	wal  bool
}

// fails reports whether a finding is a failure.
func (r *Result) fails(f Finding) bool {
	switch f.Kind {
	case Damaged, Missing, Gap:
		return f.Repaired == ""
	case Unreachable:
		return r.required[f.Repository]
	default:
		return false
	}
}

// Status is the worst kind that is a failure, or "ok": damage first, since it is
// a fact and does not pass; then that a repository could not be asked, since what
// it has is not known; then gaps.
func (r *Result) Status() string {
	for _, k := range []Kind{Damaged, Missing, Unreachable, Gap} {
		if slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Kind == k && r.fails(f) }) {
			return string(k)
		}
	}
	return "ok"
}

// Err is nil unless something fails. Its kind is that of Status.
func (r *Result) Err() error {
	var kind errs.Kind
	var hint string
	status := Kind(r.Status())
	switch status {
	case Damaged, Missing:
		kind, hint = errs.Damaged, "Where another repository or an older version in the bucket has a good copy, agent backup-verify --repair brings it. Else take a new backup now: agent backup-push --full."
	case Unreachable:
		kind, hint = errs.Storage, "Look whether the repository can be reached, and run the same command again."
	case Gap:
		kind, hint = errs.Gap, "Missing segments may still lie in a server's pg_wal (agent wal-push) or in another repository (agent repo sync). Else take a new backup now: agent backup-push."
	default:
		return nil
	}
	var parts []string
	first := ""
	for _, k := range kinds() {
		n := 0
		for _, f := range r.Findings {
			if f.Kind != k || !r.fails(f) {
				continue
			}
			n++
			if first == "" && k == status {
				first = f.Text
			}
		}
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%s: %d", k, n))
		}
	}
	if len(r.Lost) > 0 {
		parts = append(parts, fmt.Sprintf("backups that cannot be restored: %d", len(r.Lost)))
	}
	return errs.New(kind, hint, "the backups are not all well (%s): %s", strings.Join(parts, ", "), first)
}

// Repaired counts the findings that were put right.
func (r *Result) Repaired() int {
	n := 0
	for _, f := range r.Findings {
		if f.Repaired != "" {
			n++
		}
	}
	return n
}

// sortFindings puts findings into the order in which they are told.
func sortFindings(all []Finding) {
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(kinds(), a.Kind), slices.Index(kinds(), b.Kind)),
			cmp.Compare(a.Key, b.Key), cmp.Compare(a.First, b.First), cmp.Compare(a.Repository, b.Repository))
	})
}

// line makes one line of an error.
func line(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
