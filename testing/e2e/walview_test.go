package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/testing/harness"
	"agent/testing/stores"
)

// walShown is what the tests read of `agent wal-show --json`.
type walShown struct {
	Timelines []struct {
		Timeline int        `json:"timeline"`
		Segments int        `json:"segments"`
		Ranges   []walRange `json:"ranges"`
		Gaps     []walGap   `json:"gaps"`
	} `json:"timelines"`
	Repositories []struct {
		Lacks []walGap `json:"lacks"`
	} `json:"repositories"`
	Unserved []string `json:"unserved_backups"`
	Backlog  struct {
		Status  string   `json:"status"`
		Reasons []string `json:"reasons"`
		Waiting int      `json:"waiting"`
		Bytes   int64    `json:"waiting_bytes"`
		Free    int64    `json:"free_bytes"`
		Made    float64  `json:"made_per_second"`
		Done    float64  `json:"archived_per_second"`
		FullIn  float64  `json:"full_in_seconds"`
	} `json:"backlog"`
}

type walRange struct {
	First   string   `json:"first"`
	Last    string   `json:"last"`
	Backups []string `json:"backups"`
}

type walGap struct {
	First   string `json:"first"`
	Last    string `json:"last"`
	Dropped bool   `json:"dropped"`
	Expired bool   `json:"expired"`
	Open    bool   `json:"open"`
}

// walVerified is what they read of `agent wal-verify --json`.
type walVerified struct {
	Status   string `json:"status"`
	Objects  int    `json:"objects"`
	Findings []struct {
		Kind       string   `json:"kind"`
		Repository string   `json:"repository"`
		Key        string   `json:"key"`
		First      string   `json:"first"`
		Last       string   `json:"last"`
		Backups    []string `json:"backups"`
	} `json:"findings"`
}

func (s *site) walShow(t testing.TB, code int) walShown {
	t.Helper()
	return parse[walShown](t, ends(t, code, harness.Agent(t, append(s.env(), "PGDATA="+s.DataDir), "wal-show", "--json")).Stdout)
}

func (s *site) walVerify(t testing.TB, code int, args ...string) walVerified {
	t.Helper()
	return parse[walVerified](t, ends(t, code, harness.Agent(t, s.elsewhere(), append([]string{"wal-verify", "--json"}, args...)...)).Stdout)
}

// ends fails the test unless the agent ended with this status, and with a hint
// if that is not 0.
func ends(t testing.TB, code int, r harness.Result) harness.Result {
	t.Helper()
	if r.Code != code || code != 0 && !strings.Contains(r.Stderr, "agent: hint: ") {
		t.Fatalf("status %d, expected %d:\n%s%s", r.Code, code, r.Stdout, r.Stderr)
	}
	return r
}

// ready lists what waits to be archived.
func (s *site) ready(t testing.TB) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.DataDir, "pg_wal", "archive_status", "*.ready"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

// segments lets the server finish n segments.
func (s *site) segments(t testing.TB, n int) {
	t.Helper()
	for range n {
		s.Exec(t, "SELECT pg_logical_emit_message(false, 'e2e', 'something')")
		s.Exec(t, "SELECT pg_switch_wal()")
	}
}

// archiveBy sets archive_command.
func (s *site) archiveBy(t testing.TB, command string) {
	t.Helper()
	s.Exec(t, "ALTER SYSTEM SET archive_command = '"+strings.ReplaceAll(command, "'", "''")+"'", "SELECT pg_reload_conf()")
	await(t, "the new archive_command", func() bool { return s.QueryString(t, "SHOW archive_command") == command })
}

// smallDisk is a file system of that many MiB that goes with the test.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("run it as root: it mounts a small file system")
	}
	dir := filepath.Join(harness.TempDir(t), "small")
	makeDir(t, dir)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=777", size)); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestStallAlarm lets archiving fail on a small disk: agent check, wal-show and
