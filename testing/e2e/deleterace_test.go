package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/internal/repo"
	"agent/testing/harness"
	"agent/testing/stores"
)

// gate is a proxy in front of S3 that holds a request back.
type gate struct {
	*tap
	mu      sync.Mutex
	held    func(*http.Request) bool
	reached chan struct{}
	opened  chan struct{}
}

func newGate(t *testing.T, upstream string) *gate {
	t.Helper()
	g := &gate{}
	g.tap = newTap(t, upstream, func(_ http.ResponseWriter, r *http.Request) bool {
		// A client that dies is noticed only when its request has been read.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return true
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		g.mu.Lock()
		var opened chan struct{}
		if g.held != nil && g.held(r) {
			opened, g.held = g.opened, nil
			close(g.reached)
		}
		g.mu.Unlock()
		if opened == nil {
			return false
		}
		select {
		case <-opened:
			return false
		case <-r.Context().Done():
			return true
		}
	})
	return g
}

// hold holds the first request back that fits, until open is called or who asks
// is gone. reached is closed when it has come.
func (g *gate) hold(fits func(*http.Request) bool) (reached <-chan struct{}, open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	opened := make(chan struct{})
	g.held, g.reached, g.opened = fits, make(chan struct{}), opened
	return g.reached, func() { close(opened) }
}

// awaitHeld waits until the request has come, and fails the test if the agent
// ends before.
func awaitHeld(t *testing.T, p *harness.Process, reached <-chan struct{}) {
	t.Helper()
	select {
	case <-reached:
	case <-p.Done():
		t.Fatalf("it ended first: %s", p.Stderr())
	case <-time.After(waitLimit):
		t.Fatalf("waited %v for a request", waitLimit)
	}
}

// changes reports whether a request changes something in the bucket.
func changes(r *http.Request) bool {
	return r.Method == http.MethodPut || r.Method == http.MethodDelete || r.Method == http.MethodPost && r.URL.Query().Has("delete")
}

// removal reports whether a request removes several objects.
func removal(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("delete") }

// cloudy is a site whose repository is a bucket behind a gate.
type cloudy struct {
	*mementos
	gate   *gate
	server *stores.S3
	client *s3.Client
	bucket string
}

func newCloudy(t *testing.T, b stores.S3Bucket) *cloudy {
	t.Helper()
	server := stores.StartVersityGW(t, stores.S3Options{})
	c := &cloudy{gate: newGate(t, server.URL), server: server, bucket: server.NewBucket(t, b)}
	c.client = server.Client(t, server.Key, server.Secret)
	c.mementos = newMementos(t, plan{url: server.RepositoryURL(c.bucket, "repo"), reach: append(server.Env(), "AWS_ENDPOINT_URL="+c.gate.URL)})
	return c
}

// all reads all objects of a repository in the bucket, by their keys there.
func (c *cloudy) all(t testing.TB, prefix string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	pages := s3.NewListObjectsV2Paginator(c.client, &s3.ListObjectsV2Input{Bucket: &c.bucket, Prefix: aws.String(prefix + "/")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			got, err := c.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &c.bucket, Key: o.Key})
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(got.Body)
			if err != nil || got.Body.Close() != nil {
				t.Fatalf("read %s: %v", *o.Key, err)
			}
			all[strings.TrimPrefix(*o.Key, prefix+"/")] = string(body)
		}
	}
	return all
}

// beside is the environment of another host with the same repository.
func (s *site) beside(name string) []string {
	return append(s.env(), "AGENT_STATE_DIR="+filepath.Join(s.base, name))
}

