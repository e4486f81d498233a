// Package formatcheck reads what a repository holds and says whether this agent
// understands it: the version of each format, objects of a newer one, keys that
// it does not know, and whatever does not read. It needs no key for what is not
// encrypted, and opens the rest with the identities that there are.
package formatcheck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"agent/internal/errs"
	"agent/internal/repo"
	"agent/internal/storage"
)

// FindingKind says what is wrong with an object.
type FindingKind string

// The kinds of findings.
const (
	Newer   FindingKind = "newer"   // a later version of the agent wrote it
	Unknown FindingKind = "unknown" // its key is none of the format
	Damaged FindingKind = "damaged" // it does not read
)

// Finding is an object that is not understood.
type Finding struct {
	Kind FindingKind
	Key  string
	Err  error // nil for an unknown key
}

// Tally is what was seen of a kind of objects.
type Tally struct {
	Kind    repo.ObjectKind
	Format  int   // the latest version that was read; 0: none was
	Objects int64 // listed
	Read    int64 // of these
	// Opened are those of Read whose content was decoded; the others are sealed
	// for an identity that is not here, and what is not encrypted of them was read.
	Opened int64
}

// maxTold bounds the findings and notes that are kept.
const maxTold = 100

// Result is what was found in one place.
type Result struct {
	repo.PlaceInfo
	Marker   repo.Marker
	Tallies  []Tally // by kind
	Findings []Finding
	More     int // findings beyond those that are kept
	// Notes are fields of JSON objects which this agent does not know, each once.
	Notes []string
	// Err is why the place could not be read, or not to its end.
	Err error
}

// Failure is an error unless everything that was read is understood.
func (r *Result) Failure() error {
	if r.Err != nil {
		return errs.Wrap(r.Err, errs.Other, "", "check the format of repository %s", r.Name)
	}
	if len(r.Findings) == 0 {
		return nil
	}
	worst := r.Findings[0]
	for _, f := range r.Findings {
		if f.Kind == Damaged && worst.Kind != Damaged {
			worst = f
		}
	}
	kind, hint := errs.Config, "Use a newer version of the agent; remove what does not belong into a repository by hand."
	if worst.Kind == Damaged {
		kind, hint = errs.Damaged, "Restore the object from another copy of the repository (agent repo sync), or let go of the backups that need it."
	}
	return errs.New(kind, hint, "%d objects of repository %s are not understood, the first is %s (%s)", len(r.Findings)+r.More, r.Name, worst.Key, worst.Kind)
}

// Options say how much is read.
type Options struct {
	// Sample is how many objects are read of those kinds of which there are many,
	// for each cluster: the first, the last and some between. 0: all.
	Sample int
	// Concurrency is how many of them are read at a time; less than 1 is 1.
	Concurrency int
}

// Check reads one place, and nothing of the others. Memory grows with the
// backups and Sample; if all is read, with the keys of the objects. The error is
// of what ended everything.
func Check(ctx context.Context, r *repo.Repository, info repo.PlaceInfo, o Options) (*Result, error) {
	res := &Result{PlaceInfo: info}
	only, err := r.Only(info.Name)
	if err == nil {
		res.Marker, err = only.ReadMarker(ctx)
	}
	if err != nil {
		res.Err = err
		return res, context.Cause(ctx)
	}
	c := &checker{
		repo: only, place: info.Name, options: o, result: res,
		tallies: make(map[repo.ObjectKind]*Tally), clusters: make(map[repo.ClusterID]*contents), noted: make(map[string]bool),
	}
	res.Err = c.run(ctx)
	for _, t := range c.tallies {
		res.Tallies = append(res.Tallies, *t)
	}
	slices.SortFunc(res.Tallies, func(a, b Tally) int { return cmp.Compare(a.Kind, b.Kind) })
	slices.SortFunc(res.Findings, func(a, b Finding) int { return cmp.Compare(a.Key, b.Key) })
	slices.Sort(res.Notes)
	return res, context.Cause(ctx)
}

// contents is what the listing has told of one cluster.
type contents struct {
	backups []repo.BackupName
	samples map[repo.ObjectKind]*sample
	wanted  map[repo.PackID]*repo.Pack // of the packs in the sample
}

