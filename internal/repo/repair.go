package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/storage"
)

// Fix is what Repair has done.
type Fix struct {
	// From is where the good copy was: a place, or an older version in one; empty:
	// the object proved to be good, and nothing was done.
	From string
	Size int64 // stored bytes of the object
}

// Repair puts a good copy of an object into the place of that name, where it is
// damaged or missing. The copy is another place's or an older version, it is
// brought here whole and proved before anything is changed, and a bad object is
// read once more before it is deleted: it may have been the network. Cut off
// between the deletion and the new object, the latter is missing, and the next
// Repair stores it.
//
// want pins the object, where that is known. Without it the object proves itself:
// backup.json by its own hash, WAL by the one that it carries and its content,
// which takes an identity where it is encrypted, unless it is only missing.
func (r *Repository) Repair(ctx context.Context, place, key string, want *ObjectDigest) (Fix, error) {
	target, err := r.named(place)
	if err != nil {
		return Fix{}, err
	}
	prove, err := r.proofFor(key, want)
	if err != nil {
		return Fix{}, err
	}
	there := source{repo: r, place: target}
	t, err := there.take(ctx, key, prove)
	switch {
	case err == nil:
		return Fix{Size: t.spool.Size()}, t.spool.Close()
	case !own(err):
		return Fix{}, err
	}
	bad := !errors.Is(err, storage.ErrNotExist)
	if bad && want == nil {
		prove = opened(prove)
	}
	good, from, err := r.takeElsewhere(ctx, target, key, prove)
	if err != nil {
		return Fix{}, fmt.Errorf("find a good copy: %w", missing(err, key, r.String()))
	}
	defer good.spool.Close()
	if bad {
		if err := target.Bucket.Delete(ctx, key); err != nil {
			return Fix{}, errs.Wrap(err, errs.Storage,
				"Nothing was changed. The object is locked, or these credentials must not delete: repair it with others, or when the lock has ended.",
				"delete the damaged %s of %s", key, target)
		}
	}
	sum := [32]byte(good.sum)
	_, err = target.putOwned(ctx, key, good.source(), storage.PutOptions{SHA256: &sum, Lock: target.lock(r.now())})
	if err != nil {
		return Fix{}, fmt.Errorf("store a good copy: %w", err)
	}
	return Fix{From: from, Size: good.spool.Size()}, nil
}

// proofFor is how an object is proved.
func (r *Repository) proofFor(key string, want *ObjectDigest) (proof, error) {
	if want != nil {
		return exactly(*want), nil
	}
	id, folder, rest := splitKey(key)
	if folder == "backup" {
		name, err := ParseBackupName(firstComponent(rest, ""))
		if err != nil || key != id.backupKey(name) {
			return nil, fmt.Errorf("it is not known what %s must be", key)
		}
		return func(_ context.Context, s source, _ string, t *taken) error {
			_, err := s.decodeTaken(t, id, name)
			return err
		}, nil
	}
	prove, ok := proofOf(key)
	if !ok {
		return nil, fmt.Errorf("it is not known what %s must be", key)
	}
	return prove, nil
}

// opened is a proof that does not take an object for good which cannot be opened
// here: something is deleted for it.
func opened(prove proof) proof {
	return func(ctx context.Context, s source, key string, t *taken) error {
		if err := prove(ctx, s, key, t); err != nil {
			return err
		}
		head, err := t.head()
		if err != nil || !crypto.IsSealed(head) {
			return err
		}
		body, err := t.spool.Open()
		if err != nil {
			return err
		}
		defer body.Close()
		o, err := s.newObject(body, key)
		if err != nil {
			return fmt.Errorf("prove the copy: %w", err)
		}
		return o.Close()
	}
}

// takeElsewhere brings a good copy of an object: another place's, or an older
// version.
func (r *Repository) takeElsewhere(ctx context.Context, target *place, key string, prove proof) (good *taken, from string, err error) {
	order := slices.DeleteFunc(r.readOrder(), func(p *place) bool { return p == target })
	err = r.readFrom(ctx, append(order, target), key, expected, func(s source) (err error) {
		good, err = s.take(ctx, key, prove)
		from = s.String()
		if s.version == "" {
			from = s.place.Name
		}
		return err
	})
	return good, from, err
}

// KeepsVersions reports whether the store of a place may keep older versions.
func (r *Repository) KeepsVersions(place string) bool {
	p, err := r.named(place)
	return err == nil && p.Bucket.Capabilities().Versions
}

// OlderCopy reports whether an older version of a damaged or missing object in
// any place is what was stored. want is as in Repair.
func (r *Repository) OlderCopy(ctx context.Context, key string, want *ObjectDigest) bool {
	prove, err := r.proofFor(key, want)
	if err != nil {
		return false
	}
	if want == nil {
		prove = opened(prove)
	}
	for _, p := range r.up() {
		if !p.Bucket.Capabilities().Versions {
			continue
		}
		for _, v := range r.older(ctx, p, key) {
			t, err := (source{repo: r, place: p, version: v}).take(ctx, key, prove)
			if err == nil {
				return t.spool.Close() == nil
			}
		}
	}
	return false
}
