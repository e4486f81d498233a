package repo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/storage"
)

// Format is the version of the repository format that this package writes and
// the only one that it reads.
const Format = 1

// checkLease is for how long a look at repository.json is good on stores where
// each look is a paid request.
const checkLease = 5 * time.Minute

// Keys says to whom objects are sealed, by class, and who opens them.
type Keys struct {
	Data, WAL, Meta crypto.Recipients
	Identities      *crypto.Identities
}

// Options are what a Repository is opened with.
type Options struct {
	Keys  Keys
	Codec compress.Setting
	Pins  *Pins  // nil: no pin is kept or believed
	Debts *Debts // nil: what a best-effort place lacks is not noted
	// SpoolDir is for what does not fit into memory: sealed objects on their
	// way to the store, and lists on their way back.
	SpoolDir string
	Log      *slog.Logger
	Now      func() time.Time
	Version  string // of the agent, for what it writes
}

// Repository is an opened repository: one place or several with the same
// objects. Writing goes to all, reading takes the first good copy. It is safe
// for concurrent use.
type Repository struct {
	places   []*place
	strict   bool // no older version stands in for what a place shows
	keys     Keys
	codec    compress.Setting
	pins     *Pins
	debts    *Debts
	spoolDir string
	log      *slog.Logger
	now      func() time.Time
	version  string

	workshops sync.Pool // of *workshop that are free
}

// Marker is repository.json, what tells a repository from any other place.
type Marker struct {
	Format    int       `json:"format"`
	ID        string    `json:"id"`
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// New makes the handle without asking the stores anything. There is at least
// one place, and one of them is required.
func New(places []Place, o Options) *Repository {
	r := &Repository{
		keys: o.Keys, codec: o.Codec, pins: o.Pins, debts: o.Debts, spoolDir: o.SpoolDir,
		log: o.Log, now: o.Now, version: o.Version,
	}
	for _, p := range places {
		r.places = append(r.places, &place{Place: p})
	}
	return r
}

// String names the places by their URLs, without secrets.
func (r *Repository) String() string { return joined(r.places) }

// Names are the names of the places, in the order of the configuration.
func (r *Repository) Names() []string {
	names := make([]string, len(r.places))
	for i, p := range r.places {
		names[i] = p.Name
	}
	return names
}

// Close gives up the connections.
func (r *Repository) Close() error {
	var all []error
	for _, p := range r.places {
		if p.Bucket != nil {
			all = append(all, p.Bucket.Close())
		}
	}
	return errors.Join(all...)
}

// Sealed reports whether data goes into the repository encrypted.
func (r *Repository) Sealed() bool { return !r.keys.Data.Empty() }

// SealsWAL reports whether WAL goes into the repository encrypted.
func (r *Repository) SealsWAL() bool { return !r.keys.WAL.Empty() }

// Init makes the repository in every place that has none, and pins their ids,
// which it returns by URL. It refuses where all of them have one.
func (r *Repository) Init(ctx context.Context) (ids map[string]string, err error) {
	ids = make(map[string]string)
	var there error
	for _, p := range r.places {
		id, err := r.init(ctx, p)
		if errors.Is(err, storage.ErrExists) {
			there = err
			continue
		}
		if err != nil {
			return ids, err
		}
		ids[p.String()] = id
	}
	if len(ids) == 0 {
		return nil, there
	}
	return ids, nil
}

func (r *Repository) init(ctx context.Context, p *place) (id string, err error) {
	if p.Bucket == nil {
		return "", p.Err
	}
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make repository id: %w", err)
	}
	m := Marker{Format: Format, ID: hex.EncodeToString(b[:]), Created: timestamp(r.now()), CreatedBy: r.version}
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", repositoryKey, err)
	}
	body = append(body, '\n')
	_, err = p.Bucket.Put(ctx, repositoryKey, storage.Bytes(body), storage.PutOptions{Lock: p.lock(r.now())})
	if errors.Is(err, storage.ErrExists) {
		if stored, rerr := (source{repo: r, place: p}).readAll(ctx, repositoryKey, maxMarker); rerr != nil || !bytes.Equal(stored, body) {
			return "", errs.Wrap(err, errs.Conflict,
				"Use it as it is; to begin anew choose another URL. Nothing was changed.",
				"there is a repository at %s already", p)
		}
		err = nil // our own first attempt, whose answer was lost
	}
	if err != nil {
		return "", err
	}
	return m.ID, r.pins.set(p.ID(), m.ID, r.now())
}

// Check proves that the repository is the one it was: in each place
// repository.json is there, has a format that we know, and carries the id that
// this host pinned when it first saw it. Until then nothing is written and no
// "not found" is believed (an empty mount point and a wrong prefix answer that,
// too). On stores where a look costs a request it is good for some minutes. A
// best-effort place that fails is left out; what it lacks then is owed.
func (r *Repository) Check(ctx context.Context) error {
	for _, p := range r.places {
		if p.Required {
			continue
		}
		if err := r.debts.Suspended(p.ID(), r.now()); err != nil {
			p.fail(err)
		}
	}
	return r.everywhere(ctx, "", r.check)
}

