package e2e_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"agent/testing/harness"
	"agent/testing/stores"
)

// checked is what `agent check --json` prints.
type checked struct {
	Checks []finding `json:"checks"`
	Status string    `json:"status"`
}

type finding struct {
	Name       string `json:"name"`
	Repository string `json:"repository"`
	Status     string `json:"status"`
	Text       string `json:"text"`
	Hint       string `json:"hint"`
}

// wants fails the test unless there is exactly one such line, with this status
// and all the texts in it or in its hint.
func (c checked) wants(t testing.TB, status, title string, texts ...string) {
	t.Helper()
	name, repository, _ := strings.Cut(title, " ")
	fits := func(f finding) bool { return f.Name == name && f.Repository == repository }
	i := slices.IndexFunc(c.Checks, fits)
	if i < 0 || slices.ContainsFunc(c.Checks[i+1:], fits) {
		t.Fatalf("there is not one line %s: %+v", title, c.Checks)
	}
	f := c.Checks[i]
	if f.Status != status {
		t.Errorf("%s is %s, not %s: %+v", title, f.Status, status, f)
	}
	for _, text := range texts {
		if !strings.Contains(f.Text+"\n"+f.Hint, text) {
			t.Errorf("%s does not say %q: %+v", title, text, f)
		}
	}
}

// notEncrypted is what a check tells where that does not matter.
const notEncrypted = "warning keys.recipients"

// bad lists the lines that failed or warn, but that nothing is encrypted, as
// "failed name repository".
func (c checked) bad() []string {
	var all []string
	for _, f := range c.Checks {
		line := strings.TrimSpace(f.Status + " " + f.Name + " " + f.Repository)
		if (f.Status == "failed" || f.Status == "warning") && line != notEncrypted {
			all = append(all, line)
		}
	}
	return all
}

// only fails the test unless these lines, and no others, are bad.
func (c checked) only(t testing.TB, want ...string) {
	t.Helper()
	if got := c.bad(); !slices.Equal(got, want) {
		t.Errorf("bad are %q and not %q: %+v", got, want, c.Checks)
	}
}

// check runs `agent check` on the database host and expects its status.
func (s *site) check(t testing.TB, code int, env []string, args ...string) checked {
	t.Helper()
	return runCheck(t, code, append(s.env(), env...), args...)
}

func runCheck(t testing.TB, code int, env []string, args ...string) checked {
	t.Helper()
	r := harness.Agent(t, env, append([]string{"check", "--json"}, args...)...)
	if r.Code != code {
		t.Fatalf("status %d, expected %d:\n%s%s", r.Code, code, r.Stdout, r.Stderr)
	}
	c := parse[checked](t, r.Stdout)
	if want := map[bool]string{true: "failed"}[code != 0]; want != "" && c.Status != want {
		t.Errorf("status %d, but %s is told", code, c.Status)
	}
	for _, f := range c.Checks {
		if f.Status == "failed" && f.Hint == "" {
			t.Errorf("there is no hint: %+v", f)
		}
	}
	return c
}

// nagios runs the check as a plugin, and expects its status and the beginning
// of its one line.
func (s *site) nagios(t testing.TB, code int, begin string, env ...string) string {
	t.Helper()
	r := harness.Agent(t, append(s.env(), env...), "check", "--nagios", "--no-switch")
	if r.Code != code || !strings.HasPrefix(r.Stdout, begin) || strings.Count(r.Stdout, "\n") != 1 || strings.Count(r.Stdout, "|") != 1 || r.Stderr != "" {
		t.Errorf("status %d, expected %d and %q: %q %q", r.Code, code, begin, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// TestCheckHealthy checks setups that work, with a repository in a folder and,
// in one run of both, in a bucket.
func TestCheckHealthy(t *testing.T) {
	t.Parallel()
	for _, major := range []int{15, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, plan{Options: harness.Options{Major: major}, sealed: true})
			c := s.check(t, 0, nil)
			if c.Status != "ok" {
				t.Errorf("the status is %s", c.Status)
			}
			for _, f := range c.Checks {
				if f.Status != "ok" {
					t.Errorf("not ok: %+v", f)
				}
			}
			c.wants(t, "ok", "archiving.arrival main")
			c.wants(t, "ok", "server.data_directory", s.DataDir)
			if left, err := filepath.Glob(filepath.Join(s.repo, "probe")); err != nil || len(left) > 0 {
				t.Errorf("left in the repository: %q (%v)", left, err)
			}
			line := s.nagios(t, 0, "AGENT OK - ")
			for _, label := range []string{"'main_put'=", "'main_get'=", "'main_skew'=0s;", "'state_free'="} {
				if !strings.Contains(line, label) {
					t.Errorf("no %s in %s", label, line)
				}
			}
		})
	}
}

