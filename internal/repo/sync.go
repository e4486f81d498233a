package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"agent/internal/errs"
	"agent/internal/storage"
)

// SyncOptions say what Sync brings where.
type SyncOptions struct {
	Targets []string // names of the places to bring up to date; empty: all
	// Pending works off what this host has noted that best-effort places lack,
	// instead of comparing everything.
	Pending bool
	DryRun  bool // only counts what would be copied
	// Clusters are those to look at; empty: all.
	Clusters []ClusterID
	// Backup is the one to bring, with what it borrows, its WAL and all
	// timeline histories, and nothing else; empty: everything. Not with Pending.
	Backup BackupName
	// Concurrency is how many objects are on their way at a time, each with up
	// to 34 MiB in memory; less than 1 is 1.
	Concurrency int
}

// SyncResult is what became of one place.
type SyncResult struct {
	Name    string
	URL     string
	Objects int64        // that were copied, or would be
	Bytes   int64        // of these; where they are not known before the copy, 0 for DryRun
	Backups []BackupName // that exist there now and did not before
	// Lacking counts the objects that stay behind; Problems are the first of
	// them.
	Lacking  int64
	Problems []SyncProblem
	// Live are backups that were left alone since they are being made.
	Live []BackupName
	// Err is why the place could not be brought up to date at all; nil if
	// Lacking says everything.
	Err error
}

// SyncProblem is an object that stays behind.
type SyncProblem struct {
	Key string
	Err error
}

// maxProblems bounds the list of problems: their number is not bounded.
const maxProblems = 100

// failed is the error of a place where something stays behind, or nil.
func (s *SyncResult) failed() error {
	switch {
	case s.Err != nil:
		return fmt.Errorf("bring repository %s up to date: %w", s.Name, s.Err)
	case s.Lacking > 0:
		return fmt.Errorf("bring repository %s up to date: objects that stay behind: %d, the first: %w", s.Name, s.Lacking, s.Problems[0].Err)
	default:
		return nil
	}
}

// Sync brings places up to date from the others. Objects are copied as they are
// stored, so that no key is needed, and are verified on the way as far as what
// is at hand allows: backups by the digests that they carry, WAL by the hash at
// its beginning and, where it can be opened here, by its content. A damaged
// object is taken from another place or an older version, or else reported and
// left out. Nothing that is there is ever replaced.
//
// In each place a backup appears after everything that it needs: whenever Sync
// is cut off, each place is a whole repository, and Sync goes on from there when
// it is called again.
//
// The error says that something stays behind, or that a place could not be
// used; the results are complete all the same.
func (r *Repository) Sync(ctx context.Context, o SyncOptions) ([]SyncResult, error) {
	targets, err := r.targets(o)
	if err != nil || len(targets) == 0 {
		return nil, err
	}
	if err := r.CheckAny(ctx); err != nil {
		return nil, err
	}
	var results []SyncResult
	var failures []error
	for _, p := range targets {
		s := &syncRun{repo: r, target: p, opts: o, result: SyncResult{Name: p.Name, URL: p.String()}, troubled: make(map[string]bool)}
		s.result.Err = s.run(ctx)
		failures = append(failures, s.result.failed())
		results = append(results, s.result)
		if ctx.Err() != nil {
			break
		}
		if o.Pending && s.inVain() {
			failures = append(failures, r.debts.pause(r.now()))
		}
	}
	return results, errors.Join(failures...)
}

// targets are the places that o names, or of those that owe something.
func (r *Repository) targets(o SyncOptions) ([]*place, error) {
	var all []*place
	names := make([]string, len(r.places))
	for i, p := range r.places {
		names[i] = p.Name
		if len(o.Targets) > 0 && !slices.Contains(o.Targets, p.Name) {
			continue
		}
		if o.Pending {
			debt, err := r.debts.Owed(p.ID())
			if err != nil {
				return nil, err
			}
			if debt.Empty() {
				continue
			}
		}
		all = append(all, p)
	}
	for _, name := range o.Targets {
		if !slices.Contains(names, name) {
			return nil, errs.New(errs.Usage, "Give names of configured repositories.", "there is no repository %q (there are: %s)", name, strings.Join(names, ", "))
		}
	}
	if len(r.places) < 2 && !o.Pending {
		return nil, errs.New(errs.Usage, "Several repositories are the setting repositories; another one is filled with agent repo copy --from A --to B.",
			"there is but one repository, %s", r)
	}
	return all, nil
}

