package e2e_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// deleted is what the tests read of `agent delete ... --json`.
type deleted struct {
	Confirmed bool `json:"confirmed"`
	Backups   []struct {
		Name       string   `json:"name"`
		Keep       bool     `json:"keep"`
		Reasons    []string `json:"reasons"`
		Continuous bool     `json:"continuous"`
	} `json:"backups"`
	WALStays     string        `json:"wal_stays"`
	Repositories []deletedFrom `json:"repositories"`
}

type deletedFrom struct {
	Repository string `json:"repository"`
	Backups    swept  `json:"backups"`
	Garbage    swept  `json:"garbage"`
	WAL        swept  `json:"wal"`
	Unfinished swept  `json:"unfinished"`
	Error      string `json:"error"`
}

type swept struct {
	Objects int64    `json:"objects"`
	Bytes   int64    `json:"bytes"`
	Locked  int64    `json:"locked"`
	Failed  int64    `json:"failed"`
	Errors  []string `json:"errors"`
}

// deletes runs a delete for good.
func (s *site) deletes(t testing.TB, args ...string) harness.Result {
	t.Helper()
	return s.agent(t, slices.Concat([]string{"delete"}, args, []string{"--confirm", "--json"})...)
}

// removes deletes for good, and returns what the agent says of it.
func (s *site) removes(t testing.TB, args ...string) deleted {
	t.Helper()
	return parse[deleted](t, must(t, s.deletes(t, args...)).Stdout)
}

// kept are the names of those that stay.
func (d deleted) kept() (names []string) {
	for _, b := range d.Backups {
		if b.Keep {
			names = append(names, b.Name)
		}
	}
	return names
}

// why is what wants a backup.
func (d deleted) why(name string) string {
	for _, b := range d.Backups {
		if b.Name == name {
			return strings.Join(b.Reasons, "; ")
		}
	}
	return ""
}

// mementos are backups and what the server held when each of them ended.
type mementos struct {
	*site
	made []incremental
	held map[string]contents
}

// newMementos is a server with something to back up, and segments of 1 MB.
func newMementos(t *testing.T, p plan) *mementos {
	t.Helper()
	p.WALSegSizeMB = 1
	conf := incrementalConf(p.Major)
	for k, v := range p.Conf {
		conf[k] = v
	}
	p.Conf = conf
	m := &mementos{site: newSite(t, p), held: make(map[string]contents)}
	m.Exec(t, filled("kept", 3000), filled("touched", 1000), "CREATE TABLE a (i int)")
	return m
}

// take changes something, takes a backup, and changes something else.
func (m *mementos) take(t *testing.T, args ...string) incremental {
	t.Helper()
	n := len(m.made)
	m.Exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d)", n), fmt.Sprintf("UPDATE touched SET t = t || 'x' WHERE i %% 10 = %d", n%10),
		fmt.Sprintf("DELETE FROM kept WHERE i %% 100 = %d", n))
	m.switchWAL(t)
	held := read(t, m.Server)
	b := m.pushed(t, args...)
	m.made, m.held[b.Name] = append(m.made, b), held
	m.Exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d)", 1000+n))
	m.switchWAL(t)
	return b
}

