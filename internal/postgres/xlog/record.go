package xlog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"agent/internal/postgres"
)

// RMID is the number of a resource manager, to which a record belongs
// (src/include/access/rmgrlist.h; the same in majors 13 to 18).
type RMID uint8

// The resource managers whose records are looked into, and the bounds.
const (
	RMXLOG     RMID = 0
	RMXact     RMID = 1
	RMStorage  RMID = 2
	RMDatabase RMID = 4

	rmLast RMID = 21 // LogicalMessage; above it are none of majors 13 to 18, but custom ones from 128 on
)

// Known tells whether PostgreSQL 13 to 18 has this resource manager itself.
func (r RMID) Known() bool { return r <= rmLast }

// Locator names a relation's files (RelFileLocator; RelFileNode until 15).
type Locator struct {
	Tablespace, Database, Relation uint32 // OIDs and relfilenumber
}

// BlockRef is one page that a record touches.
type BlockRef struct {
	Locator
	Fork  postgres.Fork
	ID    uint8
	Block uint32
	Image bool // the record holds the page's image
}

// maxBlockID is the largest number of a block reference (XLR_MAX_BLOCK_ID).
const maxBlockID = 32

// recordHeader is the size of XLogRecord in bytes.
const recordHeader = 24

// maxRecord bounds xl_tot_len in bytes. From 16 on the server writes none above
// 1020 MiB; before, it could not allocate 1 GiB.
const maxRecord = 1<<30 - 1

// SpecialRelUpdate is the bit of Info that says that the record changes
// relation files which no block reference names (XLR_SPECIAL_REL_UPDATE).
const SpecialRelUpdate = 0x01

// Record is one WAL record. It, its blocks and its main data are valid only
// until the call that it was handed to returns.
type Record struct {
	LSN    postgres.LSN // of its first byte
	Prev   postgres.LSN // of the record before it
	Length uint32       // xl_tot_len: bytes without page headers
	XID    uint32
	TopXID uint32 // the top-level transaction, if the record names it (14 and later)
	Origin uint16 // the replication origin, if the record names it
	Info   uint8
	RM     RMID
	Blocks []BlockRef
	Main   []byte // nil in a record that is Cut
	Cut    bool   // it is longer than what is kept of a record: Main is not there
	refs   [maxBlockID + 1]BlockRef
}

// Op is the resource manager's part of Info.
func (r *Record) Op() uint8 { return r.Info & 0xF0 }

// header reads XLogRecord, of which b must have 24 bytes.
func (r *Record) header(lsn postgres.LSN, b []byte) {
	_ = b[recordHeader-1]
	r.LSN = lsn
	r.Length = binary.LittleEndian.Uint32(b)
	r.XID = binary.LittleEndian.Uint32(b[4:])
	r.Prev = postgres.LSN(binary.LittleEndian.Uint64(b[8:]))
	r.Info, r.RM = b[16], RMID(b[17])
}

// The first byte of a fragment header that is no block reference.
const (
	idMainShort = 255
	idMainLong  = 254
	idOrigin    = 253
	idTopXID    = 252
)

// The bits of a block reference's fork_flags, and of an image's bimg_info: 13
// and 14 have IS_COMPRESSED where later majors have APPLY, and no other methods.
const (
	forkMask   = 0x0F
	hasImage   = 0x10
	hasData    = 0x20
	sameRel    = 0x80
	imageHole  = 0x01
	pglzOld    = 0x02
	compressed = 0x04 | 0x08 | 0x10 // pglz, lz4, zstd
)

// errBody is wrapped by what is said of a record whose checksum is right but
// whose content is not understood.
var errBody = errors.New("content of a WAL record is not understood")

func badBody(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errBody}, args...)...)
}

// errHeaders: the headers of a record's fragments go on behind its end.
var errHeaders = badBody("its headers go on behind its end")

