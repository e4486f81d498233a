package e2e_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// marked is what the tests read of the marks in a backup's JSON.
type marked struct {
	Name        string            `json:"name"`
	Permanent   bool              `json:"permanent"`
	KeptUntil   *time.Time        `json:"kept_until"`
	Annotations map[string]string `json:"annotations"`
}

// shown reads the marks of a backup.
func (s *site) shown(t testing.TB, name string) marked {
	t.Helper()
	return parse[marked](t, must(t, s.agent(t, "backup-show", name, "--json")).Stdout)
}

// listed are the names of those that backup-list selects.
func (s *site) listed(t testing.TB, args ...string) (names []string) {
	t.Helper()
	for _, b := range parse[[]marked](t, must(t, s.agent(t, append([]string{"backup-list", "--json"}, args...)...)).Stdout) {
		names = append(names, b.Name)
	}
	return names
}

// TestMark keeps a backup by hand, for a time, and not any more; and notes things.
func TestMark(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	first, second, third := m.take(t, "--full"), m.take(t, "--full"), m.take(t, "--full")
	for _, b := range m.made {
		if got := m.shown(t, b.Name); got.Permanent || got.KeptUntil != nil || got.Annotations == nil || len(got.Annotations) > 0 {
			t.Errorf("without a mark it is %+v", got)
		}
	}
	must(t, m.agent(t, "backup-mark", first.Name, "--keep", "--note", "ticket=4711", "--note", "by=anna=b"))
	if got := m.shown(t, first.Name); !got.Permanent || got.KeptUntil != nil || !maps.Equal(got.Annotations, map[string]string{"ticket": "4711", "by": "anna=b"}) {
		t.Errorf("it is %+v", got)
	}
	table := must(t, m.agent(t, "backup-list")).Stdout
	if line := strings.Split(table, "\n")[1]; !strings.Contains(line, first.Name) || !strings.Contains(line, "yes") || !strings.HasSuffix(line, "by=anna=b, ticket=4711") {
		t.Errorf("the list says %s", line)
	}
	must(t, m.agent(t, "backup-mark", "LATEST", "--note", "ticket=4712"))
	for args, want := range map[string][]string{
		"ticket":           names(first, third),
		"ticket=4712":      names(third),
		"ticket,by=anna=b": names(first),
		"nothing":          nil,
	} {
		var notes []string
		for n := range strings.SplitSeq(args, ",") {
			notes = append(notes, "--note", n)
		}
		if got := m.listed(t, notes...); !slices.Equal(got, want) {
			t.Errorf("with %s there are %q, not %q", args, got, want)
		}
	}
	hinted(t, m.deletes(t, "target", first.Name), 8, "marked to be kept", "--release")
	m.removes(t, "retain", "1")
	if got := m.exact(t); !slices.Equal(got, names(first, third)) {
		t.Fatalf("there are %q, not those that are kept", got)
	}
	m.whole(t, first.Name)

	// The marks go with what they are about.
	for key := range below(t, filepath.Join(m.clusters(t)[0], "mark")) {
		if strings.Contains(key, second.Name) {
			t.Errorf("%s is left", key)
		}
	}
	// For a time that passes; a mark that was given before counts no more.
	must(t, m.agent(t, "backup-mark", first.Name, "--keep", "--until", "10d"))
	if got := m.shown(t, first.Name); !got.Permanent || got.KeptUntil == nil || got.KeptUntil.Before(time.Now().Add(9*oneDay)) {
		t.Errorf("it is %+v", got)
	}
	until := time.Now().Add(3 * time.Second).UTC()
	must(t, m.agent(t, "backup-mark", first.Name, "--keep", "--until", until.Format("2006-01-02 15:04:05+00"), "--note", "ticket="))
	await(t, "the end of the mark", func() bool { return !m.shown(t, first.Name).Permanent })
	if got := m.shown(t, first.Name); got.KeptUntil != nil || !maps.Equal(got.Annotations, map[string]string{"by": "anna=b"}) {
		t.Errorf("it is %+v", got)
	}
	must(t, m.agent(t, "backup-mark", first.Name, "--keep"))
	must(t, m.agent(t, "backup-mark", first.Name, "--release"))
	m.removes(t, "retain", "1")
	if got := m.exact(t); !slices.Equal(got, names(third)) {
		t.Errorf("there are %q", got)
	}
	if all := below(t, filepath.Join(m.clusters(t)[0], "mark", first.Name)); len(all) > 0 {
		t.Errorf("marks are left: %q", slices.Collect(maps.Keys(all)))
	}
	for _, args := range [][]string{
		{third.Name},
		{third.Name, "--keep", "--release"},
		{third.Name, "--until", "3d"},
		{third.Name, "--keep", "--until", "2020-01-01 00:00:00+00"},
		{third.Name, "--note", "x"},
		{third.Name, "--note", "=x"},
		{third.Name, "--note", "a b=x"},
		{third.Name, "--note", "a=x\ny"},
		{third.Name, "--keep", "--until", "soon"},
		{third.Name, "--note", "long=" + strings.Repeat("x", 70_000)},
	} {
		hinted(t, m.agent(t, append([]string{"backup-mark"}, args...)...), 2)
	}
	hinted(t, m.agent(t, "backup-mark", first.Name, "--keep"), 7, first.Name)
}

