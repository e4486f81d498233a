package archive

import (
	"fmt"
	"strings"
	"testing"

	"agent/internal/postgres"
	"agent/internal/repo"
)

func shown(all []Stretch) string {
	var parts []string
	for _, s := range all {
		parts = append(parts, fmt.Sprintf("%d:%d-%d", s.Timeline, s.From, s.To))
	}
	return strings.Join(parts, " ")
}

func TestLess(t *testing.T) {
	st := func(t postgres.Timeline, from, to postgres.LSN) Stretch { return Stretch{t, from, to} }
	for what, c := range map[string]struct {
		all, others []Stretch
		want        string
	}{
		"nothing is lost":      {[]Stretch{st(1, 10, 20)}, []Stretch{st(1, 5, 30)}, ""},
		"all is lost":          {[]Stretch{st(1, 10, 20)}, nil, "1:10-20"},
		"of another timeline":  {[]Stretch{st(1, 10, 20)}, []Stretch{st(2, 0, 99)}, "1:10-20"},
		"the beginning":        {[]Stretch{st(1, 10, 20)}, []Stretch{st(1, 15, 20)}, "1:10-15"},
		"the end":              {[]Stretch{st(1, 10, 20)}, []Stretch{st(1, 10, 15)}, "1:15-20"},
		"the middle":           {[]Stretch{st(1, 10, 40)}, []Stretch{st(1, 10, 15), st(1, 30, 40)}, "1:15-30"},
		"several, which touch": {[]Stretch{st(1, 10, 20), st(1, 30, 40), st(2, 1, 9)}, []Stretch{st(1, 20, 30), st(2, 1, 9)}, "1:10-20 1:30-40"},
	} {
		if got := shown(Less(c.all, c.others)); got != c.want {
			t.Errorf("%s: %q instead of %q", what, got, c.want)
		}
	}
}

// What can be recovered with backups and without some, where WAL is missing, and
// along another timeline.
func TestRecoverable(t *testing.T) {
	const mb = uint64(testSize)
	at := func(n, bytes uint64) string { return fmt.Sprint(n*mb + bytes) }
	s := surveyed(t, "1:3-9", "1:11-12", "2:7-8")
	s.Histories[2] = history(t, 2, "1\t0/7000200\tx")
	old, late, child := backup("old", 1, 3, 4), backup("late", 1, 11, 11), backup("child", 2, 8, 8)
	all, err := s.Recoverable([]*repo.Backup{old, late, child})
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("1:%s-%s 1:%s-%s 2:%s-%s", at(4, 0x100), at(10, 0), at(11, 0x100), at(13, 0), at(7, 0x200), at(9, 0))
	if got := shown(all); got != want {
		t.Errorf("with all of them %q instead of %q", got, want)
	}
	without, err := s.Recoverable([]*repo.Backup{child})
	if err != nil {
		t.Fatal(err)
	}
	want = fmt.Sprintf("1:%s-%s 1:%s-%s 2:%s-%s", at(4, 0x100), at(10, 0), at(11, 0x100), at(13, 0), at(7, 0x200), at(8, 0x100))
	if got := shown(Less(all, without)); got != want {
		t.Errorf("with the child alone is lost %q instead of %q", got, want)
	}
	cut, err := s.Without([]Span{span(1, 6, 6)}).Recoverable([]*repo.Backup{old})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := shown(cut), fmt.Sprintf("1:%s-%s", at(4, 0x100), at(6, 0)); got != want {
		t.Errorf("before a hole %q instead of %q", got, want)
	}
	var gaps []Span
	for _, g := range s.Gaps(1) {
		gaps = append(gaps, g.Span)
	}
	whole, err := s.Filled(append(gaps, span(1, 2, 4))).Recoverable([]*repo.Backup{old})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := shown(whole), fmt.Sprintf("1:%s-%s 2:%s-%s", at(4, 0x100), at(13, 0), at(7, 0x200), at(9, 0)); got != want {
		t.Errorf("without any hole %q instead of %q", got, want)
	}
	lacks, err := s.Without([]Span{span(1, 3, 3), span(1, 9, 12)}).Lacks(backup("long", 1, 3, 10))
	if got := show(lacks); err != nil || got != "1:3-3 1:9-10" {
		t.Errorf("of its own WAL is missing %q (%v)", got, err)
	}
}
