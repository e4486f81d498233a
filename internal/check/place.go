package check

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"agent/internal/errs"
	"agent/internal/repo"
	"agent/internal/storage"
)

// probe checks one repository.
type probe struct {
	*run
	list

	place  Place
	facts  storage.Facts // zero where the store is no Prober
	told   bool          // facts were told
	asked  moment        // when they were
	folder string        // probe/<time>-<random>/
	object *object       // that was put; nil if none could be
	// unusable is why nothing can be asked of the repository; "" if it can.
	unusable string
}

// ofRepository are the checks of a repository that need a usable one.
func ofRepository() []Name {
	return []Name{
		RepositoryID, RepositoryPut, RepositoryGet, RepositoryRange, RepositoryStat, RepositoryList, RepositoryConditional,
		RepositoryRace, RepositoryLock, RepositoryDelete, RepositoryVersions, RepositoryClock,
	}
}

func (p *probe) all(ctx context.Context) {
	if !p.open(ctx) {
		for _, n := range ofRepository() {
			p.skip(n, p.place.Name, "the repository cannot be used")
		}
		p.space()
		p.behind()
		return
	}
	p.identity(ctx)
	p.folder = probeRoot + p.Now().UTC().Format("20060102T150405Z-") + strings.ToLower(rand.Text()[:6]) + "/"
	if p.put(ctx) {
		p.reading(ctx)
		p.listing(ctx)
		p.conditional(ctx)
	} else {
		p.skipNoObject(RepositoryGet, RepositoryRange, RepositoryStat, RepositoryList, RepositoryConditional, RepositoryRace)
	}
	p.lock(ctx)
	p.delete(ctx)
	p.versions()
	p.clock()
	p.space()
	p.leftovers(ctx)
	p.behind()
}

func (p *probe) skipNoObject(names ...Name) {
	for _, n := range names {
		p.skip(n, p.place.Name, "there is no object to try it with")
	}
}

// failStore is a failure that a store told. That a best-effort repository is
// away is what it may be, and a warning.
func (p *probe) failStore(ctx context.Context, n Name, err error) {
	p.fail(n, p.place.Name, p.Advise(cause(ctx, err)), errs.Storage,
		"Look whether the repository can be reached, and what its own log says.")
	if !p.place.Required && (errors.Is(err, storage.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)) {
		last := &p.list[len(p.list)-1]
		last.Status, last.Kind = Warning, errs.Other
	}
}

// A store that cannot be reached is asked this often, this far apart, and no
// longer than this, before it is given up.
const (
	openTries = 3
	openPause = time.Second
	openLimit = 15 * time.Second
)

// open asks the store what it is. What a user without rights is not told may
// still be enough to archive.
func (p *probe) open(ctx context.Context) (usable bool) {
	if p.place.Bucket == nil {
		p.unusable = "it cannot be opened"
		p.failStore(ctx, RepositoryOpen, p.place.Err)
		return false
	}
	prober, ok := storage.As[storage.Prober](p.place.Bucket)
	if !ok {
		p.ok(RepositoryOpen, p.place.Name, nil, "%s", p.place.Bucket)
		return true
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openLimit, errTooLong(openLimit))
	defer cancel()
	var err error
	for try := 1; ; try++ {
		p.asked = moment{began: p.Now()}
		p.facts, err = prober.Probe(ctx)
		p.asked.ended, p.asked.stamped = p.Now(), p.facts.Time
		if try == openTries || !errors.Is(err, storage.ErrUnavailable) || !pause(ctx, openPause) {
			break
		}
	}
	switch {
	case err == nil:
		p.told = true
		p.ok(RepositoryOpen, p.place.Name, nil, "%s%s", p.place.Bucket, notes(p.facts.Notes))
		return true
	case errors.Is(err, storage.ErrPermission):
		p.failStore(ctx, RepositoryOpen, err)
		return true
	default:
		p.unusable = "it cannot be used"
		p.failStore(ctx, RepositoryOpen, err)
		return false
	}
}

