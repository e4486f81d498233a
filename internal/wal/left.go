package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"walagent/internal/postgres"
)

// errUnfinished is that a segment ends where its timeline was left, and only
// zeros follow.
var errUnfinished = errors.New("its timeline was left inside it")

// leaving says where a timeline was left.
type leaving struct {
	to postgres.Timeline // the timeline that left it
	at postgres.LSN      // the first byte that is not of the segment's own
}

// left finds out whether a segment whose check ended with err is the unfinished
// last one of a timeline that this server has left. A standby that follows to a
// new timeline and has archive_mode = always asks for it under its plain name,
// with zeros or old pages behind the switch (WalReceiverMain in
// src/backend/replication/walreceiver.c); on the new primary it is N.partial
// (CleanupAfterArchiveRecovery in src/backend/access/transam/xlog.c). It is so
// only if a history in the same pg_wal says it and all pages up to the switch
// are the segment's own. The server writes that history there before it leaves;
// those in the repository do not count, since there they may be of a server
// that this one does not follow.
func left(c *candidate, err error) (leaving, bool, error) {
	var torn *postgres.SegmentError
	zeros := errors.Is(err, errUnfinished)
	if c.name.Kind != postgres.WALSegment || !zeros && (!errors.As(err, &torn) || !errors.Is(err, postgres.ErrTorn)) {
		return leaving{}, false, nil
	}
	all, err := leavings(c)
	if err != nil {
		return leaving{}, false, err
	}
	for _, l := range all {
		if zeros || torn.Offset >= int64(l.at.Offset(postgres.SegmentSize(c.info.Size()))) {
			return l, true, nil
		}
	}
	return leaving{}, false, nil
}

// leavings lists where the histories beside a segment leave its timeline
// inside it.
func leavings(c *candidate) ([]leaving, error) {
	size := postgres.SegmentSize(min(c.info.Size(), int64(postgres.MaxSegmentSize)))
	if !size.Valid() {
		return nil, nil
	}
	segment, err := c.name.Segment(size)
	if err != nil {
		return nil, fmt.Errorf("look for what left the timeline: %w", err)
	}
	dir := filepath.Dir(c.file.Name())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for what left the timeline: %w", err)
	}
	var all []leaving
	for _, e := range entries {
		f, err := postgres.ParseWALFile(e.Name())
		if err != nil || f.Kind != postgres.WALHistory || f.Timeline <= c.name.Timeline {
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil {
			return nil, fmt.Errorf("look for what left the timeline: %w", err)
		}
		h, err := postgres.ParseHistory(f.Timeline, body)
		if err != nil {
			continue // it proves nothing, and is refused when its turn comes
		}
		if at, ok := h.LeavesIn(segment, size); ok {
			all = append(all, leaving{f.Timeline, at})
		}
	}
	return all, nil
}

// unfinished is errUnfinished for a segment of which nothing but zeros follows
// the point at which its timeline was left. Such a one has passed every check:
// under its plain name it would stand in the way of the whole segment, if the
// old primary lives and completes it.
func unfinished(c *candidate) error {
	all, err := leavings(c)
	if err != nil {
		return err
	}
	for _, l := range all {
		from := int64(l.at.Offset(postgres.SegmentSize(c.info.Size())))
		zeros, err := onlyZeros(io.NewSectionReader(c.file, from, c.info.Size()-from))
		if err != nil {
			return fmt.Errorf("read the end of %s: %w", c.name.Name, err)
		}
		if zeros {
			return errUnfinished
		}
	}
	return nil
}

func onlyZeros(r io.Reader) (bool, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }) {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// putLeft archives the unfinished segment as what it is: N.partial, of which
// there may be several. All of its WAL that counts is in the segment of the
// same number on the timeline that left.
func (p *Pusher) putLeft(ctx context.Context, c *candidate, l leaving, turn func(context.Context) error) error {
	partial := *c
	var err error
	if partial.name, err = postgres.ParseWALFile(c.name.Name + ".partial"); err != nil {
		return err
	}
	if _, err := c.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read %s again: %w", c.name.Name, err)
	}
	partial.check = &segmentCheck{
		SegmentChecker: postgres.NewSegmentChecker(partial.name, c.info.Size(), uint64(c.cluster)), name: partial.name.Name,
	}
	p.Log.Info("archiving an unfinished segment as partial: its timeline was left inside it",
		"wal", c.name.Name, "timeline", uint32(l.to), "switch_lsn", l.at.String())
	return p.put(ctx, &partial, turn)
}