// TestCheckServer provokes what can be wrong with a server, for real.
func TestCheckServer(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{Options: harness.Options{NoChecksums: true}})
	good := s.QueryString(t, "SHOW archive_command")
	s.Exec(t, "CREATE ROLE weak LOGIN", "CREATE ROLE granted LOGIN", "GRANT pg_read_all_settings TO granted",
		"GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO granted")
	set := func(command string) {
		t.Helper()
		s.Exec(t, "ALTER SYSTEM SET archive_command = '"+strings.ReplaceAll(command, "'", "''")+"'", "SELECT pg_reload_conf()")
		await(t, "the new archive_command", func() bool { return s.QueryString(t, "SHOW archive_command") == command })
	}
	base := []string{"warning server.data_checksums"}
	with := func(more ...string) []string { return slices.Concat(base, more) }

	c := s.check(t, 0, nil)
	c.only(t, base...)
	c.wants(t, "warning", "keys.recipients", "agent keygen")
	s.nagios(t, 1, "AGENT WARNING - keys.recipients: ")

	for _, f := range []struct {
		name, command string
		code          int
		bad           []string
		title         string
		texts         []string
	}{
		{
			"another program", "true", 9, with("warning server.archive_command", "failed archiving.arrival main"),
			"archiving.arrival main",
			[]string{"did not arrive within 2s", "it went elsewhere"},
		},
		{
			"joined by &&", "true && " + good, 0, with("warning server.archive_command"),
			"server.archive_command",
			[]string{"&&"},
		},
		{
			"no path", strings.Replace(good, "%p", "", 1), 9, with("warning server.archive_command", "failed server.archiver", "failed archiving.arrival main"),
			"server.archive_command",
			[]string{"%p"},
		},
		{
			"no such agent", "SECRET=hush-hush /nowhere/agent wal-push %p", 9, with("failed server.archive_command", "failed server.archiver", "failed archiving.arrival main"),
			"server.archive_command",
			[]string{"/nowhere/agent", "not there"},
		},
		{"empty", "", 9, with("failed server.archive_command"), "server.archive_command", []string{"piles up"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			set(f.command)
			r := harness.Agent(t, s.env(), "check", "--wal-timeout", "2s")
			if strings.Contains(r.Stdout+r.Stderr, "hush") {
				t.Errorf("a secret is shown:\n%s%s", r.Stdout, r.Stderr)
			}
			c := s.check(t, f.code, nil, "--wal-timeout", "2s")
			// Whether the archiver has failed yet is its own matter.
			without := func(lines []string) []string {
				return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.HasSuffix(l, "server.archiver") })
			}
			if got := without(c.bad()); !slices.Equal(got, without(f.bad)) {
				t.Errorf("bad are %q and not %q: %+v", got, f.bad, c.Checks)
			}
			c.wants(t, strings.Fields(bad(c, f.title))[0], f.title, f.texts...)
		})
	}
	// A signal ends the wait for the segment, and the check.
	set("true")
	switches := func() int { return strings.Count(s.Log(), `restore point "agent check`) }
	before := switches()
	waiting := harness.StartAgent(t, s.env(), "check")
	await(t, "the switch", func() bool { return switches() > before })
	waiting.Signal(syscall.SIGTERM)
	if r := waiting.Wait(); r.Code != 15 || r.Stdout != "" {
		t.Errorf("status %d:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	set("false")
	s.Exec(t, "SELECT pg_create_restore_point('x')", "SELECT pg_switch_wal()")
	await(t, "a failure of the archiver", func() bool {
		return s.QueryInt(t, "SELECT count(*) FROM pg_stat_archiver WHERE last_failed_time > coalesce(last_archived_time, '-infinity')") == 1
	})
	c = s.check(t, 9, nil, "--no-switch")
	c.wants(t, "failed", "server.archiver", "archive_command fails for", "wait", "server's log")
	c.wants(t, "skipped", "archiving.switch", "--no-switch")
	s.nagios(t, 2, "AGENT CRITICAL - server.archiver: ")
	set(good)

	c = s.check(t, 9, []string{"PGUSER=weak"})
	c.wants(t, "failed", "server.grants", "GRANT pg_read_all_settings TO \"weak\"", "pg_backup_start(text, boolean) TO \"weak\"")
	c.wants(t, "skipped", "archiving.switch", "GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO \"weak\"")
	c = s.check(t, 9, []string{"PGPORT=1"})
	c.wants(t, "failed", "server.connection", "PGPORT")
	c.wants(t, "ok", "repository.conditional main")
	c.wants(t, "skipped", "archiving.arrival main")

	await(t, "what has failed to be archived", func() bool {
		return s.QueryInt(t, "SELECT count(*) FROM pg_stat_archiver WHERE last_failed_time > last_archived_time") == 0
	})
	c = s.check(t, 0, []string{"PGUSER=granted"})
	c.wants(t, "ok", "server.grants")
	c.wants(t, "skipped", "archiving.switch", "pg_create_restore_point")

	s.AppendConf(t, map[string]string{"archive_mode": "off", "wal_level": "minimal", "max_wal_senders": "0", "full_page_writes": "off"})
	s.Restart(t)
	c = s.check(t, 9, nil)
	c.only(t, "failed server.wal_level", "failed server.archive_mode", "failed server.full_page_writes", "warning server.data_checksums")
	c.wants(t, "skipped", "archiving.switch", "archive_mode is off")
}

// bad is the line of a check, with its status first.
func bad(c checked, title string) string {
	for _, l := range c.bad() {
		if strings.HasSuffix(l, " "+title) {
			return l
		}
	}
	return "ok"
}

// TestCheckRepository provokes what can be wrong with repositories and the
// state directory on disks.
func TestCheckRepository(t *testing.T) {
	t.Parallel()
	s := newSite(t, plan{sealed: true})
	other := []string{"AGENT_STATE_DIR=" + filepath.Join(s.base, "other-state")}
	at := func(dir string) []string { return append(slices.Clone(other), "AGENT_REPOSITORY="+dir) }
	nowhere := filepath.Join(s.base, "nowhere")

	c := s.check(t, 5, at(nowhere))
	c.only(t, "failed repository.open main")
	c.wants(t, "failed", "repository.open main", nowhere, "agent repo init")
	c.wants(t, "skipped", "repository.put main")
	c.wants(t, "ok", "archiving.switch")
	c.wants(t, "skipped", "archiving.arrival main")

	empty := harness.TempDir(t)
	c = s.check(t, 3, at(empty), "--no-switch")
	c.only(t, "failed repository.id main")
	c.wants(t, "failed", "repository.id main", "repository.json", "agent repo init")

	inside := filepath.Join(s.DataDir, "repo")
	must(t, harness.Agent(t, append(s.env(), at(inside)...), "repo", "init"))
	c = s.check(t, 2, append(at(inside), "AGENT_STATE_DIR="+s.DataDir+"/state"), "--no-switch")
	c.only(t, "failed repository.place main", "failed state.place")
	for _, dir := range []string{inside, s.DataDir + "/state"} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}

	readOnly := filepath.Join(harness.TempDir(t), "repo")
	must(t, harness.Agent(t, at(readOnly), "repo", "init"))
	if err := os.Chmod(readOnly, 0o555); err != nil {
		t.Fatal(err)
	}
	c = s.check(t, 5, at(readOnly), "--no-switch")
	c.only(t, "failed repository.put main")
	c.wants(t, "failed", "repository.put main", readOnly, "permission denied")

	// Two repositories, of which the second may be away.
	config := filepath.Join(s.base, "agent.yaml")
	writeFile(t, config, fmt.Appendf(nil, "repositories:\n  - {name: near, url: %s}\n  - {name: far, url: %s, required: false}\n", s.repo, nowhere))
	two := []string{"AGENT_CONFIG=" + config, "AGENT_REPOSITORY="}
	c = s.check(t, 0, two)
	c.only(t, "warning repository.open far")
	c.wants(t, "ok", "archiving.arrival near")
	c.wants(t, "skipped", "archiving.arrival far")
	// It is there, but what archives does not know it.
	must(t, harness.Agent(t, append(s.env(), at(nowhere)...), "repo", "init"))
	c = s.check(t, 0, two, "--wal-timeout", "1s")
	c.only(t, "warning archiving.arrival far")
	c.wants(t, "warning", "archiving.arrival far", "best effort", "agent repo sync")

	c = s.check(t, 2, []string{"AGENT_CONCURRENCY=0"})
	c.only(t, "failed config")
	c.wants(t, "skipped", "server.connection", "configuration")
	s.nagios(t, 3, "AGENT UNKNOWN - config: ", "AGENT_CONCURRENCY=0")
	s.check(t, 2, []string{"AGENT_RECIPIENTS=age1nonsense"}, "--no-switch").only(t, "failed keys.recipients")

	readOnlyState := filepath.Join(harness.TempDir(t), "state")
	makeDir(t, readOnlyState)
	closed(t, readOnlyState)
	c = s.check(t, 2, []string{"AGENT_STATE_DIR=" + readOnlyState}, "--no-switch")
	c.wants(t, "failed", "state.directory", readOnlyState, "AGENT_STATE_DIR")
}

