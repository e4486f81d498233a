package archive

import (
	"errors"

	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
	"agent/internal/summary"
)

// chain follows the records from one segment to the next, in the order of a
// listing: timeline by timeline. What a segment touches does not matter here and
// is forgotten at once, so that memory does not grow with the archive.
type chain struct {
	survey *Survey
	merger *summary.Merger
	before postgres.Segment // that the merger has seen last
	// forks are the last segments before those with which a timeline begins, by
	// the latter: they are on the timeline that was left.
	forks map[postgres.Segment]postgres.Segment
	kept  map[postgres.Segment]*summary.Summary // that come before a fork
}

func newChain(s *Survey) *chain {
	c := &chain{survey: s, forks: make(map[postgres.Segment]postgres.Segment), kept: make(map[postgres.Segment]*summary.Summary)}
	for t, h := range s.Histories {
		if len(h) < 2 {
			continue
		}
		n := h[len(h)-2].Switch.Segment(s.Size)
		if n == 0 {
			continue
		}
		first := postgres.Segment{Timeline: t, Number: n}
		before := postgres.Segment{Timeline: h.TimelineAt(first.Start(s.Size) - 1), Number: n - 1}
		c.forks[first], c.kept[before] = before, nil
	}
	return c
}

// lightened is a summary without what it touches; nil for WAL that cannot be
// decoded.
func lightened(b *summary.Builder) *summary.Summary {
	s, err := b.Finish([32]byte{})
	if err != nil {
		return nil // of a newer PostgreSQL
	}
	s.Table, s.RestorePoints = summary.NewTable(), nil
	// Whether all changes are in it is not what is asked here.
	s.Doubts = 0
	return s
}

// add takes the next segment and says why it cannot follow the one before, if
// that is there, or what is wrong with its own end.
func (c *chain) add(seg postgres.Segment, s *summary.Summary) error {
	follows := c.merger != nil && c.before.Next() == seg
	c.before = seg
	if s == nil {
		c.merger = nil
		return nil
	}
	if _, ok := c.kept[seg]; ok {
		c.kept[seg] = s
	}
	if !follows {
		c.merger = summary.NewMerger()
		if parent := c.kept[c.forks[seg]]; parent != nil {
			// It was judged when its turn came.
			_ = c.merger.Add(parent)
		}
	}
	err := c.merger.Add(s)
	c.merger.Forget()
	if err != nil {
		c.merger = summary.NewMerger()
		if again := c.merger.Add(s); again != nil {
			c.merger = nil
		}
		var broken *summary.ChainError
		if errors.As(err, &broken) && broken.Doubt {
			err = nil
		}
	}
	if s.Ending == xlog.NotOwn {
		err = errors.Join(err, errUnfinished)
	}
	return err
}

// lost forgets the segment before: what comes next is not joined.
func (c *chain) lost() { c.merger = nil }

// errUnfinished is that a segment does not hold records to its end.
var errUnfinished = errors.New("its records end, or are damaged, before the segment ends")
