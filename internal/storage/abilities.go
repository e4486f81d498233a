package storage

import (
	"context"
	"iter"
	"time"
)

// Extender is a Bucket whose locks can be made to last longer; As finds it.
type Extender interface {
	// ExtendLock makes the lock of the object last until lock.Until at least. It
	// is never shortened: a lock that lasts longer is left as it is, and that is
	// no error. An object that is locked keeps its mode; one that is not gets
	// lock.Mode. It is the object that Get would give: older versions keep the
	// locks that they have.
	//
	// A missing object is ErrNotExist, a bucket that locks no objects
	// ErrUnsupported, a missing right ErrPermission.
	ExtendLock(ctx context.Context, key string, lock Lock) error
}

// Cleaner is a Bucket where a Put that was killed leaves something behind that
// no List shows; As finds it. Stores without one have nothing to clean, or
// nothing that could be removed without showing half an object: they forget
// unfinished uploads by themselves.
type Cleaner interface {
	// Unfinished yields what Puts have not finished, of the keys or below the
	// folders that begin with prefix, in no order that could be relied on. Some of
	// it may be of a Put that is still running: only its age tells. Prefix is
	// checked by CheckPrefix. The sequence ends after its first error, and its
	// consumer may use the bucket. A service that cannot list them is
	// ErrUnsupported.
	Unfinished(ctx context.Context, prefix string) iter.Seq2[Unfinished, error]

	// Discard removes one of them. It never removes an object, also not one that
	// was finished meanwhile; what is gone already is no error. A Put that is
	// still at work on it fails with ErrUnavailable.
	Discard(ctx context.Context, u Unfinished) error
}

// Unfinished is what is left of a Put that did not come to its end.
type Unfinished struct {
	// Key is that of the object it was to become. Where only its folder is known
	// the last component begins with TempPrefix, which no key has.
	Key   string
	ID    string    // of the store's choice; with Key it names one
	Size  int64     // bytes; 0 where the store does not tell
	Since time.Time // it was begun or last written then, by the store's clock
}

// Clean discards what is unfinished since before a time, by the store's clock,
// and returns how much that was. Take a time well before the start of any Put
// that may still run.
func Clean(ctx context.Context, c Cleaner, prefix string, before time.Time) (int, error) {
	n := 0
	for u, err := range c.Unfinished(ctx, prefix) {
		if err != nil {
			return n, err
		}
		if !u.Since.Before(before) {
			continue
		}
		if err := c.Discard(ctx, u); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// As finds, in a bucket or what its decorators wrap, one that has the methods
// of T. Each decorator on the way that has a method Decorate is asked to put
// itself around what was found: it is given a *T.
func As[T any](b Bucket) (T, bool) {
	if t, ok := b.(T); ok {
		return t, true
	}
	var t T
	w, ok := b.(interface{ Unwrap() Bucket })
	if !ok {
		return t, false
	}
	if t, ok = As[T](w.Unwrap()); !ok {
		return t, false
	}
	if d, decorates := b.(interface{ Decorate(ability any) }); decorates {
		d.Decorate(&t)
	}
	return t, true
}
