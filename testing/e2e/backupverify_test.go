package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"agent/testing/harness"
)

// backupsVerified is what the tests read of `agent backup-verify --json`.
type backupsVerified struct {
	Status  string `json:"status"`
	Backups []struct {
		Name   string `json:"name"`
		Status string `json:"status"`
		Marked bool   `json:"marked"`
	} `json:"backups"`
	Objects   int64           `json:"objects"`
	Bytes     int64           `json:"stored_bytes"`
	Skipped   int64           `json:"skipped"`
	NotOpened string          `json:"not_opened"`
	Repaired  int             `json:"repaired"`
	Findings  []verifyFinding `json:"findings"`
	Lost      []struct {
		Name    string `json:"name"`
		Instead string `json:"instead"`
	} `json:"lost"`
	Moments []struct {
		From  string `json:"from_lsn"`
		To    string `json:"to_lsn"`
		Since string `json:"since"`
		Until string `json:"until"`
	} `json:"lost_moments"`
}

type verifyFinding struct {
	Kind       string   `json:"kind"`
	Repository string   `json:"repository"`
	Key        string   `json:"key"`
	First      string   `json:"first"`
	Last       string   `json:"last"`
	Everywhere bool     `json:"everywhere"`
	Repaired   string   `json:"repaired_from"`
	Not        string   `json:"not_repaired"`
	Text       string   `json:"text"`
	Backups    []string `json:"backups"`
}

// verified runs backup-verify and fails the test unless it ends with this status.
func verified(t *testing.T, env []string, code int, args ...string) backupsVerified {
	t.Helper()
	r := harness.Agent(t, env, append([]string{"backup-verify", "--json"}, args...)...)
	if r.Code != code {
		t.Fatalf("backup-verify %q ended with status %d, expected %d:\n%s%s", args, r.Code, code, r.Stdout, r.Stderr)
	}
	return parse[backupsVerified](t, r.Stdout)
}

// found is the finding about a key; one of kind "" if there is none.
func (v backupsVerified) found(key string) verifyFinding {
	for _, f := range v.Findings {
		if f.Key == key {
			return f
		}
	}
	return verifyFinding{}
}

func (v backupsVerified) lost() []string {
	var all []string
	for _, l := range v.Lost {
		all = append(all, l.Name)
	}
	return all
}

// TestBackupVerifyEveryObject removes and alters every object of a backup in turn.
// Each time it is found, and the backup that needs it named, however deep the
// look is, and also by a host without identity.
func TestBackupVerifyEveryObject(t *testing.T) {
	for name, p := range map[string]plan{
		"plain":  {compression: "none"},
		"sealed": {compression: "zstd", sealed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keepOne(t, p)
			whole := verified(t, k.elsewhere(), 0)
			deep := verified(t, k.elsewhere(), 0, "--deep")
			if whole.Status != "ok" || len(whole.Findings) != 0 || whole.NotOpened != "" || whole.Bytes == 0 || deep.Bytes <= whole.Bytes || len(deep.Findings) != 0 {
				t.Fatalf("of a whole backup is said: %+v and %+v", whole, deep)
			}
			if n := int64(len(objects(t, k.backupDir(t, k.Name)))); whole.Objects != n-1 {
				t.Errorf("%d objects were read instead of all %d but backup.json", whole.Objects, n)
			}
			if !whole.Backups[0].Marked || len(filesBelow(t, k.repo, "cluster/*/mark/"+k.Name+"/*-verified-*.json")) != 2 {
				t.Errorf("that it was verified is not noted: %+v", whole.Backups)
			}
			host := verified(t, k.settings, 0)
			if (host.NotOpened != "") != p.sealed {
				t.Errorf("a host without identity says %q", host.NotOpened)
			}
			if p.sealed {
				hinted(t, harness.Agent(t, k.settings, "backup-verify", "--deep"), 11)
			}

			dir := k.backupDir(t, k.Name)
			for key := range objects(t, dir) {
				path := filepath.Join(dir, key)
				for _, h := range harms() {
					t.Run(key+"/"+h.name, func(t *testing.T) {
						harmed(t, path, h)
						k.verifyHarmed(t, path, h)
					})
				}
			}
			path := k.one(t, "cluster/*/cluster.json")
			for _, h := range []harm{harms()[0], harms()[3]} {
				t.Run("cluster.json/"+h.name, func(t *testing.T) {
					harmed(t, path, h)
					if f := verified(t, k.elsewhere(), 6).found(k.key(t, path)); f.Kind == "" {
						t.Error("it is not found")
					}
				})
			}
			if again := verified(t, k.elsewhere(), 0, "--deep"); len(again.Findings) != 0 {
				t.Errorf("when all is back: %+v", again.Findings)
			}
		})
	}
}