// whole restores a backup to its own end, and compares what the server holds
// then with what it held.
func (m *mementos) whole(t *testing.T, name string) {
	t.Helper()
	dir := fresh(t)
	must(t, m.restore(t, dir, name, "--target-immediate", "--target-action", "promote"))
	verifyBackup(t, m.Server, dir)
	c := harness.StartExisting(t, dir, m.Major, nil, m.reach...)
	if c.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	m.held[name].check(t, c)
	healthy(t, c)
	c.Stop(t)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// exact fails the test unless the repository holds, of backups, all that those
// which are listed need, byte for byte, and nothing else; and of what announces
// backups and deletes nothing at all. It returns the names of the backups.
func (s *site) exact(t testing.TB) []string {
	t.Helper()
	folders, err := filepath.Glob(filepath.Join(s.repo, "cluster/*/backup/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range folders {
		if len(objects(t, f)) == 0 {
			t.Errorf("the empty folder %s is left", f)
		}
	}
	names := s.backups(t)
	if diff := cmp.Diff(needed(t, objects(t, s.repo), names), remains(objects(t, s.repo))); diff != "" {
		t.Errorf("what the backups need (-) and what there is (+):\n%s", diff)
	}
	return names
}

// remains are the keys of all that belongs to backups, or announces one or a
// delete.
func remains(all map[string]string) []string {
	keys := []string{}
	for key := range all {
		if parts := strings.Split(key, "/"); len(parts) > 3 && slices.Contains([]string{"backup", "claim", "tomb"}, parts[2]) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// needed are the keys of all that some backups of the only cluster consist of. It
// fails the test if any of it is not there, or is not what was stored.
func needed(t testing.TB, all map[string]string, names []string) []string {
	t.Helper()
	dirs := make(map[string]string)
	for key := range all {
		if parts := strings.Split(key, "/"); len(parts) > 4 && parts[2] == "backup" {
			dirs[parts[3]] = strings.Join(parts[:3], "/") + "/"
		}
	}
	keys := make(map[string]bool)
	for _, name := range names {
		dir := dirs[name] + name + "/"
		for _, file := range []string{"backup.json", "packs", "manifest"} {
			keys[dir+file] = true
		}
		for _, p := range packsOf(t, all[dir+"packs"]) {
			lender := string(p.Lender)
			if lender == "" {
				lender = name
			}
			key := fmt.Sprintf("%s%s/pack/%08x", dirs[name], lender, p.Number)
			keys[key] = true
			if sum := sha256.Sum256([]byte(all[key])); string(sum[:]) != string(p.SHA256[:]) {
				t.Errorf("%s, which %s needs, is not there or not what was stored", key, name)
			}
		}
	}
	for key := range keys {
		if _, ok := all[key]; !ok {
			t.Errorf("%s is not there", key)
		}
	}
	return append([]string{}, slices.Sorted(maps.Keys(keys))...)
}

// below is objects for a folder that may not be there.
func below(t testing.TB, root string) map[string]string {
	t.Helper()
	if !exists(root) {
		return nil
	}
	return objects(t, root)
}

// clusters are the folders of the clusters.
func (s *site) clusters(t testing.TB) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.repo, "cluster/*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// daysPass makes everything in a repository older than it is, as the store's
// clock tells it.
func daysPass(t testing.TB, repo string, by time.Duration) {
	t.Helper()
	for key := range objects(t, repo) {
		path := filepath.Join(repo, key)
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if at := info.ModTime().Add(-by); os.Chtimes(path, at, at) != nil {
			t.Fatalf("make %s older", path)
		}
	}
}

const oneDay = 24 * time.Hour

// names gives the names of backups.
func names(all ...incremental) (out []string) {
	for _, b := range all {
		out = append(out, b.Name)
	}
	return out
}

// TestDeleteTarget removes the backups of two chains one after the other: one in
// the middle, the full one, a parent, the last. What others borrow stays until
// the last of these has gone, and each of those that stay is whole.
func TestDeleteTarget(t *testing.T) {
	t.Parallel()
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed=%v", sealed), func(t *testing.T) {
			t.Parallel()
			m := newMementos(t, plan{sealed: sealed})
			full, second, third, fourth := m.take(t), m.take(t), m.take(t), m.take(t)
			other, last := m.take(t, "--full"), m.take(t)
			for i, b := range []incremental{second, third, fourth} {
				if b.Parent != m.made[i].Name {
					t.Fatalf("%s is no incremental of %s but %q of %q", b.Name, m.made[i].Name, b.Type, b.Parent)
				}
			}
			wal := segmentsIn(t, m.repo)
			before := objects(t, m.repo)
			left := slices.Clone(m.made)
			for n, b := range []incremental{third, full, second, fourth, other, last} {
				d := parse[deleted](t, must(t, m.agent(t, "delete", "target", b.Name, "--json")).Stdout)
				if d.Confirmed {
					t.Error("it was deleted without --confirm")
				}
				if diff := cmp.Diff(before, objects(t, m.repo)); diff != "" {
					t.Fatalf("without --confirm the repository has changed:\n%.2000s", diff)
				}
				done := m.removes(t, "target", b.Name)
				if got, want := done.Repositories, d.Repositories; !cmp.Equal(want, got) {
					t.Errorf("told before was %+v, then %+v", want, got)
				}
				after := objects(t, m.repo)
				gone, bytes := int64(0), int64(0)
				for key, body := range before {
					if _, still := after[key]; !still {
						gone, bytes = gone+1, bytes+int64(len(body))
					}
				}
				if at := done.Repositories[0]; at.Backups.Objects+at.Garbage.Objects != gone || at.Backups.Bytes+at.Garbage.Bytes != bytes {
					t.Errorf("%d objects of %d bytes are gone, told are %+v", gone, bytes, at)
				}
				if diff := cmp.Diff(wal, segmentsIn(t, m.repo)); diff != "" {
					t.Errorf("WAL went with a named backup:\n%s", diff)
				}
				left = slices.DeleteFunc(left, func(o incremental) bool { return o.Name == b.Name })
				want := names(left...)
				before = after
				if got := m.exact(t); !slices.Equal(got, want) {
					t.Fatalf("there are %q, not %q", got, want)
				}
				if !slices.Equal(done.kept(), want) {
					t.Errorf("told to stay are %q, not %q", done.kept(), want)
				}
				for _, o := range left {
					if o.Parent == b.Name || o.Name == fourth.Name {
						m.whole(t, o.Name)
					}
				}
				lent := exists(filepath.Join(m.clusters(t)[0], "backup", full.Name))
				if wantLent := n < 3; lent != wantLent {
					t.Errorf("after %d deletes the folder of the full backup is there: %v", n+1, lent)
				}
				if len(left) > 0 {
					continue
				}
				hinted(t, m.agent(t, "delete", "target", b.Name, "--confirm"), 7, b.Name)
			}
			// Nothing says from where WAL is needed any more.
			if d := m.removes(t, "garbage"); d.WALStays == "" || d.Repositories[0].WAL.Objects != 0 {
				t.Errorf("without any backup WAL goes: %+v", d)
			}
			b := m.take(t)
			if b.Type != "full" {
				t.Errorf("the next one is %q of %q", b.Type, b.Parent)
			}
			m.whole(t, b.Name)
		})
	}
}

// TestDeleteChain removes a whole chain by one of its names, and refuses what
// cannot be meant.
func TestDeleteChain(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	m.take(t)
	second := m.take(t)
	m.take(t)
	other, last := m.take(t, "--full"), m.take(t)
	before := objects(t, m.repo)
	for _, args := range [][]string{
		{"target", "LATEST"},
		{"target", "FIND_FULL"},
		{"retain", "0"},
		{"retain", "-1"},
		{"retain", "FULL"},
		{"before", "yesterday"},
		{"everything", "force"},
		{"garbage", "WAL"},
		{"expire"},
		{"expire", "--min-backups", "1"},
	} {
		hinted(t, m.deletes(t, args...), 2)
	}
	for _, args := range [][]string{{"target", "20200101T000000Z-aaaaaa"}, {"before", "20200101T000000Z-aaaaaa"}, {"target", second.Name, "20200101T000000Z-aaaaaa"}} {
		hinted(t, m.deletes(t, args...), 7, "20200101T000000Z-aaaaaa")
	}
	if diff := cmp.Diff(before, objects(t, m.repo)); diff != "" {
		t.Fatalf("what was refused has changed the repository:\n%.2000s", diff)
	}
	m.removes(t, "target", "FIND_FULL", second.Name)
	if got, want := m.exact(t), names(other, last); !slices.Equal(got, want) {
		t.Errorf("there are %q, not %q", got, want)
	}
	m.whole(t, other.Name)
	m.whole(t, last.Name)
}

// TestDeleteGarbage leaves what an interrupted backup has stored alone while it
// may be gone on with, and removes it later.
func TestDeleteGarbage(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{compression: "none"})
	m.take(t)
	second := m.take(t, "--full")
	m.Exec(t, "CREATE TABLE big AS SELECT md5(g::text) || md5((g + 1)::text) AS m FROM generate_series(1, 800000) g", "CHECKPOINT")
	m.switchWAL(t)
	p := harness.StartAgent(t, m.env(), "backup-push", "--full", "--read-rate", "50MB")
	awaitLine(t, p, "backup started")
	m.awaitObject(t, p, "cluster/*/backup/"+nameIn(t, p.Stderr())+"/pack/00000000")
	p.Signal(syscall.SIGKILL)
	interrupted := nameIn(t, p.Wait().Stderr)
	dir := m.backupDir(t, interrupted)

	m.removes(t, "garbage")
	m.removes(t, "retain", "1")
	if !exists(dir) {
		t.Fatal("a backup that was interrupted a moment ago is gone: nobody can go on with it")
	}
	if got := m.backups(t); !slices.Equal(got, names(second)) {
		t.Fatalf("there are %q", got)
	}
	next := m.take(t, "--full") // the next ones need nothing of it
	daysPass(t, m.repo, oneDay)
	m.switchWAL(t)
	m.removes(t, "garbage")
	if !exists(dir) {
		t.Error("it was removed after a day, to the minute: a backup that claimed it may live")
	}
	daysPass(t, m.repo, time.Hour)
	m.switchWAL(t)
	d := m.removes(t, "garbage")
	if d.Repositories[0].Garbage.Objects == 0 || d.Repositories[0].Backups.Objects != 0 {
		t.Errorf("told is %+v", d.Repositories[0])
	}
	if exists(dir) {
		t.Errorf("%s is left", dir)
	}
	if got := m.exact(t); !slices.Equal(got, names(second, next)) {
		t.Errorf("there are %q", got)
	}
	m.whole(t, next.Name)
}

// TestDeleteTakenUp has what a delete leaves that was killed in the middle: a
// backup that is not visible any more. A day later the next delete removes it, but
// for what is borrowed of it.
func TestDeleteTakenUp(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	first := m.take(t)
	second := m.take(t)
	if err := os.Remove(filepath.Join(m.backupDir(t, first.Name), "backup.json")); err != nil {
		t.Fatal(err)
	}
	m.removes(t, "retain", "5")
	if !exists(filepath.Join(m.backupDir(t, first.Name), "manifest")) {
		t.Error("what was stored today is removed: it may be a backup of another host that is about to be visible")
	}
	daysPass(t, m.repo, oneDay+time.Hour)
	m.switchWAL(t)
	if d := m.removes(t, "retain", "5"); d.Repositories[0].Garbage.Objects == 0 {
		t.Errorf("told is %+v", d.Repositories[0])
	}
	if got := m.exact(t); !slices.Equal(got, names(second)) {
		t.Errorf("there are %q", got)
	}
	m.whole(t, second.Name)
}
