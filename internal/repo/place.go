package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"agent/internal/storage"
)

// Place is one of the stores that hold a repository's objects, the same in
// each but for repository.json, whose id is each place's own.
type Place struct {
	Name   string // for messages
	Bucket storage.Bucket
	// Err says why there is no Bucket: a store that is away cannot always be
	// opened. URL then names it.
	Err error
	URL string
	// At is the endpoint or account where the URL alone does not say which
	// store is meant; empty where it does.
	At string
	// Required says that nothing is durable before it is here. The others are
	// written as well as it goes, and catch up later.
	Required bool
	// Immutable locks every object as it is written; nil: no lock.
	Immutable *Immutable
}

// ID is by what a host remembers a place: its URL as the store gives it, and
// where that store is.
func (p Place) ID() string {
	if p.At != "" {
		return p.where() + " at " + p.At
	}
	return p.where()
}

// where is the URL as the bucket gives it: what is noted of a place that cannot
// be opened is found again when it can be.
func (p Place) where() string {
	if p.Bucket == nil {
		return storage.Canonical(p.URL)
	}
	return p.Bucket.String()
}

// Immutable says how objects are locked.
type Immutable struct {
	Mode storage.LockMode
	// For is how long a backup must be kept after it was made. Locks are
	// longer by the longest chain, whose last backup may borrow from its first,
	// and by lockReserve for the time that a backup takes.
	For       time.Duration
	FullEvery time.Duration
}

// lockReserve is for the time between a pack and the backup.json that needs it.
const lockReserve = 48 * time.Hour

// Until is when an object that is written now may be deleted.
func (i Immutable) Until(now time.Time) time.Time {
	return now.Add(i.For + i.FullEvery + lockReserve).UTC().Truncate(time.Second)
}

// place is a Place in use.
type place struct {
	Place
	mu   sync.Mutex
	down error // why it is left out from now on
	slow bool  // an attempt to read from it has failed
	// looked is that slow was looked up in the state directory.
	looked bool
	told   bool // that it cannot be used was told
	// owing are the keys that were noted: a backup owes the same one for each of
	// its packs.
	owing map[string]bool
}

// owes reports whether a debt is new.
func (p *place) owes(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.owing[key] {
		return false
	}
	if p.owing == nil {
		p.owing = make(map[string]bool)
	}
	p.owing[key] = true
	return true
}

func (p *place) String() string { return p.where() }

// err is why the place is not used, or nil.
func (p *place) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.Bucket == nil && p.down == nil {
		return p.Err
	}
	return p.down
}

// fail leaves the place out from now on: who reads takes another copy, whatever is
// wrong with this one.
func (p *place) fail(err error) (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first = p.down == nil
	p.down = fmt.Errorf("%w: %w", errUnusable, err)
	return first
}

// lock is how an object that is written now is locked there.
func (p *place) lock(now time.Time) *storage.Lock {
	if p.Immutable == nil {
		return nil
	}
	return &storage.Lock{Mode: p.Immutable.Mode, Until: p.Immutable.Until(now)}
}

// Outlived says which of these packs may be deleted before a backup that is made
// now and borrows them has been kept as long as is promised; empty: none.
func (r *Repository) Outlived(packs map[PackID]Pack) string {
	var promised time.Time
	for _, p := range r.places {
		if p.Immutable == nil {
			continue
		}
		if until := r.now().Add(p.Immutable.For + lockReserve/2); until.After(promised) {
			promised = until
		}
	}
	for id, p := range packs {
		if p.LockedUntil.Before(promised) {
			return fmt.Sprintf("pack %s/%08x", id.Backup, id.Number)
		}
	}
	return ""
}

// lockedUntil is the earliest end of the locks of what is written now; zero if
// no place locks.
func (r *Repository) lockedUntil() (until time.Time) {
	for _, p := range r.places {
		if l := p.lock(r.now()); l != nil && (until.IsZero() || l.Until.Before(until)) {
			until = l.Until
		}
	}
	return until
}

// LockedSince is until when the last place lets go of an object that was written
// at a time; zero if no place locks, as far as this host's settings say.
func (r *Repository) LockedSince(at time.Time) (until time.Time) {
	for _, p := range r.places {
		if p.Immutable == nil {
			continue
		}
		if u := p.Immutable.Until(at); u.After(until) {
			until = u
		}
	}
	return until
}

// joined names all places.
func joined(places []*place) string {
	names := make([]string, len(places))
	for i, p := range places {
		names[i] = p.String()
	}
	return strings.Join(names, " and ")
}

// bestEffortGrace is how much longer than the required places a best-effort
// one may take for an object.
const bestEffortGrace = 10 * time.Second

// everywhere runs f for each place at once and returns when each required one
// has ended, with their errors, and the others have ended or used up their
// grace. A best-effort place that fails is left out for the rest of the run:
// what is written there afterwards would be in vain. debt is the key that it
// owes then; empty: none.
func (r *Repository) everywhere(ctx context.Context, debt string, f func(context.Context, *place) error) error {
	if len(r.places) == 1 {
		p := r.places[0]
		if err := p.err(); err != nil {
			return err
		}
		return f(ctx, p)
	}
	best, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results := make([]error, len(r.places))
	var required, others sync.WaitGroup
	for i, p := range r.places {
		if p.Required {
			required.Go(func() {
				if results[i] = p.err(); results[i] == nil {
					results[i] = f(ctx, p)
				}
			})
			continue
		}
		others.Go(func() {
			err := p.err()
			if err == nil {
				err = f(best, p)
			}
			results[i] = err
		})
	}
	required.Wait()
	timer := time.AfterFunc(bestEffortGrace, func() { cancel(errTooSlow) })
	defer timer.Stop()
	others.Wait()
	var failed []error
	for i, p := range r.places {
		if p.Required && results[i] != nil {
			failed = append(failed, fmt.Errorf("repository %s: %w", p.Name, results[i]))
		}
	}
	for i, p := range r.places {
		if p.Required || results[i] == nil {
			continue
		}
		if failed == nil {
			// It is durable where it must be: that it is not here is owed, also
			// when the command has just run out of time.
			r.owe(p, debt)
		}
		if ctx.Err() == nil { // else its failure says nothing of the place
			r.drop(p, results[i])
		}
	}
	return errors.Join(failed...)
}

var errTooSlow = fmt.Errorf("%w: it took more than %s longer than the required repositories", storage.ErrUnavailable, bestEffortGrace)

// drop leaves a best-effort place out for the rest of the run.
func (r *Repository) drop(p *place, err error) {
	if p.fail(err) {
		r.log.Warn("a best-effort repository is left out; agent repo sync brings it up to date", "repository", p.Name, "error", err.Error())
		r.debts.suspend(p.ID(), r.now(), err)
	}
}

// owe notes what a best-effort place lacks.
func (r *Repository) owe(p *place, debt string) {
	if debt == "" || !p.owes(debt) {
		return
	}
	if err := r.debts.add(p.ID(), debt, r.now()); err != nil {
		r.log.Warn("cannot note what a repository lacks; agent repo sync finds it by comparing", "repository", p.Name, "error", err.Error())
	}
}

// up lists the places that are in use.
func (r *Repository) up() []*place {
	var all []*place
	for _, p := range r.places {
		if p.err() == nil {
			all = append(all, p)
		}
	}
	return all
}

func (r *Repository) required() []*place {
	var all []*place
	for _, p := range r.places {
		if p.Required {
			all = append(all, p)
		}
	}
	return all
}