// identity looks whether this is the repository that it was.
func (p *probe) identity(ctx context.Context) {
	one := p.place.Place
	one.Bucket = looked{one.Bucket}
	r := repo.New([]repo.Place{one}, repo.Options{
		Pins: p.pins(), Log: p.Log, Now: p.Now, Version: p.Version,
	})
	if err := r.Check(ctx); err != nil {
		p.failStore(ctx, RepositoryID, err)
		return
	}
	p.ok(RepositoryID, p.place.Name, nil, "repository.json is there, with the id that this host has pinned")
}

// looked makes every look at repository.json a real one, without a lease.
type looked struct{ storage.Bucket }

// Capabilities are those of the bucket, but that a look costs nothing.
func (l looked) Capabilities() storage.Capabilities {
	c := l.Bucket.Capabilities()
	c.CheapCheck = true
	return c
}

// Unwrap is the bucket itself; see storage.As.
func (l looked) Unwrap() storage.Bucket { return l.Bucket }

// versions says whether older versions are kept, as far as the store tells.
func (p *probe) versions() {
	facts := Facts{Versioned: p.facts.Versioned}
	switch {
	case !p.place.Bucket.Capabilities().Versions:
		p.ok(RepositoryVersions, p.place.Name, nil, "this kind of store keeps no versions")
	case !p.told:
		p.skip(RepositoryVersions, p.place.Name, "this user may not ask whether versions are kept")
	case p.facts.Versioned:
		p.ok(RepositoryVersions, p.place.Name, facts,
			"older versions are kept, so that what somebody deletes or hides is found again; a life-cycle rule should remove old ones in the end")
	case p.facts.Notes["versioning"] != "":
		p.skip(RepositoryVersions, p.place.Name, "it is not told whether versions are kept: "+oneLine(p.facts.Notes["versioning"]))
	case p.place.Immutable != nil:
		p.warn(RepositoryVersions, p.place.Name, facts,
			"Switch on versioning: locks keep versions, and readers look for an older one when somebody has hidden the newest.",
			"objects are locked, but the store does not say that it keeps older versions")
	default:
		p.ok(RepositoryVersions, p.place.Name, facts, "older versions are not kept, or this user is not told")
	}
}

// The difference of clocks that is told, in seconds. Services refuse requests
// that are signed more than 15 minutes off (Amazon S3 API, RequestTimeTooSkewed).
const (
	skewWarning = 30
	skewFailed  = 300
)

const hintClock = "Set this host's clock by NTP: services refuse requests that are signed at a wrong time, and what is kept how long goes by times."

// moment is when something was asked of the store.
type moment struct {
	began, ended time.Time // by this host's clock
	stamped      time.Time // by the store's clock, between those two; zero if it does not tell
}

// skew is how much the store's clock is ahead, as far as it is sure. Stores cut
// their times to seconds.
func (m moment) skew() time.Duration {
	if early := m.began.Add(-time.Second); m.stamped.Before(early) {
		return m.stamped.Sub(early)
	}
	return max(m.stamped.Sub(m.ended), 0)
}

// clock compares the store's clock with this host's, by the time of an object
// or else by what the store says.
func (p *probe) clock() {
	at := p.asked
	if p.object != nil && !p.object.stamped.IsZero() {
		at = p.object.moment
	}
	if at.stamped.IsZero() {
		p.skip(RepositoryClock, p.place.Name, "the store does not tell its time")
		return
	}
	skew := at.skew()
	facts := Facts{SkewSeconds: skew.Round(time.Millisecond).Seconds()}
	text := fmt.Sprintf("the store's clock is %s ahead of this host's", skew.Round(time.Second))
	if skew < 0 {
		text = fmt.Sprintf("the store's clock is %s behind this host's", (-skew).Round(time.Second))
	}
	switch seconds := skew.Abs().Seconds(); {
	case seconds > skewFailed:
		p.bad(RepositoryClock, p.place.Name, errs.Storage, facts, hintClock, "%s", text)
	case seconds > skewWarning:
		p.warn(RepositoryClock, p.place.Name, facts, hintClock, "%s", text)
	default:
		p.ok(RepositoryClock, p.place.Name, facts, "this host's clock and the store's agree")
	}
}

