// Package verify says whether backups can be restored from what the repositories
// hold, and repairs in one what another one has. It reads each object once in
// each place, whatever the number of backups that need it, in memory that does
// not grow with the database.
package verify

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"agent/internal/archive"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Depth says how much of the objects is looked at.
type Depth uint8

// The depths.
const (
	// Quick reads what describes the backups, and takes the sizes of packs from a
	// listing.
	Quick Depth = iota
	// Stored reads every object and compares its hash. It takes an identity only to
	// look into manifests, which is left out without one.
	Stored
	// Deep opens every object, decodes every frame and checks the pages. It takes
	// identities of all classes.
	Deep
)

// String is the name in the output.
func (d Depth) String() string { return [...]string{"quick", "stored", "deep"}[min(d, Deep)] }

// Options say what to verify.
type Options struct {
	Cluster repo.ClusterID
	Backups []repo.BackupName // empty: all
	Depth   Depth
	// ToLatest follows the WAL behind the backups, along all timelines, instead of
	// only that without which they cannot be restored.
	ToLatest bool
	Repair   bool
	// SinceLast leaves out what was found good, as deeply, within MaxAge.
	SinceLast   bool
	MaxAge      time.Duration
	Mark        bool // note in the repository what was verified
	Host        string
	Concurrency int
	StateDir    string
	SegmentSize postgres.SegmentSize // of WAL, if the caller knows; 0: it is looked up
	Log         *slog.Logger
	Now         func() time.Time
	Progress    func(Progress) // nil: nobody is told
}

// Progress is how far the reading is.
type Progress struct {
	Done, Total int64 // stored bytes; Total grows as backups are looked at
	Elapsed     time.Duration
}

// Result is what was found.
type Result struct {
	Cluster  repo.ClusterID
	Depth    Depth
	ToLatest bool
	Backups  []Backup
	Findings []Finding
	Lost     []Lost   // backups that cannot be restored any more
	Moments  []Moment // that cannot be recovered any more
	// Objects and Bytes were read, beside backup.json; Skipped were not, since they
	// had been found good a short time ago.
	Objects, Bytes, Skipped int64
	// NotOpened is why manifests were not looked into; empty: they were.
	NotOpened string

	required map[string]bool
}

// Backup is what was found about one that was to be verified.
type Backup struct {
	Name repo.BackupName
	// Status is "ok", "damaged" (something is wrong, and it can be restored all the
	// same), "lost", "unknown" (a repository could not be asked), "recent" (it was
	// found good a short time ago), or "deleted" (meanwhile, or it is being deleted).
	Status string
	// Marked says that it was noted in the repository.
	Marked bool
}

// The states of backups.
const (
	StatusOK      = "ok"
	StatusDamaged = "damaged"
	StatusLost    = "lost"
	StatusUnknown = "unknown"
	StatusRecent  = "recent"
	StatusDeleted = "deleted"
)

// run is one verification.
type run struct {
	Options
	repo    *repo.Repository
	places  []*place
	backups []*backup // of the cluster, by name
	cluster repo.Cluster
	reach   archive.Reach
	began   time.Time

	packs    map[repo.PackID]*pack
	plans    *plans
	sections *sections
	noted    map[sectionID]bool
	bad      *badPages

	survey     *archive.Survey // nil: the WAL could not be listed
	damagedWAL map[string]bool // by place and key
	holes      []archive.Span  // segments of which no place has a good copy

	mu     sync.Mutex
	result *Result
	oldest time.Time // of what was left out since it was found good then
	saved  time.Time // when what was found good was last written down
	meter  struct{ done, total atomic.Int64 }
}

// place is one of the repository's.
type place struct {
	repo.PlaceInfo
	index  int
	only   *repo.Repository
	seen   *seen
	mu     sync.Mutex
	away   error
	unread int // objects that could not be read although it answers
}

func (p *place) down() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.away
}

