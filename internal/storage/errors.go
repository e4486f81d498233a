package storage

import (
	"errors"
	"fmt"
)

// The sentinels by which callers decide; backends translate to them in one
// place each.
var (
	// ErrNotExist: the store answered that there is no such object.
	ErrNotExist = errors.New("object does not exist")
	// ErrExists: the object was there before; its bytes may be ours or not.
	ErrExists = errors.New("object exists already")
	// ErrRange: the object is shorter than the range asked for.
	ErrRange = errors.New("range is beyond the end of the object")
	// ErrBadLength: a body did not have the length that was announced.
	ErrBadLength = errors.New("body length differs from what was announced")
	// ErrBadDigest: a body did not have the digest that was announced.
	ErrBadDigest = errors.New("body digest differs from what was announced")
	// ErrKey: the key is not one that every store can hold.
	ErrKey = errors.New("invalid object key")
	// ErrPermission: credentials are missing, wrong or not enough.
	ErrPermission = errors.New("permission denied")
	// ErrNoSpace: the store is full or over its quota.
	ErrNoSpace = errors.New("no space left in the store")
	// ErrNoBucket: there is no such bucket, container or share. It is never
	// ErrNotExist: a wrong name must not look like a missing object.
	ErrNoBucket = errors.New("bucket does not exist")
	// ErrUnsupported: this store, or this bucket, cannot do what was asked.
	ErrUnsupported = errors.New("not supported by the store")
	// ErrUnavailable: a passing condition (network, throttling, timeout);
	// the same call may succeed later. Only errors of this class are retried.
	ErrUnavailable = errors.New("store unavailable")
)

// Error says which operation on which object of which store failed.
type Error struct {
	Op     string // "put", "get", "list", ...
	Bucket string // URL without secrets
	Key    string // or the prefix of a listing
	Err    error
}

// Error reads "get wal/… of file:///backup: object does not exist", or, of a
// listing of everything, "list file:///backup: store unavailable".
func (e *Error) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Bucket, e.Err)
	}
	return fmt.Sprintf("%s %s of %s: %v", e.Op, e.Key, e.Bucket, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
