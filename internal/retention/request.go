package retention

import (
	"fmt"
	"slices"
	"time"

	"agent/internal/errs"
	"agent/internal/repo"
)

// Verb says what is deleted.
type Verb string

// The verbs.
const (
	Expire     Verb = "expire"     // by the rules
	Before     Verb = "before"     // what is older than a backup or a moment
	Retain     Verb = "retain"     // all but the newest
	Target     Verb = "target"     // named backups
	Everything Verb = "everything" // of the cluster
	Garbage    Verb = "garbage"    // what belongs to no backup
)

// Widen says how full backups count, by WAL-G's words.
type Widen string

// The ways.
const (
	Exact    Widen = ""          // what is named
	Full     Widen = "FULL"      // counts full backups
	FindFull Widen = "FIND_FULL" // goes to the full backup with which a chain begins
)

// Request is what is to be deleted.
type Request struct {
	Verb  Verb
	Widen Widen
	Names []repo.BackupName // Target; Before, one
	Time  time.Time         // Before, without a name
	Count int               // Retain
	Force bool              // Everything: also what is marked
}

// names reports whether the backup is one that was asked for by its name.
func (q *Request) names(name repo.BackupName) bool {
	return q.Verb == Target && slices.Contains(q.Names, name)
}

// only reports whether nothing but named backups is to go.
func (q *Request) only() bool { return q.Verb == Target }

func (q *Request) everything() bool { return q.Verb == Everything }

// apply decides by the request what stays.
func (q *Request) apply(h *history, rules Rules) error {
	switch q.Verb {
	case Expire:
		if rules.Empty() {
			return errs.New(errs.Config, "Set at least one of keep_window, keep_full, keep_daily, keep_weekly, keep_monthly, keep_yearly, in agent.yaml or as a flag.",
				"there is no policy: every backup would be deleted")
		}
		h.policy(rules)
		h.guards()
	case Before:
		first, err := q.from(h)
		if err != nil {
			return err
		}
		h.since(first, "not older than what was asked for")
		h.guards()
	case Retain:
		h.since(q.newest(h), fmt.Sprintf("one of those to retain (%d)", q.Count))
		h.guards()
	case Target:
		return q.target(h)
	case Everything:
		return q.all(h)
	case Garbage:
		h.since(0, "a backup is no garbage")
	}
	return nil
}

// from is the index of the oldest backup that Before leaves.
func (q *Request) from(h *history) (int, error) {
	first := len(h.all)
	if len(q.Names) == 1 {
		if first = h.index(q.Names[0]); first < 0 {
			return 0, unknown(q.Names[0])
		}
	} else {
		for i, d := range h.all {
			if !d.recorded().Before(q.Time) {
				first = i
				break
			}
		}
	}
	return q.widened(h, first), nil
}

// newest is the index of the oldest backup that Retain leaves.
func (q *Request) newest(h *history) int {
	if q.Widen != Full {
		return q.widened(h, max(0, len(h.all)-q.Count))
	}
	seen := 0
	for i, d := range slices.Backward(h.all) {
		if d.Type == repo.TypeFull {
			if seen++; seen == q.Count {
				return i
			}
		}
	}
	return 0
}

// widened goes back to the full backup of the chain, if that is asked for.
func (q *Request) widened(h *history, first int) int {
	if q.Widen == Exact || first >= len(h.all) {
		return first
	}
	if full := h.index(h.all[first].Full); full >= 0 {
		return min(first, full)
	}
	return first
}

func (h *history) index(name repo.BackupName) int {
	return slices.IndexFunc(h.all, func(d *Decision) bool { return d.Name == name })
}

func unknown(name repo.BackupName) error {
	return errs.New(errs.NotFound, "See what there is with: agent backup-list", "there is no backup %s of this cluster", name)
}

func (q *Request) target(h *history) error {
	going := make(map[repo.BackupName]bool)
	for _, name := range q.Names {
		i := h.index(name)
		if i < 0 {
			continue // it cannot be read, or else nothing has to be done
		}
		going[name] = true
		if q.Widen == Exact {
			continue
		}
		full := name
		if h.all[i].Full != "" {
			full = h.all[i].Full
		}
		for _, d := range h.all {
			if d.Name == full || d.Full == full {
				going[d.Name] = true
			}
		}
	}
	for _, d := range h.all {
		if !going[d.Name] {
			d.want(true, "it was not asked for")
			continue
		}
		if d.Marks.Kept(h.clock) {
			return errs.New(errs.Locked, fmt.Sprintf("Release it first: agent backup-mark %s --release", d.Name), "backup %s is marked to be kept", d.Name)
		}
	}
	return nil
}

func (q *Request) all(h *history) error {
	if q.Force {
		return nil
	}
	h.marked()
	return nil
}