// Run verifies. The error ends the verification before its end: there is no such
// backup, nothing can be read, no identity fits, or ctx is over. What is wrong
// with the backups is in the result, whose Err says whether it is a failure.
func Run(ctx context.Context, r *repo.Repository, o Options) (_ *Result, err error) {
	x := &run{
		Options: o, repo: r, began: o.Now(), oldest: o.Now(), saved: o.Now(), reach: archive.ToStop,
		packs: make(map[repo.PackID]*pack), noted: make(map[sectionID]bool),
		plans: newPlans(filepath.Join(o.StateDir, "spool")), bad: newBadPages(), damagedWAL: make(map[string]bool),
		result: &Result{Cluster: o.Cluster, Depth: o.Depth, ToLatest: o.ToLatest, required: make(map[string]bool)},
	}
	x.sections = newSections()
	if o.ToLatest {
		x.reach = archive.ToEnd
	}
	defer func() { err = errors.Join(err, x.plans.close(), x.sections.close()) }()
	if err := x.open(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.remember()) }()
	if o.Progress != nil {
		defer x.report()()
	}
	steps := []func(context.Context) error{x.catalogue, x.damagedDocuments, x.lists, x.data, x.wal, x.missingDocuments, x.judge, x.mark}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	sortFindings(x.result.Findings)
	return x.result, nil
}

// open makes a handle for each place.
func (x *run) open() error {
	for i, s := range x.repo.Places() {
		only, err := x.repo.Strict(s.Name)
		if err != nil && s.Err == nil {
			return err
		}
		p := &place{PlaceInfo: s, index: i, only: only}
		if p.seen, err = openSeen(x.StateDir, s.ID, x.began, x.MaxAge); err != nil {
			return err
		}
		x.places = append(x.places, p)
		x.result.required[s.Name] = s.Required
		if s.Err != nil {
			x.lose(p, s.Err)
		}
	}
	return nil
}

// lose notes that a place cannot be asked, and asks it no more.
func (x *run) lose(p *place, err error) {
	p.mu.Lock()
	first := p.away == nil
	p.away = err
	p.mu.Unlock()
	if first {
		x.add(Finding{Kind: Unreachable, Repository: p.Name, Text: line(err)})
	}
}

// up are the places that can be asked.
func (x *run) up() []*place {
	var all []*place
	for _, p := range x.places {
		if p.down() == nil {
			all = append(all, p)
		}
	}
	return all
}

func (x *run) add(f Finding) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.result.Findings = append(x.result.Findings, f)
}

// read counts an object that was read.
func (x *run) read(bytes int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.result.Objects++
	x.result.Bytes += bytes
	x.meter.done.Add(bytes)
}

// skip counts an object that was found good at a time.
func (x *run) skip(at time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.result.Skipped++
	if at.Before(x.oldest) {
		x.oldest = at
	}
}

// remember writes down what was found good, also when the run is cut off.
func (x *run) remember() error {
	if x.Depth == Quick {
		return nil
	}
	var all []error
	for _, p := range x.places {
		all = append(all, p.seen.save())
	}
	return errors.Join(all...)
}

// saveEvery is how much of the work a run that is killed may lose.
const saveEvery = time.Minute

// checkpoint writes down what was found good, if that was long ago.
func (x *run) checkpoint() error {
	now := x.Now()
	x.mu.Lock()
	due := now.Sub(x.saved) >= saveEvery
	if due {
		x.saved = now
	}
	x.mu.Unlock()
	if !due {
		return nil
	}
	return x.remember()
}

// fresh reports whether an object need not be read.
func (x *run) fresh(p *place, hash uint64) bool {
	if !x.SinceLast {
		return false
	}
	at, ok := p.seen.fresh(hash, x.Depth == Deep)
	if ok {
		x.skip(at)
	}
	return ok
}

// fatal reports whether an error is about more than one object of one place.
func fatal(ctx context.Context, err error) bool {
	return ctx.Err() != nil || !repo.IsOutage(err) && errs.KindOf(err) != errs.Damaged
}

// report calls Progress about once a second until the returned function is.
func (x *run) report() (stop func()) {
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				x.Progress(Progress{Done: x.meter.done.Load(), Total: x.meter.total.Load(), Elapsed: x.Now().Sub(x.began)})
			case <-quit:
				return
			}
		}
	})
	return func() {
		close(quit)
		done.Wait()
	}
}
