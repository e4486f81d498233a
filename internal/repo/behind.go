package repo

import "errors"

// Behind is a best-effort place that lacks something.
type Behind struct {
	Name string
	URL  string
	Debt
	// Suspended is why the place is not asked at present; nil: it is.
	Suspended error
}

// Behind lists the places that lack something, as far as this host has noted.
// It reads small files of the state directory and asks no store.
func (r *Repository) Behind() ([]Behind, error) {
	var all []Behind
	var failures []error
	for _, p := range r.places {
		if p.Required {
			continue
		}
		debt, err := r.debts.Owed(p.ID())
		failures = append(failures, err)
		if debt.Empty() {
			continue
		}
		all = append(all, Behind{Name: p.Name, URL: p.String(), Debt: debt, Suspended: r.debts.Suspended(p.ID(), r.now())})
	}
	return all, errors.Join(failures...)
}

// SyncDue reports whether it is time to work off what places owe: there is one
// that can be asked, and the last attempt was not in vain a moment ago.
func (r *Repository) SyncDue() bool {
	behind, err := r.Behind()
	if err != nil || r.debts.paused(r.now()) {
		return false
	}
	for _, b := range behind {
		if b.Suspended == nil {
			return true
		}
	}
	return false
}
