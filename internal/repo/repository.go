package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"walagent/internal/compress"
	"walagent/internal/crypto"
	"walagent/internal/errs"
	"walagent/internal/storage"
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
	Keys    Keys
	Codec   compress.Setting
	Pins    *Pins // nil: no pin is kept or believed
	Log     *slog.Logger
	Now     func() time.Time
	Version string // of the agent, for what it writes
}

// Repository is an opened repository. It is safe for concurrent use.
type Repository struct {
	bucket  storage.Bucket
	keys    Keys
	codec   compress.Setting
	pins    *Pins
	log     *slog.Logger
	now     func() time.Time
	version string
}

// marker is repository.json.
type marker struct {
	Format    int       `json:"format"`
	ID        string    `json:"id"`
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// New makes the handle without asking the store anything.
func New(bucket storage.Bucket, o Options) *Repository {
	return &Repository{
		bucket: bucket, keys: o.Keys, codec: o.Codec, pins: o.Pins,
		log: o.Log, now: o.Now, version: o.Version,
	}
}

// String is the repository's URL without secrets.
func (r *Repository) String() string { return r.bucket.String() }

// Sealed reports whether data goes into the repository encrypted.
func (r *Repository) Sealed() bool { return !r.keys.Data.Empty() }

// Init makes the repository and pins its id. It refuses where one exists.
func (r *Repository) Init(ctx context.Context) (id string, err error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make repository id: %w", err)
	}
	m := marker{Format: Format, ID: hex.EncodeToString(b[:]), Created: timestamp(r.now()), CreatedBy: r.version}
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode repository.json: %w", err)
	}
	_, err = r.bucket.Put(ctx, repositoryKey, storage.Bytes(append(body, '\n')), storage.PutOptions{})
	if errors.Is(err, storage.ErrExists) {
		return "", errs.Wrap(err, errs.Conflict,
			"Use it as it is; to begin anew choose another URL. Nothing was changed.",
			"there is a repository at %s already", r)
	}
	if err != nil {
		return "", err
	}
	return m.ID, r.pins.set(r.String(), m.ID, r.now())
}

// Check proves that the repository is the one it was: repository.json is
// there, has a format that we know, and carries the id that this host pinned
// when it first saw it. Until then nothing is written and no "not found" is
// believed (an empty mount point and a wrong prefix answer that, too).
// On stores where a look costs a request it is good for some minutes.
func (r *Repository) Check(ctx context.Context) error {
	pin, err := r.pins.get(r.String())
	if err != nil {
		return err
	}
	if pin != nil && !r.bucket.Capabilities().CheapCheck {
		if age := r.now().Sub(pin.Checked); age >= 0 && age < checkLease {
			return nil
		}
	}
	m, err := r.readMarker(ctx)
	if err != nil {
		if pin != nil && errs.KindOf(err) == errs.NotInitialised {
			// The cause is not wrapped: its hint, to make a repository, is the
			// wrong advice here.
			return errs.Wrap(ErrGone, errs.NotInitialised,
				"It was there before: look for an empty mount point, a changed prefix or lost data. If you really began anew, remove "+r.pins.path(r.String())+".",
				"the repository %s (id %s) is gone", pin.URL, pin.ID)
		}
		return err
	}
	if pin != nil && pin.ID != m.ID {
		return errs.New(errs.Foreign,
			"Another repository is at this place: a wrong URL or mount. If it was replaced on purpose, remove "+r.pins.path(r.String())+".",
			"repository %s has id %s, but this host has pinned id %s", r, m.ID, pin.ID)
	}
	if pin == nil {
		return r.pins.set(r.String(), m.ID, r.now())
	}
	if r.bucket.Capabilities().CheapCheck {
		return nil
	}
	// The lease only saves requests: a full state directory is no reason to
	// let WAL pile up.
	if err := r.pins.set(r.String(), m.ID, r.now()); err != nil {
		r.log.Debug("renew the lease of the repository", "error", err.Error())
	}
	return nil
}

// ErrGone is that the repository which this host pinned is not there any more.
var ErrGone = errors.New("there is no " + repositoryKey)

func (r *Repository) readMarker(ctx context.Context) (marker, error) {
	var m marker
	b, err := r.readAll(ctx, repositoryKey, 64<<10)
	if errors.Is(err, storage.ErrNotExist) {
		return m, errs.New(errs.NotInitialised,
			"Make it with: agent repo init",
			"there is no repository at %s: it has no %s", r, repositoryKey)
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, r.damaged(fmt.Errorf("decode: %w", err), repositoryKey)
	}
	if m.ID == "" {
		return m, r.damaged(errors.New("it has no repository id"), repositoryKey)
	}
	if m.Format != Format {
		return m, errs.New(errs.Config,
			fmt.Sprintf("Use the version of the agent that wrote it (%s) or a newer one.", m.CreatedBy),
			"repository %s has format %d; this agent reads format %d", r, m.Format, Format)
	}
	return m, nil
}

// Clusters lists the system identifiers that have anything stored.
func (r *Repository) Clusters(ctx context.Context) ([]ClusterID, error) {
	var ids []ClusterID
	for name, err := range r.bucket.Folders(ctx, clusterRoot) {
		if err != nil {
			return nil, fmt.Errorf("list clusters: %w", err)
		}
		id, err := strconv.ParseUint(name, 10, 64)
		if err != nil || ClusterID(id).prefix() != clusterRoot+name+"/" {
			continue
		}
		ids = append(ids, ClusterID(id))
	}
	return ids, nil
}