// TestDeleteBesideBackup holds an incremental backup up: its parent stays, whoever
// deletes, and with it what the parent has borrowed of a backup that may go. When it
// is done it is whole, and its parent can go, too.
func TestDeleteBesideBackup(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	full, second := m.take(t), m.take(t)
	held := read(t, m.Server)
	p := m.pushStopped(t)
	other := m.beside("other")
	for _, args := range [][]string{{"target", second.Name}, {"target", full.Name, second.Name}, {"everything"}, {"everything", "FORCE"}} {
		r := harness.Agent(t, other, slices.Concat([]string{"delete"}, args, []string{"--confirm"})...)
		hinted(t, r, 8, nameIn(t, p.Stderr()))
	}
	d := m.removes(t, "before", "2100-01-01 00:00:00+00")
	if got := d.kept(); !slices.Equal(got, names(second)) {
		t.Errorf("kept are %q", got)
	}
	if why := d.why(second.Name); !strings.Contains(why, "which is being made, needs it") {
		t.Errorf("the parent stays for %q", why)
	}
	p.Signal(syscall.SIGCONT)
	b := parse[incremental](t, must(t, p.Wait()).Stdout)
	if b.Parent != second.Name {
		t.Fatalf("it is %q of %q: %q", b.Type, b.Parent, b.Reasons)
	}
	m.made, m.held[b.Name] = append(m.made, b), held
	m.switchWAL(t)
	m.removes(t, "target", second.Name)
	if got := m.exact(t); !slices.Equal(got, names(b)) {
		t.Errorf("there are %q", got)
	}
	m.whole(t, b.Name)
}

// TestDeleteBesideSlowBackup lets others be made and deleted while a full backup
// runs: the WAL since its start stays for it.
func TestDeleteBesideSlowBackup(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	m.take(t)
	m.switchWAL(t)
	p := harness.StartAgent(t, m.env(), "backup-push", "--json", "--full", "--read-rate", "12MB")
	awaitLine(t, p, "backup started")
	p.Signal(syscall.SIGSTOP)
	m.Exec(t, "INSERT INTO a VALUES (77)")
	m.switchWAL(t)
	m.settings = append(m.settings, "AGENT_STATE_DIR="+filepath.Join(m.base, "other"))
	m.take(t, "--full", "--allow-concurrent")
	quick := m.take(t, "--full", "--allow-concurrent")
	for range 3 {
		m.switchWAL(t)
	}
	d := m.removes(t, "retain", "1")
	if got := m.backups(t); !slices.Equal(got, names(quick)) {
		t.Fatalf("there are %q", got)
	}
	if d.Repositories[0].WAL.Objects == 0 {
		t.Error("no WAL was deleted at all")
	}
	p.Signal(syscall.SIGCONT)
	slow := parse[backup](t, must(t, p.Wait()).Stdout)
	m.switchWAL(t)
	m.walVerify(t, 0)
	want := read(t, m.Server)
	for _, name := range []string{slow.Name, quick.Name} {
		c := m.recoverIt(t, name, nil)
		want.check(t, c)
		c.Stop(t)
	}
	m.removes(t, "expire", "--keep-full", "5")
	m.walVerify(t, 0)
	if got := m.exact(t); len(got) != 2 {
		t.Errorf("there are %q", got)
	}
}

// TestBackupBesideDelete stops a delete when it is about to remove the first
// object. A backup that begins takes no parent from it; two deletes at once there
// are not; and one that is killed is taken up by the next one of the same host.
func TestBackupBesideDelete(t *testing.T) {
	t.Parallel()
	c := newCloudy(t, stores.S3Bucket{})
	c.take(t)
	second := c.take(t)
	for _, killed := range []bool{false, true} {
		reached, open := c.gate.hold(func(r *http.Request) bool {
			return (r.Method == http.MethodDelete || removal(r)) && !strings.Contains(r.URL.Path, "/tomb/")
		})
		p := harness.StartAgent(t, c.env(), "delete", "target", second.Name, "--confirm")
		awaitHeld(t, p, reached)
		hinted(t, c.deletes(t, "garbage"), 8, "another delete of cluster")
		hinted(t, harness.Agent(t, c.beside("other"), "delete", "garbage", "--confirm"), 8, "delete target")
		hinted(t, c.agent(t, "backup-push", "--parent", second.Name), 8, second.Name)
		b := c.take(t)
		if said := strings.Join(b.Reasons, "\n"); b.Type != "full" || !strings.Contains(said, "is being deleted") {
			t.Errorf("beside the delete: %q of %q: %s", b.Type, b.Parent, said)
		}
		if killed {
			p.Signal(syscall.SIGKILL)
			p.Wait()
			open()
			// Its tomb is there, and tells other hosts so.
			hinted(t, harness.Agent(t, c.beside("other"), "delete", "garbage", "--confirm"), 8, "delete target")
			c.removes(t, "target", second.Name)
		} else {
			open()
			must(t, p.Wait())
		}
		names := c.backups(t)
		if slices.Contains(names, second.Name) || !slices.Contains(names, b.Name) {
			t.Errorf("there are %q", names)
		}
		got := c.all(t, "repo")
		for _, key := range remains(got) {
			if !strings.Contains(key, "/backup/") {
				t.Errorf("%s is left", key)
			}
		}
		needed(t, got, names)
		c.whole(t, b.Name)
		second = c.take(t)
	}
}

