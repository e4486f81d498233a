package e2e_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"agent/testing/harness"
	"agent/testing/stores"
)

// remote is a store on the other side of a network that can be broken.
type remote struct {
	url   string
	reach []string
	fault *stores.FaultProxy
}

// remotes are the stores that the whole job is done on.
func remotes() map[string]func(t *testing.T) remote {
	return map[string]func(t *testing.T) remote{
		"s3":    s3Remote,
		"minio": minioRemote,
		"gcs":   gcsRemote,
		"azure": azureRemote,
		"sftp":  sftpRemote,
	}
}

func s3Remote(t *testing.T) remote {
	return throughProxy(t, stores.StartVersityGW(t, stores.S3Options{TLS: true}))
}

func minioRemote(t *testing.T) remote {
	return throughProxy(t, stores.StartMinIO(t, stores.S3Options{TLS: true}))
}

func throughProxy(t *testing.T, s *stores.S3) remote {
	fault := stores.NewFaultProxy(t, s.Address)
	return remote{
		url:   s.RepositoryURL(s.NewBucket(t, stores.S3Bucket{}), "some/prefix"),
		reach: append(s.Env(), "AWS_ENDPOINT_URL=https://"+fault.Address, "AGENT_CA_FILE="+s.CAFile),
		fault: fault,
	}
}

func gcsRemote(t *testing.T) remote {
	address := stores.FreeAddress(t)
	fault := stores.NewFaultProxy(t, address)
	g := stores.StartGCS(t, stores.GCSOptions{Address: address, Behind: fault.Address})
	g.MakeBucket(t, "backups")
	return remote{url: g.RepositoryURL("backups", "some/prefix"), reach: g.Env(), fault: fault}
}

func azureRemote(t *testing.T) remote {
	a := stores.StartAzurite(t, stores.AzureOptions{TLS: true})
	a.MakeContainer(t, "backups")
	fault := stores.NewFaultProxy(t, a.Address)
	return remote{
		url: a.RepositoryURL("backups", "some/prefix"), fault: fault,
		reach: append(a.EnvAt(fault.Address), "AGENT_CA_FILE="+a.CAFile),
	}
}

func sftpRemote(t *testing.T) remote {
	s := stores.StartSFTP(t, stores.SFTPOptions{})
	fault := stores.NewFaultProxy(t, s.Address)
	s.Trust(fault.Address)
	return remote{
		url:   strings.Replace(s.RepositoryURL("backups"), s.Address, fault.Address, 1),
		reach: s.Env(), fault: fault,
	}
}

// TestStores is the main job on every kind of store, over a network that is
// slow and breaks again and again: archive, back up under load, lose a table,
// restore to the moment before.
func TestStores(t *testing.T) {
	for name, start := range remotes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			s := newSite(t, plan{
				Options:     harness.Options{WALSegSizeMB: 1},
				compression: "lz4", sealed: true, url: r.url, reach: r.reach,
			})
			s.Exec(t, loadTables("pg_default"),
				"CREATE TABLE precious AS SELECT g AS i, md5(g::text) AS m FROM generate_series(1, 100000) g")
			work := startLoad(t, s.Server)
			work.more(t, 50)

			r.fault.Latency(t, 10*time.Millisecond)
			r.fault.Reset(stores.Requests, 300_000, 3) // in the middle of what is sent
			b := s.push(t)
			r.fault.Heal()
			work.more(t, 100)
			want := work.mark(t)
			work.more(t, 50)
			s.Exec(t, "DROP TABLE precious")
			work.stop(t)
			s.switchWAL(t)
			struck := r.fault.Struck()
			if struck == 0 {
				t.Fatal("no connection was broken during the backup")
			}
			// An outage of the store loses no WAL.
			r.fault.Down()
			s.Exec(t, "CREATE TABLE later (i int)")
			last := s.QueryString(t, "SELECT pg_walfile_name(pg_switch_wal())")
			accepted := r.fault.Accepted()
			r.fault.Up(t)
			await(t, "the last segment in the archive", func() bool {
				return s.QueryString(t, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= last
			})
			if r.fault.Accepted() == accepted {
				t.Error("nothing went through the proxy")
			}
			s.Stop(t)

			r.fault.Latency(t, 10*time.Millisecond)
			r.fault.Cut(stores.Answers, 400_000, 3) // in the middle of what is read
			dir := fresh(t)
			res := must(t, s.restore(t, dir, "--target-time", target(want.at), "--target-action", "promote"))
			if !strings.Contains(res.Stdout, b.Name) {
				t.Errorf("the backup %s is not named:\n%s", b.Name, res.Stdout)
			}
			if r.fault.Struck() == struck {
				t.Error("no connection was broken during the restore")
			}
			verifyBackup(t, s.Server, dir)
			c := harness.StartExisting(t, dir, 0, nil, s.reach...)
			if c.WaitRecovered(t) {
				t.Fatal("recovery is paused")
			}
			want.check(t, c)
			if n := c.QueryInt(t, "SELECT count(*) FROM precious WHERE m = md5(i::text)"); n != 100000 {
				t.Errorf("precious has %d rows", n)
			}
			healthy(t, c)
			c.Stop(t)
			requests := regexp.MustCompile(`requests: (.*)`).FindString(res.Stdout)
			t.Logf("%s, restore: %s", name, requests)
		})
	}
}

