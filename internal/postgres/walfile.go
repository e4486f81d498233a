package postgres

import (
	"fmt"
	"strings"
)

// WALFileKind tells apart the kinds of files that PostgreSQL archives.
type WALFileKind uint8

// The kinds of archived files. The zero value is no kind.
const (
	WALSegment       WALFileKind = iota + 1 // a whole segment
	WALPartial                              // the last, unfinished segment of a timeline that was left: <segment>.partial
	WALBackupHistory                        // what a backup on a primary leaves: <segment>.<offset>.backup
	WALHistory                              // a timeline's ancestors: <timeline>.history
)

// String names the kind for messages.
func (k WALFileKind) String() string {
	switch k {
	case WALSegment:
		return "segment"
	case WALPartial:
		return "partial segment"
	case WALBackupHistory:
		return "backup history"
	case WALHistory:
		return "timeline history"
	default:
		return "unknown"
	}
}

// WALFile is the parsed name of an archived file. It needs no segment size;
// whether Seg is possible with one is what Segment checks.
type WALFile struct {
	Kind     WALFileKind
	Timeline Timeline
	Log, Seg uint32 // second and third group of digits; 0 for a history file
	Offset   uint32 // of a backup history file: bytes into the segment; else 0
	Name     string // the whole name, as given
}

// ParseWALFile reads the base name of a file that PostgreSQL archives or asks
// for, without any directory. Only the four forms of
// src/include/access/xlog_internal.h are accepted, in upper-case digits;
// anything else is an error that says what was expected.
func ParseWALFile(name string) (WALFile, error) {
	bad := func() (WALFile, error) {
		return WALFile{}, fmt.Errorf("parse WAL file name %q: expected a segment (24 upper-case hexadecimal digits), "+
			"the same with .partial or .XXXXXXXX.backup, or a timeline history (8 digits and .history)", name)
	}
	stem, suffix, dotted := strings.Cut(name, ".")
	if !isUpperHex(stem) {
		return bad()
	}
	f := WALFile{Name: name}
	switch {
	case len(stem) == 8 && suffix == "history":
		f.Kind = WALHistory
	case len(stem) != 24:
		return bad()
	case !dotted:
		f.Kind = WALSegment
	case suffix == "partial":
		f.Kind = WALPartial
	default:
		offset, end, _ := strings.Cut(suffix, ".")
		if len(offset) != 8 || !isUpperHex(offset) || end != "backup" {
			return bad()
		}
		f.Kind = WALBackupHistory
		f.Offset = hexDigits(offset)
	}
	f.Timeline = Timeline(hexDigits(stem[:8]))
	if len(stem) == 24 {
		f.Log, f.Seg = hexDigits(stem[8:16]), hexDigits(stem[16:])
	}
	return f, nil
}

// hexDigits is the value of eight digits that isUpperHex has seen.
func hexDigits(s string) uint32 {
	var v uint32
	for i := range len(s) {
		c := s[i] - '0'
		if c > 9 {
			c -= 'A' - '0' - 10
		}
		v = v<<4 | uint32(c)
	}
	return v
}

// Segment is the segment that the file is, is a part of, or (a backup history
// file) names. It is an error for a timeline history, for a segment size that
// is not valid, and when the size has no such segment in a log id.
func (f WALFile) Segment(size SegmentSize) (Segment, error) {
	switch {
	case f.Kind == WALHistory || f.Kind == 0:
		return Segment{}, fmt.Errorf("find segment of WAL file %q: it is no segment", f.Name)
	case !size.Valid():
		return Segment{}, fmt.Errorf("find segment of WAL file %q: segment size %d is not a power of two from 1 MiB to 1 GiB", f.Name, uint32(size))
	case f.Seg >= size.PerLogID():
		return Segment{}, fmt.Errorf("find segment of WAL file %q: with segments of %s the last eight digits end at %08X", f.Name, size, size.PerLogID()-1)
	}
	return Segment{Timeline: f.Timeline, Number: uint64(f.Log)*uint64(size.PerLogID()) + uint64(f.Seg)}, nil
}
