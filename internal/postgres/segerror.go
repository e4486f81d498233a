package postgres

import (
	"errors"
	"fmt"
	"strings"
)

// What a SegmentError wraps.
var (
	// ErrForeign: the segment is of a cluster with another system identifier.
	ErrForeign = errors.New("WAL of another cluster")
	// ErrTorn: the file is WAL, but not whole and not only this segment: cut
	// short, half written, with pages of a recycled file, or misnamed.
	ErrTorn = errors.New("torn WAL segment")
	// ErrNotWAL: the file does not begin like a WAL segment that is supported.
	ErrNotWAL = errors.New("not a WAL segment")
)

// SegmentError says where a file differs from the segment that its name
// promises.
type SegmentError struct {
	Name     string // the file's name
	Offset   int64  // of the page that is wrong, in bytes
	Field    string // what of it is wrong
	Expected string
	Seen     string
	Err      error // ErrForeign, ErrTorn or ErrNotWAL
}

// Error names the file, the offset, what was expected and what was seen.
func (e *SegmentError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v: at offset %d: %s", e.Name, e.Err, e.Offset, e.Field)
	if e.Expected != "" {
		fmt.Fprintf(&b, ": expected %s, seen %s", e.Expected, e.Seen)
	}
	return b.String()
}

// Unwrap returns the sentinel.
func (e *SegmentError) Unwrap() error { return e.Err }
