// Package storage says what any object store can do for us, in one interface,
// Bucket, and holds the decorators that are the same for all of them (retry,
// limits, counting). Each backend is a package below this one and passes the
// acceptance suite in storagetest.
//
// A bucket holds immutable objects: an object is created once, whole, by one
// conditional Put, and is never changed. There is deliberately no overwrite,
// no rename, no copy and no recursive delete.
package storage

import (
	"bytes"
	"context"
	"io"
	"iter"
	"time"
)

// Bucket is an object store, or a part of one below a prefix.
//
// All methods are safe for concurrent use, stop early when ctx is done, and
// return errors that errors.Is matches to the sentinels of this package.
// Keys are checked by CheckKey before anything is sent.
type Bucket interface {
	// Put creates the object key with the bytes of src. The store itself
	// decides that the key is new: of concurrent creators exactly one wins
	// and the others get ErrExists. The object is visible complete and
	// durable, or not at all; a Put that fails or is cancelled leaves nothing
	// behind that List or Get would show. A body that is shorter or longer
	// than src.Size is refused with ErrBadLength, one whose SHA-256 is not
	// opts.SHA256 with ErrBadDigest; an error of the body is passed up wrapped,
	// without a class of this package. The returned Info has Size and, unless
	// opts.Unhashed, SHA256 of what was stored. After ErrUnavailable it may be that the object was
	// created and only the answer was lost: then a repeated Put gives
	// ErrExists. ErrExists means that the object there is durable.
	Put(ctx context.Context, key string, src Source, opts PutOptions) (Info, error)

	// Get opens the whole object. The reader fails with io.ErrUnexpectedEOF,
	// never with a clean io.EOF, if fewer than Info.Size bytes arrive.
	Get(ctx context.Context, key string) (io.ReadCloser, Info, error)

	// GetRange opens exactly n bytes from offset off, both not negative. If
	// the object ends before off+n the error is ErrRange, at once or from
	// the reader; the reader never ends early with io.EOF. n = 0 gives an
	// empty reader without asking the store.
	GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)

	// Stat describes the object.
	Stat(ctx context.Context, key string) (Info, error)

	// List yields the objects whose key begins with prefix and is greater
	// than startAfter, in byte order of the keys. It is consistent: an object
	// whose Put returned is listed. Prefix and startAfter are checked by
	// CheckPrefix; either may be empty. The sequence ends after its first
	// error, and may be used more than once; its consumer may use the bucket.
	List(ctx context.Context, prefix, startAfter string) iter.Seq2[Info, error]

	// Folders yields, in the order of the keys, the distinct names between prefix, which is
	// empty or ends with a slash, and the next slash of the keys below it. Keys
	// directly below prefix, without another slash, are not yielded. It costs one
	// request for about a thousand names where the store can group keys.
	// Consistency and errors are those of List.
	Folders(ctx context.Context, prefix string) iter.Seq2[string, error]

	// Versions yields every version that the store keeps of the objects whose
	// key begins with prefix: by key, newest first. Info.Version names each,
	// Info.Hidden says of a newest version that it is only a marker of a
	// deletion, with nothing to read. Stores without versions, and buckets where
	// they are off, yield the objects as they are or nothing at all.
	Versions(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// GetVersion is Get of one version as Versions named it.
	GetVersion(ctx context.Context, key, version string) (io.ReadCloser, Info, error)

	// Delete removes objects. A missing object is not an error. When some
	// cannot be removed the others still are, and the error joins one *Error
	// for each key that remains.
	Delete(ctx context.Context, keys ...string) error

	// Capabilities says what this store can do beyond the contract.
	Capabilities() Capabilities

	// String is the URL for messages; it never holds a secret.
	String() string

	// Close gives up connections. The bucket is not used afterwards.
	Close() error
}

// Source is a body that can be sent again from its start, so that every retry
// begins clean. Open may be called more than once, also concurrently.
type Source interface {
	Open() (io.ReadCloser, error)
	Size() int64 // bytes
}

// PutOptions are the optional parts of a Put.
type PutOptions struct {
	// SHA256 is the expected digest of the body, if the caller knows it.
	SHA256 *[32]byte
	// Unhashed says that the caller has no use for Info.SHA256, which is zero then
	// where the store needs no digest itself.
	Unhashed bool
	// Metadata is for people and life-cycle rules; nothing of ours reads it
	// back. Stores without Capabilities.Metadata drop it.
	Metadata map[string]string
	// Lock forbids the store to let anybody delete or replace the object before
	// a time; nil: no lock. A store that cannot lock refuses the Put with
	// ErrUnsupported: what was promised as immutable is never stored otherwise.
	Lock *Lock
}

// LockMode says who may lift a lock.
type LockMode string

// The modes of locks, by S3's names.
const (
	// Governance: those with a right of its own may (S3 governance mode, GCS
	// and Azure "Unlocked").
	Governance LockMode = "governance"
	// Compliance: nobody may (S3 compliance mode, GCS and Azure "Locked").
	Compliance LockMode = "compliance"
)

// Lock keeps an object until a time, by the store's clock.
type Lock struct {
	Mode  LockMode
	Until time.Time
}

// Info describes an object.
type Info struct {
	Key      string
	Size     int64     // bytes
	ModTime  time.Time // the store's clock
	SHA256   [32]byte  // of the stored bytes; set by Put alone
	Metadata map[string]string
	Version  string // of the store's choice; set by Versions and GetVersion
	Hidden   bool   // set by Versions: a marker of a deletion
	Lock     *Lock  // set by Stat, where the store tells; nil: none is known
}

// Capabilities of a store.
type Capabilities struct {
	Metadata bool // user metadata is kept and returned by Stat
	// CheapCheck is true where looking at repository.json costs no request
	// (a local folder), so that it is done each time and not under a lease.
	CheapCheck bool
	Local      bool // no network lies between: looking at an object takes microseconds
	Locks      bool // PutOptions.Lock is understood; whether this bucket allows it is told by Probe
	Versions   bool // the store can keep versions; whether this bucket does is told by Probe
}

// Facts are what a store says of itself, for people. What it does not tell is
// left at zero.
type Facts struct {
	Time      time.Time         // the store's clock
	Versioned bool              // older versions are kept
	Lockable  bool              // objects of this bucket can be locked
	Retention string            // a default lock of the bucket, as "governance 30d"; "" if none is known
	Free      int64             // bytes free, -1 or 0 if not known
	Notes     map[string]string // anything else worth showing: region, endpoint, host key
}

// Prober is a Bucket that can tell Facts. A fact that may not be looked at
// with these rights is left out; an error means that the store cannot be used.
type Prober interface {
	Probe(ctx context.Context) (Facts, error)
}

// As finds, in a bucket or what its decorators wrap, one that has the methods
// of T.
func As[T any](b Bucket) (T, bool) {
	for {
		if t, ok := b.(T); ok {
			return t, true
		}
		w, ok := b.(interface{ Unwrap() Bucket })
		if !ok {
			var none T
			return none, false
		}
		b = w.Unwrap()
	}
}

// Bytes is a Source over a slice, which must not change while it is in use.
type Bytes []byte

// Open returns a reader over the slice; it has WriteTo and Seek.
func (b Bytes) Open() (io.ReadCloser, error) { return bytesReader{bytes.NewReader(b)}, nil }

// Size is the length of the slice.
func (b Bytes) Size() int64 { return int64(len(b)) }

type bytesReader struct{ *bytes.Reader }

func (bytesReader) Close() error { return nil }
