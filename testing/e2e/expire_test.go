package e2e_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// copyOf is the site with a copy of its repository, times included, and a state
// directory of its own.
func (m *mementos) copyOf(t *testing.T) *mementos {
	t.Helper()
	s := *m.site
	s.base = harness.TempDir(t)
	s.repo, s.state = filepath.Join(s.base, "repo"), filepath.Join(s.base, "state")
	err := filepath.WalkDir(m.repo, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(m.repo, path)
		if err != nil {
			return err
		}
		to := filepath.Join(s.repo, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(to, info.Mode().Perm())
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, body, info.Mode().Perm()); err != nil {
			return err
		}
		return os.Chtimes(to, info.ModTime(), info.ModTime())
	})
	if err != nil {
		t.Fatalf("copy the repository: %v", err)
	}
	harness.Own(t, s.repo)
	s.settings = []string{s.where(), "AGENT_STATE_DIR=" + s.state}
	return &mementos{site: &s, made: m.made, held: m.held}
}

// span is the WAL of a backup from start to stop, or to the end of all.
type span struct {
	b    incremental
	open bool
}

// wanted are those of some objects that lie in the spans, all on one timeline:
// segments, and what has the name of one.
func wanted(keys []string, spans []span) (all []string) {
	for _, key := range keys {
		name := filepath.Base(key)
		if len(name) < 24 {
			continue
		}
		for _, s := range spans {
			if name[:24] >= s.b.StartWAL && (s.open || name[:24] <= s.b.StopWAL) {
				all = append(all, key)
				break
			}
		}
	}
	return all
}

