package retention

import (
	"fmt"
	"slices"
	"time"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// Decision is what becomes of a backup, and why.
type Decision struct {
	*Item
	// Reasons say what wants it; without any it goes.
	Reasons []string
	// Continuous is that WAL is kept from its start to the end of every timeline
	// that it leads to. One that is kept without that is restored to its own end.
	Continuous bool

	counted bool // by keep_full
	lapsing bool // kept by its lock alone: that is not made longer
}

// Keep reports whether the backup stays.
func (d *Decision) Keep() bool { return len(d.Reasons) > 0 }

func (d *Decision) want(continuous bool, format string, args ...any) {
	d.Reasons = append(d.Reasons, fmt.Sprintf(format, args...))
	d.Continuous = d.Continuous || continuous
}

// history is what is decided upon: all backups, the oldest first.
type history struct {
	all   []*Decision
	lines lines
	// now is the time by which a policy counts; clock is what this host's clock
	// says, which may be later.
	now, clock time.Time
	// active says until when WAL of a timeline was archived; a timeline without any
	// is not in it.
	active map[postgres.Timeline]time.Time
}

// going are those that nothing wants yet.
func (h *history) going() []*Decision {
	var all []*Decision
	for _, d := range h.all {
		if !d.Keep() {
			all = append(all, d)
		}
	}
	return all
}

// policy applies rules.
func (h *history) policy(r Rules) {
	h.full(r.Full, r.Window == 0)
	h.window(r.Window)
	h.calendar(r)
	if n := len(h.all); r.Least > 0 {
		for _, d := range h.all[max(0, n-r.Least):] {
			d.want(false, "min_backups %d", r.Least)
		}
	}
}

// full keeps the newest full backups, of all and of each line that is in use,
// and all that came after the oldest of these. So a clone that archives here too
// does not push out the backups of the server that it was made from.
func (h *history) full(keep int, continuous bool) {
	if keep == 0 {
		return
	}
	h.newestFull(keep, continuous, func(*repo.Backup) bool { return true })
	lately := h.now.Add(-repo.GarbageAge)
	for t := range h.timelines() {
		if h.alive(t, lately) {
			line := h.lines.of(t)
			h.newestFull(keep, continuous, func(b *repo.Backup) bool { return on(line, b) })
		}
	}
}

func (h *history) newestFull(keep int, continuous bool, among func(*repo.Backup) bool) {
	from, seen := 0, 0
	for i, d := range slices.Backward(h.all) {
		if d.Type != repo.TypeFull || !among(d.Backup) {
			continue
		}
		if seen++; seen == keep {
			from = i
			break
		}
	}
	for _, d := range h.all[from:] {
		if among(d.Backup) && !d.counted {
			d.counted = true
			d.want(continuous, "keep_full %d", keep)
		}
	}
}

// window keeps what recovers any moment of the last time: all backups that were
// made in it, and for each line on which something has happened in it the newest
// whole one from before.
func (h *history) window(window time.Duration) {
	if window == 0 {
		return
	}
	from := h.now.Add(-window)
	for _, d := range h.all {
		if d.At.After(from) {
			d.want(true, "keep_window: made in it")
		}
	}
	for t := range h.timelines() {
		if !h.alive(t, from) {
			continue
		}
		line := h.lines.of(t)
		for _, d := range slices.Backward(h.all) {
			if d.At.After(from) || !on(line, d.Backup) {
				continue
			}
			d.want(true, "keep_window begins with it on timeline %d", t)
			if d.Whole {
				break
			}
		}
	}
}

// timelines are all that have backups, WAL or a history.
func (h *history) timelines() map[postgres.Timeline]bool {
	all := make(map[postgres.Timeline]bool)
	for t := range h.lines {
		all[t] = true
	}
	for t := range h.active {
		all[t] = true
	}
	for _, d := range h.all {
		all[d.Timeline] = true
	}
	return all
}

// alive reports whether anything has happened on a timeline since from.
func (h *history) alive(t postgres.Timeline, from time.Time) bool {
	return h.active[t].After(from) || slices.ContainsFunc(h.all, func(d *Decision) bool { return d.Timeline == t && d.At.After(from) })
}

// calendar keeps the newest backup of each period that has one.
func (h *history) calendar(r Rules) {
	for _, p := range r.calendar() {
		kept := make(map[string]bool)
		for _, d := range slices.Backward(h.all) {
			if len(kept) >= p.keep {
				break
			}
			name := p.of(d.recorded().UTC())
			if kept[name] {
				continue
			}
			kept[name] = true
			d.want(false, "%s %s", p.name, name)
		}
	}
}

// since keeps a backup and all that came after it.
func (h *history) since(first int, why string) {
	for _, d := range h.all[first:] {
		d.want(true, "%s", why)
	}
}

// guards keep what no policy may take: what is marked, the newest, and the newest
// that is good.
func (h *history) guards() {
	h.marked()
	if len(h.all) == 0 {
		return
	}
	newest := h.all[len(h.all)-1]
	newest.want(true, "the newest")
	for _, d := range slices.Backward(h.all) {
		if d.Whole && d.BadPages == 0 {
			if d != newest {
				d.want(true, "the newest that is whole and without damaged pages")
			}
			return
		}
	}
}

// marked keeps what somebody has marked.
func (h *history) marked() {
	for _, d := range h.all {
		switch m := d.Marks; {
		case m.Unread != nil:
			d.want(false, "a mark of it cannot be read: %v", m.Unread)
		case !m.Kept(h.clock):
		case m.Keep.Until.IsZero():
			d.want(false, "marked to be kept")
		default:
			d.want(false, "marked to be kept until %s", m.Keep.Until.UTC().Format(time.RFC3339))
		}
	}
}

// claimed keeps what running backups need.
func (h *history) claimed(live repo.LiveClaims) {
	for _, d := range h.all {
		switch by := live.Named[d.Name]; by {
		case "":
		case d.Name:
			d.want(true, "it is being made")
		default:
			d.want(true, "backup %s, which is being made, needs it", by)
		}
	}
}

// spare keeps what was not announced: nobody could know of it.
func (h *history) spare(announced func(repo.BackupName) bool) {
	for _, d := range h.all {
		if !d.Keep() && !announced(d.Name) {
			d.want(true, "it came while the delete was prepared")
		}
	}
}

// locked keeps what a store would not remove yet.
func (h *history) locked(until map[repo.BackupName]time.Time) {
	for _, d := range h.all {
		if at := until[d.Name]; at.After(h.clock) {
			d.lapsing = !d.Keep()
			d.want(false, "locked until %s", at.UTC().Format(time.RFC3339))
		}
	}
}