// wal-push's log say so, with numbers, long before the disk is full.
func TestStallAlarm(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1, DataDir: filepath.Join(smallDisk(t, 220), "data")}})
	s.push(t)
	s.switchWAL(t)
	s.check(t, 0, nil, "--no-switch").wants(t, "ok", "archiving.backlog", "nothing waits")
	if w := s.walShow(t, 0); w.Backlog.Status != "ok" || w.Backlog.Waiting != 0 || w.Backlog.Made == 0 || w.Backlog.Done == 0 || w.Backlog.Free == 0 {
		t.Errorf("nothing waits, but: %+v", w.Backlog)
	}

	// The repository is gone: PostgreSQL keeps what it cannot archive.
	good := s.QueryString(t, "SHOW archive_command")
	s.archiveBy(t, good+" --timeout 1s")
	back := gone(t, s.repo)
	s.segments(t, 3)
	await(t, "the archiver to fail", func() bool { return s.QueryInt(t, "SELECT failed_count FROM pg_stat_archiver") > 0 })
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(s.ready(t)[0], old, old); err != nil {
		t.Fatal(err)
	}
	// The server's log has what wal-push says, once a minute: it is due now.
	if err := os.RemoveAll(filepath.Join(s.state, "backlog")); err != nil {
		t.Fatal(err)
	}
	s.Exec(t, "SELECT pg_reload_conf()") // wakes the archiver, which has given up for a minute
	await(t, "the alarm in wal-push's log", func() bool {
		return strings.Contains(s.Log(), `level=ERROR msg="archiving falls behind" reason="the oldest file waits for 2h`) &&
			strings.Contains(s.Log(), " waiting=3 waiting_bytes=3145728 oldest_seconds=7")
	})
	back()
	s.archiveBy(t, "false")
	c := s.check(t, 9, nil, "--no-switch")
	c.wants(t, "failed", "archiving.backlog", "waits for 2h", "3 files wait, 3.0 MiB", "Never delete files in pg_wal by hand")
	if w := s.walShow(t, 9); w.Backlog.Status != "critical" || w.Backlog.Waiting != 3 {
		t.Errorf("what waits is old, but: %+v", w.Backlog)
	}

	// More and more of the room is taken.
	for s.walShowsRoom(t) {
		s.segments(t, 5)
	}
	w := s.walShow(t, 9)
	if b := w.Backlog; b.Status != "critical" || b.Bytes < b.Free || b.Made == 0 || b.Made <= b.Done || b.FullIn <= 0 || b.Waiting < 50 {
		t.Errorf("half of the room is taken, but: %+v", b)
	}
	s.check(t, 9, nil, "--no-switch").wants(t, "failed", "archiving.backlog", "of the room", "free, full in ")
	line := s.nagios(t, 2, "AGENT CRITICAL - ")
	for _, want := range []string{"'waiting_bytes'=", "'waiting_oldest'=", "'pg_wal_free'=", "'full_in'="} {
		if !strings.Contains(line, want) {
			t.Errorf("there is no %s in %s", want, line)
		}
	}

	// And all is well again when the repository is back.
	s.archiveBy(t, good)
	await(t, "the backlog to be archived", func() bool { return len(s.ready(t)) == 0 })
	s.check(t, 0, nil, "--no-switch").wants(t, "ok", "archiving.backlog", "nothing waits")
	if w := s.walShow(t, 0); len(w.Timelines) != 1 || len(w.Timelines[0].Gaps) != 0 || len(w.Timelines[0].Ranges) != 1 {
		t.Errorf("after the stall: %+v", w)
	}
	s.walVerify(t, 0, "--deep")
}

// walShowsRoom tells whether the backlog has taken less than half of the room.
func (s *site) walShowsRoom(t testing.TB) bool {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.DataDir, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(len(s.ready(t)))<<20 <= int64(fs.Bavail)*fs.Bsize
}

