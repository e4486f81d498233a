package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/repo"
	"agent/testing/harness"
)

// TestDeleteDamaged has a backup of which it cannot be known what it borrows:
// nothing is deleted, until it is given up by its name, and then nothing that
// another one needs.
func TestDeleteDamaged(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	m.take(t)
	second := m.take(t)
	third, last := m.take(t), m.take(t, "--full")
	for _, c := range []struct {
		file  string
		harm  harm
		stays bool // that it cannot be read keeps everything
	}{
		{"backup.json", harms()[1], true},
		{"backup.json", harms()[3], true},
		{"packs", harms()[0], true},
		{"packs", harms()[1], true},
		{"manifest", harms()[1], false},
		{"manifest", harms()[0], false},
		{"pack/00000000", harms()[0], false},
	} {
		t.Run(c.file+" "+c.harm.name, func(t *testing.T) {
			t.Parallel()
			m := m.copyOf(t)
			path := filepath.Join(m.backupDir(t, second.Name), c.file)
			body := readFile(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if c.harm.do != nil {
				writeFile(t, path, c.harm.do(body))
			}
			must(t, m.agent(t, "backup-mark", third.Name, "--keep"))
			must(t, m.agent(t, "backup-mark", last.Name, "--keep"))
			if c.stays {
				verbs := [][]string{{"retain", "1"}, {"expire", "--keep-full", "1"}, {"everything"}}
				if c.file == "packs" { // of what goes itself it need not be known
					must(t, m.agent(t, "backup-mark", second.Name, "--keep"))
				} else {
					verbs = append(verbs, []string{"everything", "FORCE"}, []string{"garbage"})
				}
				before := objects(t, m.repo)
				for _, args := range verbs {
					hinted(t, m.deletes(t, args...), 6, second.Name)
				}
				hinted(t, m.deletes(t, "target", third.Name, second.Name), 8, "marked to be kept")
				if diff := cmp.Diff(before, objects(t, m.repo)); diff != "" {
					t.Fatalf("something was deleted:\n%.2000s", diff)
				}
				if c.file == "packs" {
					must(t, m.agent(t, "backup-mark", second.Name, "--release"))
				}
				must(t, m.deletes(t, "target", second.Name))
			}
			must(t, m.deletes(t, "retain", "1"))
			must(t, m.deletes(t, "garbage"))
			all := objects(t, m.repo)
			if got := m.backups(t); !slices.Equal(got, names(third, last)) {
				t.Fatalf("there are %q", got)
			}
			if c.file == "pack/00000000" && slices.ContainsFunc(m.packs(t, third.Name), func(p repo.Pack) bool { return string(p.Lender) == second.Name && p.Number == 0 }) {
				return // what is lost is lost
			}
			needed(t, all, names(third, last))
			m.whole(t, third.Name)
		})
	}
}

// TestDeleteResumed has a backup that went on with an interrupted one: the packs
// of that, which is no backup, stay as long as they are borrowed.
func TestDeleteResumed(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{compression: "none"})
	m.Exec(t, "CREATE TABLE big AS SELECT md5(g::text) || md5((g + 1)::text) AS m FROM generate_series(1, 1200000) g", "CHECKPOINT")
	m.switchWAL(t)
	total := m.QueryInt(t, "SELECT sum(pg_database_size(oid))::bigint FROM pg_database")
	interrupted := m.interrupted(t, total*8/10, "--full")
	m.removes(t, "garbage")
	b := m.take(t, "--full")
	if b.Resumed != interrupted {
		t.Fatalf("it goes on with %q, not %s: %q", b.Resumed, interrupted, b.Reasons)
	}
	lent := slices.ContainsFunc(m.packs(t, b.Name), func(p repo.Pack) bool { return string(p.Lender) == interrupted })
	if !lent {
		t.Fatal("nothing is borrowed of the interrupted one")
	}
	daysPass(t, m.repo, 3*oneDay)
	m.switchWAL(t)
	m.removes(t, "garbage")
	m.removes(t, "retain", "1")
	if got := m.exact(t); !slices.Equal(got, names(b)) {
		t.Errorf("there are %q", got)
	}
	m.whole(t, b.Name)
	m.removes(t, "target", b.Name)
	m.exact(t)
}

// TestDeleteBesideCompaction stops a compaction: the backup that it reads stays, and
// those of which it reads packs.
func TestDeleteBesideCompaction(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	first, second := m.take(t), m.take(t)
	last := m.take(t, "--full")
	p := harness.StartAgent(t, m.env(), "backup-compact", second.Name, "--json", "--bandwidth", "1MB")
	await(t, "the claim of the compaction", func() bool {
		return len(below(t, filepath.Join(m.clusters(t)[0], "claim"))) > 0 || ended(p)
	})
	p.Signal(syscall.SIGSTOP)
	if ended(p) {
		t.Fatalf("it has ended: %s", p.Stderr())
	}
	hinted(t, harness.Agent(t, m.beside("other"), "delete", "target", second.Name, "--confirm"), 8, second.Name)
	must(t, harness.Agent(t, m.beside("other"), "delete", "retain", "1", "--confirm"))
	if got := m.backups(t); !slices.Equal(got, names(first, second, last)) {
		t.Fatalf("there are %q", got)
	}
	p.Signal(syscall.SIGCONT)
	made := parse[incremental](t, must(t, p.Wait()).Stdout)
	m.held[made.Name] = m.held[second.Name]
	m.removes(t, "target", first.Name, second.Name)
	got := m.exact(t)
	slices.Sort(got)
	want := names(made, last)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("there are %q", got)
	}
	m.whole(t, made.Name)
}

// TestSyncAfterDelete brings a repository up to date, that was away while the
// other one was deleted from. What comes back by that goes with the next delete.
func TestSyncAfterDelete(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	p.pushed(t, "--full")
	second := p.pushed(t)
	last := p.pushed(t, "--full")
	p.switchWAL(t)
	must(t, p.agent(t, "repo", "sync"))
	back := gone(t, p.far)
	hinted(t, p.deletes(t, "target", second.Name), 5, "far")
	back()
	p.later(t)
	must(t, p.agent(t, "repo", "sync"))
	p.removes(t, "retain", "1")
	if got := p.backups(t); !slices.Equal(got, names(last)) {
		t.Errorf("there are %q", got)
	}
	p.same(t)
	for _, folder := range []string{p.repo, p.far} {
		daysPass(t, folder, oneDay+time.Hour)
	}
	p.switchWAL(t)
	must(t, p.agent(t, "repo", "sync"))
	p.removes(t, "garbage")
	p.exact(t)
	p.same(t)
	p.restored(t, p.alone(p.far), 1)
}