// TestBackupMissesDelete lets a whole delete happen after a backup has chosen its
// parent, and before it says so.
func TestBackupMissesDelete(t *testing.T) {
	t.Parallel()
	c := newCloudy(t, stores.S3Bucket{})
	first := c.take(t)
	held := read(t, c.Server)
	for _, named := range []bool{false, true} {
		var args []string
		if named {
			args = []string{"--parent", first.Name}
		}
		reached, open := c.gate.hold(func(r *http.Request) bool {
			return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/claim/")
		})
		p := harness.StartAgent(t, c.env(), append([]string{"backup-push", "--json"}, args...)...)
		awaitHeld(t, p, reached)
		must(t, harness.Agent(t, c.beside("other"), "delete", "target", first.Name, "--confirm"))
		open()
		if named {
			hinted(t, p.Wait(), 8, first.Name)
			continue
		}
		b := parse[incremental](t, must(t, p.Wait()).Stdout)
		if b.Type != "full" {
			t.Errorf("it is %q of %q, which is gone", b.Type, b.Parent)
		}
		needed(t, c.all(t, "repo"), c.backups(t))
		c.held[b.Name] = held
		c.switchWAL(t)
		c.whole(t, b.Name)
		first = c.take(t, "--full")
	}
}

// TestDeleteInterrupted ends a delete by the signals of a terminal and of a service
// manager: others need not wait for it.
func TestDeleteInterrupted(t *testing.T) {
	t.Parallel()
	c := newCloudy(t, stores.S3Bucket{})
	first, second, last := c.take(t, "--full"), c.take(t), c.take(t, "--full")
	for n, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		reached, open := c.gate.hold(func(r *http.Request) bool {
			return (r.Method == http.MethodDelete || removal(r)) && !strings.Contains(r.URL.Path, "/tomb/")
		})
		gone := []incremental{first, second}[n]
		p := harness.StartAgent(t, c.env(), "delete", "target", gone.Name, "--confirm")
		awaitHeld(t, p, reached)
		p.Signal(signal)
		refused(t, p.Wait(), 15, "interrupted")
		open()
		if got := c.backups(t); !slices.Contains(got, gone.Name) {
			t.Errorf("there are %q", got)
		}
		must(t, harness.Agent(t, c.beside("other"), "delete", "target", gone.Name, "--confirm"))
	}
	all := c.all(t, "repo")
	if got := c.backups(t); !slices.Equal(got, names(last)) || !slices.Equal(remains(all), needed(t, all, got)) {
		t.Errorf("there are %q: %q", got, remains(all))
	}
	c.whole(t, last.Name)
}

// bury writes a tomb by hand, as that of another host.
func (s *site) bury(t *testing.T, key string, stored time.Time, backups ...string) {
	t.Helper()
	tomb := repo.Tomb{ID: "0123456789abcdef", Command: "delete expire", Host: "elsewhere", StateID: "another", PID: 1, Started: stored, TTL: 900}
	for _, name := range backups {
		tomb.Backups = append(tomb.Backups, repo.BackupName(name))
	}
	body, err := json.Marshal(tomb)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.clusters(t)[0], "tomb", tomb.ID, key)
	makeDir(t, filepath.Dir(path))
	harness.Own(t, filepath.Dir(filepath.Dir(path)))
	writeFile(t, path, body)
	if err := os.Chtimes(path, stored, stored); err != nil {
		t.Fatal(err)
	}
}

// TestTombOfAnotherHost has a delete of a host that is gone: it keeps others
// from deleting until it expires, by the store's clock.
func TestTombOfAnotherHost(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	full, second := m.take(t), m.take(t)
	m.bury(t, "0", time.Now(), full.Name)
	m.bury(t, "1", time.Now().Add(-time.Hour), full.Name) // a clock that was set back
	hinted(t, m.deletes(t, "target", second.Name), 8, "host elsewhere deletes", "delete expire")
	if got := m.backups(t); len(got) != 2 {
		t.Fatalf("there are %q", got)
	}
	for _, n := range []string{"0", "1"} {
		m.bury(t, n, time.Now().Add(-16*time.Minute), full.Name)
	}
	m.removes(t, "target", second.Name)
	if got := m.exact(t); !slices.Equal(got, names(full)) {
		t.Errorf("there are %q", got)
	}
	m.whole(t, full.Name)
}

