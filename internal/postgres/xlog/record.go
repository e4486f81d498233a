package xlog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"walagent/internal/postgres"
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
	LSN      postgres.LSN // of its first byte
	Prev     postgres.LSN // of the record before it
	Length   uint32       // xl_tot_len: bytes without page headers
	XID      uint32
	TopXID   uint32 // the top-level transaction, if the record names it (14 and later)
	Origin   uint16 // the replication origin, if the record names it
	Info     uint8
	RM       RMID
	Blocks   []BlockRef
	Main     []byte // nil in a record that is Cut
	Cut      bool   // it is longer than what is kept of a record: Main is not there
	refs     [maxBlockID + 1]BlockRef
	mainSize uint32
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

// fragments reads the headers of the record's fragments (DecodeXLogRecord).
// b has the record from its beginning, whole or at least with its headers.
func (r *Record) fragments(b []byte, major int) error {
	r.Blocks, r.Main, r.TopXID, r.Origin, r.mainSize = r.refs[:0], nil, 0, 0, 0
	r.Cut = uint64(len(b)) < uint64(r.Length)
	f := fragmentReader{b: b, at: recordHeader, total: uint64(r.Length), lastID: -1}
	for !f.last && f.err == nil && f.total > f.at+f.data {
		switch id := f.byte(); {
		case id <= maxBlockID:
			f.block(r, int(id), major)
		case id == idMainShort:
			r.mainSize = uint32(f.byte())
			f.last = true
		case id == idMainLong:
			r.mainSize = f.uint32()
			f.last = true
		case id == idOrigin:
			r.Origin = f.uint16()
		case id == idTopXID && major >= 14:
			r.TopXID = f.uint32()
		case f.err == nil:
			return badBody("fragment %d", id)
		}
	}
	if f.err != nil {
		return f.err
	}
	f.data += uint64(r.mainSize)
	if f.at+f.data != f.total {
		return badBody("%d bytes of headers and %d of data in a record of %d", f.at, f.data, f.total)
	}
	if !r.Cut {
		r.Main = b[r.Length-r.mainSize : r.Length]
	}
	return nil
}

// fragmentReader goes through the headers. The first error stays.
type fragmentReader struct {
	b      []byte
	at     uint64 // where the next header begins
	data   uint64 // bytes of data that the headers until now announce
	total  uint64
	last   bool // main data was announced, which comes last
	lastID int
	rel    Locator
	relSet bool
	err    error
}

// take gives the next n bytes, or zeros after an error.
func (f *fragmentReader) take(n uint64) []byte {
	if f.err == nil && f.at+n > uint64(len(f.b)) {
		f.err = badBody("its headers go on behind its end")
	}
	if f.err != nil {
		return make([]byte, n)
	}
	f.at += n
	return f.b[f.at-n : f.at]
}

func (f *fragmentReader) byte() uint8    { return f.take(1)[0] }
func (f *fragmentReader) uint16() uint16 { return binary.LittleEndian.Uint16(f.take(2)) }
func (f *fragmentReader) uint32() uint32 { return binary.LittleEndian.Uint32(f.take(4)) }

// block reads a block reference behind its id (XLogRecordBlockHeader).
func (f *fragmentReader) block(r *Record, id, major int) {
	head := f.take(3)
	flags, length := head[0], uint64(binary.LittleEndian.Uint16(head[1:]))
	if f.err == nil && id <= f.lastID {
		f.err = badBody("block %d comes after block %d", id, f.lastID)
	}
	if f.err == nil && (flags&hasData != 0) != (length > 0) {
		f.err = badBody("block %d has %d bytes of data and flags %02X", id, length, flags)
	}
	f.lastID = id
	f.data += length
	if flags&hasImage != 0 {
		f.image(major)
	}
	if flags&sameRel == 0 {
		b := f.take(12)
		f.rel = Locator{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])}
		f.relSet = true
	} else if f.err == nil && !f.relSet {
		f.err = badBody("block %d is of the same relation as no other", id)
	}
	block := f.uint32()
	if f.err == nil {
		r.Blocks = append(r.Blocks, BlockRef{Locator: f.rel, Fork: postgres.Fork(flags & forkMask), ID: uint8(id), Block: block, Image: flags&hasImage != 0})
	}
}

// image reads the header of a page image (XLogRecordBlockImageHeader). A hole
// of a compressed image has its length in two more bytes.
func (f *fragmentReader) image(major int) {
	head := f.take(5)
	f.data += uint64(binary.LittleEndian.Uint16(head))
	small := head[4]&compressed != 0
	if major < 15 {
		small = head[4]&pglzOld != 0
	}
	if small && head[4]&imageHole != 0 {
		f.take(2)
	}
}
