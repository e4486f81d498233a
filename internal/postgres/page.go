package postgres

import (
	"bytes"
	"encoding/binary"
)

// The parts of a data page's header that matter here
// (PageHeaderData in src/include/storage/bufpage.h).
const (
	dataPageHeader = 24 // bytes
	pageUpperAt    = 14
)

// PageLSN is pd_lsn: the end of the last WAL record that changed the page. It
// is stored as two 32-bit halves, the high one first. A slice that is shorter
// than a page header has LSN 0.
func PageLSN(page []byte) LSN {
	if len(page) < dataPageHeader {
		return 0
	}
	return LSN(uint64(binary.LittleEndian.Uint32(page))<<32 | uint64(binary.LittleEndian.Uint32(page[4:])))
}

// IsNewPage tells whether the page was never initialised (PageIsNew:
// pd_upper is 0). Such a page is all zero, unless it is damaged.
func IsNewPage(page []byte) bool {
	return len(page) >= dataPageHeader && binary.LittleEndian.Uint16(page[pageUpperAt:]) == 0
}

// IsZero tells whether b has no byte that is not zero.
func IsZero(b []byte) bool {
	// A slice whose every byte equals the one before is as the first one. The
	// comparison runs at the speed of memory and ends at the first difference.
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}

// PageVerdict is what CheckPage finds.
type PageVerdict uint8

// The verdicts. Only PageBad is a complaint.
const (
	PageBad      PageVerdict = iota // the checksum is wrong and nothing excuses it
	PageValid                       // the checksum is right
	PageZero                        // never initialised
	PageInFlight                    // wrong, but being written during this backup: WAL repairs it
)

// OK tells whether the page may go into a backup without a remark.
func (v PageVerdict) OK() bool { return v != PageBad }

// String names the verdict.
func (v PageVerdict) String() string {
	switch v {
	case PageValid:
		return "valid"
	case PageZero:
		return "zero"
	case PageInFlight:
		return "in flight"
	default:
		return "bad"
	}
}

// CheckPage judges one page of a cluster with data checksums, block being its
// number from the start of the fork. start is where the backup's WAL begins,
// current the server's insert position now, which has to be asked for after
// the page was read.
//
// A page that was written while it was read has a pd_lsn from start on, and
// recovery replaces it by a full image. Garbage can look like such a page: a
// pd_lsn beyond current is therefore no excuse. A page that is bad may have
// been read in two halves; read it again some times before complaining.
func CheckPage(page []byte, block uint32, start, current LSN) PageVerdict {
	if len(page) < checksumRow {
		return PageBad
	}
	if IsNewPage(page) && IsZero(page) {
		return PageZero
	}
	if !IsNewPage(page) && PageChecksum(page, block) == binary.LittleEndian.Uint16(page[checksumAt:]) {
		return PageValid
	}
	if lsn := PageLSN(page); lsn >= start && lsn <= current {
		return PageInFlight
	}
	return PageBad
}
