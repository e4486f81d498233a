package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"agent/internal/compress"
	"agent/internal/repo"
	"agent/testing/harness"
)

// TestChainBound lets a chain come to its longest length.
func TestChainBound(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{})
	var types []string
	for range 5 {
		l.touch(t)
		r := must(t, l.agent(t, "backup-push", "--json", "--max-incrementals", "2"))
		b := parse[incremental](t, r.Stdout)
		types = append(types, b.Type)
		if said := strings.Join(b.Reasons, "\n"); b.Type == "full" && !strings.Contains(said, "max_incrementals") {
			t.Errorf("it is not said why the backup is a full one: %s", said)
		}
	}
	if got := strings.Join(types, " "); got != "incremental incremental full incremental incremental" {
		t.Errorf("after a full backup came: %s", got)
	}
	if b := l.pushed(t, "--max-incrementals", "0"); b.Type != "full" {
		t.Errorf("with --max-incrementals 0: %q", b.Type)
	}
	forced := l.pushed(t, "--full")
	if forced.Type != "full" || forced.Inherited != 0 {
		t.Errorf("with --full: %q", forced.Type)
	}
	if b := l.pushed(t); b.Type != "incremental" || b.Parent != forced.Name {
		t.Errorf("after --full: %q of %q", b.Type, b.Parent)
	}
	hinted(t, l.agent(t, "backup-push", "--parent", "20200101T000000Z-aaaaaa"), 7, "20200101T000000Z-aaaaaa")
	hinted(t, l.agent(t, "backup-push", "--parent", l.full.Name, "--full"), 2, "--full", "--parent")
	hinted(t, l.agent(t, "backup-push", "--detect", "guess"), 2, "guess")
}

// TestFullEvery lets the full backup of a chain grow old, by what is recorded of it.
func TestFullEvery(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{})
	l.touch(t)
	last := l.incremental(t, l.full.Name, detectors(l.Major)[0])
	path := filepath.Join(l.backupDir(t, last.Name), "backup.json")
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	began := regexp.MustCompile(`("chain_start_time": )"[^"]*"`)
	old := began.ReplaceAll(body, []byte(`${1}"`+time.Now().Add(-8*24*time.Hour).UTC().Format(time.RFC3339)+`"`))
	// It carries its own hash, made with zeros in its place (docs/format.md).
	self := regexp.MustCompile(`"self_sha256": "([0-9a-f]{64})"`).FindSubmatchIndex(old)
	if bytes.Equal(old, body) || self == nil {
		t.Fatalf("no chain begins in %s", body)
	}
	digits := old[self[2]:self[3]]
	copy(digits, strings.Repeat("0", len(digits)))
	copy(digits, fmt.Sprintf("%x", sha256.Sum256(old)))
	if err := errors.Join(os.Remove(path), os.WriteFile(path, old, 0o644)); err != nil {
		t.Fatal(err)
	}
	l.touch(t)
	if b := l.pushed(t, "--full-every", "9d"); b.Type != "incremental" || b.Parent != last.Name {
		t.Errorf("within full_every: %q of %q, not %q: %v", b.Type, b.Parent, last.Name, b.Reasons)
	}
	l.touch(t)
	if b := l.pushed(t); b.Type != "full" || !strings.Contains(strings.Join(b.Reasons, "\n"), "full_every") {
		t.Errorf("beyond full_every: %q: %v", b.Type, b.Reasons)
	}
}