// fragments reads the headers of the record's fragments (DecodeXLogRecord).
// b has the record from its beginning, whole or at least with its headers.
func (r *Record) fragments(b []byte, major int) error {
	r.Blocks, r.Main, r.TopXID, r.Origin = r.refs[:0], nil, 0, 0
	r.Cut = uint64(len(b)) < uint64(r.Length)
	at, data, main := recordHeader, 0, 0
	for total := int(r.Length); total > at+data; {
		h := b[min(at, len(b)):]
		if len(h) == 0 {
			return errHeaders
		}
		if h[0] <= maxBlockID {
			n, bytes, err := r.block(h, major)
			if err != nil {
				return err
			}
			at, data = at+n, data+bytes
			continue
		}
		n, err := r.fragment(h, major)
		if err != nil {
			return err
		}
		at += n
		if h[0] == idMainShort || h[0] == idMainLong {
			main = mainLength(h)
			data += main
			break // it is the last fragment
		}
	}
	if at+data != int(r.Length) {
		return badBody("%d bytes of headers and %d of data in a record of %d", at, data, r.Length)
	}
	if !r.Cut {
		r.Main = b[int(r.Length)-main : r.Length]
	}
	return nil
}

// fragment reads the header of a fragment that is no block reference, and
// returns its length.
func (r *Record) fragment(h []byte, major int) (n int, err error) {
	switch id := h[0]; {
	case id == idMainShort:
		n = 2
	case id == idOrigin:
		n = 3
	case id == idMainLong, id == idTopXID && major >= 14:
		n = 5
	default:
		return 0, badBody("fragment %d", id)
	}
	if len(h) < n {
		return 0, errHeaders
	}
	switch h[0] {
	case idOrigin:
		r.Origin = binary.LittleEndian.Uint16(h[1:])
	case idTopXID:
		r.TopXID = binary.LittleEndian.Uint32(h[1:])
	}
	return n, nil
}

// mainLength is the length of the main data that a header announces.
func mainLength(h []byte) int {
	if h[0] == idMainShort {
		return int(h[1])
	}
	return int(binary.LittleEndian.Uint32(h[1:]))
}

// block reads a block reference (XLogRecordBlockHeader). It returns the length
// of the header and how many bytes of data belong to it.
func (r *Record) block(h []byte, major int) (n, data int, err error) {
	if len(h) < 4 {
		return 0, 0, errHeaders
	}
	k := len(r.Blocks)
	id, flags := h[0], h[1]
	n, data = 4, int(binary.LittleEndian.Uint16(h[2:]))
	switch {
	case k > 0 && id <= r.refs[k-1].ID:
		return 0, 0, badBody("block %d comes after block %d", id, r.refs[k-1].ID)
	case (flags&hasData != 0) != (data > 0):
		return 0, 0, badBody("block %d has %d bytes of data and flags %02X", id, data, flags)
	case flags&sameRel != 0 && k == 0:
		return 0, 0, badBody("block %d is of the same relation as no other", id)
	}
	if flags&hasImage != 0 {
		if len(h) < n+5 {
			return 0, 0, errHeaders
		}
		data += int(binary.LittleEndian.Uint16(h[n:]))
		n += imageHeader(h[n+4], major)
	}
	r.Blocks = r.refs[:k+1] // there is room: ids rise
	ref := &r.refs[k]
	if flags&sameRel == 0 {
		if len(h) < n+12 {
			return 0, 0, errHeaders
		}
		ref.Tablespace = binary.LittleEndian.Uint32(h[n:])
		ref.Database = binary.LittleEndian.Uint32(h[n+4:])
		ref.Relation = binary.LittleEndian.Uint32(h[n+8:])
		n += 12
	} else {
		ref.Locator = r.refs[k-1].Locator
	}
	if len(h) < n+4 {
		return 0, 0, errHeaders
	}
	ref.Block = binary.LittleEndian.Uint32(h[n:])
	ref.ID, ref.Fork, ref.Image = id, postgres.Fork(flags&forkMask), flags&hasImage != 0
	return n + 4, data, nil
}

// imageHeader is the length of the header of a page image with this bimg_info
// (XLogRecordBlockImageHeader): a hole of a compressed image has its length in
// two more bytes.
func imageHeader(info byte, major int) int {
	small := info&compressed != 0
	if major < 15 {
		small = info&pglzOld != 0
	}
	if small && info&imageHole != 0 {
		return 7
	}
	return 5
}
