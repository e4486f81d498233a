package repo

import (
	"context"
	"errors"
	"fmt"
	"io"

	"agent/internal/errs"
	"agent/internal/storage"
)

// source is one stored copy of objects: a place, or an older version in it.
type source struct {
	repo    *Repository
	place   *place
	version string // empty: the current one
}

func (s source) get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	if err := s.place.err(); err != nil {
		return nil, storage.Info{}, err
	}
	if s.version != "" {
		return s.place.Bucket.GetVersion(ctx, key, s.version)
	}
	return s.place.Bucket.Get(ctx, key)
}

func (s source) String() string {
	if s.version != "" {
		return fmt.Sprintf("%s (version %s)", s.place, s.version)
	}
	return s.place.String()
}

// damaged says which object is not what was stored.
func (s source) damaged(err error, key string) error {
	return errs.Wrap(err, errs.Damaged,
		"The object was changed, truncated or lost after it was stored. Restore it from another copy of the repository, or use another backup (agent backup-list).",
		"object %s of %s is damaged", key, s)
}

// malformed says that an object which is what was stored cannot be understood.
func (r *Repository) malformed(err error, key string) error {
	if errs.KindOf(err) == errs.Identity {
		return fmt.Errorf("open %s of %s: %w", key, r, err)
	}
	return errs.Wrap(err, errs.Damaged, "Use another backup (agent backup-list), and report this: the object is as it was stored.",
		"object %s of %s cannot be understood", key, r)
}

// missing says that an object which the repository must hold is not there.
func missing(err error, key, where string) error {
	if !errors.Is(err, storage.ErrNotExist) {
		return err
	}
	return errs.Wrap(err, errs.Damaged,
		"The object was deleted after it was stored. Bring it back from another copy or an older version in the bucket, or use another backup (agent backup-list).",
		"object %s of %s is missing", key, where)
}

// reading says how far to look for an object that is not there.
type reading int

const (
	// expected: the object must exist, or may be hidden: a bucket with versions
	// is asked for older ones when no place has it.
	expected reading = iota
	// probing: that it is not there is an ordinary answer, and asking must cost
	// no more than one request for each place.
	probing
)

// failure is why one copy could not be used.
type failure struct {
	source
	err error
}

// read lets use take an object from the first place that has a good copy of
// it. use is called again, from the beginning, for each further copy after it
// has failed for a reason that lies in the copy or its store; any other error
// ends the search. When no place has a good one, older versions are tried where
// the store keeps them.
//
// The error is storage.ErrNotExist only if every required place answered so.
func (r *Repository) read(ctx context.Context, key string, how reading, use func(source) error) error {
	return r.readFrom(ctx, r.readOrder(), key, how, use)
}

// readFrom is read from some of the places, in this order.
func (r *Repository) readFrom(ctx context.Context, places []*place, key string, how reading, use func(source) error) error {
	var failures []failure
	attempt := func(s source) (done bool, err error) {
		err = use(s)
		switch {
		case err == nil:
			r.tell(key, failures, s)
			return true, nil
		case ctx.Err() != nil || !inCopy(err):
			return true, err
		}
		if isOutage(err) {
			r.slow(s.place)
		}
		failures = append(failures, failure{s, err})
		return false, nil
	}
	for _, p := range places {
		if done, err := attempt(source{repo: r, place: p}); done {
			return err
		}
	}
	for _, f := range failures {
		if r.strict || f.place.Bucket == nil || !f.place.Bucket.Capabilities().Versions || isOutage(f.err) {
			continue
		}
		if errors.Is(f.err, storage.ErrNotExist) && how == probing {
			continue
		}
		for _, v := range r.older(ctx, f.place, key) {
			if done, err := attempt(source{repo: r, place: f.place, version: v}); done {
				return err
			}
		}
	}
	return r.verdict(failures)
}

// older lists the versions of an object behind its newest. A listing that is
// refused or fails gives none: it was a second chance.
func (r *Repository) older(ctx context.Context, p *place, key string) []string {
	var versions []string
	first := true
	for info, err := range p.Bucket.Versions(ctx, key) {
		if err != nil {
			r.log.Debug("look for older versions", "key", key, "repository", p.Name, "error", err.Error())
			break
		}
		if info.Key != key {
			continue
		}
		if !first && !info.Hidden && info.Version != "" {
			versions = append(versions, info.Version)
		}
		first = false
	}
	return versions
}

// hidden finds, below a prefix with few objects that are never deleted, those
// that a listing does not show any more since a marker of a deletion hides
// them. It is a second chance too.
func (r *Repository) hidden(ctx context.Context, p *place, prefix string, found func(storage.Info)) {
	if !p.Bucket.Capabilities().Versions {
		return
	}
	for info, err := range p.Bucket.Versions(ctx, prefix) {
		if err != nil {
			r.log.Debug("look for hidden objects", "prefix", prefix, "repository", p.Name, "error", err.Error())
			return
		}
		found(info)
	}
}

// inCopy reports whether another copy of the object may be better.
func inCopy(err error) bool {
	return errors.Is(err, storage.ErrNotExist) || errs.KindOf(err) == errs.Damaged || isOutage(err)
}