type checker struct {
	repo     *repo.Repository
	place    string
	options  Options
	clusters map[repo.ClusterID]*contents

	mu      sync.Mutex // guards what follows
	result  *Result
	tallies map[repo.ObjectKind]*Tally
	noted   map[string]bool
}

func (c *checker) run(ctx context.Context) error {
	for o, err := range c.repo.Objects(ctx, c.place) {
		if err != nil {
			return err
		}
		if err := c.listed(ctx, o); err != nil {
			return err
		}
	}
	for id, in := range c.clusters {
		if err := c.backups(ctx, id, in); err != nil {
			return err
		}
		if err := c.sampled(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

// listed counts an object, and reads it or puts it aside for later.
func (c *checker) listed(ctx context.Context, o repo.Object) error {
	c.tally(o.Kind).Objects++
	in := c.clusters[o.Cluster]
	if in == nil && o.Cluster != 0 {
		in = &contents{samples: make(map[repo.ObjectKind]*sample), wanted: make(map[repo.PackID]*repo.Pack)}
		c.clusters[o.Cluster] = in
	}
	switch o.Kind {
	case repo.KindUnknown, repo.KindReserved:
		c.found(Finding{Kind: Unknown, Key: o.Key})
		return nil
	case repo.KindBackup:
		in.backups = append(in.backups, o.Backup)
		return nil
	case repo.KindWAL, repo.KindSummary, repo.KindStream, repo.KindPack:
		s := in.samples[o.Kind]
		if s == nil {
			s = newSample(c.options.Sample)
			in.samples[o.Kind] = s
		}
		s.add(o)
		return nil
	case repo.KindManifest, repo.KindPacks, repo.KindProbe:
		return nil // read with its backup; a probe means nothing
	default:
		opened, format, err := c.read(ctx, o)
		return c.done(ctx, o, opened, format, err)
	}
}

// sampled reads the objects that were put aside.
func (c *checker) sampled(ctx context.Context, in *contents) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(max(c.options.Concurrency, 1))
	for _, s := range in.samples {
		for _, o := range s.objects() {
			work.Go(func() error {
				var opened bool
				var err error
				format := repo.Format
				if o.Kind == repo.KindPack {
					id := repo.PackID{Backup: o.Backup, Number: o.Pack}
					opened, err = c.repo.ProvePack(ctx, o.Cluster, id, in.wanted[id])
				} else {
					opened, format, err = c.read(ctx, o)
				}
				return c.done(ctx, o, opened, format, err)
			})
		}
	}
	return work.Wait()
}

// tally is that of a kind.
func (c *checker) tally(kind repo.ObjectKind) *Tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tallies[kind]
	if t == nil {
		t = &Tally{Kind: kind}
		c.tallies[kind] = t
	}
	return t
}

// done counts an object that was read, or tells what is wrong with it. An error
// of the store is passed on: it says nothing of the object.
func (c *checker) done(ctx context.Context, o repo.Object, opened bool, format int, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, storage.ErrNotExist) && o.Kind != repo.KindPacks && o.Kind != repo.KindManifest:
		return nil // it has gone since it was listed
	case err == nil && format > repo.Format:
		opened = false
		c.found(Finding{Kind: Newer, Key: o.Key, Err: newerError(format)})
	case err == nil:
	case errors.Is(err, errNewer) || errs.KindOf(err) == errs.Config:
		c.found(Finding{Kind: Newer, Key: o.Key, Err: err})
	case errs.KindOf(err) == errs.Damaged:
		c.found(Finding{Kind: Damaged, Key: o.Key, Err: err})
	default:
		return err
	}
	t := c.tally(o.Kind)
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Read++
	t.Format = max(t.Format, format)
	if opened && err == nil {
		t.Opened++
	}
	return nil
}

var errNewer = errors.New("a newer version of the agent wrote it")

func newerError(format int) error {
	return fmt.Errorf("%w: it has format %d; this agent reads format %d", errNewer, format, repo.Format)
}

func (c *checker) found(f Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.result.Findings) == maxTold {
		c.result.More++
		return
	}
	c.result.Findings = append(c.result.Findings, f)
}

// note keeps what is worth telling and no failure.
func (c *checker) note(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.noted[text] && len(c.noted) < maxTold {
		c.noted[text] = true
		c.result.Notes = append(c.result.Notes, text)
	}
}
