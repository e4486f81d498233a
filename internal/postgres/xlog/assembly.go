package xlog

import (
	"encoding/binary"
	"hash/crc32"

	"agent/internal/postgres"
)

// MaxKept bounds the bytes that are kept of a record that is put together and
// of a piece, so that memory does not depend on the segment size. All that is
// read of a longer record is its headers: those fit into 1 KiB.
const MaxKept = 16 << 20

// castagnoli is read-only; the standard library keeps one for everybody.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordCRC is a record's CRC-32C: of the bytes behind the header, then of the
// header without the checksum itself (ValidXLogRecord).
func recordCRC(rec []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, rec[recordHeader:]), castagnoli, rec[:20])
}

// crcOf is the checksum that a record's header holds.
func crcOf(rec []byte) uint32 { return binary.LittleEndian.Uint32(rec[20:]) }

// assembly puts one record together from bytes that come in their order.
type assembly struct {
	start postgres.LSN
	total uint32 // xl_tot_len
	have  uint32 // bytes that came
	buf   []byte // the first of them, up to MaxKept
	crc   uint32 // of those behind the header
	holed bool   // some came without their content
}

func (a *assembly) begin(start postgres.LSN, total uint32) {
	*a = assembly{start: start, total: total, buf: a.buf[:0]}
}

// missing is how many bytes the record still needs.
func (a *assembly) missing() uint32 { return a.total - a.have }

// add takes the next bytes, at most those that are missing.
func (a *assembly) add(b []byte) {
	if !a.holed {
		a.buf = append(a.buf, b[:min(len(b), MaxKept-len(a.buf))]...)
	}
	body := b
	if a.have < recordHeader {
		body = b[min(uint32(len(b)), recordHeader-a.have):]
	}
	a.crc = crc32.Update(a.crc, castagnoli, body)
	a.have += uint32(len(b))
}

// skip takes note of n bytes whose content was not kept.
func (a *assembly) skip(n uint32) {
	a.have += n
	a.holed = a.holed || n > 0
}

// valid compares the checksum of a record that is complete. Where some of its
// bytes were not kept there is none to compare.
func (a *assembly) valid() bool {
	return a.holed || crc32.Update(a.crc, castagnoli, a.buf[:20]) == crcOf(a.buf)
}