// walKeys are the objects of WAL and what belongs to it.
func (s *site) walKeys(t testing.TB) (keys []string) {
	t.Helper()
	for _, cluster := range s.clusters(t) {
		for _, kind := range []string{"wal", "summary"} {
			for key := range below(t, filepath.Join(cluster, kind)) {
				keys = append(keys, filepath.Join(kind, key))
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// TestExpire applies policies to a repository of ten days: six backups, two days
// apart, with moments between them. What it tells before it does.
func TestExpire(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{sealed: true})
	for n := range 6 {
		args := []string{}
		if n%2 == 0 {
			args = append(args, "--full")
		}
		if n > 0 {
			daysPass(t, m.repo, 2*oneDay)
		}
		m.take(t, args...)
		m.Exec(t, fmt.Sprintf("SELECT pg_create_restore_point('moment %d')", n))
		m.switchWAL(t)
	}
	all := m.made
	const last = "moment 5"
	for _, c := range []struct {
		name       string
		args       []string
		mark       []int // are kept by hand
		own        []int // are kept with their own WAL
		continuous int   // the oldest with all WAL behind it; all younger ones are kept; 6: none
		real       bool  // restore, too
	}{
		{name: "one full", args: []string{"expire", "--keep-full", "1"}, continuous: 4, real: true},
		{name: "two full", args: []string{"expire", "--keep-full", "2"}, continuous: 2},
		{name: "more than there are", args: []string{"expire", "--keep-full", "9"}, continuous: 0},
		{name: "window", args: []string{"expire", "--keep-window", "5d"}, continuous: 2, real: true},
		{name: "short window", args: []string{"expire", "--keep-window", "1h"}, continuous: 4},
		{name: "long window", args: []string{"expire", "--keep-window", "30d"}, continuous: 0},
		{name: "days", args: []string{"expire", "--keep-daily", "3"}, own: []int{3, 4}, continuous: 5, real: true},
		{name: "a year", args: []string{"expire", "--keep-yearly", "1"}, continuous: 5},
		{name: "window and days", args: []string{"expire", "--keep-window", "3d", "--keep-full", "1", "--keep-daily", "5"}, own: []int{1, 2}, continuous: 3, real: true},
		{name: "mark and full", args: []string{"expire", "--keep-full", "1"}, mark: []int{1}, own: []int{1}, continuous: 4, real: true},
		{name: "least", args: []string{"expire", "--keep-full", "1", "--min-backups", "4"}, own: []int{2, 3}, continuous: 4},
		{name: "before a backup", args: []string{"before", all[3].Name}, continuous: 3},
		{name: "before a chain", args: []string{"before", "FIND_FULL", all[3].Name}, continuous: 2},
		{name: "before the future", args: []string{"before", "2100-01-01 00:00:00+00"}, mark: []int{0}, own: []int{0}, continuous: 5},
		{name: "before the past", args: []string{"before", "2000-01-01 00:00:00+00"}, continuous: 0},
		{name: "retain", args: []string{"retain", "3"}, continuous: 3},
		{name: "retain full", args: []string{"retain", "FULL", "2"}, continuous: 2},
		{name: "retain a chain", args: []string{"retain", "FIND_FULL", "3"}, continuous: 2},
		{name: "garbage", args: []string{"garbage"}, continuous: 0},
		{name: "everything but one", args: []string{"everything"}, mark: []int{2}, own: []int{2}, continuous: 6, real: true},
		{name: "everything", args: []string{"everything", "FORCE"}, mark: []int{2}, continuous: 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := m.copyOf(t)
			for _, n := range c.mark {
				must(t, m.agent(t, "backup-mark", all[n].Name, "--keep"))
			}
			var spans []span
			var want []string
			for n, b := range all {
				switch {
				case slices.Contains(c.own, n):
					spans = append(spans, span{b, false})
				case n >= c.continuous:
					spans = append(spans, span{b, true})
				default:
					continue
				}
				want = append(want, b.Name)
			}
			before, keys := objects(t, m.repo), m.walKeys(t)
			told := parse[deleted](t, must(t, m.agent(t, append(append([]string{"delete"}, c.args...), "--json")...)).Stdout)
			if diff := cmp.Diff(before, objects(t, m.repo)); diff != "" {
				t.Fatalf("without --confirm the repository has changed:\n%.2000s", diff)
			}
			done := m.removes(t, c.args...)
			if told.Confirmed, done.Confirmed = !told.Confirmed, !done.Confirmed; !told.Confirmed || done.Confirmed {
				t.Error("confirmed is told wrong")
			}
			done.Confirmed = true
			if diff := cmp.Diff(told, done); diff != "" {
				t.Errorf("told before (-) and done (+):\n%s", diff)
			}
			for _, n := range c.mark {
				if why := done.why(all[n].Name); len(c.own) > 0 && !strings.Contains(why, "marked") {
					t.Errorf("the marked one stays for %q", why)
				}
			}
			got := m.exact(t)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("there are %q, not %q: %+v", got, want, done.Backups)
			}
			if diff := cmp.Diff(wanted(keys, spans), m.walKeys(t)); diff != "" {
				t.Errorf("WAL that is needed (-) and that there is (+):\n%s", diff)
			}
			after := objects(t, m.repo)
			gone, bytes := int64(0), int64(0)
			for key, body := range before {
				if _, still := after[key]; !still {
					gone, bytes = gone+1, bytes+int64(len(body))
				}
			}
			if at := done.Repositories[0]; at.Backups.Objects+at.Garbage.Objects+at.WAL.Objects != gone || at.Backups.Bytes+at.Garbage.Bytes+at.WAL.Bytes != bytes {
				t.Errorf("%d objects of %d bytes are gone, told are %+v", gone, bytes, at)
			}
			if again := m.removes(t, c.args...); again.Repositories[0].Backups.Objects+again.Repositories[0].WAL.Objects != 0 {
				t.Errorf("the same again deletes %+v", again.Repositories[0])
			}
			if len(want) > 0 {
				m.walVerify(t, 0)
				if v := verified(t, m.elsewhere(), 0, "--to-latest"); len(v.Findings)+len(v.Moments) > 0 {
					t.Errorf("verified as wrong or lost is %+v, %+v", v.Findings, v.Moments)
				}
				shown := m.walShow(t, 0)
				if len(shown.Unserved) > 0 {
					t.Errorf("shown to lack WAL are %q", shown.Unserved)
				}
				for _, l := range shown.Timelines {
					for _, g := range l.Gaps {
						if !g.Expired {
							t.Errorf("shown as lost is %+v", g)
						}
					}
				}
			}
			if !c.real {
				return
			}
			for _, n := range c.own {
				m.whole(t, all[n].Name)
			}
			if c.continuous == len(all) {
				return
			}
			for _, moment := range []string{fmt.Sprintf("moment %d", c.continuous), last} {
				m.reaches(t, all[c.continuous], moment)
			}
		})
	}
}

// reaches restores a backup and recovers to a restore point.
func (m *mementos) reaches(t *testing.T, from incremental, point string) {
	t.Helper()
	dir := fresh(t)
	must(t, m.restore(t, dir, from.Name, "--target-name", point, "--target-action", "promote"))
	c := harness.StartExisting(t, dir, m.Major, nil)
	if c.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	var n int
	if _, err := fmt.Sscanf(point, "moment %d", &n); err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range n + 1 {
		want = append(want, fmt.Sprint(i))
	}
	for i := range n + 1 {
		want = append(want, fmt.Sprint(1000+i))
	}
	hasRows(t, c, strings.Join(want, " "))
	c.Stop(t)
}
