package archive

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

func TestMissing(t *testing.T) {
	have := ranges(t, "1:3-5", "1:8-8", "1:10-12", "2:4-4")
	for want, missing := range map[Span]string{
		span(1, 3, 5):  "",
		span(1, 4, 4):  "",
		span(1, 1, 2):  "1:1-2",
		span(1, 1, 20): "1:1-2 1:6-7 1:9-9 1:13-20",
		span(1, 6, 9):  "1:6-7 1:9-9",
		span(2, 3, 5):  "2:3-3 2:5-5",
		span(3, 3, 5):  "3:3-5",
	} {
		if got := show(Missing(have, want)); got != missing {
			t.Errorf("of %s is missing %q and not %q", show([]Span{want}), got, missing)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		numbers := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 30), 0, 20, rapid.ID).Draw(t, "there")
		slices.Sort(numbers)
		var have []repo.WALRange
		for _, n := range numbers {
			if len(have) > 0 && have[len(have)-1].Last.Number+1 == n {
				have[len(have)-1].Last.Number = n
			} else {
				have = append(have, repo.WALRange{First: seg(1, n), Last: seg(1, n)})
			}
		}
		first := rapid.Uint64Range(1, 30).Draw(t, "first")
		want := span(1, first, rapid.Uint64Range(first, 31).Draw(t, "last"))
		var got []uint64
		for _, m := range Missing(have, want) {
			for n := m.First.Number; n <= m.Last.Number; n++ {
				got = append(got, n)
			}
		}
		var expected []uint64
		for n := want.First.Number; n <= want.Last.Number; n++ {
			if !slices.Contains(numbers, n) {
				expected = append(expected, n)
			}
		}
		if !slices.Equal(got, expected) {
			t.Fatalf("%v and not %v", got, expected)
		}
	})
}