// TestWALVerifyFolder gives each thing that can be wrong its own exit status.
func TestWALVerifyFolder(t *testing.T) {
	t.Parallel()
	for name, sealed := range map[string]bool{"plain": false, "sealed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keepOne(t, plan{sealed: sealed})
			if v := k.walVerify(t, 0); v.Status != "ok" || len(v.Findings) != 0 {
				t.Errorf("%+v", v)
			}
			if v := k.walVerify(t, 0, "--deep"); v.Status != "ok" || v.Objects < len(k.wal) {
				t.Errorf("%+v", v)
			}
			if v := k.walVerify(t, 0, "--deep", "--backup", k.Name); v.Objects != len(k.wal) {
				t.Errorf("the backup needs %d segments: %+v", len(k.wal), v)
			}
			w := k.walShow(t, 0)
			if len(w.Timelines) != 1 || len(w.Timelines[0].Ranges) != 1 || len(w.Timelines[0].Gaps) != 0 || !slices.Equal(w.Timelines[0].Ranges[0].Backups, []string{k.Name}) {
				t.Errorf("%+v", w)
			}
			last := len(k.wal) - 1
			for i, segment := range k.wal {
				path := k.walObject(t, segment)
				for _, h := range harms() {
					t.Run(segment+"/"+h.name, func(t *testing.T) {
						harmed(t, path, h)
						stop := segment <= k.StopWAL
						switch {
						case h.do != nil:
							k.walVerify(t, 0)
							if v := k.walVerify(t, 6, "--deep"); v.Status != "damaged" || len(v.Findings) != 1 || v.Findings[0].Key != k.key(t, path) || !slices.Equal(v.Findings[0].Backups, []string{k.Name}) {
								t.Errorf("%+v", v)
							}
						case i == last && !stop:
							// Then the WAL ends before it.
							k.walVerify(t, 0, "--deep")
						default:
							for _, args := range [][]string{nil, {"--deep"}} {
								if v := k.walVerify(t, 16, args...); v.Status != "gap" || len(v.Findings) != 1 || v.Findings[0].First != segment || v.Findings[0].Last != segment || v.Findings[0].Repository != "main" {
									t.Errorf("%+v", v)
								}
							}
							w := k.walShow(t, 0)
							if stop != slices.Contains(w.Unserved, k.Name) {
								t.Errorf("unserved are %v", w.Unserved)
							}
						}
					})
				}
			}
			t.Run("all at once", func(t *testing.T) {
				harmed(t, k.walObject(t, k.wal[1]), harms()[0])
				harmed(t, k.walObject(t, k.wal[0]), harms()[1])
				v := k.walVerify(t, 6, "--deep")
				if len(v.Findings) != 2 || v.Findings[0].Kind != "damaged" || v.Findings[1].Kind != "gap" {
					t.Errorf("%+v", v)
				}
			})
			t.Run("unreachable", func(t *testing.T) {
				away(t, k.repo)
				for _, args := range [][]string{{"wal-verify"}, {"wal-verify", "--deep"}, {"wal-show"}} {
					ends(t, 5, harness.Agent(t, k.elsewhere(), args...))
				}
			})
			if sealed {
				t.Run("no identity", func(t *testing.T) {
					must(t, k.agent(t, "wal-verify"))
					hinted(t, k.agent(t, "wal-verify", "--deep"), 11)
				})
			}
		})
	}
}