// space says how much room there is, of stores that end.
func (p *probe) space() {
	free := p.facts.Free
	if p.place.Dir != "" {
		fs, err := p.sys.statfs(p.place.Dir)
		if err != nil {
			return // open has told why
		}
		free = fs.free
	} else if free <= 0 {
		return // a service, or a server that does not tell
	}
	room(&p.list, RepositorySpace, p.place.Name, free, "Make room where the repository is, or keep fewer backups.")
}

// inside warns of a repository that a restore of the database would remove.
func (p *probe) inside(dataDir string) {
	if p.place.Dir == "" || dataDir == "" {
		return
	}
	if within(dataDir, p.place.Dir) {
		p.bad(RepositoryPlace, p.place.Name, errs.Config, nil, "Put the repository elsewhere, best on another machine.",
			"the repository lies in the data directory %s", dataDir)
		return
	}
	p.ok(RepositoryPlace, p.place.Name, nil, "the repository is outside the data directory")
}

// behind says what a best-effort repository lacks, as far as this host knows.
func (p *probe) behind() {
	debts := p.debts()
	owed, err := debts.Owed(p.place.ID())
	if err != nil {
		p.fail(RepositoryBehind, p.place.Name, err, errs.Config, "")
		return
	}
	switch {
	case owed.Empty() && p.place.Required:
		// Nothing is durable before it is here.
	case owed.Empty():
		p.ok(RepositoryBehind, p.place.Name, Facts{Objects: 0}, "this host knows of nothing that it lacks")
	default:
		facts := Facts{Objects: len(owed.Keys)}
		text := fmt.Sprintf("it lacks %d objects", len(owed.Keys))
		if owed.All {
			facts[Uncounted] = true
			text = fmt.Sprintf("it lacks more than %d objects", len(owed.Keys))
		}
		if !owed.Since.IsZero() {
			facts[Since] = owed.Since
			text += fmt.Sprintf(", the first since %s", owed.Since.UTC().Format(time.RFC3339))
		}
		p.warn(RepositoryBehind, p.place.Name, facts, "When it can be reached, bring it up to date with: agent repo sync", "%s", text)
	}
}

// cluster says whether the repository holds anything of the server's cluster.
func (p *probe) cluster(ctx context.Context, id uint64) {
	if p.unusable != "" || id == 0 {
		p.skip(RepositoryCluster, p.place.Name, "the repository cannot be used, or the server's cluster is not known")
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, placeLimit, errTooLong(placeLimit))
	defer cancel()
	own := fmt.Sprintf("%020d", id) // the repository's layout, docs/format.md
	others := 0
	for name, err := range p.place.Bucket.Folders(ctx, "cluster/") {
		switch {
		case err != nil:
			p.failStore(ctx, RepositoryCluster, err)
			return
		case name == own:
			p.ok(RepositoryCluster, p.place.Name, nil, "it holds WAL or backups of this cluster")
			return
		}
		others++
	}
	if others == 0 {
		p.ok(RepositoryCluster, p.place.Name, nil, "it is empty as yet")
		return
	}
	p.warn(RepositoryCluster, p.place.Name, Facts{Clusters: others},
		"That is right for a new server of several that share the repository, and after an upgrade by pg_upgrade; else it is the wrong repository, or the wrong server.",
		"it holds nothing of this cluster, but %d others", others)
}

// within reports whether path is dir or lies below it.
func within(dir, path string) bool {
	for _, p := range []*string{&dir, &path} {
		if resolved, err := filepath.EvalSymlinks(*p); err == nil {
			*p = resolved
		}
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// pause waits; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
