package postgres

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseHistory(t *testing.T) {
	for _, c := range []struct {
		name string
		tli  Timeline
		data string
		want History
	}{
		{"none", 1, "", History{{1, 0, ""}}},
		{"fixture", 2, string(load(t, "timeline", "00000002.history")), History{{1, 0xA019D0, `at restore point "rp1"`}, {2, 0, ""}}},
		{"two", 3, string(load(t, "timeline", "00000003.history")), History{
			{1, 0xA019D0, `at restore point "rp1"`}, {2, 0xC00000, "no recovery target specified"}, {3, 0, ""},
		}},
		{"comments", 5, "# from 1\n\n  # more\n1\t0/5\tx\n   \n 4  1/0  before 2026-11-20 10:00:00+00\n\n", History{
			{1, 5, "x"}, {4, 1 << 32, "before 2026-11-20 10:00:00+00"}, {5, 0, ""},
		}},
		{"no reason", 2, "1\t0/5\n", History{{1, 5, ""}, {2, 0, ""}}},
		{"cut in the reason", 2, "1\t0/5\tno rec", History{{1, 5, "no rec"}, {2, 0, ""}}},
		{"line ends", 2, "1\t0/5\tx\r\n", History{{1, 5, "x"}, {2, 0, ""}}},
		{"earlier switch", 3, "1\t0/9\tx\n2\t0/5\tx\n", History{{1, 9, "x"}, {2, 5, "x"}, {3, 0, ""}}},
	} {
		got, err := ParseHistory(c.tli, []byte(c.data))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

func TestParseHistoryRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		tli  Timeline
		data string
	}{
		"timeline 0":      {0, ""},
		"empty":           {2, ""},
		"comments only":   {2, "# 1\t0/5\tx\n"},
		"cut in the LSN":  {2, "1\t0/5"},
		"cut before LSN":  {2, "1\t"},
		"not increasing":  {4, "2\t0/5\tx\n1\t0/6\tx\n"},
		"twice":           {4, "2\t0/5\tx\n2\t0/6\tx\n"},
		"own":             {2, "2\t0/5\tx\n"},
		"child":           {2, "3\t0/5\tx\n"},
		"parent 0":        {2, "0\t0/5\tx\n"},
		"hexadecimal":     {20, "A\t0/5\tx\n"},
		"no LSN":          {2, "1\tno recovery target\n"},
		"LSN 0":           {2, "1\t0/0\tx\n"},
		"too large":       {2, "4294967297\t0/5\tx\n"},
		"timeline 1 with": {1, "1\t0/5\tx\n"},
		"binary":          {2, "\x00\x01\x02"},
	} {
		if h, err := ParseHistory(c.tli, []byte(c.data)); err == nil {
			t.Errorf("%s: %v; want an error", name, h)
		}
	}
}

func TestHistoryLines(t *testing.T) {
	h, err := ParseHistory(3, load(t, "timeline", "00000003.history"))
	if err != nil {
		t.Fatal(err)
	}
	for lsn, want := range map[LSN]Timeline{0: 1, 0xA019CF: 1, 0xA019D0: 2, 0xBFFFFF: 2, 0xC00000: 3, 1 << 40: 3} {
		if got := h.TimelineAt(lsn); got != want {
			t.Errorf("TimelineAt(%v) = %d, want %d", lsn, got, want)
		}
	}
	for tli, want := range map[Timeline]LSN{1: 0xA019D0, 2: 0xC00000, 3: 0, 4: 0} {
		got, ok := h.SwitchPoint(tli)
		if got != want || ok != (want != 0) || h.Contains(tli) != (tli <= 3) {
			t.Errorf("SwitchPoint(%d) = %v, %v; Contains %v", tli, got, ok, h.Contains(tli))
		}
	}
	for seg, want := range map[Segment]LSN{{1, 10}: 0xA019D0, {1, 9}: 0, {1, 11}: 0, {2, 10}: 0, {2, 11}: 0, {2, 12}: 0, {3, 12}: 0, {4, 10}: 0} {
		// Timeline 2 ends on a boundary: its last segment is whole.
		if got, ok := h.LeavesIn(seg, 1<<20); got != want || ok != (want != 0) {
			t.Errorf("LeavesIn(%v) = %v, %v; want %v", seg, got, ok, want)
		}
	}
	if got := (History{}).TimelineAt(1); got != 0 {
		t.Errorf("an empty history has timeline %d", got)
	}
}

// A recovery with target timeline 2 that stops before 2 begins makes 3 a child
// of 2 that branched off 1.
func TestHistoryStoppedBeforeTarget(t *testing.T) {
	h := History{{1, 100, ""}, {2, 50, ""}, {3, 0, ""}}
	for lsn, want := range map[LSN]Timeline{0: 1, 49: 1, 50: 3, 99: 3, 100: 3} {
		if got := h.TimelineAt(lsn); got != want {
			t.Errorf("TimelineAt(%v) = %d, want %d", lsn, got, want)
		}
	}
	if got, ok := h.SwitchPoint(1); !ok || got != 50 {
		t.Errorf("SwitchPoint(1) = %v, %v; want 0/32", got, ok)
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add(uint32(3), load(f, "timeline", "00000003.history"))
	f.Add(uint32(2), load(f, "timeline", "00000002.history"))
	f.Add(uint32(5), []byte("# c\n\n1 0/5\n4\t1/0\tx"))
	f.Fuzz(func(t *testing.T, tli uint32, data []byte) {
		h, err := ParseHistory(Timeline(tli), data)
		if err != nil {
			return
		}
		if last := h[len(h)-1]; last != (HistoryEntry{Timeline: Timeline(tli)}) {
			t.Fatalf("the last entry is %v", last)
		}
		for i, e := range h[:len(h)-1] {
			if e.Timeline == 0 || e.Timeline >= h[i+1].Timeline || e.Switch == 0 {
				t.Fatalf("entry %d: %v", i, h)
			}
			at, ok := h.SwitchPoint(e.Timeline)
			if !ok || h.TimelineAt(at) == e.Timeline {
				t.Fatalf("%v leaves %d at %v", h, e.Timeline, at)
			}
		}
	})
}
