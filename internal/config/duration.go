package config

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseDuration reads Go's syntax (time.ParseDuration: "90s", "1h30m") with
// one more unit, d for 24 hours, which comes first if there are several:
// "7d", "1d12h". A unit is always needed, also for 0, and signs are refused.
func ParseDuration(s string) (time.Duration, error) {
	if s == "" {
		return 0, errors.New("a duration is a number and a unit")
	}
	if strings.ContainsAny(s, "+-") {
		return 0, errors.New("a duration has no sign")
	}
	if strings.Trim(s, "0123456789.") == "" {
		return 0, fmt.Errorf("the unit is missing (did you mean %ss?)", s)
	}
	days, rest, found := strings.Cut(s, "d")
	if !found {
		days, rest = "", s
	}
	total := time.Duration(0)
	if found {
		n, err := wholeDays(days)
		if err != nil {
			return 0, err
		}
		total = n
	}
	if rest != "" {
		d, err := time.ParseDuration(rest)
		if err != nil {
			return 0, errors.New("this is not a duration")
		}
		if total+d < total {
			return 0, errors.New("the duration is too long")
		}
		total += d
	}
	return total, nil
}

// wholeDays reads the digits before a "d".
func wholeDays(s string) (time.Duration, error) {
	const most = (1<<63 - 1) / int64(day)
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("days are a whole number and come first")
	}
	n := int64(0)
	for _, digit := range []byte(s) {
		n = n*10 + int64(digit-'0')
		if n > most {
			return 0, errors.New("the duration is too long")
		}
	}
	return time.Duration(n) * day, nil
}

// FormatDuration writes d, which is not negative, without units that are
// zero; ParseDuration reads it back.
func FormatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		name string
		size time.Duration
	}{{"d", day}, {"h", time.Hour}, {"m", time.Minute}} {
		if n := d / u.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.size
		}
	}
	if d > 0 {
		b.WriteString(d.String())
	}
	return b.String()
}