// TestCheckFullState fills the file system of the state directory, which is in
// memory besides.
func TestCheckFullState(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("run it as root: it mounts a small file system")
	}
	base := harness.TempDir(t)
	env := []string{"AGENT_REPOSITORY=" + filepath.Join(base, "repo"), "PGHOST=" + base}
	must(t, harness.Agent(t, append(env, "AGENT_STATE_DIR="+filepath.Join(base, "first")), "repo", "init"))
	small := filepath.Join(base, "small")
	makeDir(t, small)
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=128k,mode=777"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	state := filepath.Join(small, "state")
	env = append(env, "AGENT_STATE_DIR="+state)
	// Until it is full it works, but is small and forgets.
	c := runCheck(t, 12, env)
	c.only(t, "failed state.space", "warning state.place", "failed server.connection")
	writeFile(t, filepath.Join(small, "filler"), make([]byte, 80<<10))
	c = runCheck(t, 12, env)
	c.only(t, "failed state.directory", "failed state.space", "warning state.place", "failed server.connection")
	c.wants(t, "failed", "state.directory", "no space left", "AGENT_STATE_DIR")
}

// TestCheckStores checks a repository on every kind of store: all of them do
// what the agent promises on them.
func TestCheckStores(t *testing.T) {
	t.Parallel()
	for name, start := range remotes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			base := harness.TempDir(t)
			env := append(slices.Clone(r.reach), "AGENT_REPOSITORY="+r.url, "AGENT_STATE_DIR="+filepath.Join(base, "state"), "PGHOST="+base)
			must(t, harness.Agent(t, env, "repo", "init"))
			c := runCheck(t, 9, env)
			c.only(t, "failed server.connection")
			for _, f := range c.Checks {
				if strings.HasPrefix(f.Name, "repository.") && f.Status != "ok" && !(f.Status == "skipped" && f.Name == "repository.cluster") {
					t.Errorf("%+v", f)
				}
			}
			// Away, it is one line, and not long waited for.
			r.fault.Down()
			c = runCheck(t, 5, env)
			c.only(t, "failed repository.open main", "failed server.connection")
		})
	}
}

