package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"agent/testing/harness"
	"agent/testing/stores"
)

// tally is what went to an S3 service.
type tally struct{ put, get, list, stat, delete int }

func (n tally) String() string {
	return fmt.Sprintf("%d PUT, %d GET, %d LIST, %d STAT, %d DELETE", n.put, n.get, n.list, n.stat, n.delete)
}

// count sorts requests by kind; those of the archiver beside a backup are
// counted apart.
func count(seen []*request) (n, wal tally, packs int) {
	for _, r := range seen {
		to := &n
		if strings.Contains(r.URL.Path, "/wal/") || strings.Contains(r.URL.Path, "/summary/") {
			to = &wal
		}
		switch {
		case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/pack/"):
			packs++
			to.put++
		case r.Method == http.MethodPut:
			to.put++
		case r.Method == http.MethodHead:
			to.stat++
		case r.Method == http.MethodDelete, r.Method == http.MethodPost:
			to.delete++
		case r.URL.Query().Has("list-type"), r.URL.Query().Has("versions"):
			to.list++
		default:
			to.get++
		}
	}
	return n, wal, packs
}

// printed is the line of requests in what a command has printed.
var printed = regexp.MustCompile(`requests: (.*)`)

// prints fails the test unless the command has printed the number of requests
// that has come.
func (n tally) prints(t *testing.T, r harness.Result) {
	t.Helper()
	line := printed.FindStringSubmatch(r.Stdout)
	if line == nil {
		t.Fatalf("the requests are not printed:\n%s", r.Stdout)
	}
	var want []string
	for _, k := range []struct {
		n    int
		name string
	}{{n.put, "PUT"}, {n.get, "GET"}, {n.list, "LIST"}, {n.stat, "STAT"}, {n.delete, "DELETE"}} {
		if k.n > 0 {
			want = append(want, fmt.Sprintf("%d %s", k.n, k.name))
		}
	}
	if got := strings.Join(want, ", "); line[1] != got {
		t.Errorf("printed is %q, but what came is %q", line[1], got)
	}
}

// TestBudgets counts requests where the service sees them.
func TestBudgets(t *testing.T) {
	t.Parallel()
	server := stores.StartVersityGW(t, stores.S3Options{Fast: true})
	p := newTap(t, server.URL, nil)
	s := newSite(t, plan{
		Options: harness.Options{WALSegSizeMB: 1}, compression: "lz4",
		url: server.RepositoryURL(server.NewBucket(t, stores.S3Bucket{}), "repo"), reach: append(server.Env(), "AWS_ENDPOINT_URL="+p.URL),
	})
	noise := make([]byte, 80<<20)
	rnd := rand.NewChaCha8([32]byte{})
	if _, err := rnd.Read(noise); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(s.DataDir, "noise"), noise)
	s.switchWAL(t)
	p.taken()

	t.Run("push", func(t *testing.T) {
		s.switchWAL(t)
		n, wal, _ := count(p.taken())
		t.Logf("wal-push: %s", wal)
		// The segment, and what it touches.
		if n != (tally{}) || wal != (tally{put: 2}) {
			t.Errorf("a push is %s and %s", wal, n)
		}
		// When the lease is over, one look at the repository more.
		expire(t, s.state)
		s.switchWAL(t)
		n, wal, _ = count(p.taken())
		if n != (tally{get: 1}) || wal != (tally{put: 2}) {
			t.Errorf("a push without a lease is %s and %s", wal, n)
		}
	})
	var packs int
	for i := range 3 {
		t.Run(fmt.Sprintf("full backup %d", i), func(t *testing.T) {
			if i > 0 && os.Remove(filepath.Join(s.DataDir, "noise")) == nil {
				s.Exec(t, "CHECKPOINT")
			}
			p.taken()
			r := must(t, s.agent(t, "backup-push", "--full"))
			n, wal, own := count(p.taken())
			t.Logf("backup-push of %d packs: %s; its WAL: %s", own, n, wal)
			if i == 0 {
				packs = own
			}
			if own < 2 || i == 0 && own < 4 || n.put > own+6 || n.get > 2 || n.stat > 0 || n.delete > 1 || wal.get+wal.stat+wal.delete > 0 {
				t.Errorf("a backup of %d packs is %s; its WAL: %s", own, n, wal)
			}
			n.list += wal.list // what the backup waits for; the archiver lists nothing
			n.prints(t, r)
			if i > 0 {
				return
			}
			t.Run("restore", func(t *testing.T) {
				state := "AGENT_STATE_DIR=" + fresh(t)
				for _, name := range []string{"LATEST", strings.Fields(r.Stdout)[1]} {
					dir := fresh(t)
					r := must(t, harness.Agent(t, append(s.elsewhere(), state), "backup-fetch", dir, name))
					n, wal, _ := count(p.taken())
					t.Logf("backup-fetch of %s, %d packs: %s", name, packs, n)
					if n.get > packs+6 || n.list > 5 || n.put+n.stat+n.delete > 0 || wal != (tally{}) {
						t.Errorf("a restore of %d packs is %s; WAL: %s", packs, n, wal)
					}
					n.prints(t, r)
				}
			})
		})
	}
	t.Run("incremental backup", func(t *testing.T) {
		p.taken()
		r := must(t, s.agent(t, "backup-push"))
		n, wal, own := count(p.taken())
		t.Logf("incremental backup-push of %d packs: %s; its WAL: %s", own, n, wal)
		// One object is read, the parent's, and once more it is looked for when the
		// backup has been claimed.
		if !strings.Contains(r.Stdout, "incremental") || n.put > own+6 || n.get > 1 || n.stat > 1 || wal.get+wal.stat+wal.delete > 0 {
			t.Errorf("an incremental backup of %d packs is %s; its WAL: %s\n%s", own, n, wal, r.Stdout)
		}
	})
	t.Run("fetch", func(t *testing.T) {
		b := s.backups(t)
		show := parse[backup](t, must(t, s.agent(t, "backup-show", b[len(b)-1], "--json")).Stdout)
		p.taken()
		// As a server in recovery calls it, from a host that has seen nothing.
		dest := filepath.Join(s.DataDir, "pg_wal", "RECOVERYXLOG")
		must(t, harness.Agent(t, append(s.elsewhere(), "AGENT_STATE_DIR="+fresh(t)), "wal-fetch", show.StartWAL, dest))
		n, wal, _ := count(p.taken())
		t.Logf("wal-fetch: %s", wal)
		if n != (tally{}) || wal != (tally{get: 1}) {
			t.Errorf("a fetch is %s and %s", wal, n)
		}
	})
	t.Run("list", func(t *testing.T) {
		b := s.backups(t)
		show := parse[map[string]any](t, must(t, s.agent(t, "backup-show", b[0], "--json")).Stdout)
		p.taken()
		must(t, s.agent(t, "backup-list", "--system-identifier", fmt.Sprint(show["system_identifier"])))
		n, wal, _ := count(p.taken())
		t.Logf("backup-list of %d backups of a cluster: %s", len(b), n)
		if n != (tally{list: 2, get: len(b)}) || wal != (tally{}) {
			t.Errorf("a list of %d backups is %s", len(b), n)
		}
		// Where the cluster is not named, one more finds those there are.
		must(t, s.agent(t, "backup-list"))
		n, _, _ = count(p.taken())
		t.Logf("backup-list of %d backups: %s", len(b), n)
		if n != (tally{list: 3, get: len(b)}) {
			t.Errorf("a list of %d backups is %s", len(b), n)
		}
	})
}
