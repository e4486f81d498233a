package summary

import (
	"fmt"

	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
)

// ChainError says where a row of summaries does not hold all changes, or does
// not follow one another.
type ChainError struct {
	At     postgres.LSN // start of the segment where this was found
	Reason string
	Err    error // the cause; may be nil
	// Doubt: the WAL goes on, but its changes are not all known.
	Doubt bool
}

// Error says where and why.
func (e *ChainError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("WAL summaries break at %s: %s: %v", e.At, e.Reason, e.Err)
	}
	return fmt.Sprintf("WAL summaries break at %s: %s", e.At, e.Reason)
}

// Unwrap returns the cause.
func (e *ChainError) Unwrap() error { return e.Err }

// Merger joins the summaries of segments that follow each other along one line
// of timelines: of a timeline that was left inside a segment, the child's
// segment of that number, which repeats what the parent had before, comes next.
// It joins the records that lie over the edges, and proves that no record is
// missing, by the LSNs and xl_prev.
//
// Its memory is that of the table, and xlog.MaxKept for the record at hand. One
// goroutine at a time may use it.
type Merger struct {
	collector
	joiner  xlog.Joiner
	before  *Summary // the last one, without its table
	last    postgres.LSN
	skipped uint32 // bytes left of a record that began before the first segment
	broken  error
}

// NewMerger makes a merger.
func NewMerger() *Merger { return &Merger{collector: collector{table: NewTable()}} }

// Add takes the next summary. A record that began before the first one is left
// out. An error is a *ChainError; every later call returns it again, and the
// table does not count then.
func (m *Merger) Add(s *Summary) error {
	if m.broken == nil {
		m.broken = m.add(s)
	}
	return m.broken
}

// Table is what all records do that lie wholly in the segments until now.
func (m *Merger) Table() *Table { return m.table }

// Forget empties the table and the list of restore points, for a caller who only
// asks whether the WAL goes on.
func (m *Merger) Forget() { m.table, m.points = NewTable(), nil }

// End is the LSN up to which no record is missing in the table. It is 0 before
// the first summary.
func (m *Merger) End() postgres.LSN {
	switch {
	case m.before == nil:
		return 0
	case m.joiner.Open():
		return m.joiner.Start()
	case m.skipped > 0 || m.before.Ending == xlog.Full || m.before.Ending == xlog.AfterSwitch:
		return m.before.Start + postgres.LSN(m.before.Size)
	default:
		return m.before.End
	}
}

// Newest is the commit with the latest time; its LSN is 0 if there is none.
func (m *Merger) Newest() Commit { return m.newest }

// RestorePoints are those of all segments in their order.
func (m *Merger) RestorePoints() []Commit { return m.points }

func (m *Merger) add(s *Summary) error {
	if reason := m.unfit(s); reason != "" {
		return &ChainError{At: s.Start, Reason: reason, Doubt: s.Doubts != 0}
	}
	if err := m.join(s); err != nil {
		return err
	}
	if s.Records > 0 {
		if m.last != 0 && s.FirstPrev != m.last {
			return &ChainError{At: s.Start, Reason: fmt.Sprintf("its first record follows one at %s, not the one at %s", s.FirstPrev, m.last)}
		}
		m.last = s.Last
	}
	m.table.Join(s.Table)
	m.commit(s.Newest)
	m.points = append(m.points, s.RestorePoints...)
	if s.Tail.Length > 0 {
		if err := m.joiner.Begin(s.TailStart, s.Tail); err != nil {
			return &ChainError{At: s.Start, Reason: "its last piece is damaged", Err: err}
		}
	}
	head := *s
	head.Table, head.Head, head.Tail, head.RestorePoints = nil, xlog.Piece{}, xlog.Piece{}, nil
	m.before = &head
	return nil
}

// unfit says why a summary cannot come next, or is not to be trusted.
func (m *Merger) unfit(s *Summary) string {
	if s.Doubts != 0 {
		return s.Doubts.String()
	}
	b := m.before
	switch {
	case b == nil:
		return ""
	case b.SystemID != s.SystemID || b.Size != s.Size || b.Major != s.Major:
		return fmt.Sprintf("it is of cluster %d, PostgreSQL %d, segments of %s, after one of cluster %d, PostgreSQL %d, segments of %s",
			s.SystemID, s.Major, s.Size, b.SystemID, b.Major, b.Size)
	case s.number() != b.number()+1:
		return fmt.Sprintf("it comes after the segment at %s", b.Start)
	case s.Timeline < b.Until:
		return fmt.Sprintf("it is of timeline %d, after one of timeline %d", s.Timeline, b.Until)
	case b.Ending == xlog.NotOwn:
		return fmt.Sprintf("the segment before it has no WAL from %s on", b.End)
	}
	return ""
}

// join takes the piece at the beginning of s.
func (m *Merger) join(s *Summary) error {
	first := m.before == nil
	switch {
	case s.Overwrite:
		m.joiner.Drop()
		m.skipped = 0
		return nil
	case first, m.skipped > 0:
		if !first && m.skipped != s.Head.Length+s.Head.Left {
			return &ChainError{At: s.Start, Reason: fmt.Sprintf("%d bytes are left of a record of which %d are missing", s.Head.Length+s.Head.Left, m.skipped)}
		}
		m.skipped = s.Head.Left
		return nil
	case !m.joiner.Open() && s.Head.Length > 0:
		return &ChainError{At: s.Start, Reason: "it goes on with a record that did not begin before it"}
	case !m.joiner.Open():
		return nil
	}
	if err := m.joiner.Add(s.Head); err != nil {
		return &ChainError{At: s.Start, Reason: "its first record does not go on as it began", Err: err}
	}
	if m.joiner.Open() {
		return nil
	}
	r, err := m.joiner.Record(s.Major)
	if err != nil {
		return &ChainError{At: s.Start, Reason: "the record at its beginning is unsound", Err: err}
	}
	if m.last != 0 && r.Prev != m.last {
		return &ChainError{At: s.Start, Reason: fmt.Sprintf("the record at %s follows one at %s, not the one at %s", r.LSN, r.Prev, m.last)}
	}
	m.last = r.LSN
	if m.apply(r, s.Major); m.doubts != 0 {
		return &ChainError{At: s.Start, Reason: m.doubts.String(), Err: m.problem, Doubt: true}
	}
	return nil
}
