package check

import (
	"context"
	"errors"
	"fmt"
	"time"

	"agent/internal/errs"
	"agent/internal/storage"
)

// The times of the lock that is tried where a store does not say whether it
// locks: as short as its clock and ours may differ, and, for stores that refuse
// less than a day, a little more than that.
const (
	shortLock = 2 * time.Minute
	dayLock   = 25 * time.Hour
)

const hintLock = "Make a bucket with object lock (most services allow it only when the bucket is made), or take immutable out of this repository's settings; docs/providers.md says how, and which rights are needed."

// lock looks whether objects can be made immutable as it is configured.
func (p *probe) lock(ctx context.Context) {
	want := p.place.Immutable
	facts := Facts{}
	byDefault := ""
	if p.facts.Retention != "" {
		facts[DefaultLock] = p.facts.Retention
		byDefault = "; the bucket locks objects by itself: " + p.facts.Retention
	}
	if want == nil {
		p.ok(RepositoryLock, p.place.Name, facts, "objects are not locked: immutable is not set%s", byDefault)
		return
	}
	now := p.Now()
	until := want.Until(now)
	facts[LockMode], facts[LockSeconds] = string(want.Mode), int64(until.Sub(now.Truncate(time.Second)).Seconds())
	promise := fmt.Sprintf("objects will be locked in %s mode until %s%s", want.Mode, until.Format(time.DateOnly), byDefault)
	if !p.place.Bucket.Capabilities().Locks {
		facts[Lockable] = false
		p.bad(RepositoryLock, p.place.Name, errs.Config, facts, "Take immutable out of this repository's settings, or use S3, GCS or Azure.",
			"immutable is set, but this kind of store cannot lock objects")
		return
	}
	if p.facts.Lockable {
		facts[Lockable] = true
		p.ok(RepositoryLock, p.place.Name, facts, "the store can lock objects; %s", promise)
		return
	}
	if p.object == nil {
		p.skipNoObject(RepositoryLock)
		return
	}
	length, err := p.tryLock(ctx, want.Mode)
	if err != nil {
		facts[Lockable] = false
		c := p.Advise(cause(ctx, err))
		hint := hintLock
		if h := errs.HintOf(err); h != "" {
			hint = h
		}
		kind := errs.KindOf(c)
		if kind == errs.Other {
			kind = errs.Config
		}
		p.bad(RepositoryLock, p.place.Name, kind, facts, hint, "immutable is set, but an object cannot be locked: %s", oneLine(err.Error()))
		return
	}
	facts[Lockable] = true
	p.ok(RepositoryLock, p.place.Name, facts, "the store did not say that it locks, but took a probe object with a lock of %s; %s", length, promise)
}

// tryLock puts an object with a short lock, and looks whether it has one, as
// far as the store tells.
func (p *probe) tryLock(ctx context.Context, mode storage.LockMode) (length time.Duration, err error) {
	for _, length = range []time.Duration{shortLock, dayLock} {
		key := p.folder + "locked-" + length.String()
		until := p.Now().Add(length).UTC().Truncate(time.Second)
		_, err = p.place.Bucket.Put(ctx, key, storage.Bytes(body("put with a lock until "+until.Format(time.RFC3339))),
			storage.PutOptions{Lock: &storage.Lock{Mode: mode, Until: until}})
		if errors.Is(err, storage.ErrPermission) || errors.Is(err, storage.ErrUnavailable) || ctx.Err() != nil {
			return length, err
		}
		if err != nil && !errors.Is(err, storage.ErrExists) {
			continue
		}
		info, err := p.place.Bucket.Stat(ctx, key)
		switch {
		case err != nil:
			return length, fmt.Errorf("look at the locked object: %w", err)
		case info.Lock != nil && info.Lock.Until.Before(until):
			return length, fmt.Errorf("the store locked it until %s, and not until %s", info.Lock.Until.Format(time.RFC3339), until.Format(time.RFC3339))
		case info.Lock == nil:
			return length, errors.New("the store took a lock, but does not say that the object has one")
		}
		return length, nil
	}
	return length, err
}