// gateway is a proxy before an S3 server that changes requests on their way
// and signs them anew, as gateways do.
func gateway(t *testing.T, s *stores.S3, change func(*http.Request), answer func(*http.Response)) *httptest.Server {
	t.Helper()
	target, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = target.Host
			r.Out.Header.Del("Authorization")
			r.Out.Header.Del("Accept-Encoding")
			change(r.Out)
			err := signer.SignHTTP(r.Out.Context(), aws.Credentials{AccessKeyID: s.Key, SecretAccessKey: s.Secret}, r.Out,
				r.Out.Header.Get("X-Amz-Content-Sha256"), "s3", s.Region, time.Now())
			if err != nil {
				t.Error(err)
			}
		},
		ModifyResponse: func(r *http.Response) error { answer(r); return nil },
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server
}

// TestCheckS3 checks repositories in buckets: good ones, a service that ignores
// conditions, one whose clock is wrong, locks, and rights that are not there.
func TestCheckS3(t *testing.T) {
	t.Parallel()
	gw := stores.StartVersityGW(t, stores.S3Options{})
	base := harness.TempDir(t)
	// env is of a host without a server, with a repository of its own.
	env := func(t *testing.T, bucket string, more ...string) []string {
		t.Helper()
		all := append(gw.Env(), "AGENT_REPOSITORY="+gw.RepositoryURL(bucket, "some/prefix"),
			"AGENT_STATE_DIR="+filepath.Join(base, "state-"+bucket), "PGHOST="+base)
		must(t, harness.Agent(t, all, "repo", "init"))
		return append(all, more...)
	}
	noServer := "failed server.connection"

	t.Run("with a server", func(t *testing.T) {
		t.Parallel()
		bucket := gw.NewBucket(t, stores.S3Bucket{})
		s := newSite(t, plan{sealed: true, url: gw.RepositoryURL(bucket, "some/prefix"), reach: gw.Env()})
		c := s.check(t, 0, nil)
		c.only(t)
		c.wants(t, "ok", "archiving.arrival main")
		c.wants(t, "ok", "repository.open main", gw.URL)
	})
	t.Run("ignores conditions", func(t *testing.T) {
		t.Parallel()
		careless := gateway(t, gw, func(r *http.Request) { r.Header.Del("If-None-Match") }, func(*http.Response) {})
		c := runCheck(t, 5, env(t, gw.NewBucket(t, stores.S3Bucket{}), "AWS_ENDPOINT_URL="+careless.URL))
		c.only(t, "failed repository.conditional main", noServer)
		c.wants(t, "failed", "repository.conditional main", "ignores the condition", "Do not use this store")
		// The same gateway without that fault is good.
		faithful := gateway(t, gw, func(*http.Request) {}, func(*http.Response) {})
		runCheck(t, 9, env(t, gw.NewBucket(t, stores.S3Bucket{}), "AWS_ENDPOINT_URL="+faithful.URL)).only(t, noServer)
	})
	t.Run("clock", func(t *testing.T) {
		t.Parallel()
		for _, f := range []struct {
			by   time.Duration
			code int
			line string
		}{{-time.Minute, 9, "warning"}, {10 * time.Minute, 5, "failed"}} {
			shifted := gateway(t, gw, func(*http.Request) {}, func(r *http.Response) {
				if at, err := http.ParseTime(r.Header.Get("Last-Modified")); err == nil {
					r.Header.Set("Last-Modified", at.Add(f.by).Format(http.TimeFormat))
				}
			})
			c := runCheck(t, f.code, env(t, gw.NewBucket(t, stores.S3Bucket{}), "AWS_ENDPOINT_URL="+shifted.URL))
			c.only(t, f.line+" repository.clock main", noServer)
			c.wants(t, f.line, "repository.clock main", "NTP")
		}
	})
	t.Run("locks", func(t *testing.T) {
		t.Parallel()
		plain, lockable := env(t, gw.NewBucket(t, stores.S3Bucket{})), env(t, gw.NewBucket(t, stores.S3Bucket{Lockable: true}))
		immutable := "AGENT_IMMUTABLE=governance:30d"
		c := runCheck(t, 9, append(lockable, immutable))
		c.only(t, noServer)
		c.wants(t, "ok", "repository.lock main", "can lock objects", "governance")
		c.wants(t, "ok", "repository.versions main")
		c = runCheck(t, 2, append(plain, immutable))
		c.only(t, "failed repository.lock main", "warning repository.versions main", noServer)
		c.wants(t, "failed", "repository.lock main", "Object Lock")
	})
	t.Run("rights", func(t *testing.T) {
		t.Parallel()
		bucket := gw.NewBucket(t, stores.S3Bucket{Lockable: true})
		as := env(t, bucket, "AGENT_IMMUTABLE=compliance:1d")
		key, secret := gw.RestrictedUser(t, bucket)
		archiver := append(slices.Clone(as), "AWS_ACCESS_KEY_ID="+key, "AWS_SECRET_ACCESS_KEY="+secret)
		c := runCheck(t, 9, archiver)
		c.only(t, noServer)
		c.wants(t, "ok", "repository.delete main", "may not delete")
		// Whether the bucket locks is not told to this one, so it is tried.
		key, secret = gw.User(t, bucket, "s3:PutObject", "s3:PutObjectRetention", "s3:GetObject", "s3:GetObjectRetention", "s3:ListBucket")
		c = runCheck(t, 9, append(slices.Clone(as), "AWS_ACCESS_KEY_ID="+key, "AWS_SECRET_ACCESS_KEY="+secret))
		c.wants(t, "ok", "repository.lock main", "2m0s")
		key, secret = gw.User(t, bucket, "s3:GetObject", "s3:ListBucket")
		c = runCheck(t, 5, append(slices.Clone(as), "AWS_ACCESS_KEY_ID="+key, "AWS_SECRET_ACCESS_KEY="+secret))
		c.wants(t, "failed", "repository.put main", "AccessDenied")
		c = runCheck(t, 5, append(slices.Clone(as), "AWS_SECRET_ACCESS_KEY=wrong-wrong-wrong"))
		for _, f := range c.Checks {
			if strings.Contains(f.Text, "wrong-wrong") {
				t.Errorf("a secret is shown: %+v", f)
			}
		}
		c = runCheck(t, 5, append(slices.Clone(as), "AGENT_REPOSITORY=s3://no-such-bucket/x"))
		c.wants(t, "failed", "repository.open main", "NoSuchBucket")
	})
}