// TestStoresTogether keeps two repositories in two clouds: the far one is away
// for a while and catches up, the near one is lost, and everything is restored
// from the far one; then a third one is made from it.
func TestStoresTogether(t *testing.T) {
	t.Parallel()
	near, far := s3Remote(t), azureRemote(t)
	var env []string
	for _, v := range append(near.reach, far.reach...) {
		if !strings.HasPrefix(v, "AGENT_") { // each has its own settings below
			env = append(env, v)
		}
	}
	setting := func(r remote, name string) string {
		for _, v := range r.reach {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		t.Fatalf("%s is not set", name)
		return ""
	}
	list := fmt.Sprintf(`AGENT_REPOSITORIES=[{name: near, url: %q, s3_path_style: true, ca_file: %q}, {name: far, url: %q, required: false, ca_file: %q}]`,
		near.url, setting(near, "AGENT_CA_FILE"), far.url, setting(far, "AGENT_CA_FILE"))
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1}, sealed: true, list: list, reach: env})
	s.Exec(t, loadTables("pg_default"))
	work := startLoad(t, s.Server)
	work.more(t, 50)
	must(t, s.agent(t, "backup-push"))

	far.fault.Down()
	s.switchWAL(t)
	b := parse[backup](t, must(t, s.agent(t, "backup-push", "--json")).Stdout)
	work.more(t, 50)
	want := work.mark(t)
	work.more(t, 20)
	work.stop(t)
	s.switchWAL(t)
	far.fault.Up(t)
	must(t, s.agent(t, "repo", "sync"))
	s.Stop(t)
	near.fault.Down()

	dir := fresh(t)
	r := must(t, s.restore(t, dir, b.Name, "--repository", "far", "--target-time", target(want.at), "--target-action", "promote"))
	if !strings.Contains(r.Stderr, "AGENT_REPOSITORIES") {
		t.Errorf("it is not said what the restored server needs: %s", r.Stderr)
	}
	c := harness.StartExisting(t, dir, 0, nil, append(s.reach, list, "AGENT_IDENTITY_FILE="+s.identity)...)
	if c.WaitRecovered(t) {
		t.Fatal("recovery is paused")
	}
	want.check(t, c)
	c.Stop(t)

	third := filepath.Join(harness.TempDir(t), "third")
	copied := func(args ...string) harness.Result {
		return harness.Agent(t, append(s.elsewhere(), "AGENT_CONCURRENCY=4"), append([]string{"repo", "copy", "--from", "far", "--to", third}, args...)...)
	}
	must(t, copied())
	if again := must(t, copied()); !strings.Contains(again.Stdout, "0 objects") {
		t.Errorf("a second copy does something: %s", again.Stdout)
	}
	if out := must(t, harness.Agent(t, append(s.elsewhere()[1:], "AGENT_REPOSITORY="+third), "backup-list")).Stdout; !strings.Contains(out, b.Name) {
		t.Errorf("the copy has no backup %s:\n%s", b.Name, out)
	}
}