// verifyHarmed looks at a backup of which one object is damaged.
func (k *kept) verifyHarmed(t *testing.T, path string, h harm) {
	t.Helper()
	key, missing := k.key(t, path), h.do == nil
	if strings.HasSuffix(key, "/backup.json") && missing {
		v := verified(t, k.elsewhere(), 0)
		if f := v.found(key); f.Kind != "unfinished" || !slices.Equal(f.Backups, []string{k.Name}) {
			t.Errorf("a backup without backup.json is not told: %+v", v)
		}
		hinted(t, harness.Agent(t, k.elsewhere(), "backup-verify", k.Name), 7, k.Name)
		return
	}
	ways := [][]string{{}, {"--deep"}}
	if h.name != "flipped" || !strings.Contains(key, "/pack/") {
		ways = append(ways, []string{"--quick"})
	}
	envs := map[string][]string{"a host with identity": k.elsewhere()}
	if k.identity != "" {
		envs["a host without"] = k.settings
	}
	for who, env := range envs {
		for _, args := range ways {
			if who == "a host without" && slices.Contains(args, "--deep") {
				continue
			}
			v := verified(t, env, 6, args...)
			f := v.found(key)
			want := "damaged"
			if missing {
				want = "missing"
			}
			if len(v.Findings) != 1 || f.Kind != want || !f.Everywhere || !slices.Equal(f.Backups, []string{k.Name}) || !slices.Equal(v.lost(), []string{k.Name}) {
				t.Errorf("%s, %q: %+v", who, args, v)
			}
			if strings.HasSuffix(key, "/backup.json") {
				continue // nothing says which moments it was for
			}
			if len(v.Moments) != 1 || v.Moments[0].From != k.StopLSN || v.Moments[0].Since == "" || v.Moments[0].Until == "" {
				t.Errorf("%s, %q: lost are %+v and not all from %s on", who, args, v.Moments, k.StopLSN)
			}
		}
	}
}

// filesBelow lists what a pattern finds.
func filesBelow(t *testing.T, root, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestBackupVerifyChain damages a pack that several backups have borrowed. All of
// them are named, whichever was to be verified, and what that means for the
// moments that they were for.
func TestBackupVerifyChain(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{sealed: true})
	made := []incremental{l.full}
	for n := range 3 {
		l.touch(t)
		made = append(made, l.incremental(t, made[n].Name, detectors(l.Major)[0]))
	}
	last := l.pushed(t, "--full")
	l.touch(t)
	l.Stop(t)

	whole := verified(t, l.elsewhere(), 0, "--deep", "--to-latest")
	if len(whole.Findings) != 0 || len(whole.Backups) != 5 || len(whole.Moments) != 0 {
		t.Fatalf("of a whole chain is said: %+v", whole)
	}
	n := 0
	for key := range objects(t, l.one(t, "cluster/*/backup")) {
		if !strings.HasSuffix(key, "/backup.json") {
			n++
		}
	}
	n += len(segmentsIn(t, l.repo))
	if first := segmentsIn(t, l.repo)[0]; filepath.Base(first) < l.full.StartWAL {
		n -= slices.IndexFunc(segmentsIn(t, l.repo), func(s string) bool { return filepath.Base(s) == l.full.StartWAL })
	}
	if whole.Objects != int64(n) {
		t.Errorf("%d objects were read, and there are %d: some were read twice, or not at all", whole.Objects, n)
	}

	// The pack that all borrow.
	borrowers := make(map[uint32][]string)
	for _, b := range made[1:] {
		for _, p := range l.packs(t, b.Name) {
			if string(p.Lender) == l.full.Name {
				borrowers[p.Number] = append(borrowers[p.Number], b.Name)
			}
		}
	}
	pack, all := uint32(0), []string{l.full.Name}
	for number, by := range borrowers {
		if len(by) == 3 {
			pack, all = number, append([]string{l.full.Name}, by...)
			break
		}
	}
	slices.Sort(all)
	path := filepath.Join(l.backupDir(t, l.full.Name), fmt.Sprintf("pack/%08x", pack))
	harmed(t, path, harms()[1])
	for _, args := range [][]string{{}, {"--deep"}, {made[2].Name}, {made[2].Name, "--deep"}} {
		v := verified(t, l.elsewhere(), 6, args...)
		if f := v.found(l.key(t, path)); f.Kind != "damaged" || !slices.Equal(f.Backups, all) || !slices.Equal(v.lost(), all) {
			t.Errorf("%q: %+v", args, v)
		}
		if len(v.Moments) != 1 || v.Moments[0].From != l.full.StopLSN || v.Moments[0].To != last.StopLSN {
			t.Errorf("%q: from %s to %s should be lost, and not %+v", args, l.full.StopLSN, last.StopLSN, v.Moments)
		}
	}
	v := verified(t, l.elsewhere(), 0, last.Name)
	if len(v.Findings) != 0 {
		t.Errorf("the full backup that borrows nothing: %+v", v.Findings)
	}
	hinted(t, harness.Agent(t, l.elsewhere(), "backup-verify", "20200101T000000Z-aaaaaa"), 7)
	if v := verified(t, l.elsewhere(), 0, "LATEST"); v.Backups[0].Name != last.Name {
		t.Errorf("LATEST is %+v", v.Backups)
	}
}

