package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"agent/testing/harness"
)

// setTimes sets the store's time of some objects.
func setTimes(t testing.TB, pattern string, at func(time.Time) time.Time) {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: %q (%v)", pattern, found, err)
	}
	for _, path := range found {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if to := at(info.ModTime()); os.Chtimes(path, to, to) != nil {
			t.Fatalf("set the time of %s", path)
		}
	}
}

// TestExpireClocks has clocks that jumped: of the store, in both directions, for
// one object and for all, and a repository to which nothing comes any more. No
// moment of the window is lost, and never the newest backup.
func TestExpireClocks(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	for n := range 4 {
		if n > 0 {
			daysPass(t, m.repo, 2*oneDay)
		}
		m.take(t, "--full")
		m.Exec(t, fmt.Sprintf("SELECT pg_create_restore_point('moment %d')", n))
		m.switchWAL(t)
	}
	all := m.made
	const year = 365 * oneDay
	backup := func(n int) string { return "cluster/*/backup/" + all[n].Name + "/backup.json" }
	for _, c := range []struct {
		name   string
		change func(t *testing.T, repo string)
		args   []string
		want   []incremental
	}{
		{"as it is", func(*testing.T, string) {}, []string{"expire", "--keep-window", "3d"}, all[1:]},
		// Time goes on for a day behind what was stored last.
		{"nothing comes any more", func(t *testing.T, repo string) { daysPass(t, repo, year) }, []string{"expire", "--keep-window", "4d"}, all[1:]},
		{"days without new WAL", func(t *testing.T, repo string) { daysPass(t, repo, 2*oneDay) }, []string{"expire", "--keep-window", "4d"}, all[1:]},
		{"the store was ahead", func(t *testing.T, repo string) { daysPass(t, repo, -year) }, []string{"expire", "--keep-window", "3d"}, all},
		{"the newest of 1970", func(t *testing.T, repo string) {
			setTimes(t, filepath.Join(repo, backup(3)), func(time.Time) time.Time { return time.Unix(0, 0) })
		}, []string{"expire", "--keep-window", "3d"}, all[1:]},
		{"one in the middle of 1970", func(t *testing.T, repo string) {
			setTimes(t, filepath.Join(repo, backup(2)), func(time.Time) time.Time { return time.Unix(0, 0) })
		}, []string{"expire", "--keep-window", "3d"}, all[1:]},
		{"the oldest in the future", func(t *testing.T, repo string) {
			setTimes(t, filepath.Join(repo, backup(0)), func(at time.Time) time.Time { return at.Add(year) })
		}, []string{"expire", "--keep-window", "3d"}, all},
		{"all WAL of 1970", func(t *testing.T, repo string) {
			setTimes(t, filepath.Join(repo, "cluster/*/wal/*/*"), func(time.Time) time.Time { return time.Unix(0, 0) })
		}, []string{"expire", "--keep-window", "3d"}, all[1:]},
		{"the newest of 1970, by count", func(t *testing.T, repo string) {
			setTimes(t, filepath.Join(repo, backup(3)), func(time.Time) time.Time { return time.Unix(0, 0) })
		}, []string{"expire", "--keep-full", "1"}, all[3:]},
		{"all of one time, by count", func(t *testing.T, repo string) {
			at := time.Now().Add(-time.Hour)
			setTimes(t, filepath.Join(repo, "cluster/*/backup/*/backup.json"), func(time.Time) time.Time { return at })
		}, []string{"retain", "2"}, all[2:]},
		{"the wrong way round, by count", func(t *testing.T, repo string) {
			for n := range 4 {
				at := time.Now().Add(-time.Duration(n) * oneDay)
				setTimes(t, filepath.Join(repo, backup(n)), func(time.Time) time.Time { return at })
			}
		}, []string{"retain", "2"}, all[2:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := m.copyOf(t)
			c.change(t, m.repo)
			d := m.removes(t, c.args...)
			want := names(c.want...)
			got := m.exact(t)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("there are %q, not %q: %+v", got, want, d.Backups)
			}
			keep := m.walKeys(t)
			if missing := slices.DeleteFunc(wanted(slices.Clone(keep), []span{{c.want[0], true}}), func(k string) bool { return slices.Contains(keep, k) }); len(missing) > 0 {
				t.Errorf("missing are %q", missing)
			}
			m.walVerify(t, 0)
		})
	}
}

