package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// WALBlockSize is the one WAL page size (XLOG_BLCKSZ) that is supported, in
// bytes: the default, which all packaged servers are built with.
const WALBlockSize = 8192

// The sizes of the two forms of a WAL page header in bytes.
const (
	shortPageHeader = 24
	longPageHeader  = 40
)

// PageFlags is xlp_info of a WAL page header
// (src/include/access/xlog_internal.h).
type PageFlags uint16

// The flags of majors 13 to 18. Servers before 13.5 and 14.1 do not know the
// last one.
const (
	PageContRecord          PageFlags = 1 << iota // the page begins with the rest of a record
	PageLongHeader                                // the header has the long form: first page of a segment
	PageBackupRemovable                           // written outside of any backup
	PageOverwriteContRecord                       // the rest of a record was lost in a crash and is replaced
	pageFlagsKnown          = PageContRecord | PageLongHeader | PageBackupRemovable | PageOverwriteContRecord
)

// PageHeader is the header of one WAL page (XLogPageHeaderData and, with
// PageLongHeader, XLogLongPageHeaderData).
type PageHeader struct {
	Magic    uint16
	Flags    PageFlags
	Timeline Timeline // of the page's first record: may be older than the file's
	Addr     LSN      // of the page's first byte
	RemLen   uint32   // bytes that are left of a continued record, this page included

	// Only in the long header; otherwise zero.
	SystemID    uint64
	SegmentSize SegmentSize
	BlockSize   uint32
}

// errShortPage: fewer bytes than the header has.
var errShortPage = errors.New("too short for a WAL page header")

// ParsePageHeader reads the header at the start of b, which needs 24 bytes, or
// 40 when its flags announce the long form. It interprets nothing: every
// header of that length is read, an empty (all zero) one too.
func ParsePageHeader(b []byte) (PageHeader, error) {
	if len(b) < shortPageHeader {
		return PageHeader{}, fmt.Errorf("parse WAL page header: %d bytes: %w", len(b), errShortPage)
	}
	h := parseShortHeader(b)
	if h.Flags&PageLongHeader == 0 {
		return h, nil
	}
	if len(b) < longPageHeader {
		return PageHeader{}, fmt.Errorf("parse long WAL page header: %d bytes: %w", len(b), errShortPage)
	}
	h.SystemID = binary.LittleEndian.Uint64(b[24:])
	h.SegmentSize = SegmentSize(binary.LittleEndian.Uint32(b[32:]))
	h.BlockSize = binary.LittleEndian.Uint32(b[36:])
	return h, nil
}

// parseShortHeader reads the part that both forms have. b has at least 24 bytes.
func parseShortHeader(b []byte) PageHeader {
	return PageHeader{
		Magic:    binary.LittleEndian.Uint16(b),
		Flags:    PageFlags(binary.LittleEndian.Uint16(b[2:])),
		Timeline: Timeline(binary.LittleEndian.Uint32(b[4:])),
		Addr:     LSN(binary.LittleEndian.Uint64(b[8:])),
		RemLen:   binary.LittleEndian.Uint32(b[16:]),
	}
}

// Size is the length of the header in bytes.
func (h PageHeader) Size() int {
	if h.Flags&PageLongHeader != 0 {
		return longPageHeader
	}
	return shortPageHeader
}

// Empty tells whether the header is all zero, as after a segment switch.
func (h PageHeader) Empty() bool { return h == PageHeader{} }
