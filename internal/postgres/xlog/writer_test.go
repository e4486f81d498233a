package xlog

import (
	"encoding/binary"
	"hash/crc32"

	"walagent/internal/postgres"
)

// writer makes WAL as PostgreSQL 15 lays it out, segment after segment.
type writer struct {
	size    int
	segment []byte // the one at hand
	before  [][]byte
	start   postgres.LSN // of the segment
	at      postgres.LSN // where the next byte goes
	prev    postgres.LSN
}

func newWriter(size int) *writer {
	w := &writer{size: size, start: postgres.LSN(16 * size)}
	w.at = w.start
	w.open()
	return w
}

// open begins a segment.
func (w *writer) open() {
	if w.segment != nil {
		w.before = append(w.before, w.segment)
		w.start += postgres.LSN(w.size)
	}
	w.segment = make([]byte, w.size)
}

// all are the segments until now.
func (w *writer) all() [][]byte { return append(append([][]byte(nil), w.before...), w.segment) }

func (w *writer) offset() int { return int(w.at - w.start) }

// page writes a page header at w.at, of a page that begins with left bytes of a
// record.
func (w *writer) page(flags postgres.PageFlags, left int) {
	if w.offset() == w.size {
		w.open()
	}
	b := w.segment[w.offset():]
	n := 24
	if w.offset() == 0 {
		n = 40
		flags |= postgres.PageLongHeader
		binary.LittleEndian.PutUint64(b[24:], 42)
		binary.LittleEndian.PutUint32(b[32:], uint32(w.size))
		binary.LittleEndian.PutUint32(b[36:], 8192)
	}
	if left > 0 {
		flags |= postgres.PageContRecord
	}
	binary.LittleEndian.PutUint16(b, 0xD110)
	binary.LittleEndian.PutUint16(b[2:], uint16(flags))
	binary.LittleEndian.PutUint32(b[4:], 1)
	binary.LittleEndian.PutUint64(b[8:], uint64(w.at))
	binary.LittleEndian.PutUint32(b[16:], uint32(left))
	w.at += postgres.LSN(n)
}

// record writes a record with main data.
func (w *writer) record(rm RMID, info uint8, main []byte) {
	var body []byte
	switch {
	case len(main) > 255:
		body = binary.LittleEndian.AppendUint32([]byte{idMainLong}, uint32(len(main)))
	case len(main) > 0:
		body = []byte{idMainShort, byte(len(main))}
	}
	w.raw(rm, info, append(body, main...))
}

// raw writes a record with any content.
func (w *writer) raw(rm RMID, info uint8, body []byte) {
	rec := make([]byte, recordHeader, recordHeader+len(body))
	rec = append(rec, body...)
	binary.LittleEndian.PutUint32(rec, uint32(len(rec)))
	binary.LittleEndian.PutUint64(rec[8:], uint64(w.prev))
	rec[16], rec[17] = info, uint8(rm)
	binary.LittleEndian.PutUint32(rec[20:], crc32.Update(crc32.Checksum(rec[24:], castagnoli), castagnoli, rec[:20]))
	if w.at%8192 == 0 {
		w.page(0, 0)
	}
	w.prev = w.at
	for len(rec) > 0 {
		if w.at%8192 == 0 {
			w.page(0, len(rec))
		}
		n := copy(w.segment[w.offset():w.offset()+8192-int(w.at%8192)], rec)
		w.at += postgres.LSN(n)
		rec = rec[n:]
	}
	w.at = (w.at + 7) &^ 7
}

// left is the room in the segment at hand.
func (w *writer) left() int { return w.size - w.offset() }

// fillTo writes records until so many bytes are left in the segment.
func (w *writer) fillTo(left int) {
	for w.left() > 8192 {
		w.record(RMXLOG, 0x20, make([]byte, 100))
	}
	for w.left() > left+2*128 {
		w.record(RMXLOG, 0x20, make([]byte, 100))
	}
	if n := w.left() - left; n > 0 {
		w.record(RMXLOG, 0x20, make([]byte, n-26))
	}
}

// fill writes records to the end of the segment.
func (w *writer) fill() { w.fillTo(0) }

// overwrite goes back to a record's page and the pages behind it, and begins
// anew as a server does that lost the rest of the record.
func (w *writer) overwrite(lost postgres.LSN, pages int) {
	var prev postgres.LSN
	d := NewDecoder(func(r *Record) {
		if r.LSN == lost {
			prev = r.Prev
		}
	})
	d.Write(w.segment)
	w.prev = prev
	w.at = lost&^8191 + postgres.LSN((1+pages)*8192)
	clear(w.segment[w.offset():])
	w.page(postgres.PageOverwriteContRecord, 0)
}