// CheckLocal is Check of the required places that are on this host, which costs
// nothing.
func (r *Repository) CheckLocal(ctx context.Context) error {
	for _, p := range r.required() {
		if p.Bucket == nil || !p.Bucket.Capabilities().Local {
			continue
		}
		if err := r.check(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// CheckAny is Check for reading: it is enough that one place is what it was.
// The others are left out.
func (r *Repository) CheckAny(ctx context.Context) error {
	return r.anywhere(func(p *place) error {
		err := r.check(ctx, p)
		if err != nil && len(r.places) > 1 {
			p.fail(err)
		}
		return err
	})
}

// CheckNow is CheckAny with a look at every place, all at once and whatever was
// seen a moment ago: one of several that does not answer is left out from then
// on, and costs its time once.
func (r *Repository) CheckNow(ctx context.Context) error {
	failed := make([]error, len(r.places))
	var all sync.WaitGroup
	for i, p := range r.places {
		if p.err() == nil {
			all.Go(func() { _, failed[i] = r.readMarker(ctx, p) })
		}
	}
	all.Wait()
	for i, p := range r.places {
		switch {
		case failed[i] == nil:
		case len(r.places) == 1:
			return failed[i]
		default:
			p.fail(failed[i])
			r.unusable(p, failed[i])
		}
	}
	return r.CheckAny(ctx)
}

func (r *Repository) check(ctx context.Context, p *place) error {
	pin, err := r.pins.get(p.ID())
	if err != nil {
		return err
	}
	cheap := p.Bucket.Capabilities().CheapCheck
	if pin != nil && !cheap {
		if age := r.now().Sub(pin.Checked); age >= 0 && age < checkLease {
			return nil
		}
	}
	m, err := r.readMarker(ctx, p)
	if err != nil {
		if pin != nil && errs.KindOf(err) == errs.NotInitialised {
			// The cause is not wrapped: its hint, to make a repository, is the
			// wrong advice here.
			return errs.Wrap(ErrGone, errs.NotInitialised,
				"It was there before: look for an empty mount point, a changed prefix or lost data. If you really began anew, remove "+r.pins.path(p.ID())+".",
				"the repository %s (id %s) is gone", pin.URL, pin.ID)
		}
		return err
	}
	if pin != nil && pin.ID != m.ID {
		return errs.New(errs.Foreign,
			"Another repository is at this place: a wrong URL or mount. If it was replaced on purpose, remove "+r.pins.path(p.ID())+".",
			"repository %s has id %s, but this host has pinned id %s", p, m.ID, pin.ID)
	}
	if pin == nil {
		return r.pins.set(p.ID(), m.ID, r.now())
	}
	if cheap {
		return nil
	}
	// The lease only saves requests: a full state directory is no reason to
	// let WAL pile up.
	if err := r.pins.set(p.ID(), m.ID, r.now()); err != nil {
		r.log.Debug("renew the lease of the repository", "error", err.Error())
	}
	return nil
}

// ErrGone is that the repository which this host pinned is not there any more.
var ErrGone = errors.New("there is no " + repositoryKey)

// maxMarker bounds repository.json and its like, in bytes.
const maxMarker = 64 << 10

func (r *Repository) readMarker(ctx context.Context, p *place) (Marker, error) {
	var m Marker
	err := r.readFrom(ctx, []*place{p}, repositoryKey, expected, func(s source) error {
		b, err := s.readAll(ctx, repositoryKey, maxMarker)
		if err != nil {
			return err
		}
		m = Marker{}
		if err := json.Unmarshal(b, &m); err != nil {
			return s.damaged(fmt.Errorf("decode: %w", err), repositoryKey)
		}
		if m.ID == "" {
			return s.damaged(errors.New("it has no repository id"), repositoryKey)
		}
		return nil
	})
	if errors.Is(err, storage.ErrNotExist) {
		return m, errs.New(errs.NotInitialised,
			"Make it with: agent repo init",
			"there is no repository at %s: it has no %s", p, repositoryKey)
	}
	if err != nil {
		return m, err
	}
	if m.Format != Format {
		return m, errs.New(errs.Config,
			fmt.Sprintf("Use the version of the agent that wrote it (%s) or a newer one.", m.CreatedBy),
			"repository %s has format %d; this agent reads format %d", p, m.Format, Format)
	}
	return m, nil
}

// Clusters lists the system identifiers that have anything stored.
func (r *Repository) Clusters(ctx context.Context) ([]ClusterID, error) {
	var ids []ClusterID
	err := r.anywhere(func(p *place) error {
		for name, err := range p.Bucket.Folders(ctx, clusterRoot) {
			if err != nil {
				return fmt.Errorf("list clusters: %w", err)
			}
			id, err := strconv.ParseUint(name, 10, 64)
			if err == nil && ClusterID(id).prefix() == clusterRoot+name+"/" && !slices.Contains(ids, ClusterID(id)) {
				ids = append(ids, ClusterID(id))
			}
		}
		return nil
	})
	slices.Sort(ids)
	return ids, err
}
