package config

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "007": 7, "1kB": 1000, "50MB": 50_000_000, "2GB": 2_000_000_000, "3TB": 3_000_000_000_000,
		"1KiB": 1024, "20MiB": 20 << 20, "4GiB": 4 << 30, "1TiB": 1 << 40, "9223372036854775807": math.MaxInt64,
	} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                    "a size begins with digits",
		"MB":                  "a size begins with digits",
		"-1":                  "a size begins with digits",
		"+1":                  "a size begins with digits",
		" 1":                  "a size begins with digits",
		"1 MB":                `" MB" is not a unit`,
		"1.5GB":               `".5GB" is not a unit`,
		"50mb":                `"mb" is not a unit (did you mean MB?)`,
		"1KB":                 `"KB" is not a unit (did you mean kB?)`,
		"1k":                  `"k" is not a unit (did you mean kB?)`,
		"1Mi":                 `"Mi" is not a unit (did you mean MiB?)`,
		"1e6":                 `"e6" is not a unit`,
		"1EB":                 `"EB" is not a unit`,
		"9223372036854775808": "the size is too big",
		"9223372036854776kB":  "the size is too big",
		"8388608TiB":          "the size is too big",
	} {
		if _, err := ParseSize(text); err == nil || err.Error() != want {
			t.Errorf("ParseSize(%q): error %v; want %s", text, err, want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "90s": 90 * time.Second, "10m": 10 * time.Minute, "1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute,
		"2d": 48 * time.Hour, "1d12h": 36 * time.Hour, "0d5ms": 5 * time.Millisecond, "106751d": 106751 * day,
	} {
		got, err := ParseDuration(text)
		if err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                      "a duration is a number and a unit",
		"10":                    "the unit is missing (did you mean 10s?)",
		"0":                     "the unit is missing (did you mean 0s?)",
		"-5m":                   "a duration has no sign",
		"1h-5m":                 "a duration has no sign",
		"d":                     "days are a whole number and come first",
		"1.5d":                  "days are a whole number and come first",
		"12h1d":                 "days are a whole number and come first",
		"1d1d":                  "this is not a duration",
		"5 m":                   "this is not a duration",
		"10min":                 "this is not a duration",
		"soon":                  "this is not a duration",
		"106752d":               "the duration is too long",
		"99999999999999999999d": "the duration is too long",
		"106751d24h":            "the duration is too long",
	} {
		if _, err := ParseDuration(text); err == nil || err.Error() != want {
			t.Errorf("ParseDuration(%q): error %v; want %s", text, err, want)
		}
	}
}

func TestFormatIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(
			rapid.Int64Min(0),
			rapid.Map(rapid.Int64Range(0, 1<<22), func(n int64) int64 { return n << 20 }),
			rapid.Map(rapid.Int64Range(0, 1<<22), func(n int64) int64 { return n * 1e6 }),
		).Draw(t, "n")
		if got, err := ParseSize(FormatSize(n)); err != nil || got != n {
			t.Fatalf("%d became %q, read as %d, %v", n, FormatSize(n), got, err)
		}
		d := time.Duration(n)
		if got, err := ParseDuration(FormatDuration(d)); err != nil || got != d {
			t.Fatalf("%v became %q, read as %v, %v", d, FormatDuration(d), got, err)
		}
	})
	for d, want := range map[time.Duration]string{0: "0s", 10 * time.Minute: "10m", 36 * time.Hour: "1d12h", 1500 * time.Millisecond: "1.5s"} {
		if got := FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%v) = %q; want %q", d, got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"", "0", "50MB", "20MiB", "1.5GB", "99999999999999999999TiB", "1k"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if again, err := ParseSize(FormatSize(n)); n < 0 || err != nil || again != n {
			t.Fatalf("ParseSize(%q) = %d, which is read back as %d, %v", s, n, again, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"", "10", "10m", "1d12h", "106751d24h", "1.5h", "5µs", "d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := ParseDuration(FormatDuration(d)); d < 0 || err != nil || again != d {
			t.Fatalf("ParseDuration(%q) = %d, which is read back as %d, %v", s, d, again, err)
		}
	})
}