// TestWALVerifyS3 is the same on a service, and with two repositories, of which
// each is told for itself.
func TestWALVerifyS3(t *testing.T) {
	t.Parallel()
	server := stores.StartVersityGW(t, stores.S3Options{})
	bucket := server.NewBucket(t, stores.S3Bucket{})
	fault := stores.NewFaultProxy(t, server.Address)
	reach := append(server.Env(), "AWS_ENDPOINT_URL=http://"+fault.Address)
	folder := filepath.Join(harness.TempDir(t), "second")
	s := newSite(t, plan{
		Options: harness.Options{WALSegSizeMB: 1}, reach: reach,
		list: fmt.Sprintf(`AGENT_REPOSITORIES=[{name: cloud, url: %q}, {name: second, url: %q}]`, server.RepositoryURL(bucket, "repo"), folder),
	})
	b := s.push(t)
	s.switchWAL(t)
	last := s.switchWAL(t)
	s.walVerify(t, 0, "--deep")
	middle := s.switchWAL(t)
	end := s.switchWAL(t)

	client := server.Client(t, server.Key, server.Secret)
	id := filepath.Base(must1(t, filepath.Join(folder, "cluster", "*")))
	key := func(segment string) string { return "repo/cluster/" + id + "/wal/" + segment[:16] + "/" + segment }
	get := func(k string) []byte {
		out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &k})
		if err != nil {
			t.Fatal(err)
		}
		defer out.Body.Close()
		body, err := io.ReadAll(out.Body)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	put := func(k string, body []byte) {
		if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &k, Body: bytes.NewReader(body)}); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(k string) {
		if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &k}); err != nil {
			t.Fatal(err)
		}
	}
	// A gap in one required repository is one, whatever the other has.
	kept := get(key(middle))
	remove(key(middle))
	if v := s.walVerify(t, 16); len(v.Findings) != 1 || v.Findings[0].Repository != "cloud" || v.Findings[0].First != middle || !slices.Equal(v.Findings[0].Backups, []string{b.Name}) {
		t.Errorf("%+v", v)
	}
	if w := s.walShow(t, 0); len(w.Timelines[0].Gaps) != 0 || len(w.Repositories[0].Lacks) != 1 || w.Repositories[0].Lacks[0].First != middle || len(w.Repositories[1].Lacks) != 0 {
		t.Errorf("%+v", w)
	}
	put(key(middle), kept)
	// Damage to one copy is one, whatever the other has.
	body := get(key(last))
	body[len(body)-1] ^= 1
	remove(key(last))
	put(key(last), body)
	s.walVerify(t, 0)
	if v := s.walVerify(t, 6, "--deep"); len(v.Findings) != 1 || v.Findings[0].Repository != "cloud" || "repo/"+v.Findings[0].Key != key(last) {
		t.Errorf("%+v", v)
	}
	body[len(body)-1] ^= 1
	remove(key(last))
	put(key(last), body)
	s.walVerify(t, 0, "--deep")
	// One that is away is told, and so is all that can be said of the other.
	path := must1(t, filepath.Join(folder, "cluster", id, "wal", "*", end))
	next := s.switchWAL(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	fault.Down()
	v := parse[walVerified](t, ends(t, 5, harness.Agent(t, append(s.elsewhere(), "AWS_MAX_ATTEMPTS=1"), "wal-verify", "--json")).Stdout)
	if v.Status != "unreachable" || len(v.Findings) != 2 || v.Findings[0].Repository != "cloud" || v.Findings[1].Kind != "gap" || v.Findings[1].First != end {
		t.Errorf("behind %s: %+v", next, v)
	}
}

// must1 is the only path that fits.
func must1(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v (%v)", pattern, found, err)
	}
	return found[0]
}