// TestBackupVerifyOneLost damages what the last of two backups alone needs: what
// it was for can be recovered from the first.
func TestBackupVerifyOneLost(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{})
	l.touch(t)
	last := l.pushed(t, "--full")
	l.touch(t)
	l.Stop(t)
	harmed(t, filepath.Join(l.backupDir(t, last.Name), "manifest"), harms()[0])
	v := verified(t, l.elsewhere(), 6)
	if len(v.Lost) != 1 || v.Lost[0].Name != last.Name || v.Lost[0].Instead != l.full.Name || len(v.Moments) != 0 {
		t.Errorf("lost are %+v, and the moments %+v", v.Lost, v.Moments)
	}
}

// TestBackupVerifyWAL removes and damages WAL between a backup's start and its
// stop, and behind it.
func TestBackupVerifyWAL(t *testing.T) {
	t.Parallel()
	k := keepOne(t, plan{sealed: true})
	own := k.walObject(t, k.StartWAL)
	for _, h := range harms() {
		t.Run("own/"+h.name, func(t *testing.T) {
			harmed(t, own, h)
			if h.do == nil {
				v := verified(t, k.elsewhere(), 16)
				if len(v.Findings) != 1 || v.Findings[0].Kind != "gap" || v.Findings[0].First != k.StartWAL || !slices.Equal(v.Findings[0].Backups, []string{k.Name}) {
					t.Errorf("%+v", v)
				}
				if !slices.Equal(v.lost(), []string{k.Name}) || len(v.Moments) != 1 || v.Moments[0].From != k.StopLSN {
					t.Errorf("lost are %+v and %+v", v.Lost, v.Moments)
				}
				return
			}
			v := verified(t, k.elsewhere(), 6, "--deep")
			if f := v.found(k.key(t, own)); f.Kind != "damaged" || !slices.Equal(f.Backups, []string{k.Name}) || !slices.Equal(v.lost(), []string{k.Name}) {
				t.Errorf("%+v", v)
			}
			if verified(t, k.elsewhere(), 0).Status != "ok" {
				t.Error("without --deep no WAL is read")
			}
		})
	}
	behind := k.walObject(t, k.wal[len(k.wal)-2])
	t.Run("behind", func(t *testing.T) {
		harmed(t, behind, harms()[0])
		if v := verified(t, k.elsewhere(), 0, "--deep"); len(v.Findings) != 0 {
			t.Errorf("what is behind the backup was not asked for: %+v", v.Findings)
		}
		v := verified(t, k.elsewhere(), 16, "--to-latest")
		if len(v.Findings) != 1 || v.Findings[0].Kind != "gap" || len(v.Lost) != 0 || len(v.Moments) != 1 {
			t.Errorf("%+v", v)
		}
	})
	t.Run("behind, damaged", func(t *testing.T) {
		harmed(t, behind, harms()[1])
		v := verified(t, k.elsewhere(), 6, "--to-latest", "--deep")
		if f := v.found(k.key(t, behind)); f.Kind != "damaged" || len(v.Lost) != 0 || len(v.Moments) != 1 {
			t.Errorf("%+v", v)
		}
	})
}

