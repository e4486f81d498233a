package postgres

import "fmt"

// Segment is one WAL segment of one timeline. Its file name and its place in
// the WAL depend on the cluster's segment size, which every method takes; the
// size must be valid.
type Segment struct {
	Timeline Timeline
	Number   uint64 // LSN / segment size
}

// SegmentOf is the segment that holds the byte at lsn.
func SegmentOf(tli Timeline, lsn LSN, size SegmentSize) Segment {
	return Segment{Timeline: tli, Number: lsn.Segment(size)}
}

// ParseSegment reads the 24 digits of a segment file name and checks that the
// last eight are possible with the segment size (XLogFromFileName in
// src/include/access/xlog_internal.h).
func ParseSegment(name string, size SegmentSize) (Segment, error) {
	f, err := ParseWALFile(name)
	if err != nil {
		return Segment{}, err
	}
	if f.Kind != WALSegment {
		return Segment{}, fmt.Errorf("parse WAL segment name %q: expected 24 hexadecimal digits and nothing more", name)
	}
	return f.Segment(size)
}

// Name is the name of the segment's file: timeline, log id and segment within
// the log id, eight upper-case hexadecimal digits each.
func (s Segment) Name(size SegmentSize) string {
	n := uint64(size.PerLogID())
	return fmt.Sprintf("%08X%08X%08X", uint32(s.Timeline), s.Number/n, s.Number%n)
}

// Start is the LSN of the segment's first byte.
func (s Segment) Start(size SegmentSize) LSN { return LSN(s.Number * uint64(size)) }

// End is the LSN behind the segment's last byte.
func (s Segment) End(size SegmentSize) LSN { return s.Next().Start(size) }

// Next is the following segment of the same timeline.
func (s Segment) Next() Segment { return Segment{Timeline: s.Timeline, Number: s.Number + 1} }