// TestBackupAwaitsTomb lets a delete of another host be announced while a backup
// runs. The backup fails if its parent is one of those that go, and does not if
// the delete has spared it.
func TestBackupAwaitsTomb(t *testing.T) {
	t.Parallel()
	m := newMementos(t, plan{})
	full := m.take(t)
	m.Exec(t, "INSERT INTO a VALUES (77)")
	p := m.pushStopped(t)
	m.bury(t, "0", time.Now(), full.Name)
	m.bury(t, "decided", time.Now(), full.Name)
	p.Signal(syscall.SIGCONT)
	hinted(t, p.Wait(), 8, full.Name)
	if got := m.backups(t); !slices.Equal(got, names(full)) {
		t.Errorf("there are %q", got)
	}
	dir := filepath.Join(m.clusters(t)[0], "tomb")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}

	held := read(t, m.Server)
	p = m.pushStopped(t)
	m.bury(t, "0", time.Now(), full.Name)
	p.Signal(syscall.SIGCONT)
	m.awaitObject(t, p, "cluster/*/backup/"+nameIn(t, p.Stderr())+"/packs")
	m.bury(t, "decided", time.Now()) // it saw the claim
	b := parse[incremental](t, must(t, p.Wait()).Stdout)
	if b.Parent != full.Name {
		t.Errorf("it is %q of %q: %q", b.Type, b.Parent, b.Reasons)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	m.held[b.Name] = held
	m.switchWAL(t)
	m.whole(t, b.Name)
}

// TestDeleteKilled kills a delete before each request by which it changes
// anything. What is listed then is whole, and the next run of it leaves what one
// that was not killed leaves.
func TestDeleteKilled(t *testing.T) {
	t.Parallel()
	c := newCloudy(t, stores.S3Bucket{})
	c.take(t)
	c.take(t)
	full, last := c.take(t, "--full"), c.take(t)
	original := c.all(t, "repo")
	try := func(n int) *site {
		s := *c.site
		prefix := fmt.Sprintf("try%d", n)
		for key := range original {
			_, err := c.client.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &c.bucket, Key: aws.String(prefix + "/" + key), CopySource: aws.String(c.bucket + "/repo/" + key)})
			if err != nil {
				t.Fatal(err)
			}
		}
		s.repo, s.state = c.server.RepositoryURL(c.bucket, prefix), filepath.Join(s.base, prefix)
		s.settings = append([]string{s.where(), "AGENT_STATE_DIR=" + s.state}, s.reach...)
		return &s
	}
	args := []string{"delete", "expire", "--keep-full", "1", "--confirm"}
	must(t, try(0).agent(t, args...))
	want := c.all(t, "try0")
	if diff := slices.Compare(remains(want), needed(t, want, names(full, last))); diff != 0 {
		t.Fatalf("without a kill there are %q", remains(want))
	}
	kills := 0
	for n := 1; ; n++ {
		s, seen := try(n), 0
		reached, open := c.gate.hold(func(r *http.Request) bool {
			if changes(r) && strings.Contains(r.URL.Path, fmt.Sprintf("/try%d/", n)) || removal(r) {
				seen++
			}
			return seen == n
		})
		p := harness.StartAgent(t, s.env(), args...)
		select {
		case <-reached:
		case <-p.Done():
		}
		if ended(p) {
			must(t, p.Wait())
			open()
			break
		}
		p.Signal(syscall.SIGKILL)
		p.Wait()
		open()
		kills++
		there := s.backups(t)
		if len(there) < 2 {
			t.Fatalf("after %d changes there are %q", n-1, there)
		}
		got := c.all(t, fmt.Sprintf("try%d", n))
		needed(t, got, there)
		for _, name := range there {
			must(t, s.agent(t, "backup-show", name))
		}
		for key := range want {
			if got[key] != want[key] {
				t.Errorf("after %d changes %s is missing", n-1, key)
			}
		}
		must(t, s.agent(t, args...))
		got = c.all(t, fmt.Sprintf("try%d", n))
		// What is left of a backup that was hidden a moment ago might be of one that
		// another host is making: it goes when it is a day old.
		for key := range got {
			parts := strings.Split(key, "/")
			hidden := len(parts) > 4 && parts[2] == "backup" && parts[4] != "backup.json" && !slices.Contains(there, parts[3])
			if got[key] != want[key] && !hidden {
				t.Errorf("killed after %d changes, %s is left", n-1, key)
			}
		}
	}
	if kills < 6 {
		t.Errorf("it was killed at %d moments only", kills)
	}
}

