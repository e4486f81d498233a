package postgres

import (
	"fmt"
	"math/bits"
)

// SegmentChecker checks that the bytes written to it are the segment that a
// file name promises, as they stream by: each page header is looked at once
// and nothing else is kept. It is an io.WriteCloser; a chunk may have any
// length, whole pages are cheapest. One goroutine at a time may use it.
//
// It enforces what PostgreSQL's reader enforces of page headers
// (XLogReaderValidatePageHeader in src/backend/access/transam/xlogreader.c),
// plus what is true of whole segments: size and name agree with the long
// header, the magic is the same on all pages, timelines never decrease and
// never exceed the name's, and behind the first page with an empty header,
// which a forced switch leaves, all headers are empty.
//
// A page format that is not known is accepted with a warning if size, system
// identifier and addresses are consistent, so that a new major does not stall
// archiving. Of a .partial file the tail is whatever the recycled file held:
// checking stops at the first page that does not belong, but not at page one.
type SegmentChecker struct {
	name WALFile
	size int64
	sys  uint64

	first    PageHeader
	last     Timeline
	start    LSN
	warnings []string

	written int64
	head    [longPageHeader]byte // header of the page at hand, while it is incomplete
	empty   bool                 // a page with an empty header was seen
	done    bool                 // the rest is a partial file's garbage
	err     error                // the first one; it stays
}

// NewSegmentChecker makes a checker for a segment or partial segment file of
// the given size in bytes. A sysid other than 0 is the system identifier that
// the WAL must have. A name of another kind is refused by the first Write.
func NewSegmentChecker(name WALFile, size int64, sysid uint64) *SegmentChecker {
	return &SegmentChecker{name: name, size: size, sys: sysid}
}

// Header is the long header of the first page. It is zero until that page was
// written and found to be right.
func (c *SegmentChecker) Header() PageHeader { return c.first }

// Warnings are the remarks on a segment that is accepted nevertheless, as
// sentences without a full stop.
func (c *SegmentChecker) Warnings() []string { return c.warnings }

// Write checks the next bytes of the file. An error is a *SegmentError; every
// later call returns it again.
func (c *SegmentChecker) Write(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if c.written+int64(len(p)) > c.size {
		return 0, c.fail(c.written, ErrTorn, "file size", fmt.Sprintf("%d bytes", c.size), "more")
	}
	n := 0
	for n < len(p) && !c.done {
		at := int(c.written % WALBlockSize)
		page := c.written - int64(at)
		want := shortPageHeader
		if page == 0 {
			want = longPageHeader
		}
		if at < want {
			k := copy(c.head[at:want], p[n:])
			n += k
			c.written += int64(k)
			if at+k == want && c.check(page, c.head[:want]) != nil {
				return n, c.err
			}
			continue
		}
		k := min(len(p)-n, WALBlockSize-at)
		n += k
		c.written += int64(k)
	}
	c.written += int64(len(p) - n)
	return len(p), nil
}

// Close tells whether all that was written is the whole segment. An error is a
// *SegmentError.
func (c *SegmentChecker) Close() error {
	switch {
	case c.err != nil:
		return c.err
	case c.written != c.size:
		return c.fail(c.written, ErrTorn, "file size", fmt.Sprintf("%d bytes", c.size), fmt.Sprintf("%d", c.written))
	case c.first.Empty():
		return c.fail(0, ErrTorn, "file size", "a power of two from 1 MiB to 1 GiB", fmt.Sprintf("%d bytes", c.size))
	}
	return nil
}

// fail keeps the first error.
func (c *SegmentChecker) fail(offset int64, sentinel error, field, expected, seen string) error {
	c.err = &SegmentError{Name: c.name.Name, Offset: offset, Field: field, Expected: expected, Seen: seen, Err: sentinel}
	return c.err
}

// check judges the header of the page at offset.
func (c *SegmentChecker) check(offset int64, head []byte) error {
	if offset == 0 {
		return c.checkFirst(head)
	}
	// A long header where there should be none is refused by its flag, so its
	// additional fields are not needed.
	h := parseShortHeader(head)
	d := c.differs(offset, h)
	switch {
	case d == nil:
		c.last = max(c.last, h.Timeline)
		return nil
	case c.name.Kind == WALPartial:
		c.done = true
		return nil
	default:
		return c.fail(offset, ErrTorn, d.field, d.expected, d.seen)
	}
}

// difference is the first thing about a header that does not fit.
type difference struct {
	sentinel              error
	field, expected, seen string
}

func torn(field, expected, seen string) *difference {
	return &difference{ErrTorn, field, expected, seen}
}

