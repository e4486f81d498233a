// Package xlogtest writes WAL for tests: records of any content and length, as
// PostgreSQL lays them out.
package xlogtest

import (
	"encoding/binary"
	"hash/crc32"

	"agent/internal/postgres"
)

// SystemID is the system identifier in what a Writer writes.
const SystemID = 42

// Writer makes WAL of PostgreSQL 15, one segment after the other.
type Writer struct {
	At   postgres.LSN // where the next byte goes
	Prev postgres.LSN // of the last record

	size    int
	start   postgres.LSN // of the last segment
	done    [][]byte
	segment []byte
}

// NewWriter begins with segment 16; size is that of a segment in bytes.
func NewWriter(size int) *Writer {
	start := postgres.LSN(16 * size)
	return &Writer{At: start, size: size, start: start, segment: make([]byte, size)}
}

// Segments are all of them until now; the last one may end with zeros.
func (w *Writer) Segments() [][]byte { return append(w.done[:len(w.done):len(w.done)], w.segment) }

// Offset is the position in the last segment, in bytes.
func (w *Writer) Offset() int { return int(w.At - w.start) }

// Left is the room in the last segment, in bytes.
func (w *Writer) Left() int { return w.size - w.Offset() }

// page writes the header of a page that begins with left bytes of a record
// (XLogPageHeaderData).
func (w *Writer) page(flags postgres.PageFlags, left int) {
	if w.Offset() == w.size {
		w.done = append(w.done, w.segment)
		w.start += postgres.LSN(w.size)
		w.segment = make([]byte, w.size)
	}
	b := w.segment[w.Offset():]
	n := 24
	if w.Offset() == 0 {
		n = 40
		flags |= postgres.PageLongHeader
		binary.LittleEndian.PutUint64(b[24:], SystemID)
		binary.LittleEndian.PutUint32(b[32:], uint32(w.size))
		binary.LittleEndian.PutUint32(b[36:], postgres.WALBlockSize)
	}
	if left > 0 {
		flags |= postgres.PageContRecord
	}
	binary.LittleEndian.PutUint16(b, 0xD110)
	binary.LittleEndian.PutUint16(b[2:], uint16(flags))
	binary.LittleEndian.PutUint32(b[4:], 1)
	binary.LittleEndian.PutUint64(b[8:], uint64(w.At))
	binary.LittleEndian.PutUint32(b[16:], uint32(left))
	w.At += postgres.LSN(n)
}

// Main is a record's content that is main data alone.
func Main(data []byte) []byte {
	switch {
	case len(data) > 255:
		return append(binary.LittleEndian.AppendUint32([]byte{254}, uint32(len(data))), data...)
	case len(data) > 0:
		return append([]byte{255, byte(len(data))}, data...)
	default:
		return nil
	}
}

// Block is the content of a record that names one block of a main fork and has
// n bytes of data for it.
func Block(tablespace, database, relation, block uint32, n int) []byte {
	body := []byte{0, 0x20}
	body = binary.LittleEndian.AppendUint16(body, uint16(n))
	for _, v := range []uint32{tablespace, database, relation, block} {
		body = binary.LittleEndian.AppendUint32(body, v)
	}
	return append(body, make([]byte, n)...)
}

// Record writes a record (XLogRecord) and returns its LSN.
func (w *Writer) Record(rm, info uint8, body []byte) postgres.LSN {
	const header = 24
	rec := append(make([]byte, header, header+len(body)), body...)
	binary.LittleEndian.PutUint32(rec, uint32(len(rec)))
	binary.LittleEndian.PutUint64(rec[8:], uint64(w.Prev))
	rec[16], rec[17] = info, rm
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(rec[20:], crc32.Update(crc32.Checksum(rec[header:], table), table, rec[:20]))
	if w.At%postgres.WALBlockSize == 0 {
		w.page(0, 0)
	}
	lsn := w.At
	w.Prev = lsn
	for len(rec) > 0 {
		if w.At%postgres.WALBlockSize == 0 {
			w.page(0, len(rec))
		}
		at := w.Offset()
		n := copy(w.segment[at:at+postgres.WALBlockSize-at%postgres.WALBlockSize], rec)
		w.At += postgres.LSN(n)
		rec = rec[n:]
	}
	w.At = (w.At + 7) &^ 7
	return lsn
}

// FillTo writes records without effect until so many bytes, a multiple of 8
// below 4000, are left in the segment.
func (w *Writer) FillTo(left int) {
	for w.Left() > left+256 {
		w.Record(0, 0x20, Main(make([]byte, 100)))
	}
	if n := w.Left() - left; n > 0 {
		w.Record(0, 0x20, Main(make([]byte, n-26)))
	}
}

// Overwrite loses what was written from the page after the one at lost on, and
// goes on there as a server does after such a crash. prev is the record before
// the lost one.
func (w *Writer) Overwrite(lost, prev postgres.LSN) {
	w.Prev = prev
	w.At = lost&^(postgres.WALBlockSize-1) + postgres.WALBlockSize
	clear(w.segment[w.Offset():])
	w.page(postgres.PageOverwriteContRecord, 0)
}
