package summary

import (
	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
)

// Version is that of the rules by which a summary is made of a segment. A
// change of what the decoder finds is a new version.
const Version = 1

// Doubts are reasons for which a summary does not hold all changes.
type Doubts uint8

// The doubts. Their bits are part of the repository's format.
const (
	// Minimal: WAL was written with wal_level=minimal, which leaves out changes.
	Minimal Doubts = 1 << iota
	// Special: a resource manager that is not known changed files of relations.
	Special
	// NotUnderstood: a record is sound but was not understood.
	NotUnderstood
	doubts
)

// String names the first doubt.
func (d Doubts) String() string {
	switch {
	case d&Minimal != 0:
		return "it was written with wal_level=minimal"
	case d&Special != 0:
		return "a resource manager that is not known changed files of relations"
	case d&NotUnderstood != 0:
		return "it has a record that is not understood"
	default:
		return "none"
	}
}

// Commit is the end of a transaction, or a restore point with its name.
type Commit struct {
	LSN    postgres.LSN
	Micros int64 // since 1970 UTC, by the clock of the server
	Name   string
}

// Summary is what one segment does.
type Summary struct {
	Version  int
	SystemID uint64
	Major    int
	Size     postgres.SegmentSize
	Start    postgres.LSN      // of the segment
	Timeline postgres.Timeline // of the first page: in a timeline's first segment that of the parent
	Until    postgres.Timeline // of the last page
	SHA256   [32]byte          // of the segment
	Ending   xlog.Ending
	Doubts   Doubts

	// Of the records wholly inside; all 0 if there is none.
	Records                uint64
	First, FirstPrev, Last postgres.LSN

	End       postgres.LSN // behind the last of them
	Head      xlog.Piece   // of the record that began before the segment
	Overwrite bool         // that record was lost in a crash
	Tail      xlog.Piece   // of the record at TailStart, which ends behind the segment
	TailStart postgres.LSN

	// Newest is the commit with the latest time among the records inside; its
	// LSN is 0 if there is none.
	Newest        Commit
	RestorePoints []Commit // in their order
	Table         *Table
}

// number is the segment's number, by which the next one is known.
func (s *Summary) number() uint64 { return s.Start.Segment(s.Size) }