// differs looks at a header that is not the first one. Nil: it fits.
func (c *SegmentChecker) differs(offset int64, h PageHeader) *difference {
	_, known := MagicMajor(c.first.Magic)
	want := c.start + LSN(offset)
	switch {
	case h.Empty():
		c.empty = true
		return nil
	case c.empty:
		return torn("page header", "zeros, as on the pages before", fmt.Sprintf("magic %04X, address %s", h.Magic, h.Addr))
	case h.Magic != c.first.Magic:
		return torn("page magic", fmt.Sprintf("%04X", c.first.Magic), fmt.Sprintf("%04X", h.Magic))
	case h.Addr != want:
		return torn("page address", want.String(), h.Addr.String())
	case h.Timeline < c.last || h.Timeline > c.name.Timeline:
		return torn("page timeline", fmt.Sprintf("%d to %d", c.last, c.name.Timeline), fmt.Sprintf("%d", h.Timeline))
	case known && (h.Flags&PageLongHeader != 0 || h.Flags&^pageFlagsKnown != 0):
		return torn("page flags", "those of a page inside a segment", fmt.Sprintf("%04X", uint16(h.Flags)))
	}
	return nil
}

// checkFirst judges the long header, from which the rest of the rules follows.
func (c *SegmentChecker) checkFirst(head []byte) error {
	if c.name.Kind != WALSegment && c.name.Kind != WALPartial {
		return c.fail(0, ErrNotWAL, "file name", "that of a segment", c.name.Kind.String())
	}
	h, err := ParsePageHeader(head)
	if err != nil {
		return c.fail(0, ErrNotWAL, err.Error(), "", "")
	}
	major, known := MagicMajor(h.Magic)
	d := c.firstDiffers(h)
	switch {
	case d != nil && !known:
		return c.refuseUnknown(h, d)
	case d != nil:
		return c.fail(0, d.sentinel, d.field, d.expected, d.seen)
	case known && h.Flags&^pageFlagsKnown != 0:
		return c.fail(0, ErrTorn, "page flags", fmt.Sprintf("those of PostgreSQL %d", major), fmt.Sprintf("%04X", uint16(h.Flags)))
	case !known:
		c.warnings = append(c.warnings, fmt.Sprintf("%s: the WAL page format %04X is of no PostgreSQL major from %d to %d; "+
			"page addresses and system identifier are consistent, so the file is taken as it is", c.name.Name, h.Magic, MinMajor, MaxMajor))
	}
	c.first, c.last, c.start = h, h.Timeline, h.Addr
	return nil
}

func (c *SegmentChecker) refuseUnknown(h PageHeader, d *difference) error {
	if h.Empty() {
		return c.fail(0, ErrNotWAL, "page header", "that of a WAL segment", "zeros")
	}
	if major, ok := MagicMajor(bits.ReverseBytes16(h.Magic)); ok {
		return c.fail(0, ErrNotWAL, "byte order", "little-endian", fmt.Sprintf("big-endian WAL of PostgreSQL %d", major))
	}
	return c.fail(0, ErrNotWAL, fmt.Sprintf("unknown page magic %04X, and %s", h.Magic, d.field), d.expected, d.seen)
}

// firstDiffers looks at the long header, in the order in which a reader
// understands most. Nil: it fits.
func (c *SegmentChecker) firstDiffers(h PageHeader) *difference {
	if h.Flags&PageLongHeader == 0 {
		return torn("page header", "the long form on a segment's first page", "the short form")
	}
	if h.BlockSize != WALBlockSize {
		return &difference{ErrNotWAL, "WAL block size", fmt.Sprintf("%d bytes, the only one supported", WALBlockSize), fmt.Sprintf("%d", h.BlockSize)}
	}
	if c.sys != 0 && h.SystemID != c.sys {
		return &difference{ErrForeign, "system identifier", fmt.Sprintf("%d", c.sys), fmt.Sprintf("%d", h.SystemID)}
	}
	if !h.SegmentSize.Valid() {
		return &difference{ErrNotWAL, "segment size in the header", "a power of two from 1 MiB to 1 GiB", fmt.Sprintf("%d bytes", uint32(h.SegmentSize))}
	}
	if c.size != int64(h.SegmentSize) {
		return torn("file size", fmt.Sprintf("%d bytes as the header says", uint32(h.SegmentSize)), fmt.Sprintf("%d", c.size))
	}
	seg, err := c.name.Segment(h.SegmentSize)
	if err != nil {
		return &difference{ErrNotWAL, "file name", fmt.Sprintf("one of segments of %s", h.SegmentSize), c.name.Name}
	}
	if want := seg.Start(h.SegmentSize); h.Addr != want {
		return torn("page address", want.String(), h.Addr.String())
	}
	if h.Timeline == 0 || h.Timeline > c.name.Timeline {
		return torn("page timeline", fmt.Sprintf("1 to %d", c.name.Timeline), fmt.Sprintf("%d", h.Timeline))
	}
	return nil
}