// syncRun brings one place up to date.
type syncRun struct {
	repo    *Repository
	target  *place
	sources []*place // the others that can be used
	opts    SyncOptions

	mu       sync.Mutex
	result   SyncResult
	troubled map[string]bool // keys that stay behind
	down     error           // the target failed
	paid     []string        // debts to settle
}

func (s *syncRun) run(ctx context.Context) (err error) {
	if err := s.target.err(); err != nil {
		s.suspend(err)
		return err
	}
	s.sources = slices.DeleteFunc(s.repo.up(), func(p *place) bool { return p == s.target })
	if len(s.sources) == 0 {
		return s.unreadable()
	}
	switch {
	case s.opts.Pending:
		err = s.pending(ctx)
	case s.opts.Backup != "":
		err = s.one(ctx)
	default:
		err = s.compared(ctx)
	}
	if s.down != nil && ctx.Err() == nil {
		s.suspend(s.down)
	}
	if s.down == nil && err == nil {
		s.repo.debts.resume(s.target.ID())
	}
	return errors.Join(err, s.settle())
}

// unreadable is why there is nothing to bring from.
func (s *syncRun) unreadable() error {
	var reasons []error
	for _, p := range s.repo.places {
		if p != s.target {
			reasons = append(reasons, p.err())
		}
	}
	return fmt.Errorf("no other repository can be read: %w", errors.Join(reasons...))
}

// inVain reports whether the same attempt would come to the same end now.
func (s *syncRun) inVain() bool {
	return s.down == nil && (s.result.Err != nil || s.result.Lacking > 0 || len(s.result.Live) > 0)
}

// suspend leaves a target that is away alone for a while, and does not read
// from it for the others.
func (s *syncRun) suspend(err error) {
	s.target.fail(err)
	if !s.target.Required {
		s.repo.debts.suspend(s.target.ID(), s.repo.now(), err)
	}
}

// atTarget notes that the target failed, and passes the error on.
func (s *syncRun) atTarget(err error) error {
	if err != nil && isOutage(err) {
		s.mu.Lock()
		s.down = err
		s.mu.Unlock()
	}
	return err
}

// arrived counts an object that was copied.
func (s *syncRun) arrived(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Objects++
	s.result.Bytes += size
}

// problem notes an object that stays behind.
func (s *syncRun) problem(key string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.troubled[key] {
		return
	}
	s.troubled[key] = true
	s.result.Lacking++
	if len(s.result.Problems) < maxProblems {
		s.result.Problems = append(s.result.Problems, SyncProblem{key, err})
		s.repo.log.Warn("an object stays behind", "key", key, "repository", s.target.Name, "error", err.Error())
	}
}

// own reports whether an error is about one object alone, so that the others
// can still be copied.
func own(err error) bool {
	kind := errs.KindOf(err)
	return kind == errs.Damaged || kind == errs.Conflict || errors.Is(err, storage.ErrNotExist)
}

// settleAt is how many debts are settled at a time: each time costs a write.
const settleAt = 64

// settled notes that the place does not owe an object any more.
func (s *syncRun) settled(key string) error {
	s.mu.Lock()
	s.paid = append(s.paid, key)
	full := len(s.paid) >= settleAt
	s.mu.Unlock()
	if full {
		return s.settle()
	}
	return nil
}

func (s *syncRun) settle() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	paid := s.paid
	s.paid = nil
	if s.opts.DryRun {
		return nil
	}
	return s.repo.debts.Settle(s.target.ID(), paid, false)
}

// clusters are those of the sources that are asked for.
func (s *syncRun) clusters(ctx context.Context) ([]ClusterID, error) {
	if len(s.opts.Clusters) > 0 {
		return s.opts.Clusters, nil
	}
	return s.repo.clustersOf(ctx, s.sources)
}