// TestMaxBacklog is a service that takes small objects and no WAL, and a server
// that is to live on: what waits is dropped and recorded, recovery stops there,
// and a new backup makes all well again.
func TestMaxBacklog(t *testing.T) {
	t.Parallel()
	server := stores.StartVersityGW(t, stores.S3Options{Fast: true})
	var slow atomic.Bool
	p := newTap(t, server.URL, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/wal/") || !slow.Load() {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	s := newSite(t, plan{
		Options: harness.Options{WALSegSizeMB: 1}, url: server.RepositoryURL(server.NewBucket(t, stores.S3Bucket{}), "repo"),
		reach: append(server.Env(), "AWS_ENDPOINT_URL="+p.URL),
	})
	command := s.QueryString(t, "SHOW archive_command") + " --timeout 1s"
	s.archiveBy(t, command+" --max-backlog 64MiB")
	s.Exec(t, "CREATE TABLE a (i int)", "INSERT INTO a VALUES (1)")
	old := s.push(t)
	s.Exec(t, "INSERT INTO a VALUES (2)")
	before := s.switchWAL(t)

	slow.Store(true)
	s.Exec(t, "INSERT INTO a VALUES (3)")
	s.segments(t, 70)
	await(t, "the server to be relieved", func() bool { return len(s.ready(t)) < 10 })
	w := s.walShow(t, 0)
	var gaps []walGap
	for _, l := range w.Timelines {
		gaps = append(gaps, l.Gaps...)
	}
	if len(gaps) != 1 || !gaps[0].Dropped || !gaps[0].Open || gaps[0].First <= before {
		t.Fatalf("%+v", w)
	}
	for _, want := range []string{"WAL is dropped to save the server", "run agent backup-push", "first=" + gaps[0].First, "dropped, not archived (max_backlog): take a new backup"} {
		if !strings.Contains(s.Log(), want) {
			t.Errorf("the server's log does not say %q", want)
		}
	}
	if v := s.walVerify(t, 16); v.Status != "gap" || v.Findings[0].First != gaps[0].First || v.Findings[0].Last != gaps[0].Last {
		t.Errorf("%+v", v)
	}

	slow.Store(false)
	s.Exec(t, "INSERT INTO a VALUES (4)")
	s.switchWAL(t)
	s.check(t, 16, nil, "--no-switch").wants(t, "failed", "archiving.gap main", gaps[0].First, "agent backup-push")

	// A recovery of the old backup stops at the gap, and ends before it if told.
	dir := fresh(t)
	must(t, s.restore(t, dir, old.Name))
	c, err := harness.TryStart(t, dir, s.Major, nil, s.reach...)
	if err == nil {
		_, err = c.AwaitRecovery(t)
		c.WaitExit(t)
	}
	if err == nil || !strings.Contains(err.Error(), "could not restore file \""+gaps[0].First+"\" from archive") {
		t.Fatalf("the server went past the gap: %v", err)
	}
	restore := must1(t, filepath.Join(dir, "postgresql.auto.conf"))
	fetch := restoreCommand(t, string(readFile(t, restore)))
	c = harness.StartExisting(t, dir, s.Major, map[string]string{"restore_command": fetch + " --end-before " + gaps[0].First}, s.reach...)
	c.WaitRecovered(t)
	if got := c.QueryString(t, "SELECT string_agg(i::text, ' ' ORDER BY i) FROM a"); got != "1 2" {
		t.Errorf("it ended with the rows %s", got)
	}

	// A new backup, and all is well.
	fine := s.push(t)
	s.check(t, 0, nil, "--no-switch").wants(t, "ok", "archiving.gap main")
	s.walVerify(t, 0, "--backup", fine.Name, "--deep")
	if v := s.walVerify(t, 0); len(v.Findings) != 1 || v.Findings[0].Kind != "dropped" {
		t.Errorf("%+v", v)
	}
	dir = fresh(t)
	must(t, s.restore(t, dir, fine.Name))
	c = harness.StartExisting(t, dir, s.Major, nil, s.reach...)
	c.WaitRecovered(t)
	if got := c.QueryString(t, "SELECT string_agg(i::text, ' ' ORDER BY i) FROM a"); got != "1 2 3 4" {
		t.Errorf("the new backup has the rows %s", got)
	}
}

// restoreCommand is what a restore has set.
func restoreCommand(t testing.TB, conf string) string {
	t.Helper()
	for line := range strings.Lines(conf) {
		if value, ok := strings.CutPrefix(line, "restore_command = '"); ok {
			return strings.ReplaceAll(strings.TrimSuffix(strings.TrimSpace(value), "'"), "''", "'")
		}
	}
	t.Fatalf("there is no restore_command:\n%s", conf)
	return ""
}
