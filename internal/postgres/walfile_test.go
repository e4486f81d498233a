package postgres

import (
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseWALFile(t *testing.T) {
	for _, want := range []WALFile{
		{WALSegment, 1, 0, 9, 0, "000000010000000000000009"},
		{WALSegment, 0xFFFFFFFF, 0xFFFFFFFF, 0xFF, 0, "FFFFFFFFFFFFFFFF000000FF"},
		{WALPartial, 2, 0x10, 0xA, 0, "00000002000000100000000A.partial"},
		{WALBackupHistory, 1, 0, 9, 0x28, "000000010000000000000009.00000028.backup"},
		{WALHistory, 3, 0, 0, 0, "00000003.history"},
	} {
		got, err := ParseWALFile(want.Name)
		if err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", want.Name, d)
		}
	}
}

func TestParseWALFileRefuses(t *testing.T) {
	for _, name := range []string{
		"", ".", "..", "history", ".history", "0000001.history", "00000001.History", "00000001.history.", "00000001",
		"00000001000000000000000", "0000000100000000000000091", "00000001000000000000000a", "00000001000000000000000G",
		"000000010000000000000009.", "000000010000000000000009.partial.gz", "000000010000000000000009.PARTIAL",
		"000000010000000000000009.28.backup", "000000010000000000000009.0000002a.backup", "000000010000000000000009.00000028",
		"000000010000000000000009.00000028.backup.x", "000000010000000000000009..backup", "000000010000000000000009.history",
		"00000001.partial", "pg_wal/000000010000000000000009", "../000000010000000000000009", "000000010000000000000009\n", "RECOVERYXLOG",
		"00000001000000000000000９",
	} {
		f, err := ParseWALFile(name)
		if err == nil {
			t.Errorf("ParseWALFile(%q) = %+v; want an error", name, f)
		} else if !strings.Contains(err.Error(), "expected") {
			t.Errorf("%q: the error does not say what is expected: %v", name, err)
		}
	}
}

func TestSegmentNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := MinSegmentSize << rapid.IntRange(0, 10).Draw(t, "size")
		s := Segment{
			Timeline: Timeline(rapid.Uint32().Draw(t, "timeline")),
			Number:   rapid.Uint64Range(0, math.MaxUint64/uint64(size)).Draw(t, "number"),
		}
		back, err := ParseSegment(s.Name(size), size)
		if err != nil || back != s {
			t.Fatalf("%v is %s, which is %v, %v", s, s.Name(size), back, err)
		}
		for _, lsn := range []LSN{s.Start(size), s.End(size) - 1} {
			if got := SegmentOf(s.Timeline, lsn, size); got != s {
				t.Fatalf("SegmentOf(%v) = %v, want %v", lsn, got, s)
			}
		}
		if s.End(size)-s.Start(size) != LSN(size) || s.End(size).LastSegment(size) != s.Number && s.End(size) != 0 {
			t.Fatalf("%v: %v to %v", s, s.Start(size), s.End(size))
		}
	})
}

func TestSegmentNeedsSize(t *testing.T) {
	if s, err := ParseSegment("0000000100000002000000FF", 16<<20); err != nil || s != (Segment{1, 2*256 + 255}) {
		t.Errorf("ParseSegment = %v, %v", s, err)
	}
	for _, c := range []struct {
		name string
		size SegmentSize
	}{
		{"000000010000000000000100", 16 << 20},
		{"000000010000000000001000", 1 << 20},
		{"000000010000000000000004", 1 << 30},
		{"000000010000000000000001", 0},
		{"000000010000000000000001", 3 << 20},
		{"000000010000000000000001.partial", 16 << 20},
		{"00000001.history", 16 << 20},
	} {
		if s, err := ParseSegment(c.name, c.size); err == nil {
			t.Errorf("ParseSegment(%s, %d) = %v; want an error", c.name, c.size, s)
		}
	}
	if _, err := mustWALFile(t, "00000001.history").Segment(16 << 20); err == nil {
		t.Error("a history file has no segment")
	}
	if s, err := mustWALFile(t, "000000010000000000000009.00000028.backup").Segment(1 << 20); err != nil || s.Start(1<<20) != 0x900000 {
		t.Errorf("segment of a backup history file: %v, %v", s, err)
	}
}

func FuzzParseWALFile(f *testing.F) {
	f.Add("000000010000000000000009")
	f.Add("00000002000000100000000A.partial")
	f.Add("000000010000000000000009.00000028.backup")
	f.Add("00000003.history")
	forms := regexp.MustCompile(`^([0-9A-F]{24}|[0-9A-F]{24}\.partial|[0-9A-F]{24}\.[0-9A-F]{8}\.backup|[0-9A-F]{8}\.history)$`)
	f.Fuzz(func(t *testing.T, name string) {
		got, err := ParseWALFile(name)
		if forms.MatchString(name) != (err == nil) || err == nil && got.Name != name {
			t.Fatalf("ParseWALFile(%q) = %+v, %v", name, got, err)
		}
		if seg, err := got.Segment(1 << 20); err == nil && seg.Name(1<<20) != name[:24] {
			t.Fatalf("%q has segment %s", name, seg.Name(1<<20))
		}
	})
}
