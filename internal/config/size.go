package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// unit is a suffix of a size and its number of bytes.
type unit struct {
	suffix string
	bytes  int64
}

// units lists the suffixes, the biggest first. Those with an i are powers of
// 1024 (IEC 80000-13), the others powers of 1000 (SI). PostgreSQL's own
// settings use kB, MB and GB for powers of 1024; here the store's and the
// network's meaning is the useful one.
func units() []unit {
	return []unit{
		{"TiB", 1 << 40},
		{"TB", 1e12},
		{"GiB", 1 << 30},
		{"GB", 1e9},
		{"MiB", 1 << 20},
		{"MB", 1e6},
		{"KiB", 1 << 10},
		{"kB", 1e3},
	}
}

// ParseSize reads a whole number of bytes with an optional unit right behind
// it: kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024).
// Signs, fractions, blanks and other spellings are refused, so that no size
// is ever misread by a factor.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimLeft(s, "0123456789")
	number, suffix := s[:len(s)-len(digits)], digits
	if number == "" {
		return 0, errors.New("a size begins with digits")
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, errors.New("the size is too big")
	}
	if suffix == "" {
		return n, nil
	}
	for _, u := range units() {
		if suffix != u.suffix {
			continue
		}
		if n > math.MaxInt64/u.bytes {
			return 0, errors.New("the size is too big")
		}
		return n * u.bytes, nil
	}
	for _, u := range units() {
		if strings.EqualFold(suffix, u.suffix) || strings.EqualFold(suffix+"B", u.suffix) {
			return 0, fmt.Errorf("%q is not a unit (did you mean %s?)", suffix, u.suffix)
		}
	}
	return 0, fmt.Errorf("%q is not a unit", suffix)
}

// FormatSize writes n bytes with the biggest unit that keeps it exact;
// ParseSize reads it back. n is not negative.
func FormatSize(n int64) string {
	if n == 0 {
		return "0"
	}
	for _, u := range units() {
		if n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}
