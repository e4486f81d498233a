package postgres

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// HistoryEntry is one timeline of a history.
type HistoryEntry struct {
	Timeline Timeline
	Switch   LSN    // where the next timeline was created; 0 in the last entry, which has not ended
	Reason   string // why, as the server wrote it
}

// History is the line of descent of a timeline, oldest ancestor first, with
// the timeline itself as the last entry.
type History []HistoryEntry

// ParseHistory reads the content of tli's history file. Timeline 1 has none:
// pass nil data. The rules are those of readTimeLineHistory
// (src/backend/access/transam/timeline.c): blank lines and lines that begin
// with # are ignored, of each other line the parent's number and the switch
// LSN are read, numbers must increase and stay below tli. Beyond these, a file
// that names no ancestor or ends inside an LSN is refused as cut short.
func ParseHistory(tli Timeline, data []byte) (History, error) {
	if tli == 0 {
		return nil, fmt.Errorf("parse timeline history: there is no timeline 0")
	}
	var h History
	number := 0
	for raw := range bytes.Lines(data) {
		number++
		line := strings.TrimSpace(string(raw))
		if line == "" || line[0] == '#' {
			continue
		}
		e, err := parseHistoryLine(line)
		if err != nil {
			return nil, fmt.Errorf("parse history of timeline %d: line %d: %w", tli, number, err)
		}
		if e.Reason == "" && raw[len(raw)-1] != '\n' {
			return nil, fmt.Errorf("parse history of timeline %d: line %d: the file is cut short", tli, number)
		}
		if len(h) > 0 && e.Timeline <= h[len(h)-1].Timeline {
			return nil, fmt.Errorf("parse history of timeline %d: line %d: timelines must increase: %d follows %d",
				tli, number, e.Timeline, h[len(h)-1].Timeline)
		}
		if e.Timeline >= tli {
			return nil, fmt.Errorf("parse history of timeline %d: line %d: timeline %d cannot be an ancestor", tli, number, e.Timeline)
		}
		h = append(h, e)
	}
	if len(h) == 0 && tli > 1 {
		return nil, fmt.Errorf("parse history of timeline %d: the file names no ancestor", tli)
	}
	return append(h, HistoryEntry{Timeline: tli}), nil
}

// parseHistoryLine reads "<timeline> <LSN> <reason>", separated by white space.
func parseHistoryLine(line string) (HistoryEntry, error) {
	first, rest := cutSpace(line)
	v, err := strconv.ParseUint(first, 10, 32)
	if err != nil || v == 0 {
		return HistoryEntry{}, fmt.Errorf("expected the number of a timeline, not %q", first)
	}
	second, reason := cutSpace(rest)
	lsn, err := ParseLSN(second)
	if err != nil {
		return HistoryEntry{}, err
	}
	if lsn == 0 {
		return HistoryEntry{}, fmt.Errorf("switch at LSN 0/0 is not possible")
	}
	return HistoryEntry{Timeline: Timeline(v), Switch: lsn, Reason: reason}, nil
}

// cutSpace splits at the first white space and drops all that follows it.
func cutSpace(s string) (before, after string) {
	i := strings.IndexAny(s, " \t\v\f\r")
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimSpace(s[i:])
}

// Contains tells whether tli is the timeline itself or one of its ancestors.
func (h History) Contains(tli Timeline) bool {
	for _, e := range h {
		if e.Timeline == tli {
			return true
		}
	}
	return false
}

// SwitchPoint is the LSN up to which (exclusive) WAL of tli belongs to this
// history. It is false when tli is not an ancestor: because it is the timeline
// itself, which has not ended, or is not in the history at all (Contains tells
// these apart).
//
// A recovery that stopped before it reached its target timeline leaves a
// history in which a later entry switches at a smaller LSN; what counts is
// then the smallest of the switches from tli on.
func (h History) SwitchPoint(tli Timeline) (LSN, bool) {
	for i, e := range h {
		if e.Timeline != tli {
			continue
		}
		if i == len(h)-1 {
			return 0, false
		}
		at := e.Switch
		for _, later := range h[i+1 : len(h)-1] {
			at = min(at, later.Switch)
		}
		return at, true
	}
	return 0, false
}

// LeavesIn is where this history leaves the segment's timeline, if that is
// inside the segment: after its first byte and before its end. Such a segment
// is never completed on its own timeline. On the old primary it becomes
// <segment>.partial; but a standby that follows to the new timeline and has
// archive_mode = always archives it under its plain name, with whatever the
// recycled file held behind the switch (WalReceiverMain in
// src/backend/replication/walreceiver.c). All of its WAL that counts is in the
// next timeline's segment of the same number.
func (h History) LeavesIn(seg Segment, size SegmentSize) (LSN, bool) {
	at, ok := h.SwitchPoint(seg.Timeline)
	if !ok || at.Segment(size) != seg.Number || at.Offset(size) == 0 {
		return 0, false
	}
	return at, true
}

// TimelineAt is the timeline that the byte at lsn belongs to in this history,
// as tliOfPointInHistory finds it: the newest whose range, from its parent's
// switch to its own, contains lsn. It is 0 for an empty history.
func (h History) TimelineAt(lsn LSN) Timeline {
	for i := len(h) - 1; i >= 0; i-- {
		if i == 0 || h[i-1].Switch <= lsn && (i == len(h)-1 || lsn < h[i].Switch) {
			return h[i].Timeline
		}
	}
	return 0
}
