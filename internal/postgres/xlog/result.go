package xlog

import "agent/internal/postgres"

// Ending says how the WAL in a segment file ends.
type Ending uint8

// The endings. Their numbers are part of the repository's format.
const (
	Unknown     Ending = iota // nothing can be said: another page format, or one record covers it all
	Full                      // filled to the last byte
	AfterSwitch               // a switch leaves the rest unused
	NotOwn                    // what follows the last record is none, although no switch came before
)

// String names the ending.
func (e Ending) String() string {
	switch e {
	case Full:
		return "full"
	case AfterSwitch:
		return "after a switch"
	case NotOwn:
		return "not its own"
	default:
		return "unknown"
	}
}

// Piece is the part of a record that lies in one segment, where another part
// lies in the segment before or behind it.
type Piece struct {
	Bytes  []byte // without page headers; the first MaxKept of them
	Length uint32 // in bytes
	Left   uint32 // bytes of the record behind the segment
}

// Result is what a Decoder found out about a segment.
type Result struct {
	Header postgres.PageHeader // of the first page; zero if it was not understood
	Major  int                 // 0 if the page format is of none that is known
	// Timeline is that of the last page that was understood; the header has
	// that of the first one.
	Timeline postgres.Timeline
	Ending   Ending
	Reason   string       // of Unknown and NotOwn: what was seen
	End      postgres.LSN // behind the last whole record, where the next one would begin

	Records   uint64       // wholly inside
	First     postgres.LSN // of the first record wholly inside; 0: there is none
	FirstPrev postgres.LSN // its xl_prev
	Last      postgres.LSN // of the last one

	// Head is the piece of a record that began before the segment. If it has
	// no end in the segment (Left is not 0), there is nothing else.
	Head Piece
	// Overwrite: the rest of the record that began before the segment was lost
	// in a crash; that record does not count.
	Overwrite bool
	// Tail is the piece of the record at TailStart, which goes on behind the
	// segment.
	Tail      Piece
	TailStart postgres.LSN

	// Undecoded is about the first record whose checksum is right but whose
	// content was not understood. Such records were not handed on.
	Undecoded error

	switchHead bool // Head is the rest of a switch
}