// TestBackupVerifyBadPage verifies a backup of a table that was damaged on the
// database's disk: that is told, and is no failure.
func TestBackupVerifyBadPage(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{})
	s.Exec(t, "CREATE TABLE a AS SELECT g AS i, repeat('x', 100) AS m FROM generate_series(1, 5000) g", "VACUUM a", "CHECKPOINT")
	path := s.QueryString(t, "SELECT pg_relation_filepath('a')")
	s.Stop(t)
	full := filepath.Join(s.DataDir, path)
	body := readFile(t, full)
	body[7*8192+5000] ^= 0x10
	writeFile(t, full, body)
	s.Restart(t)
	r := s.agent(t, "backup-push", "--json")
	if r.Code != 13 {
		t.Fatalf("the backup ended with %d", r.Code)
	}
	s.Stop(t)
	v := verified(t, s.elsewhere(), 0, "--deep")
	if len(v.Findings) != 1 || v.Findings[0].Kind != "bad-pages" || !strings.Contains(v.Findings[0].Text, path+" block 7") {
		t.Errorf("%+v", v)
	}
	if v := verified(t, s.elsewhere(), 0); len(v.Findings) != 0 {
		t.Errorf("pages are looked at without --deep: %+v", v)
	}
}

// TestBackupVerifySinceLast reads nothing that was verified before, unless that is
// too long ago, or was not as deep, or the object is another one.
func TestBackupVerifySinceLast(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{sealed: true})
	l.touch(t)
	env := l.elsewhere()
	first := verified(t, env, 0, "--since-last", "--deep", "--to-latest")
	if first.Objects == 0 || first.Skipped != 0 {
		t.Fatalf("the first time: %+v", first)
	}
	for _, args := range [][]string{{"--deep", "--to-latest"}, {"--deep"}, {}} {
		again := verified(t, env, 0, append(args, "--since-last")...)
		if again.Objects != 0 || again.Bytes != 0 || again.Skipped == 0 || again.Status != "ok" || again.Backups[0].Status != "recent" {
			t.Errorf("the second time, %q: %+v", args, again)
		}
	}
	if v := verified(t, env, 0, "--deep", "--to-latest"); v.Objects != first.Objects {
		t.Errorf("without --since-last %d objects are read and not %d", v.Objects, first.Objects)
	}
	if v := verified(t, env, 0, "--since-last", "--max-age", "0s"); v.Skipped != 0 {
		t.Errorf("of no age at all %d are left out", v.Skipped)
	}
	// What is new is read, and what it borrows is not.
	l.touch(t)
	b := l.incremental(t, l.full.Name, detectors(l.Major)[0])
	more := verified(t, env, 0, "--since-last", "--deep")
	own := int64(len(objects(t, l.backupDir(t, b.Name)))) - 1
	if more.Objects < own || more.Objects > own+4 {
		t.Errorf("of a new backup with %d objects %d are read: %+v", own, more.Objects, more)
	}
	// A look that was not deep does not count for one that is.
	state := filepath.Join(l.base, "another")
	makeDir(t, state)
	other := append(slices.Clone(env), "AGENT_STATE_DIR="+state)
	shallow := verified(t, other, 0)
	if v := verified(t, other, 0, "--since-last", "--deep"); v.Objects < shallow.Objects || v.Skipped != 0 {
		t.Errorf("after a look that was not deep: %+v", v)
	}
	// Something that is damaged is found again and again.
	path := filepath.Join(l.backupDir(t, b.Name), "pack/00000000")
	t.Run("damaged", func(t *testing.T) {
		harmed(t, path, harms()[1])
		for _, args := range [][]string{{}, {"--since-last"}, {"--since-last"}} {
			if f := verified(t, env, 6, args...).found(l.key(t, path)); f.Kind != "damaged" {
				t.Errorf("%q: %+v", args, f)
			}
		}
	})
	if err := os.RemoveAll(filepath.Join(state, "verified")); err != nil {
		t.Fatal(err)
	}
	if v := verified(t, other, 0, "--since-last"); v.Skipped != 0 {
		t.Errorf("when what was remembered is lost: %+v", v)
	}
}
