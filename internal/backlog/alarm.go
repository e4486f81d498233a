package backlog

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Level says how bad a backlog is.
type Level string

// The levels.
const (
	OK       Level = "ok"
	Warning  Level = "warning"
	Critical Level = "critical"
)

// The limits, which docs/wal.md explains. A disk that is full stops the server,
// and somebody must have the time to come: so they are far from that.
const (
	ageWarning  = 10 * time.Minute
	ageCritical = time.Hour

	fullWarning  = 24 * time.Hour
	fullCritical = 4 * time.Hour
	// fullAge is how long a file must have waited before a forecast counts: a
	// burst of writing makes one that means nothing.
	fullAge = time.Minute

	shareWarning  = 0.2
	shareCritical = 0.5
)

// Hint is what to do about a backlog.
const Hint = "Look at the server's log for what archive_command says, and at the repository; make room where pg_wal is before it is full: the server stops then. Never delete files in pg_wal by hand."

// Level judges the backlog, and says why it is not OK.
func (b Backlog) Level() (Level, []string) {
	level := OK
	var reasons []string
	judge := func(critical, warning bool, format string, args ...any) {
		switch {
		case critical:
			level = Critical
		case !warning:
			return
		case level == OK:
			level = Warning
		}
		reasons = append(reasons, fmt.Sprintf(format, args...))
	}
	age := b.Age()
	judge(age >= ageCritical, age >= ageWarning, "the oldest file waits for %s", short(age))
	if full, ok := b.FullIn(); ok && age >= fullAge {
		judge(full <= fullCritical, full <= fullWarning, "the disk is full in %s at this rate", short(full))
	}
	share := b.Share()
	judge(share >= shareCritical, share >= shareWarning, "what waits has taken %.0f%% of the room", share*100)
	return level, reasons
}

// String is all numbers in one line.
func (b Backlog) String() string {
	if b.Files == 0 {
		return fmt.Sprintf("nothing waits; WAL is made at %s/s; %s free", size(b.Made), size(float64(b.Free)))
	}
	waits := "files wait"
	if b.Files == 1 {
		waits = "file waits"
	}
	text := fmt.Sprintf("%d %s, %s, the oldest for %s; WAL is made at %s/s and archived at %s/s; %s free",
		b.Files, waits, size(float64(b.Bytes)), short(b.Age()), size(b.Made), size(b.Archived), size(float64(b.Free)))
	if full, ok := b.FullIn(); ok {
		text += ", full in " + short(full)
	}
	return text
}

func size(n float64) string { return humanize.IBytes(uint64(max(n, 0))) }

// short is a duration as people say it.
func short(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= time.Minute:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return d.Round(time.Second).String()
	}
}