// isOutage reports whether a store could not be asked.
func isOutage(err error) bool {
	return errors.Is(err, storage.ErrUnavailable) || errors.Is(err, storage.ErrPermission) ||
		errors.Is(err, storage.ErrNoBucket) || errs.KindOf(err) == errs.Storage ||
		errors.Is(err, errUnusable)
}

// errUnusable is that a place failed, or is not the repository that it was.
var errUnusable = errors.New("it is left out")

// tell reports that an object was saved by another copy.
func (r *Repository) tell(key string, failures []failure, from source) {
	for _, f := range failures {
		switch {
		case errors.Is(f.err, storage.ErrNotExist) && from.version == "" && !f.place.Required:
			// It is behind, which sync is for.
			r.log.Debug("not in this repository", "key", key, "repository", f.place.Name)
		case isOutage(f.err):
			r.log.Warn("a repository could not be read; another one was", "key", key, "repository", f.place.Name, "read_from", from.String(), "error", f.err.Error())
		default:
			r.log.Warn("an object is damaged or missing; another copy was read", "key", key, "repository", f.place.Name, "read_from", from.String(), "error", f.err.Error())
		}
	}
}

// verdict is the error when no copy was good: damage first, since it is a
// fact; then that a store could not be asked, unless a best-effort one alone;
// only then that the object does not exist.
func (r *Repository) verdict(failures []failure) error {
	var outage, none, spare error
	for _, f := range failures {
		switch {
		case errs.KindOf(f.err) == errs.Damaged && !errors.Is(f.err, storage.ErrNotExist):
			return f.err
		case errors.Is(f.err, storage.ErrNotExist):
			none = first(none, f.err)
		case f.place.Required:
			outage = first(outage, f.err)
		default:
			spare = first(spare, f.err)
		}
	}
	switch {
	case outage != nil:
		return outage
	case none != nil:
		if spare != nil {
			r.log.Warn("a best-effort repository could not be asked", "error", spare.Error())
		}
		return none
	default:
		return spare
	}
}

// slow puts a place that could not be asked behind the others, for a while also
// in the processes that follow: a recovery asks for one segment at a time.
func (r *Repository) slow(p *place) {
	p.mu.Lock()
	told := p.slow
	p.slow = true
	p.mu.Unlock()
	if !told && len(r.places) > 1 {
		r.debts.slow(p.ID(), r.now())
	}
}

func first(have, next error) error {
	if have != nil {
		return have
	}
	return next
}

// readOrder is the order of the configuration, with places that have failed
// already at its end.
func (r *Repository) readOrder() []*place {
	var good, slow []*place
	for _, p := range r.places {
		if p.Bucket == nil {
			r.unusable(p, p.Err)
		}
		p.mu.Lock()
		if p.slow || p.Bucket == nil || r.wasSlow(p) {
			slow = append(slow, p)
		} else {
			good = append(good, p)
		}
		p.mu.Unlock()
	}
	return append(good, slow...)
}

// wasSlow reports whether another process has found the place away a moment
// ago. It is asked once.
func (r *Repository) wasSlow(p *place) bool {
	if len(r.places) == 1 || p.looked {
		return p.slow
	}
	p.looked = true
	p.slow = r.debts.wasSlow(p.ID(), r.now())
	return p.slow
}

// readAll reads a small object whole, refusing more than limit bytes.
func (s source) readAll(ctx context.Context, key string, limit int64) ([]byte, error) {
	b, _, err := s.readObject(ctx, key, limit)
	return b, err
}

// readObject is readAll with what the store says of the object.
func (s source) readObject(ctx context.Context, key string, limit int64) ([]byte, storage.Info, error) {
	body, info, err := s.get(ctx, key)
	if err != nil {
		return nil, info, err
	}
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, info, fmt.Errorf("read %s of %s: %w", key, s, err)
	}
	if int64(len(b)) > limit {
		return nil, info, s.damaged(fmt.Errorf("it is larger than %d bytes", limit), key)
	}
	return b, info, nil
}

// unusable tells once that another place has to stand in for p.
func (r *Repository) unusable(p *place, err error) {
	p.mu.Lock()
	again := p.told
	p.told = true
	p.mu.Unlock()
	if len(r.places) > 1 && !again {
		r.log.Warn("a repository cannot be used", "repository", p.Name, "error", err.Error())
	}
}

// anywhere runs f for the places, for what is listed: each place that answers
// adds to the result. It fails only if none answers.
func (r *Repository) anywhere(f func(*place) error) error {
	answered, failed := r.ask(f)
	if answered {
		return nil
	}
	return errors.Join(failed...)
}

// surely is anywhere for what a "no" is made of: it fails if a required place
// does not answer.
func (r *Repository) surely(f func(*place) error) error {
	var required error
	answered, failed := r.ask(func(p *place) error {
		err := f(p)
		if p.Required {
			required = first(required, err)
		}
		return err
	})
	for _, p := range r.required() {
		required = first(required, p.err())
	}
	switch {
	case required != nil:
		return required
	case !answered:
		return errors.Join(failed...)
	default:
		return nil
	}
}

func (r *Repository) ask(f func(*place) error) (answered bool, failed []error) {
	for _, p := range r.readOrder() {
		err := p.err()
		if err == nil {
			err = f(p)
		}
		if err == nil {
			answered = true
			continue
		}
		r.unusable(p, err)
		failed = append(failed, err)
	}
	return answered, failed
}