// TestChainWithoutItsMiddle deletes all of a backup that no other one needs. The
// backups after it are restored all the same, and go on.
func TestChainWithoutItsMiddle(t *testing.T) {
	t.Parallel()
	l := newLineage(t, plan{sealed: true})
	made := []incremental{l.full}
	for n := range 4 {
		l.Exec(t, fmt.Sprintf("UPDATE kept SET t = 'of %d' WHERE i %% 10 = %d", n, n), "DELETE FROM touched WHERE i % 50 = "+fmt.Sprint(n))
		l.touch(t)
		made = append(made, l.incremental(t, made[n].Name, detectors(l.Major)[n%2]))
	}
	for n, b := range made[:3] { // the full one, and two of the middle
		lent := make(map[string]bool)
		for _, later := range made[n+1:] {
			for _, p := range l.packs(t, later.Name) {
				if string(p.Lender) == b.Name {
					lent[fmt.Sprintf("pack/%08x", p.Number)] = true
				}
			}
		}
		if len(lent) == 0 {
			t.Errorf("%s lends nothing", b.Name)
		}
		dir := l.backupDir(t, b.Name)
		for rel := range objects(t, dir) {
			if !lent[rel] {
				if err := os.Remove(filepath.Join(dir, rel)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if got := l.backups(t); len(got) != 2 || got[0] != made[3].Name || got[1] != made[4].Name {
		t.Errorf("what is left: %q", got)
	}
	for _, b := range made[3:] {
		l.restores(t, b)
	}
	l.touch(t)
	next := l.pushed(t)
	if next.Type != "incremental" || next.Parent != made[4].Name {
		t.Errorf("%q of %q: %q", next.Type, next.Parent, next.Reasons)
	}
	l.restores(t, next)
}

// packs reads the list of a backup's packs.
func (s *site) packs(t testing.TB, name string) []repo.Pack {
	t.Helper()
	return packsOf(t, string(readFile(t, filepath.Join(s.backupDir(t, name), "packs"))))
}

// packsOf reads a list of packs.
func packsOf(t testing.TB, stored string) (all []repo.Pack) {
	t.Helper()
	raw := compress.NewReader(strings.NewReader(stored))
	defer raw.Close()
	for d := json.NewDecoder(raw); ; {
		var p repo.Pack
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("read a list of packs: %v", err)
		}
		all = append(all, p)
	}
}

// TestChainOfInterrupted lets the hazards happen between a full backup that is
// killed and the next one, which goes on with it.
func TestChainOfInterrupted(t *testing.T) {
	t.Parallel()
	const major = harness.DefaultMajor
	h := &wreck{site: newSite(t, plan{Options: harness.Options{Conf: incrementalConf(major)}}), paths: make(map[string]string)}
	fast := space(t, h.site, "fast")
	h.prepare(t, hazards())
	// Of its own file's path nothing is known, but that the rest lies on both sides.
	h.Exec(t, "CREATE TABLE ballast AS SELECT g AS i, md5(g::text) AS t FROM generate_series(1, 2500000) g", "CHECKPOINT")
	total := h.QueryInt(t, "SELECT sum(pg_database_size(oid))::bigint FROM pg_database")
	killed := h.interrupted(t, total*9/10, "--full")

	h.strike(t, hazards())
	want := read(t, h.Server)
	h.Exec(t, "CHECKPOINT")
	b := h.pushed(t, "--full")
	if b.Resumed != killed {
		t.Errorf("%q is resumed, not %s: %q", b.Resumed, killed, b.Reasons)
	}
	h.Exec(t, "CHECKPOINT")
	h.switchWAL(t)
	c := h.recoverIt(t, b.Name, func(dir string) {
		got := image{start: lsn(t, b.StartLSN), quiet: true}.compare(t, dir, h.DataDir)
		if got.pages < 5000 {
			t.Errorf("only %d pages were compared", got.pages)
		}
		verifyBackup(t, h.Server, dir)
	}, "--tablespace-map", fast+"="+filepath.Join(harness.TempDir(t), "fast"))
	want.check(t, c)
	healthy(t, c)
	c.Stop(t)
	checksums(t, c)
}

// TestChainOfBigRelation has a relation of more than one file, which is cut in
// the second, cut in the first, and made longer again. Its pages are empty but
// for some at both ends.
func TestChainOfBigRelation(t *testing.T) {
	t.Parallel()
	const segment = 131072 // blocks in a file
	s := newSite(t, plan{Options: harness.Options{Conf: incrementalConf(harness.DefaultMajor)}})
	h := &wreck{site: s, paths: make(map[string]string)}
	s.Exec(t, filled("big", 100), "CREATE INDEX ON big (i)")
	h.note(t, "big")
	long := func(blocks int64) { // as a crash leaves it while it is extended
		s.Stop(t)
		for n, path := range []string{h.paths["big"], h.paths["big"] + ".1"} {
			size := min(max(blocks-int64(n)*segment, 0), segment) * pageSize
			if !exists(path) {
				writeFile(t, path, nil)
			}
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
		s.Restart(t)
	}
	long(segment + 20)
	s.Exec(t, "INSERT INTO big SELECT g, repeat('second file', 30) FROM generate_series(1001, 1400) g")
	if last := s.QueryString(t, "SELECT max(ctid)::text FROM big"); !strings.HasPrefix(last, "(131") {
		t.Fatalf("the last row is at %s", last)
	}
	parent := s.pushed(t)

	check := func(d detector) {
		t.Helper()
		s.Exec(t, "CHECKPOINT")
		b := s.incremental(t, parent.Name, d)
		want := read(t, s.Server)
		s.Exec(t, "CHECKPOINT")
		s.switchWAL(t)
		c := s.recoverIt(t, b.Name, func(dir string) {
			image{start: lsn(t, b.StartLSN), since: lsn(t, parent.StartLSN), quiet: true}.compare(t, dir, s.DataDir)
		})
		want.check(t, c)
		healthy(t, c)
		c.Stop(t)
		if err := os.RemoveAll(c.DataDir); err != nil {
			t.Fatal(err)
		}
		parent = b
	}
	s.Exec(t, "UPDATE big SET t = 'changed' WHERE i IN (7, 1007, 1300)")
	check(detectors(s.Major)[0])

	s.Exec(t, "DELETE FROM big WHERE i > 1000", "VACUUM (TRUNCATE, INDEX_CLEANUP on) big")
	if n := s.QueryInt(t, "SELECT pg_relation_size('big') / 8192"); n > 100 {
		t.Fatalf("the table has still %d pages", n)
	}
	long(segment + 40)
	s.Exec(t, "INSERT INTO big SELECT g, repeat('again', 60) FROM generate_series(2001, 2100) g")
	check(detectors(s.Major)[0])

	s.Exec(t, "DELETE FROM big WHERE i = 2001", "UPDATE big SET t = 'once more' WHERE i IN (3, 2050)")
	check(detectors(s.Major)[1])
}
