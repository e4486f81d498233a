package postgres

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

func TestParseLSN(t *testing.T) {
	for in, want := range map[string]LSN{
		"0/0": 0, "0/00A1B2": 0xA1B2, "1/0": 1 << 32, "16/B374D848": 0x16B374D848, "00000016/0b374d84": 0x160b374d84,
		"FFFFFFFF/FFFFFFFF": 1<<64 - 1, "a/b": 0xA0000000B,
	} {
		got, err := ParseLSN(in)
		if err != nil || got != want {
			t.Errorf("ParseLSN(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "/", "0", "0/", "/0", "0/0/0", "0/000000000", "100000000/0", "0/g", "-1/0", "0/+1", " 0/0", "0/0 ", "0x1/0"} {
		if got, err := ParseLSN(in); err == nil {
			t.Errorf("ParseLSN(%q) = %v; want an error", in, got)
		}
	}
}

func TestLSNText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := LSN(rapid.Uint64().Draw(t, "lsn"))
		b, err := json.Marshal(map[string]LSN{"at": l})
		if err != nil {
			t.Fatal(err)
		}
		var back map[string]LSN
		if err := json.Unmarshal(b, &back); err != nil || back["at"] != l {
			t.Fatalf("%s came back as %v, %v", b, back, err)
		}
	})
	var l LSN
	if err := json.Unmarshal([]byte(`"1-2"`), &l); err == nil {
		t.Fatal("a malformed LSN was accepted")
	}
	if got := LSN(0x16B374D848).String(); got != "16/B374D848" {
		t.Fatalf("String() = %s", got)
	}
}

func TestLSNArithmetic(t *testing.T) {
	const size SegmentSize = 16 << 20
	for _, c := range []struct {
		lsn       LSN
		seg, last uint64
		offset    uint32
	}{
		{0, 0, 0, 0},
		{1, 0, 0, 1},
		{0x1000000, 1, 0, 0},
		{0x1000001, 1, 1, 1},
		{0x1FFFFFF, 1, 1, 0xFFFFFF},
		{0x100000000, 256, 255, 0},
	} {
		if s, l, o := c.lsn.Segment(size), c.lsn.LastSegment(size), c.lsn.Offset(size); s != c.seg || l != c.last || o != c.offset {
			t.Errorf("%v: segment %d, last %d, offset %d; want %d, %d, %d", c.lsn, s, l, o, c.seg, c.last, c.offset)
		}
	}
}

func TestSegmentSize(t *testing.T) {
	for size, want := range map[SegmentSize]uint32{
		1 << 20: 4096, 16 << 20: 256, 64 << 20: 64, 1 << 30: 4,
		0: 0, 1: 0, 1 << 19: 0, 3 << 20: 0, 1 << 31: 0, 1<<20 + 1: 0,
	} {
		if got := size.PerLogID(); got != want || size.Valid() != (want != 0) {
			t.Errorf("%d: PerLogID %d, Valid %v; want %d", uint32(size), got, size.Valid(), want)
		}
	}
	if got := SegmentSize(16 << 20).String(); got != "16 MiB" {
		t.Errorf("String() = %q", got)
	}
	if got := SegmentSize(5).String(); got != "5 bytes" {
		t.Errorf("String() = %q", got)
	}
}

func TestParseTimeline(t *testing.T) {
	for in, want := range map[string]Timeline{"1": 1, "10": 10, "0xA": 10, "0Xa": 10, "0x0000000a": 10, "4294967295": 1<<32 - 1} {
		if got, err := ParseTimeline(in); err != nil || got != want {
			t.Errorf("ParseTimeline(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "0x0", "0x", "010", "-1", "+1", "0x+1", "1_0", "4294967296", "latest", "A", "1 "} {
		if got, err := ParseTimeline(in); err == nil {
			t.Errorf("ParseTimeline(%q) = %d; want an error", in, got)
		}
	}
	if got, err := ParseTimelineHex("0000000A"); err != nil || got != 10 || got.String() != "0000000A" {
		t.Errorf("ParseTimelineHex = %v, %v", got, err)
	}
	for _, in := range []string{"", "A", "0000000a", "00000000", "000000001", "0000000G", "0x000001"} {
		if got, err := ParseTimelineHex(in); err == nil {
			t.Errorf("ParseTimelineHex(%q) = %d; want an error", in, got)
		}
	}
}

func FuzzParseLSN(f *testing.F) {
	f.Add("0/900028")
	f.Add("FFFFFFFF/FFFFFFFF")
	f.Add("0/00a1b2")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLSN(s)
		if err != nil {
			return
		}
		if back, err := ParseLSN(l.String()); err != nil || back != l || len(s) > 17 || len(l.String()) > len(s) {
			t.Fatalf("%q is %v, which is %v, %v", s, l, back, err)
		}
	})
}