// TestDeleteDenied has a folder in which nothing can be removed, and credentials
// that may not delete: what stays is told, the rest goes, and the command fails.
func TestDeleteDenied(t *testing.T) {
	t.Parallel()
	t.Run("folder", func(t *testing.T) {
		t.Parallel()
		m := newMementos(t, plan{})
		first, second, third := m.take(t, "--full"), m.take(t, "--full"), m.take(t, "--full")
		dir := m.backupDir(t, second.Name)
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		r := m.deletes(t, "retain", "1")
		hinted(t, r, 5, second.Name+"/backup.json", "1")
		if d := parse[deleted](t, r.Stdout); d.Repositories[0].Backups.Failed != 1 || d.Repositories[0].Backups.Objects == 0 || len(d.Repositories[0].Backups.Errors) != 1 {
			t.Errorf("told is %+v", d.Repositories[0])
		}
		if got := m.backups(t); !slices.Equal(got, names(second, third)) {
			t.Errorf("there are %q", got)
		}
		if exists(filepath.Join(filepath.Dir(dir), first.Name)) {
			t.Error("the other one is left")
		}
		needed(t, objects(t, m.repo), names(second, third))
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m.removes(t, "retain", "1")
		if got := m.exact(t); !slices.Equal(got, names(third)) {
			t.Errorf("there are %q", got)
		}
		m.whole(t, third.Name)
	})
	t.Run("S3", func(t *testing.T) {
		t.Parallel()
		c := newCloudy(t, stores.S3Bucket{})
		first, last := c.take(t, "--full"), c.take(t, "--full")
		before := c.all(t, "repo")
		key, secret := c.server.RestrictedUser(t, c.bucket)
		r := harness.Agent(t, append(c.beside("restricted"), c.server.EnvOf(key, secret)...), "delete", "retain", "1", "--confirm", "--json")
		hinted(t, r, 5, first.Name+"/backup.json")
		d := parse[deleted](t, r.Stdout).Repositories[0]
		if d.Backups.Objects+d.WAL.Objects != 0 || d.Backups.Failed != 1 || d.WAL.Failed == 0 {
			t.Errorf("told is %+v", d)
		}
		after := c.all(t, "repo")
		for key, body := range before {
			if after[key] != body {
				t.Errorf("%s has changed", key)
			}
		}
		needed(t, after, names(first, last))
		c.take(t) // which that delete does not hinder
	})
}

// TestDeleteOverBrokenNetwork cuts connections while it deletes.
func TestDeleteOverBrokenNetwork(t *testing.T) {
	t.Parallel()
	r := s3Remote(t)
	m := newMementos(t, plan{url: r.url, reach: r.reach})
	m.take(t)
	m.take(t)
	full, last := m.take(t, "--full"), m.take(t)
	r.fault.Reset(stores.Requests, 3_000, 5)
	res := m.deletes(t, "expire", "--keep-full", "1")
	r.fault.Heal()
	if r.fault.Struck() == 0 {
		t.Fatal("no connection was broken")
	}
	if res.Code != 0 {
		hinted(t, res, 5)
	}
	r.fault.Cut(stores.Answers, 5_000, 5)
	res = m.deletes(t, "expire", "--keep-full", "1")
	r.fault.Heal()
	if res.Code != 0 {
		hinted(t, res, 5)
	}
	d := m.removes(t, "expire", "--keep-full", "1")
	if got := d.kept(); !slices.Equal(got, names(full, last)) || len(d.Backups) != 2 {
		t.Errorf("there are %+v", d.Backups)
	}
	m.whole(t, full.Name)
	m.whole(t, last.Name)
}