// TestMarkOfSeveralTimes gives marks in one second, of hosts whose clocks differ:
// the last one counts.
func TestMarkOfSeveralTimes(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	b := m.take(t)
	dir := filepath.Join(m.clusters(t)[0], "mark", b.Name)
	for n := range 4 {
		must(t, m.agent(t, "backup-mark", b.Name, "--keep", "--note", fmt.Sprintf("n=%d", n)))
		must(t, m.agent(t, "backup-mark", b.Name, "--release"))
	}
	if got := m.shown(t, b.Name); got.Permanent || got.Annotations["n"] != "3" {
		t.Errorf("after the last release it is %+v", got)
	}
	// One of a host whose clock is a year ahead.
	ahead := time.Now().Add(365 * oneDay).UTC()
	key := filepath.Join(dir, ahead.Format("20060102T150405.000Z")+"-release-aaaaaa.json")
	writeFile(t, key, fmt.Appendf(nil, `{"format":1,"backup":%q,"kind":"release","time":%q,"host":"x","agent":"1"}`, b.Name, ahead.Format(time.RFC3339)))
	must(t, m.agent(t, "backup-mark", b.Name, "--keep"))
	if got := m.shown(t, b.Name); !got.Permanent {
		t.Error("a release of a host whose clock is ahead counts more than what was said later")
	}
	must(t, m.agent(t, "backup-mark", b.Name, "--release"))
	if got := m.shown(t, b.Name); got.Permanent {
		t.Error("it cannot be released")
	}
	// A kind of a later version is left alone.
	writeFile(t, filepath.Join(dir, ahead.Add(oneDay).Format("20060102T150405.000Z")+"-blessed-aaaaaa.json"), []byte("{}"))
	if got := m.shown(t, b.Name); got.Permanent || got.Annotations["n"] != "3" {
		t.Errorf("with a mark of a later version it is %+v", got)
	}
}

// TestMarkDamaged keeps a backup whose mark cannot be read, and says so.
func TestMarkDamaged(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	first, last := m.take(t, "--full"), m.take(t, "--full")
	must(t, m.agent(t, "backup-mark", first.Name, "--keep"))
	path := m.one(t, "cluster/*/mark/"+first.Name+"/*")
	writeFile(t, path, []byte("rubbish"))
	r := m.agent(t, "backup-list", "--json")
	hinted(t, r, 6, m.key(t, path))
	if all := parse[[]marked](t, r.Stdout); len(all) != 2 || !all[0].Permanent {
		t.Errorf("listed are %+v", all)
	}
	d := m.removes(t, "retain", "1")
	all := objects(t, m.repo)
	if got := needed(t, all, names(first, last)); !slices.Equal(got, remains(all)) || !strings.Contains(d.why(first.Name), "cannot be read") {
		t.Errorf("there are %q: %q", remains(all), d.why(first.Name))
	}
	hinted(t, m.deletes(t, "target", first.Name), 8)
	m.whole(t, first.Name)
	// A later mark makes it known again.
	must(t, m.agent(t, "backup-mark", first.Name, "--release"))
	m.removes(t, "retain", "1")
	if got := m.exact(t); !slices.Equal(got, names(last)) {
		t.Errorf("there are %q", got)
	}
}

// TestMarkInOnePlace has a mark that only one of two repositories holds: it
// counts for both, and is brought to the other. Nothing is deleted while the
// required one cannot be asked.
func TestMarkInOnePlace(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	first, last := p.pushed(t, "--full"), p.pushed(t, "--full")
	p.switchWAL(t)
	must(t, p.agent(t, "repo", "sync"))
	back := gone(t, p.far)
	must(t, p.agent(t, "backup-mark", first.Name, "--keep", "--note", "why=audit"))
	back()
	must(t, p.agent(t, "repo", "sync"))
	p.same(t)
	// Now the far one alone has it.
	for _, path := range []string{p.one(t, "cluster/*/mark/"+first.Name)} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.shown(t, first.Name); !got.Permanent || got.Annotations["why"] != "audit" {
		t.Errorf("it is %+v", got)
	}
	p.removes(t, "retain", "1")
	if got := p.backups(t); !slices.Equal(got, names(first, last)) {
		t.Fatalf("there are %q", got)
	}
	must(t, p.agent(t, "repo", "sync"))
	p.same(t)
	must(t, p.agent(t, "backup-mark", first.Name, "--release"))
	back = gone(t, p.repo)
	if r := p.deletes(t, "retain", "1"); r.Code == 0 {
		t.Errorf("a required repository is away, and it deletes: %s", r.Stdout)
	}
	back()
	p.removes(t, "retain", "1")
	if got := p.backups(t); !slices.Equal(got, names(last)) {
		t.Errorf("there are %q", got)
	}
	p.same(t)
	p.restored(t, p.alone(p.far), 1)
}

// TestDeleteWhileFarIsAway deletes while the best-effort repository cannot be
// reached: that is told, and what is left there does not come back.
func TestDeleteWhileFarIsAway(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	first, last := p.pushed(t, "--full"), p.pushed(t, "--full")
	p.switchWAL(t)
	must(t, p.agent(t, "repo", "sync"))
	p.same(t)
	back := gone(t, p.far)
	r := p.deletes(t, "retain", "1")
	back()
	hinted(t, r, 5, "delete from repository far")
	p.later(t)
	p.removes(t, "retain", "1")
	must(t, p.agent(t, "repo", "sync"))
	if got := p.backups(t); !slices.Equal(got, names(last)) {
		t.Errorf("there are %q, %s has come back", got, first.Name)
	}
	p.same(t)
	p.restored(t, p.alone(p.far), 1)
}
