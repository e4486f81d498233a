package postgres

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the WAL of a cluster (XLogRecPtr). Zero is "none".
type LSN uint64

// ParseLSN reads PostgreSQL's text form: two hexadecimal halves of one to
// eight digits with a slash between. Leading zeros and small letters are
// accepted (pg_lsn_in accepts both, and newer servers pad the low half).
func ParseLSN(s string) (LSN, error) {
	high, low, found := strings.Cut(s, "/")
	if !found {
		return 0, fmt.Errorf("parse LSN %q: expected two hexadecimal numbers with a slash between, like 0/3000028", s)
	}
	h, err := parseHex32(high)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: high half: %w", s, err)
	}
	l, err := parseHex32(low)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: low half: %w", s, err)
	}
	return LSN(uint64(h)<<32 | uint64(l)), nil
}

// parseHex32 reads one to eight hexadecimal digits and nothing else.
func parseHex32(s string) (uint32, error) {
	if s == "" || len(s) > 8 {
		return 0, fmt.Errorf("%q is not one to eight hexadecimal digits", s)
	}
	var v uint32
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return 0, fmt.Errorf("%q is not one to eight hexadecimal digits", s)
		}
		v = v<<4 | uint32(c)
	}
	return v, nil
}

// String is the form that PostgreSQL 13 to 18 print: %X/%X.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// MarshalText makes the LSN a string in JSON.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what ParseLSN reads.
func (l *LSN) UnmarshalText(text []byte) error {
	v, err := ParseLSN(string(text))
	if err != nil {
		return err
	}
	*l = v
	return nil
}

// Segment is the number of the segment that holds the byte at l. The size
// must be valid.
func (l LSN) Segment(size SegmentSize) uint64 { return uint64(l) / uint64(size) }

// Offset is the position of the byte at l within its segment, in bytes. The
// size must be valid.
func (l LSN) Offset(size SegmentSize) uint32 { return uint32(uint64(l) % uint64(size)) }

// LastSegment is the number of the last segment that is needed to have all
// WAL before l, for an l that is the exclusive end of a range: on a boundary
// that is the segment before. LSN 0 gives 0. The size must be valid.
func (l LSN) LastSegment(size SegmentSize) uint64 {
	if l == 0 {
		return 0
	}
	return (l - 1).Segment(size)
}

// Timeline is a timeline ID. Zero is "none"; a new cluster begins with 1.
type Timeline uint32

// String is the form used in file names: eight upper-case hexadecimal digits.
func (t Timeline) String() string { return fmt.Sprintf("%08X", uint32(t)) }

// ParseTimeline reads a timeline as recovery_target_timeline takes it: a
// decimal number, or a hexadecimal one after 0x. A decimal number with a
// leading zero is refused, since the server would read it as octal (strtoul
// with base 0 in xlogrecovery.c).
func ParseTimeline(s string) (Timeline, error) {
	digits, base := s, 10
	if rest, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		digits, base = rest, 16
	} else if len(s) > 1 && s[0] == '0' {
		return 0, fmt.Errorf("parse timeline %q: leading zeros are ambiguous; write a decimal number, or 0x and a hexadecimal one", s)
	}
	v, err := strconv.ParseUint(digits, base, 32)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("parse timeline %q: expected a decimal number from 1 to 4294967295, or 0x and a hexadecimal one", s)
	}
	return Timeline(v), nil
}

// ParseTimelineHex reads the form of file names: exactly eight upper-case
// hexadecimal digits, not all zero.
func ParseTimelineHex(s string) (Timeline, error) {
	if len(s) != 8 || !isUpperHex(s) || s == "00000000" {
		return 0, fmt.Errorf("parse timeline %q: expected eight upper-case hexadecimal digits, like 00000001", s)
	}
	v, err := parseHex32(s)
	return Timeline(v), err
}

func isUpperHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// SegmentSize is the size of a cluster's WAL segment files in bytes, fixed by
// initdb --wal-segsize and changed only by pg_resetwal.
type SegmentSize uint32

// The bounds of a segment size (WalSegMinSize and WalSegMaxSize in
// src/include/access/xlog_internal.h).
const (
	MinSegmentSize SegmentSize = 1 << 20
	MaxSegmentSize SegmentSize = 1 << 30
)

// Valid tells whether PostgreSQL could have this size: a power of two from
// 1 MiB to 1 GiB.
func (s SegmentSize) Valid() bool {
	return s >= MinSegmentSize && s <= MaxSegmentSize && s&(s-1) == 0
}

// PerLogID is the number of segments in 4 GiB of WAL, which the last eight
// digits of a file name count. It is 0 for a size that is not valid.
func (s SegmentSize) PerLogID() uint32 {
	if !s.Valid() {
		return 0
	}
	return uint32(1 << 32 / uint64(s))
}

// String is the size in MiB, as initdb --wal-segsize takes it, or in bytes
// when it is not a whole number of MiB.
func (s SegmentSize) String() string {
	if s%MinSegmentSize != 0 {
		return fmt.Sprintf("%d bytes", uint32(s))
	}
	return fmt.Sprintf("%d MiB", uint32(s/MinSegmentSize))
}
