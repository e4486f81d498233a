package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"agent/internal/postgres"
)

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
	if c.name.Kind != postgres.WALSegment || !errors.As(err, &torn) || !errors.Is(err, postgres.ErrTorn) {
		return leaving{}, false, nil
	}
	all, err := leavings(c.name, filepath.Dir(c.file.Name()), c.info.Size())
	if err != nil {
		return leaving{}, false, err
	}
	l, ok := leftBefore(all, torn.Offset, c.info.Size())
	return l, ok, nil
}

// leftBefore is where a timeline was left before what lies at an offset of the
// segment.
func leftBefore(all []leaving, offset, size int64) (leaving, bool) {
	for _, l := range all {
		if offset >= int64(l.at.Offset(postgres.SegmentSize(size))) {
			return l, true
		}
	}
	return leaving{}, false
}

// leavings lists where the histories beside a segment leave its timeline
// inside it.
func leavings(name postgres.WALFile, dir string, bytes int64) ([]leaving, error) {
	size := postgres.SegmentSize(min(bytes, int64(postgres.MaxSegmentSize)))
	if dir == "" || !size.Valid() {
		return nil, nil
	}
	segment, err := name.Segment(size)
	if err != nil {
		return nil, fmt.Errorf("look for what left the timeline: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for what left the timeline: %w", err)
	}
	var all []leaving
	for _, e := range entries {
		f, err := postgres.ParseWALFile(e.Name())
		if err != nil || f.Kind != postgres.WALHistory || f.Timeline <= name.Timeline {
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

// putLeft archives the unfinished segment as what it is: N.partial, of which
// there may be several. All of its WAL that counts is in the segment of the
// same number on the timeline that left.
func (p *Pusher) putLeft(ctx context.Context, c *candidate, l leaving, turn func(context.Context) error) (existed bool, err error) {
	partial := *c
	if partial.name, err = postgres.ParseWALFile(c.name.Name + ".partial"); err != nil {
		return false, err
	}
	if _, err := c.file.Seek(0, io.SeekStart); err != nil {
		return false, fmt.Errorf("read %s again: %w", c.name.Name, err)
	}
	partial.check = newSegmentCheck(partial.name, c.info.Size(), c.cluster, c.file, "")
	p.Log.Info("archiving an unfinished segment as partial: its timeline was left inside it",
		"wal", c.name.Name, "timeline", uint32(l.to), "switch_lsn", l.at.String())
	return p.put(ctx, &partial, turn)
}
