package restore

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func backup(name string, t postgres.Timeline, stop postgres.LSN, at time.Time, xid uint64) *repo.Backup {
	return &repo.Backup{
		Name: repo.BackupName("20261120T000000Z-" + name), Timeline: t, StartLSN: stop - 0x100, StopLSN: stop,
		Started: at.Add(-time.Minute), Stopped: at, NextXID: xid,
	}
}

// The server of these tables: timeline 1 to 0/5000000, then 2; timeline 3
// left 1 at 0/2000000, before 2 did.
func examples() ([]*repo.Backup, map[postgres.Timeline]postgres.History) {
	backups := []*repo.Backup{
		backup("aaaaaa", 1, 0x1000000, noon, 100),
		backup("bbbbbb", 1, 0x3000000, noon.Add(time.Hour), 200),
		backup("cccccc", 2, 0x6000000, noon.Add(2*time.Hour), 300),
		// Named after its clock's idea of time, which went back.
		backup("000000", 2, 0x7000000, noon.Add(90*time.Minute), 400),
	}
	histories := map[postgres.Timeline]postgres.History{
		2: {{Timeline: 1, Switch: 0x5000000}, {Timeline: 2}},
	}
	return backups, histories
}

func TestChoose(t *testing.T) {
	backups, histories := examples()
	branch := map[postgres.Timeline]postgres.History{
		2: histories[2],
		3: {{Timeline: 1, Switch: 0x2000000}, {Timeline: 3}},
	}
	at := func(d time.Duration) Target { return Target{Kind: TargetTime, Time: noon.Add(d)} }
	lsn := func(l postgres.LSN) Target { return Target{Kind: TargetLSN, LSN: l} }
	xid := func(x uint32) Target { return Target{Kind: TargetXID, XID: x} }
	with := func(t Target, timeline string) Target { t.Timeline = timeline; return t }
	tests := map[string]struct {
		target    Target
		name      string
		histories map[postgres.Timeline]postgres.History
		want      string // the name's last letters
		timeline  postgres.Timeline
		aside     []string
		kind      errs.Kind
	}{
		"the end":                    {target: Target{}, want: "000000", timeline: 2},
		"LATEST":                     {name: "LATEST", want: "000000", timeline: 2},
		"immediate":                  {target: Target{Kind: TargetImmediate}, want: "000000", timeline: 2},
		"a restore point":            {target: Target{Kind: TargetName, Name: "x"}, want: "000000", timeline: 2},
		"a time between":             {target: at(61 * time.Minute), want: "bbbbbb", timeline: 2},
		"the very time":              {target: at(time.Hour), want: "bbbbbb", timeline: 2},
		"just before it":             {target: at(time.Hour - time.Microsecond), want: "aaaaaa", timeline: 2},
		"a time before all":          {target: at(-time.Second), kind: errs.NotFound},
		"an LSN between":             {target: lsn(0x4000000), want: "bbbbbb", timeline: 2},
		"the very LSN":               {target: lsn(0x6000000), want: "cccccc", timeline: 2},
		"just before it, by LSN":     {target: lsn(0x6000000 - 1), want: "bbbbbb", timeline: 2},
		"an LSN before all":          {target: lsn(0xFFFFFF), kind: errs.NotFound},
		"a transaction":              {target: xid(250), want: "bbbbbb", timeline: 2},
		"the next at its stop":       {target: xid(200), want: "bbbbbb", timeline: 2},
		"the last before its stop":   {target: xid(199), want: "aaaaaa", timeline: 2},
		"a transaction before all":   {target: xid(99), kind: errs.NotFound},
		"current":                    {target: with(Target{}, "current"), want: "000000", timeline: 2},
		"timeline 1":                 {target: with(Target{}, "1"), want: "bbbbbb", timeline: 1, aside: []string{"cccccc", "000000"}},
		"no such timeline":           {target: with(Target{}, "9"), kind: errs.NotFound},
		"no timeline at all":         {target: with(Target{}, "x"), kind: errs.Usage},
		"the newest branched early":  {histories: branch, want: "aaaaaa", timeline: 3, aside: []string{"bbbbbb", "cccccc", "000000"}},
		"a branch, by number":        {target: with(Target{}, "2"), histories: branch, want: "000000", timeline: 2},
		"aside, not before the time": {target: at(61 * time.Minute), histories: branch, want: "aaaaaa", timeline: 3, aside: []string{"bbbbbb"}},
		"named":                      {name: "20261120T000000Z-aaaaaa", want: "aaaaaa", timeline: 2},
		"named, current":             {target: with(Target{}, "current"), name: "20261120T000000Z-aaaaaa", want: "aaaaaa", timeline: 1},
		"named, off the lineage":     {histories: branch, name: "20261120T000000Z-cccccc", kind: errs.Usage},
		"named, after the target":    {target: lsn(0x5000000), name: "20261120T000000Z-cccccc", kind: errs.Usage},
		"named, not there":           {name: "20261120T000000Z-dddddd", kind: errs.NotFound},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := test.histories
			if h == nil {
				h = histories
			}
			got, err := Choose(backups, h, nil, test.target, test.name)
			if test.want == "" {
				if errs.KindOf(err) != test.kind {
					t.Fatalf("got %+v, %v", got.Backup, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var aside []string
			for _, b := range got.Aside {
				aside = append(aside, string(b.Name)[17:])
			}
			if string(got.Backup.Name)[17:] != test.want || got.Timeline != test.timeline {
				t.Fatalf("chose %s on timeline %d", got.Backup.Name, got.Timeline)
			}
			if d := cmp.Diff(test.aside, aside); d != "" {
				t.Fatalf("aside:\n%s", d)
			}
		})
	}
	// A damaged history counts only for who follows it.
	bad := map[postgres.Timeline]error{9: errs.New(errs.Damaged, "", "damaged")}
	one := []*repo.Backup{{Name: "20261120T101530Z-aaaaaa", Timeline: 1, StopLSN: 5}}
	if _, err := Choose(one, nil, bad, Target{}, ""); errs.KindOf(err) != errs.Damaged {
		t.Fatalf("the newest timeline's history is damaged: %v", err)
	}
	if got, err := Choose(one, nil, bad, Target{Timeline: "1"}, ""); err != nil || got.Backup != one[0] {
		t.Fatalf("another timeline's history is damaged: %v", err)
	}
	if _, err := Choose(nil, nil, nil, Target{}, ""); errs.KindOf(err) != errs.NotFound {
		t.Fatalf("no backups: %v", err)
	}
}

// Of backups that end at the same position the compacted one is taken, whatever
// the names are, and of two compacted ones that with the later name.
func TestChooseCompacted(t *testing.T) {
	old, one, two := backup("bbbbbb", 1, 0x1000000, noon, 100), backup("aaaaaa", 1, 0x1000000, noon, 100), backup("aaaaab", 1, 0x1000000, noon, 100)
	one.CompactedFrom, two.CompactedFrom = old.Name, old.Name
	for _, backups := range [][]*repo.Backup{{old, one}, {one, old}, {two, one, old}, {one, two, old}} {
		want := one
		if len(backups) == 3 {
			want = two
		}
		if c, err := Choose(backups, nil, nil, Target{}, ""); err != nil || c.Backup != want {
			t.Errorf("of %d backups %v is taken: %v", len(backups), c.Backup, err)
		}
	}
}

// Transaction ids go round at 2^32.
func TestChooseXIDWraparound(t *testing.T) {
	backups := []*repo.Backup{
		backup("aaaaaa", 1, 0x1000000, noon, 1<<32-100),
		backup("bbbbbb", 1, 0x2000000, noon.Add(time.Hour), 1<<32+50),
	}
	for xid, want := range map[uint32]string{1<<32 - 50: "aaaaaa", 3: "aaaaaa", 49: "aaaaaa", 50: "bbbbbb", 1000: "bbbbbb"} {
		got, err := Choose(backups, nil, nil, Target{Kind: TargetXID, XID: xid}, "")
		if err != nil || string(got.Backup.Name)[17:] != want {
			t.Fatalf("%d: %+v, %v", xid, got.Backup, err)
		}
	}
	if _, err := Choose(backups, nil, nil, Target{Kind: TargetXID, XID: 1<<32 - 101}, ""); errs.KindOf(err) != errs.NotFound {
		t.Fatalf("before all: %v", err)
	}
}

func TestParseTime(t *testing.T) {
	want := time.Date(2026, 11, 20, 14, 29, 0, 0, time.UTC)
	for s, add := range map[string]time.Duration{
		"2026-11-20 14:29:00+00":           0,
		"2026-11-20 14:29:00Z":             0,
		"2026-11-20T14:29:00Z":             0,
		"2026-11-20 14:29:00 +00":          0,
		"2026-11-20 14:29:00 +00:00":       0,
		"2026-11-20 14:29:00 UTC":          0,
		"2026-11-20 14:29:00 GMT":          0,
		"2026-11-20T14:29:00.123456+00:00": 123456 * time.Microsecond,
		"2026-11-20 14:29:00.123456+00":    123456 * time.Microsecond,
		"2026-11-20 16:29:00+02":           0,
		"2026-11-20 16:29:00 +02:00":       0,
		"2026-11-20T19:59:00+05:30":        0,
		"2026-11-20T11:29:00-03":           0,
	} {
		if got, err := ParseTime(s); err != nil || !got.Equal(want.Add(add)) {
			t.Errorf("%s: %s, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"2026-11-20 14:29:00 EST", "", "now", "2026-11-20", "14:29:00+00", "2026-11-20 14:29:00", "2026-11-20T14:29:00", "1732112940",
		"2026-11-20 14:29:00 XYZ", "2026-11-20 14:29:00 GMT+3", "2026-13-20 14:29:00+00", "2026-11-20 14:29:00+00 x",
	} {
		if got, err := ParseTime(s); errs.KindOf(err) != errs.Usage || !strings.Contains(errs.HintOf(err), "+00") {
			t.Errorf("%s: %s, %v", s, got, err)
		}
	}
}

// The zone of this host has no say: Lisbon's winter is called WET, not UTC.
func TestParseTimeAnywhere(t *testing.T) {
	old := time.Local
	defer func() { time.Local = old }()
	time.Local = time.FixedZone("WET", 0)
	if got, err := ParseTime("2026-11-20 14:29:00+00"); err != nil || got.Hour() != 14 {
		t.Fatalf("%s, %v", got, err)
	}
	time.Local = time.FixedZone("EST", -5*3600)
	if got, err := ParseTime("2026-11-20 14:29:00 EST"); err == nil {
		t.Fatalf("a name was taken for a zone: %s", got)
	}
}

func TestParseXID(t *testing.T) {
	for s, want := range map[string]uint32{"3": 3, "4294967295": 1<<32 - 1, "4294967299": 3} {
		if got, err := ParseXID(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "-1", "0x10", "1.5", "18446744073709551616"} {
		if _, err := ParseXID(s); errs.KindOf(err) != errs.Usage {
			t.Errorf("%s: %v", s, err)
		}
	}
}
