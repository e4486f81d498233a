package summary

import (
	"errors"
	"fmt"

	"agent/internal/postgres/xlog"
)

// ErrNone says that nothing can be said of what was read.
var ErrNone = errors.New("no summary of this WAL segment can be made")

// Builder makes the summary of one segment, whose bytes are written to it as
// they stream by. Its memory is bounded by what the segment holds: 32 bytes for
// each block that it touches, and two pieces of at most xlog.MaxKept. One
// goroutine at a time may use it.
type Builder struct {
	decoder *xlog.Decoder
	collector
}

// NewBuilder makes a builder.
func NewBuilder() *Builder {
	b := &Builder{collector: collector{table: NewTable()}}
	b.decoder = xlog.NewDecoder(func(r *xlog.Record) { b.apply(r, b.decoder.Major()) })
	return b
}

// Write takes the next bytes of the segment. It never fails: Finish tells.
func (b *Builder) Write(p []byte) (int, error) { return b.decoder.Write(p) }

// Segment is what was found out about the segment, once all was written: above
// all how it ends.
func (b *Builder) Segment() *xlog.Result { return b.decoder.Result() }

// Problem says what was not understood in a segment whose summary has that
// doubt; nil otherwise.
func (b *Builder) Problem() error {
	return errors.Join(b.problem, b.decoder.Result().Undecoded)
}

// Finish makes the summary of the segment whose SHA-256 is sum, once all of it
// was written. The error is ErrNone for a page format that is not known, or
// what is no whole segment. A tail that is not the segment's own is no error:
// see Ending.
func (b *Builder) Finish(sum [32]byte) (*Summary, error) {
	res := b.decoder.Result()
	if res.Ending == xlog.Unknown && res.Head.Left == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNone, res.Reason)
	}
	s := &Summary{
		Version: Version, SystemID: res.Header.SystemID, Major: res.Major, Size: res.Header.SegmentSize,
		Start: res.Header.Addr, Timeline: res.Header.Timeline, Until: res.Timeline, SHA256: sum,
		Ending: res.Ending, Doubts: b.doubts,
		Records: res.Records, First: res.First, FirstPrev: res.FirstPrev, Last: res.Last, End: res.End,
		Head: res.Head, Overwrite: res.Overwrite, Tail: res.Tail, TailStart: res.TailStart,
		Newest: b.newest, RestorePoints: b.points, Table: b.table,
	}
	if res.Undecoded != nil {
		s.Doubts |= NotUnderstood
	}
	return s, nil
}
