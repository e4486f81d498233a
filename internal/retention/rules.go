package retention

import (
	"fmt"
	"time"
)

// Rules are a policy: a backup goes only when none of them wants it.
type Rules struct {
	Full   int           // keep_full: the newest full ones, and all that came after the oldest of these
	Window time.Duration // keep_window: any moment of this time can be recovered
	// The last backup of each of so many days, weeks, months and years that have
	// one, by UTC; weeks are those of ISO 8601.
	Daily, Weekly, Monthly, Yearly int
	Least                          int // min_backups: the newest, whatever the other rules say
}

// Empty reports whether there is no rule that would ever let a backup go.
func (r Rules) Empty() bool { return r == Rules{Least: r.Least} }

// period is a calendar rule.
type period struct {
	name string
	keep int
	of   func(time.Time) string
}

func (r Rules) calendar() []period {
	return []period{
		{"keep_daily", r.Daily, func(t time.Time) string { return t.Format(time.DateOnly) }},
		{"keep_weekly", r.Weekly, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-W%02d", year, week)
		}},
		{"keep_monthly", r.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"keep_yearly", r.Yearly, func(t time.Time) string { return t.Format("2006") }},
	}
}
