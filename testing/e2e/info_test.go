package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/report"
	"agent/testing/harness"
	"agent/testing/stores"
)

// kindOf is the kind of the object of that key, for all that these tests make.
func kindOf(key string) string {
	parts := strings.Split(key, "/")
	switch {
	case key == "repository.json":
		return "repository"
	case len(parts) > 4 && parts[4] == "backup.json":
		return "backup"
	case len(parts) > 4 && parts[2] == "backup":
		return parts[4]
	case parts[2] == "cluster.json":
		return "cluster"
	default:
		return parts[2]
	}
}

// counted sums the kinds of a report, with both kinds of packs as one.
func counted(kinds []report.InfoKind) map[string]report.InfoKind {
	all := make(map[string]report.InfoKind)
	for _, k := range kinds {
		if strings.HasSuffix(k.Kind, "_pack") {
			k.Kind = "pack"
		}
		sum := all[k.Kind]
		all[k.Kind] = report.InfoKind{Kind: k.Kind, Objects: sum.Objects + k.Objects, Bytes: sum.Bytes + k.Bytes}
	}
	return all
}

// TestInfo: what is counted is what lies there, and borrowed, outlived and dead
// packs are told apart; the same in S3.
func TestInfo(t *testing.T) {
	s := newSite(t, plan{sealed: true})
	s.Exec(t, "CREATE TABLE kept AS SELECT g AS i, md5(g::text) || repeat('x', 300) AS m FROM generate_series(1, 40000) g")
	before := time.Now()
	first := s.push(t)
	stopped := time.Now()
	s.Exec(t, "UPDATE kept SET m = md5(m) WHERE i % 500 = 1")
	second := s.pushed(t)
	s.Exec(t, "UPDATE kept SET m = md5(m) WHERE i % 2 = 0")
	third := s.pushed(t)
	if second.Type != "incremental" || third.Type != "incremental" {
		t.Fatalf("the backups are %+v and %+v", second, third)
	}
	s.switchWAL(t)
	s.Stop(t)
	env := append(s.elsewhere(), "AGENT_PRICE_STORAGE_GB_MONTH=1000", "AGENT_PRICE_CURRENCY=EUR")
	info := func(args ...string) report.Info {
		return parse[report.Info](t, must(t, harness.Agent(t, env, append([]string{"repo", "info", "--json"}, args...)...)).Stdout)
	}

	d := info("--deep")
	want := make(map[string]report.InfoKind)
	var bytes, objectsThere int64
	for key, size := range keys(objects(t, s.repo)) {
		k := want[kindOf(key)]
		want[kindOf(key)] = report.InfoKind{Kind: kindOf(key), Objects: k.Objects + 1, Bytes: k.Bytes + int64(size)}
		bytes, objectsThere = bytes+int64(size), objectsThere+1
	}
	p := d.Repositories[0]
	if diff := cmp.Diff(want, counted(p.Kinds)); diff != "" {
		t.Errorf("in the folder (-) and counted (+) differ:\n%s", diff)
	}
	if p.Bytes != bytes || p.Objects != objectsThere {
		t.Errorf("%d objects of %d bytes, counted are %d of %d", objectsThere, bytes, p.Objects, p.Bytes)
	}
	if g := p.Growth[0]; g.Days != 1 || g.Bytes != bytes || g.Objects != objectsThere || g.BytesPerDay != float64(bytes) {
		t.Errorf("growth %+v", g)
	}
	if p.Cost == nil || p.Cost.Storage <= 0 || p.Cost.Total != p.Cost.Storage || p.Cost.Currency != "EUR" {
		t.Errorf("cost %+v", p.Cost)
	}
	c := d.Clusters[0]
	if len(c.Recoverable) != 1 {
		t.Fatalf("recoverable: %+v", c.Recoverable)
	}
	w := c.Recoverable[0]
	if w.Backup != first.Name || w.Oldest.Before(before.Truncate(time.Second)) || w.Oldest.After(stopped) || !w.Newest.After(w.Oldest) || w.Timeline != 1 || w.LastWAL < third.StopWAL {
		t.Errorf("recoverable: %+v", w)
	}
	if len(c.Backups) != 3 || c.Backups[0].Backup != first.Name || c.Backups[0].BorrowedBytes != 0 || c.Backups[0].LentBytes == 0 ||
		c.Backups[2].BorrowedBytes == 0 || c.Backups[2].LentBytes != 0 || c.Backups[1].OwnBytes != second.Stored {
		t.Errorf("backups: %+v", c.Backups)
	}
	// As long as the first backup is there all that it wrote is used. What its
	// packs hold besides is nothing.
	if *c.DeadBytes != 0 || *c.Backups[0].DeadBytes != 0 {
		t.Errorf("dead bytes: %d, %d of the first", *c.DeadBytes, *c.Backups[0].DeadBytes)
	}
	packs := counted(p.Clusters[0].Packs)
	var own int64
	for _, b := range c.Backups {
		own += b.OwnBytes
	}
	if packs["needed"].Bytes != own || packs["lent"].Bytes != c.Backups[0].LentBytes+c.Backups[1].LentBytes || packs["dead"].Objects+packs["outlived"].Objects+packs["unfinished"].Objects != 0 {
		t.Errorf("packs: %+v, own %d", packs, own)
	}
	// Without a key everything but --deep is told.
	hinted(t, harness.Agent(t, slices.Concat(env, []string{"AGENT_IDENTITY_FILE="}), "repo", "info", "--deep"), 11, "identity")

	inS3(t, env, p)

	// The first backup goes, as retention will delete it: its packs stay where
	// others need them. A pack that none names is dead, unless it is claimed.
	dir := s.backupDir(t, first.Name)
	stray := "20200101T000000Z-aaaaaa"
	strayDir := filepath.Join(filepath.Dir(dir), stray, "pack")
	makeDir(t, filepath.Dir(strayDir))
	makeDir(t, strayDir)
	writeFile(t, filepath.Join(strayDir, "00000000"), make([]byte, 12345))
	for _, name := range []string{"backup.json", "packs", "manifest"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	lent := packs["lent"].Bytes
	d = info("--deep")
	c, packs = d.Clusters[0], counted(d.Repositories[0].Clusters[0].Packs)
	if packs["dead"].Objects == 0 || packs["dead"].Bytes < 12345 || packs["outlived"].Bytes == 0 || packs["lent"].Bytes != lent {
		t.Errorf("packs: %+v", packs)
	}
	if c.Recoverable[0].Backup != second.Name {
		t.Errorf("recoverable: %+v", c.Recoverable)
	}
	// Rows that were changed are in pages that nothing needs any more.
	if *c.DeadBytes <= 0 || *c.DeadBytes >= packs["outlived"].Bytes {
		t.Errorf("dead bytes: %d of %+v", *c.DeadBytes, packs)
	}
	dead := packs["dead"].Bytes
	claim := filepath.Join(filepath.Dir(filepath.Dir(dir)), "claim", stray)
	makeDir(t, filepath.Dir(claim))
	makeDir(t, claim)
	writeFile(t, filepath.Join(claim, "0"), []byte("{}"))
	packs = counted(info().Repositories[0].Clusters[0].Packs)
	if packs["unfinished"] != (report.InfoKind{Kind: "unfinished", Objects: 1, Bytes: 12345}) || packs["dead"].Bytes != dead-12345 {
		t.Errorf("packs: %+v", packs)
	}
	out := must(t, harness.Agent(t, env, "repo", "info")).Stdout
	for _, text := range []string{"outlived ", "recoverable from ", "  data_pack ", "  meta_pack ", " EUR", third.Name} {
		if !strings.Contains(out, text) {
			t.Errorf("%q is not in:\n%s", text, out)
		}
	}
	// What is damaged is told, with the rest.
	list := filepath.Join(s.backupDir(t, third.Name), "packs")
	bad := readFile(t, list)
	bad[len(bad)/2] ^= 1
	writeFile(t, list, bad)
	hinted(t, harness.Agent(t, env, "repo", "info"), 6, s.key(t, list))
}

// inS3: a copy in S3 has the same objects.
func inS3(t *testing.T, env []string, want report.InfoPlace) {
	t.Helper()
	gateway := stores.StartVersityGW(t, stores.S3Options{})
	url := gateway.RepositoryURL(gateway.NewBucket(t, stores.S3Bucket{}), "some/prefix")
	from := ""
	for _, v := range env {
		if strings.HasPrefix(v, "AGENT_REPOSITORY=") {
			from = strings.TrimPrefix(v, "AGENT_REPOSITORY=")
		}
	}
	env = append(append(env, gateway.Env()...), "AGENT_REPOSITORY="+url)
	must(t, harness.Agent(t, env, "repo", "copy", "--from", from, "--to", url))
	d := parse[report.Info](t, must(t, harness.Agent(t, env, "repo", "info", "--json", "--deep")).Stdout)
	got := d.Repositories[0]
	if diff := cmp.Diff(counted(want.Clusters[0].Kinds), counted(got.Clusters[0].Kinds)); diff != "" {
		t.Errorf("in the folder (-) and in S3 (+) differ:\n%s", diff)
	}
	if got.URL != url || got.ID == want.ID || got.Objects != want.Objects || *d.Clusters[0].DeadBytes != 0 {
		t.Errorf("in S3: %+v", got)
	}
}
