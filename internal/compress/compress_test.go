package compress

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"agent/internal/errs"
)

func TestParse(t *testing.T) {
	for value, want := range map[string]Setting{
		"zstd":    {Method: Zstd},
		"zstd:1":  {Zstd, 1},
		"zstd:22": {Zstd, 22},
		"lz4":     {Method: LZ4},
		"lz4:1":   {LZ4, 1},
		"lz4:12":  {LZ4, 12},
		"none":    {Method: None},
	} {
		got, err := Parse(value)
		if err != nil {
			t.Fatalf("%q: %v", value, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", value, diff)
		}
		if got.String() != value {
			t.Errorf("%q came back as %q", value, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for value, allowed := range map[string]string{
		"":        "is unknown",
		"gzip":    "is unknown",
		"ZSTD":    "is unknown",
		" zstd":   "is unknown",
		"zstd:":   "from 1 to 22",
		"zstd:0":  "from 1 to 22",
		"zstd:23": "from 1 to 22",
		"zstd:-1": "from 1 to 22",
		"zstd:+1": "from 1 to 22",
		"zstd:01": "from 1 to 22",
		"zstd:x":  "from 1 to 22",
		"lz4:13":  "from 1 to 12",
		"lz4:1:2": "from 1 to 12",
		"none:1":  "takes no level",
		"none:":   "takes no level",
	} {
		_, err := Parse(value)
		if err == nil {
			t.Errorf("%q was accepted", value)
			continue
		}
		if !strings.Contains(err.Error(), allowed) || !strings.Contains(err.Error(), `"`+value+`"`) {
			t.Errorf("%q: the error does not name value and rule: %v", value, err)
		}
		if errs.KindOf(err) != errs.Config || errs.HintOf(err) == "" {
			t.Errorf("%q: kind %v, hint %q", value, errs.KindOf(err), errs.HintOf(err))
		}
	}
}

func TestSettingRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := rapid.SampledFrom([]Method{Zstd, LZ4, None}).Draw(t, "method")
		s := Setting{m, rapid.IntRange(0, m.maxLevel()).Draw(t, "level")}
		got, err := Parse(s.String())
		if err != nil || got != s {
			t.Fatalf("%v became %v, %v", s, got, err)
		}
		if _, err := NewEncoder(s); err != nil {
			t.Fatalf("%v: %v", s, err)
		}
	})
}

func TestNewEncoderRefuses(t *testing.T) {
	for _, s := range []Setting{{Zstd, 23}, {Zstd, -1}, {LZ4, 13}, {None, 1}, {Method: None + 1}} {
		if _, err := NewEncoder(s); errs.KindOf(err) != errs.Config {
			t.Errorf("%v: %v", s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("zstd:3")
	f.Add("none:")
	f.Fuzz(func(t *testing.T, value string) {
		s, err := Parse(value)
		if err == nil && s.String() != value {
			t.Fatalf("%q became %q", value, s)
		}
	})
}