// TestExpireAfterFailover follows three lines: a primary that is promoted away
// from and archives on for a while, the new one, and one that was restored to a
// moment before the fork. What is kept recovers on its line.
func TestExpireAfterFailover(t *testing.T) {
	t.Parallel()
	h := newHosts(t, harness.DefaultMajor)
	h.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	first := h.pushed(t, "--full")
	h.Exec(t, "INSERT INTO a VALUES (2)", "SELECT pg_create_restore_point('early')", "INSERT INTO a VALUES (3)")
	h.switchWAL(t)
	second := h.standby(t, h.Server, nil)
	onOne := h.pushed(t, "--full")
	h.Exec(t, "INSERT INTO a VALUES (4)")
	second.WaitReplayed(t, h.LSN(t))
	second.Promote(t)
	h.Exec(t, "INSERT INTO a VALUES (101)") // what the old primary still does
	leftover := h.switchWAL(t)
	second.Exec(t, "INSERT INTO a VALUES (5)")
	second.switchWAL(t)
	onTwo := second.pushed(t, "--full")
	second.Exec(t, "INSERT INTO a VALUES (6)")
	second.switchWAL(t)
	h.Stop(t)

	// The third line leaves the first one before the fork.
	dir := fresh(t)
	must(t, h.restore(t, dir, first.Name, "--target-name", "early", "--target-action", "promote", "--target-timeline", "1"))
	state := filepath.Join(h.base, "third")
	third := *h.site
	third.state, third.settings = state, []string{h.where(), "AGENT_STATE_DIR=" + state}
	third.Server = harness.StartExisting(t, dir, h.Major, map[string]string{"archive_mode": "on", "archive_command": h.pushCommand(t, state)})
	if third.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	third.Exec(t, "INSERT INTO a VALUES (201)")
	third.switchWAL(t)
	onThree := third.pushed(t, "--full")
	third.Exec(t, "INSERT INTO a VALUES (202)")
	third.switchWAL(t)
	if onTwo.Timeline != 2 || onThree.Timeline != 3 {
		t.Fatalf("the timelines are %d and %d", onTwo.Timeline, onThree.Timeline)
	}
	original := filepath.Join(harness.TempDir(t), "original")
	if err := os.CopyFS(original, os.DirFS(h.repo)); err != nil {
		t.Fatal(err)
	}
	again := func(t *testing.T, ago func(rel string) time.Duration) {
		t.Helper()
		if err := os.RemoveAll(h.repo); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(h.repo, os.DirFS(original)); err != nil {
			t.Fatal(err)
		}
		for rel := range objects(t, h.repo) {
			at := time.Now().Add(-ago(rel))
			if err := os.Chtimes(filepath.Join(h.repo, rel), at, at); err != nil {
				t.Fatal(err)
			}
		}
		harness.Own(t, h.repo)
	}
	histories := func(t *testing.T) {
		t.Helper()
		for _, n := range []string{"2", "3"} {
			h.one(t, "cluster/*/history/0000000"+n+".history")
		}
	}
	// All lines are in use: each keeps one full backup, with what its own line needs.
	t.Run("all in use", func(t *testing.T) {
		again(t, func(string) time.Duration { return time.Minute })
		second.removes(t, "expire", "--keep-full", "1")
		histories(t)
		got := second.exact(t)
		for _, b := range []incremental{onTwo, onThree} {
			if !slices.Contains(got, b.Name) {
				t.Fatalf("there are %q: the one on timeline %d is gone", got, b.Timeline)
			}
		}
		if slices.Contains(got, first.Name) {
			t.Errorf("there are %q", got)
		}
		if rows := h.recovered(t, onTwo.Name, "--target-timeline", "2"); rows != "1 2 3 4 5 6" {
			t.Errorf("on timeline 2: %s", rows)
		}
		if rows := h.recovered(t, onThree.Name, "--target-timeline", "3"); rows != "1 2 201 202" {
			t.Errorf("on timeline 3: %s", rows)
		}
	})
	// A week later only the third line goes on. The window reaches back to before the others ended.
	old := func(rel string) time.Duration {
		switch {
		case strings.Contains(rel, onThree.Name), strings.Contains(rel, "/00000003"):
			return time.Hour
		case strings.Contains(rel, first.Name):
			return 20 * oneDay
		case strings.Contains(rel, "/00000001"), strings.Contains(rel, onOne.Name):
			return 15 * oneDay
		default:
			return 12 * oneDay
		}
	}
	t.Run("a window over the fork", func(t *testing.T) {
		again(t, old)
		third.removes(t, "expire", "--keep-window", "14d")
		histories(t)
		got := third.exact(t)
		if !slices.Contains(got, onTwo.Name) || !slices.Contains(got, onThree.Name) || !slices.Contains(got, onOne.Name) {
			t.Fatalf("there are %q", got)
		}
		// The moments between the backup on timeline 1 and that on 2 lie in the window.
		if rows := h.recovered(t, onOne.Name, "--target-timeline", "2"); rows != "1 2 3 4 5 6" {
			t.Errorf("from timeline 1 to 2: %s", rows)
		}
		// The third line left timeline 1 before the second backup: only the first leads there.
		if !slices.Contains(got, first.Name) {
			t.Errorf("there are %q: nothing leads to the beginning of timeline 3", got)
		} else if rows := h.recovered(t, first.Name, "--target-timeline", "3"); rows != "1 2 201 202" {
			t.Errorf("from timeline 1 to 3: %s", rows)
		}
	})
	t.Run("a short window", func(t *testing.T) {
		again(t, func(rel string) time.Duration {
			if strings.Contains(rel, onThree.Name) {
				return 3 * oneDay
			}
			return old(rel)
		})
		third.removes(t, "expire", "--keep-window", "2d")
		histories(t)
		if got := third.exact(t); !slices.Equal(got, names(onThree)) {
			t.Fatalf("there are %q", got)
		}
		if rows := h.recovered(t, "--target-timeline", "3"); rows != "1 2 201 202" {
			t.Errorf("on timeline 3: %s", rows)
		}
		// The leftovers of the other lines go.
		clusters := filepath.Join(h.repo, "cluster")
		if len(segmentNamed(t, clusters, leftover)) != 0 {
			t.Errorf("%s of the old primary is left", leftover)
		}
		for rel := range objects(t, h.repo) {
			if strings.Contains(rel, "/wal/") && !strings.Contains(rel, "/00000003") {
				t.Errorf("%s is left", rel)
			}
		}
		h.walVerify(t, 0)
	})
	second.Stop(t)
	third.Stop(t)
}