// What each backup needs, what of that is missing, and which ranges serve it.
func TestVerify(t *testing.T) {
	left := func(tli postgres.Timeline, lines ...string) postgres.History { return history(t, tli, lines...) }
	for name, c := range map[string]struct {
		ranges    []string
		histories []postgres.History
		dropped   []repo.DroppedRange
		backup    *repo.Backup
		needs     string
		missing   string
		serves    string
		status    string
	}{
		"whole":                        {ranges: []string{"1:3-9"}, backup: backup("b", 1, 3, 4), needs: "1:3-9", serves: "0", status: "ok"},
		"nothing behind it":            {ranges: []string{"1:3-4"}, backup: backup("b", 1, 3, 4), needs: "1:3-4", serves: "0", status: "ok"},
		"WAL from before it":           {ranges: []string{"1:1-1", "1:3-4"}, backup: backup("b", 1, 3, 4), needs: "1:3-4", serves: "1", status: "ok"},
		"a hole behind it":             {ranges: []string{"1:3-5", "1:7-9"}, backup: backup("b", 1, 3, 4), needs: "1:3-9", missing: "1:6-6", serves: "0", status: "gap"},
		"its start":                    {ranges: []string{"1:4-5"}, backup: backup("b", 1, 3, 4), needs: "1:3-5", missing: "1:3-3", status: "gap"},
		"its stop":                     {ranges: []string{"1:3-3"}, backup: backup("b", 1, 3, 4), needs: "1:3-4", missing: "1:4-4", status: "gap"},
		"all of it":                    {backup: backup("b", 1, 3, 4), needs: "1:3-4", missing: "1:3-4", status: "gap"},
		"dropped, and nothing behind":  {ranges: []string{"1:3-5"}, dropped: []repo.DroppedRange{dropped(1, 6, 8)}, backup: backup("b", 1, 3, 4), needs: "1:3-8", missing: "1:6-8", serves: "0", status: "gap"},
		"dropped before it":            {ranges: []string{"1:1-1", "1:9-9"}, dropped: []repo.DroppedRange{dropped(1, 2, 8)}, backup: backup("b", 1, 9, 9), needs: "1:9-9", serves: "1", status: "ok"},
		"a child in a segment":         {ranges: []string{"1:3-5", "2:6-7"}, histories: []postgres.History{left(2, "1\t0/6000100\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-5 2:6-7", serves: "0 1", status: "ok"},
		"before a child":               {ranges: []string{"1:3-4", "2:6-7"}, histories: []postgres.History{left(2, "1\t0/6000100\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-5 2:6-7", missing: "1:5-5", serves: "0", status: "gap"},
		"the end of the parent":        {ranges: []string{"1:3-4"}, histories: []postgres.History{left(2, "1\t0/6000100\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-5", missing: "1:5-5", serves: "0", status: "gap"},
		"a child on an edge":           {ranges: []string{"1:3-5", "2:6-7"}, histories: []postgres.History{left(2, "1\t0/6000000\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-5 2:6-7", serves: "0 1", status: "ok"},
		"the child's first":            {ranges: []string{"1:3-5", "2:7-7"}, histories: []postgres.History{left(2, "1\t0/6000100\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-5 2:6-7", missing: "2:6-6", serves: "0", status: "gap"},
		"both go on":                   {ranges: []string{"1:3-9", "2:6-7"}, histories: []postgres.History{left(2, "1\t0/6000100\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-9 2:6-7", serves: "0 1", status: "ok"},
		"left before it":               {ranges: []string{"1:3-9", "2:2-2"}, histories: []postgres.History{left(2, "1\t0/2000100\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-9", serves: "0", status: "ok"},
		"left while it ran":            {ranges: []string{"1:3-9", "2:3-3"}, histories: []postgres.History{left(2, "1\t0/3000100\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-9", serves: "0", status: "ok"},
		"a grandchild in one segment":  {ranges: []string{"1:3-5", "3:6-7"}, histories: []postgres.History{left(2, "1\t0/6000100\tx"), left(3, "1\t0/6000100\tx", "2\t0/6000200\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-5 3:6-7", serves: "0 1", status: "ok"},
		"a hole in a child's parent":   {ranges: []string{"1:3-5", "2:6-6", "3:8-8"}, histories: []postgres.History{left(2, "1\t0/6000100\tx"), left(3, "1\t0/6000100\tx", "2\t0/8000200\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-5 2:6-7 3:8-8", missing: "2:7-7", serves: "0 1", status: "gap"},
		"on the child":                 {ranges: []string{"1:3-5", "2:6-9"}, histories: []postgres.History{left(2, "1\t0/6000100\tx")}, backup: backup("b", 2, 8, 8), needs: "2:8-9", serves: "1", status: "ok"},
		"a child without WAL as yet":   {ranges: []string{"1:3-5"}, histories: []postgres.History{left(2, "1\t0/6000100\tx")}, backup: backup("b", 1, 3, 4), needs: "1:3-5", serves: "0", status: "ok"},
		"a hole in another's timeline": {ranges: []string{"1:3-5", "4:1-1", "4:3-3"}, backup: backup("b", 1, 3, 4), needs: "1:3-5", serves: "0", status: "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			s := surveyed(t, c.ranges...)
			s.Scan.Places[0].Dropped = c.dropped
			for _, h := range c.histories {
				s.Histories[h[len(h)-1].Timeline] = h
			}
			spans, err := s.needs(c.backup, ToEnd)
			if got := show(spans); err != nil || got != c.needs {
				t.Errorf("needs %q (%v)", got, err)
			}
			v, err := s.Verify([]*repo.Backup{c.backup})
			if err != nil {
				t.Fatal(err)
			}
			var missing []Span
			for _, f := range v.Findings {
				missing = append(missing, *f.Missing)
				if f.Kind != Gap || f.Repository != "main" || f.Dropped != (c.dropped != nil) || !slices.Equal(f.Backups, []repo.BackupName{"b"}) {
					t.Errorf("%+v", f)
				}
			}
			if got := show(missing); got != c.missing || s.Status(v) != c.status {
				t.Errorf("missing is %q, status %s", got, s.Status(v))
			}
			if err := s.Err(v); (err == nil) != (c.status == "ok") || err != nil && (errs.KindOf(err) != errs.Gap || errs.HintOf(err) == "") {
				t.Errorf("got %v", err)
			}
			serves, err := s.Serves(c.backup)
			if got := strings.Trim(fmt.Sprint(serves), "[]"); err != nil || got != c.serves {
				t.Errorf("served by %q (%v)", got, err)
			}
		})
	}
}

// Each required place must have everything; what a best-effort one lacks is no
// failure. All that is wrong is told, and the worst decides.
func TestVerifyPlaces(t *testing.T) {
	s := surveyed(t, "1:3-9", "2:10-11")
	s.Histories[2] = history(t, 2, "1\t0/A000100\tx")
	s.Backups = []*repo.Backup{backup("a", 1, 3, 4), backup("b", 1, 5, 6)}
	s.Scan.Places = append(s.Scan.Places, repo.WALHeld{Name: "second", Required: true, Ranges: ranges(t, "1:3-7", "2:10-11")},
		repo.WALHeld{Name: "spare", Ranges: ranges(t, "1:3-8")})
	v, err := s.Verify(s.Backups)
	if err != nil {
		t.Fatal(err)
	}
	told := func(v *Verdict) (all []string) {
		for _, f := range v.Findings {
			all = append(all, fmt.Sprintf("%s %v: %s", f.Kind, f.Backups, f.Text(testSize)))
		}
		return all
	}
	want := []string{
		"gap [a b]: 000000010000000000000008 to 000000010000000000000009, 2 segments, are missing in repository second",
		"gap [a b]: 00000002.history is missing in repository second",
		"behind [a b]: 000000010000000000000009 is missing in repository spare",
		"behind [a b]: 00000002.history is missing in repository spare",
		"behind [a b]: 00000002000000000000000A to 00000002000000000000000B, 2 segments, are missing in repository spare",
	}
	if got := told(v); !slices.Equal(got, want) || s.Status(v) != "gap" {
		t.Errorf("%s:\n%s", s.Status(v), strings.Join(got, "\n"))
	}
	away := &storage.Error{Op: "list", Bucket: "x", Err: storage.ErrUnavailable}
	for _, c := range []struct {
		change func(*Survey)
		status string
		kind   errs.Kind
	}{
		{func(s *Survey) { s.Scan.Places = s.Scan.Places[:1] }, "ok", errs.Other},
		{func(s *Survey) { s.Scan.Places = slices.Delete(slices.Clone(s.Scan.Places), 1, 2) }, "ok", errs.Other},
		{func(s *Survey) { s.Scan.Places[2].Err = away }, "gap", errs.Gap},
		{func(s *Survey) { s.Scan.Places[0].Err = away }, "unreachable", errs.Storage},
		{func(s *Survey) { s.Unread = errs.New(errs.Damaged, "", "backup.json is damaged") }, "damaged", errs.Damaged},
		{func(s *Survey) { s.Damaged[3] = errors.New("cut short") }, "damaged", errs.Damaged},
	} {
		other := *s
		scan := *s.Scan
		scan.Places = slices.Clone(scan.Places)
		other.Scan, other.Damaged = &scan, map[postgres.Timeline]error{}
		c.change(&other)
		v, err := other.Verify(s.Backups)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Err(v); other.Status(v) != c.status || errs.KindOf(err) != c.kind {
			t.Errorf("%s: %v", other.Status(v), err)
		}
	}
}

// TestOpen looks at a repository for dropped rows that are lost.
func TestOpen(t *testing.T) {
	s := newStored(t, repo.Keys{})
	const size = 16 << 20
	row := func(first, last uint64) {
		t.Helper()
		d := repo.Dropped{Cluster: testCluster, SegmentSize: size, Host: "a"}
		if err := s.StoreDropped(t.Context(), d, postgres.Segment{Timeline: 1, Number: first}, postgres.Segment{Timeline: 1, Number: last}); err != nil {
			t.Fatal(err)
		}
	}
	look := func() string {
		t.Helper()
		open, err := Open(t.Context(), s.Repository, testCluster)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(len(open))
	}
	row(3, 4)
	row(8, 8)
	if got := look(); got != "2" {
		t.Errorf("open are %s", got)
	}
	s.put(testCluster, "000000010000000000000003", []byte("x"))
	if got := look(); got != "2" {
		t.Errorf("with one of two archived, open are %s", got)
	}
	s.put(testCluster, "000000010000000000000004", []byte("x"))
	if got := look(); got != "1" {
		t.Errorf("with both archived, open are %s", got)
	}
}

func TestGaps(t *testing.T) {
	s := surveyed(t, "1:3-5", "1:9-9", "2:6-6")
	s.Histories[2] = history(t, 2, "1\t0/C000100\tx")
	s.Scan.Places[0].Dropped = []repo.DroppedRange{dropped(1, 7, 7), dropped(2, 9, 10), dropped(3, 1, 2)}
	s.Backups = []*repo.Backup{backup("b", 2, 11, 11)}
	text := func(t postgres.Timeline) string {
		var all []string
		for _, h := range s.Gaps(t) {
			all = append(all, fmt.Sprintf("%s dropped=%v open=%v", show([]Span{h.Span}), h.Dropped, h.Open))
		}
		return strings.Join(all, "; ")
	}
	for tli, want := range map[postgres.Timeline]string{
		1: "1:6-6 dropped=false open=false; 1:7-7 dropped=true open=false; 1:8-8 dropped=false open=false; 1:10-11 dropped=false open=false",
		2: "2:7-8 dropped=false open=false; 2:9-10 dropped=true open=false",
		3: "3:1-2 dropped=true open=true",
		4: "",
	} {
		if got := text(tli); got != want {
			t.Errorf("timeline %d: %s", tli, got)
		}
	}
	if got := show(s.Open()); got != "3:1-2" {
		t.Errorf("open are %s", got)
	}
	// Another host has archived one of them, and then the other, too.
	for _, c := range []struct{ ranges, open string }{{"3:1-1", "3:1-2"}, {"3:1-2", ""}} {
		other := surveyed(t, c.ranges)
		other.Scan.Places[0].Dropped = s.Scan.Places[0].Dropped
		other.Backups = s.Backups
		if got := show(other.Open()); got != c.open {
			t.Errorf("with %s open are %q", c.ranges, got)
		}
	}
	if s.NoBackups = true; s.Open() != nil {
		t.Error("without backups nothing is known to be open")
	}
}

// Dropped segments fail until a backup has begun behind them, except for one
// that cannot do without them.
func TestVerifyDropped(t *testing.T) {
	s := surveyed(t, "1:3-5", "1:9-12")
	s.Scan.Places[0].Dropped = []repo.DroppedRange{dropped(1, 6, 7)}
	old, torn, after := backup("old", 1, 3, 4), backup("torn", 1, 5, 6), backup("after", 1, 10, 11)
	for _, c := range []struct {
		backups []*repo.Backup
		want    string
		status  string
	}{
		{[]*repo.Backup{old}, "gap 1:6-7; gap 1:8-8; ", "gap"},
		{[]*repo.Backup{old, after}, "dropped 1:6-7; gap 1:8-8; ", "gap"},
		{[]*repo.Backup{after}, "", "ok"},
		{[]*repo.Backup{torn, after}, "gap 1:6-7; gap 1:8-8; ", "gap"},
	} {
		s.Backups = c.backups
		v, err := s.Verify(s.Backups)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, f := range v.Findings {
			got += fmt.Sprintf("%s %s; ", f.Kind, show([]Span{*f.Missing}))
		}
		if got != c.want || s.Status(v) != c.status {
			t.Errorf("%s: %s", s.Status(v), got)
		}
	}
	s.Scan.Places[0].Dropped[0] = dropped(1, 6, 8)
	s.Backups = []*repo.Backup{old, after}
	if v, err := s.Verify(s.Backups); err != nil || s.Err(v) != nil || len(v.Findings) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}

// What a backup is needed for ends when one has begun behind it.
func TestBehind(t *testing.T) {
	d := dropped(2, 5, 7)
	for _, c := range []struct {
		backup *repo.Backup
		want   bool
	}{
		{backup("a", 2, 4, 4), false},
		{backup("b", 2, 7, 8), false},
		{backup("c", 2, 8, 8), true},
		{backup("d", 1, 9, 9), false},
		{backup("e", 3, 3, 3), true},
	} {
		if behind(c.backup, d) != c.want {
			t.Errorf("%s: %v", c.backup.Name, !c.want)
		}
	}
}

// TestWindows: from the oldest backup that gets there to the last segment of
// each row, along its own timeline and those that came of it.
func TestWindows(t *testing.T) {
	s := surveyed(t, "1:3-9", "1:12-20", "2:8-30")
	for i := range s.Scan.Ranges {
		s.Scan.Ranges[i].Until = testTime.Add(time.Duration(i) * time.Hour)
	}
	s.Histories[2] = history(t, 2, "1\t0/8000100\tx")
	at := func(name string, start, stop uint64, hour int) *repo.Backup {
		b := backup(name, 1, start, stop)
		b.Stopped = testTime.Add(time.Duration(hour) * time.Hour)
		return b
	}
	s.Backups = []*repo.Backup{at("late", 6, 6, -1), at("early", 3, 4, -5), at("other", 13, 14, 3), at("broken", 10, 12, -9), at("behind", 9, 9, -2)}
	windows, err := s.Windows()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range windows {
		got = append(got, fmt.Sprintf("%d: %s %v to %v %s", w.Timeline, w.Backup, w.From.Sub(testTime), w.Until.Sub(testTime), w.LastName))
	}
	want := []string{
		"1: early -5h0m0s to 0s 000000010000000000000009",
		"1: other 3h0m0s to 3h0m0s 000000010000000000000014",
		"2: early -5h0m0s to 2h0m0s 00000002000000000000001E",
	}
	if !slices.Equal(got, want) {
		t.Errorf("windows:\n%s\nand not:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
