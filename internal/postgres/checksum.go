package postgres

import (
	"encoding/binary"
)

// The page checksum is FNV-1a on 32 columns in parallel, as
// src/include/storage/checksum_impl.h describes it.
const (
	checksumPrime   = 16777619
	checksumColumns = 32
	checksumRow     = 4 * checksumColumns // bytes
	checksumAt      = 8                   // of pd_checksum in the page, 2 bytes
)

// checksumSeeds are the values that the columns begin with
// (checksumBaseOffsets in src/include/storage/checksum_impl.h).
func checksumSeeds() [checksumColumns]uint32 {
	return [checksumColumns]uint32{
		0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
		0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
		0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
		0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
	}
}

// PageChecksum is the checksum that pd_checksum must hold when the page is
// block number block of its fork, counted from the start of the fork and not
// of the file (pg_checksum_page in src/include/storage/checksum_impl.h). What
// the page has in pd_checksum does not matter, and the page is not changed.
//
// A page is a whole number of rows of 128 bytes; for any other length the
// result is 0, which is no page's checksum.
func PageChecksum(page []byte, block uint32) uint16 {
	if len(page) < checksumRow || len(page)%checksumRow != 0 {
		return 0
	}
	columns := checksumSeeds()
	// pd_checksum, the low half of the third word, counts as zero: what is
	// mixed in twice is not there.
	columns[checksumAt/4] ^= uint32(binary.LittleEndian.Uint16(page[checksumAt:]))
	foldRows(page, &columns)
	var sum uint32
	for _, s := range columns {
		sum ^= checksumMix(checksumMix(s, 0), 0)
	}
	return uint16((sum^block)%65535 + 1)
}

// foldRowsGo mixes all rows of the page into the columns. It goes over the page
// once for eight neighbouring columns, as many as stay in registers and are
// independent enough to hide the latency of the multiplication; the page is in the
// first level cache, so that four passes over it cost nothing.
func foldRowsGo(page []byte, columns *[checksumColumns]uint32) {
	for column := 0; column < checksumColumns; column += 8 {
		s := (*[8]uint32)(columns[column:])
		s0, s1, s2, s3, s4, s5, s6, s7 := s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
		for row := 4 * column; row+32 <= len(page); row += checksumRow {
			r := (*[32]byte)(page[row:])
			s0 = checksumMix(s0, binary.LittleEndian.Uint32(r[0:]))
			s1 = checksumMix(s1, binary.LittleEndian.Uint32(r[4:]))
			s2 = checksumMix(s2, binary.LittleEndian.Uint32(r[8:]))
			s3 = checksumMix(s3, binary.LittleEndian.Uint32(r[12:]))
			s4 = checksumMix(s4, binary.LittleEndian.Uint32(r[16:]))
			s5 = checksumMix(s5, binary.LittleEndian.Uint32(r[20:]))
			s6 = checksumMix(s6, binary.LittleEndian.Uint32(r[24:]))
			s7 = checksumMix(s7, binary.LittleEndian.Uint32(r[28:]))
		}
		*s = [8]uint32{s0, s1, s2, s3, s4, s5, s6, s7}
	}
}

func checksumMix(sum, value uint32) uint32 {
	sum ^= value
	return sum*checksumPrime ^ sum>>17
}