// TestExpireAfterUpgrade has the clusters before and after pg_upgrade in one
// repository: a delete is of one of them.
func TestExpireAfterUpgrade(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{Options: harness.Options{Major: 14}})
	m.take(t, "--full")
	m.take(t, "--full")
	oldID := fmt.Sprint(systemIdentifier(t, m.Server))
	command := m.QueryString(t, "SHOW archive_command")
	m.Stop(t)
	upgraded := harness.Upgrade(t, m.Server, harness.DefaultMajor, 1)
	s := *m.site
	s.Server = harness.StartExisting(t, upgraded, harness.DefaultMajor, map[string]string{"archive_mode": "on", "archive_command": command})
	n := &mementos{site: &s, held: make(map[string]contents)}
	n.take(t, "--full")
	n.take(t, "--full")
	last := n.take(t, "--full")
	newID := fmt.Sprint(systemIdentifier(t, n.Server))
	if oldID == newID {
		t.Fatal("the upgrade has kept the system identifier")
	}
	in := func(id string) []string { return n.listed(t, "--system-identifier", id) }
	// By the data directory.
	n.removes(t, "retain", "1")
	if got := in(newID); !slices.Equal(got, names(last)) {
		t.Errorf("of the new one there are %q", got)
	}
	if got := in(oldID); !slices.Equal(got, names(m.made...)) {
		t.Fatalf("of the old one there are %q", got)
	}
	daysPass(t, n.repo, 100*oneDay)
	n.switchWAL(t)
	must(t, n.agent(t, "delete", "expire", "--keep-window", "7d", "--all-clusters", "--confirm"))
	if got := in(oldID); !slices.Equal(got, names(m.made...)) {
		t.Errorf("of the old one, for which time stands still, there are %q", got)
	}
	if got := in(newID); !slices.Equal(got, names(last)) {
		t.Errorf("of the new one there are %q", got)
	}
	for _, m := range []*mementos{{site: &s, held: n.held, made: n.made}, m} {
		id := map[bool]string{true: newID, false: oldID}[m.site == &s]
		dir := fresh(t)
		name := in(id)[0]
		must(t, m.restore(t, dir, name, "--target-immediate", "--target-action", "promote", "--system-identifier", id))
		c := harness.StartExisting(t, dir, m.Major, nil)
		if c.WaitRecovered(t) {
			t.Fatal("recovery is paused")
		}
		m.held[name].check(t, c)
		c.Stop(t)
	}
	n.removes(t, "everything", "--system-identifier", oldID)
	if got := in(oldID); len(got) != 0 {
		t.Errorf("of the old one there are %q", got)
	}
	if got := in(newID); !slices.Equal(got, names(last)) {
		t.Errorf("of the new one there are %q", got)
	}
}
