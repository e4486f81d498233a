package archive

import (
	"fmt"

	"walagent/internal/postgres"
)

// chain is told the bytes of one segment and then says how the segment joins
// its neighbours.
type chain interface {
	// Write takes the next bytes, in chunks of any length. It never fails.
	Write(p []byte) (int, error)
	// Edges is what is known when the whole segment was written.
	Edges() Edges
}

// Edges are how a segment begins and how the next one must.
type Edges struct {
	// First and Last are the timelines of its first and last page that is not
	// empty.
	First, Last postgres.Timeline
	// Begins is how many bytes at its beginning belong to a record of the
	// segment before.
	Begins uint32
	// Overwrites is that it begins anew where the rest of a record was lost in
	// a crash (XLP_FIRST_IS_OVERWRITE_CONTRECORD).
	Overwrites bool
	// Rest is how many bytes of a record are left for the next segment, where
	// the pages tell.
	Rest  uint32
	Known bool // Rest is known
}

// Joins says why the next segment of the same timeline cannot follow, or nil.
func (e Edges) Joins(next Edges) error {
	switch {
	case next.First < e.Last:
		return fmt.Errorf("it begins on timeline %d, behind a segment that ends on timeline %d", next.First, e.Last)
	case !e.Known || e.Rest == next.Begins:
		return nil
	case e.Rest == 0:
		return fmt.Errorf("it begins with %d bytes of a record that the segment before, which was ended by a switch or at the end of a record, has not begun", next.Begins)
	case next.Overwrites:
		return nil
	default:
		return fmt.Errorf("it begins with %d bytes of a record, but the segment before has left %d", next.Begins, e.Rest)
	}
}

// shortHeader is how much of each page pageChain looks at, in bytes: the short
// form of the header, with which the long one begins.
const shortHeader = 24

// pageChain is a chain by page headers alone: xlp_rem_len of a page is how much
// of a record that began before is left (src/include/access/xlog_internal.h). A
// record that begins on the last page and goes on is not seen.
type pageChain struct {
	at    int64
	head  [shortHeader]byte
	edges Edges
	last  postgres.PageHeader
}

func (c *pageChain) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		in := int(c.at % postgres.WALBlockSize)
		k := min(len(p), postgres.WALBlockSize-in)
		if in < shortHeader {
			k = min(k, shortHeader-in)
			copy(c.head[in:], p[:k])
			if in+k == shortHeader {
				c.page(c.at - int64(in))
			}
		}
		c.at += int64(k)
		p = p[k:]
	}
	return n, nil
}

// page takes the header of the page at offset, whose first bytes are in head.
func (c *pageChain) page(offset int64) {
	// The flag of the long form asks for more bytes than there are; what is
	// read here is the same in both forms.
	head := c.head
	head[2] &^= byte(postgres.PageLongHeader)
	h, err := postgres.ParsePageHeader(head[:])
	if err != nil {
		return // there are enough bytes
	}
	c.last = h
	if h.Empty() {
		return
	}
	if offset == 0 {
		c.edges.First = h.Timeline
		if h.Flags&postgres.PageContRecord != 0 {
			c.edges.Begins = h.RemLen
		}
		c.edges.Overwrites = h.Flags&postgres.PageOverwriteContRecord != 0
	}
	c.edges.Last = max(c.edges.Last, h.Timeline)
}

func (c *pageChain) Edges() Edges {
	e := c.edges
	room := uint32(postgres.WALBlockSize - shortHeader)
	rest := uint32(0)
	if c.last.Flags&postgres.PageContRecord != 0 {
		rest = c.last.RemLen
	}
	switch {
	case c.last.Empty(): // behind a switch
		e.Known = true
	case rest > room:
		e.Rest, e.Known = rest-room, true
	case rest+7 >= room: // records are aligned to 8 bytes: it fills the page
		e.Known = true
	}
	return e
}
