package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/testing/harness"
	"agent/testing/stores"
)

// badCase is a setting that does not work, and what every command says of it.
type badCase struct {
	name  string
	env   []string // after the site's
	code  int      // of commands other than wal-push and wal-fetch
	texts []string // besides the repository
}

// signature is what proves to know a secret, or stands for one.
var signature = regexp.MustCompile(`(?i)AWS4-HMAC|X-Amz-Signature|Signature=|[?&]sig=|SharedKey |Authorization:|Bearer |BEGIN [A-Z ]*PRIVATE KEY`)

// keepsSecrets fails the test if a command has printed a secret of its
// environment.
func keepsSecrets(t *testing.T, env []string, r harness.Result) {
	t.Helper()
	out := r.Stdout + r.Stderr
	if found := signature.FindString(out); found != "" {
		t.Errorf("%q is told:\n%s", found, out)
	}
	for _, pair := range env {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AGENT_SFTP_PASSWORD":
			if value != "" && strings.Contains(out, value) {
				t.Errorf("%s is told:\n%s", name, out)
			}
		}
	}
	if strings.Contains(out, stores.AzuriteKey) || strings.Contains(out, "hidden-password") {
		t.Errorf("a secret is told:\n%s", out)
	}
}

// archived is a site with a backup, and a copy of an archived segment.
type archived struct {
	*site
	segment string
}

func archiveOne(t *testing.T, url string, reach []string) *archived {
	t.Helper()
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1}, url: url, reach: reach})
	s.push(t)
	name := s.switchWAL(t)
	return &archived{s, copyTo(t, filepath.Join(s.DataDir, "pg_wal", name), name, nil)}
}

const notArchived = "0000000100000000000000FF"

// bad runs every command with the settings of a case, on a host that knows the
// repository and on one that does not.
func (a *archived) bad(t *testing.T, c badCase) {
	t.Helper()
	dest := filepath.Join(a.DataDir, "pg_wal", "RECOVERYXLOG")
	for _, state := range []string{a.state, fresh(t)} {
		env := append(a.env(), append([]string{"AGENT_STATE_DIR=" + state, "AGENT_WAL_TIMEOUT=5s", "AGENT_LOG_LEVEL=debug"}, c.env...)...)
		repository := a.repo
		for _, pair := range c.env {
			if url, ok := strings.CutPrefix(pair, "AGENT_REPOSITORY="); ok {
				repository = strings.Replace(url, "hidden-password", "********", 1)
			}
		}
		for _, command := range []struct {
			code int
			args []string
		}{
			{1, []string{"wal-push", a.segment}},
			{126, []string{"wal-fetch", filepath.Base(a.segment), dest}},
			{126, []string{"wal-fetch", notArchived, dest}},
			{c.code, []string{"backup-list"}},
			{c.code, []string{"backup-fetch", fresh(t)}},
			{c.code, []string{"backup-push"}},
		} {
			if c.code == 5 && state == a.state && command.args[0] == "backup-push" {
				expire(t, a.state) // else it is in the middle before it meets the error
			}
			r := harness.Agent(t, env, command.args...)
			hinted(t, r, command.code, c.texts...)
			if !strings.Contains(r.Stderr, repository) {
				t.Errorf("%s does not name the repository %s:\n%s", command.args[0], repository, r.Stderr)
			}
			keepsSecrets(t, env, r)
			if exists(dest) {
				t.Fatalf("%s made a file", command.args[0])
			}
		}
	}
}

// unreachable runs a push to a store that may be back in a moment, which is
// tried until the time is up.
func (a *archived) unreachable(t *testing.T, setting string) {
	t.Helper()
	env := append(a.env(), "AGENT_TIMEOUT=1s", "AGENT_LOG_LEVEL=debug", setting)
	for _, state := range []string{a.state, fresh(t)} {
		r := harness.Agent(t, append(env, "AGENT_STATE_DIR="+state), "wal-push", a.segment)
		hinted(t, r, 1, "store unavailable")
		keepsSecrets(t, env, r)
	}
}

// refusal answers every request as a service does that refuses.
func refusal(status int, contentType, body string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		fmt.Fprint(w, body)
		return true
	}
}

// TestCloudBadInput gives every command what a cloud gives to those who have
// something wrong: an error that names the repository, the operation and the
// service's own code, and no secret. No command takes it for "not found".
func TestCloudBadInput(t *testing.T) {
	t.Parallel()
	t.Run("s3", func(t *testing.T) { t.Parallel(); badS3(t) })
	t.Run("gcs", func(t *testing.T) { t.Parallel(); badGCS(t) })
	t.Run("azure", func(t *testing.T) { t.Parallel(); badAzure(t) })
	t.Run("sftp", func(t *testing.T) { t.Parallel(); badSFTP(t) })
}

func badS3(t *testing.T) {
	t.Helper()
	gw := stores.StartVersityGW(t, stores.S3Options{})
	secure := stores.StartVersityGW(t, stores.S3Options{TLS: true})
	bucket := gw.NewBucket(t, stores.S3Bucket{Versioned: true})
	a := archiveOne(t, gw.RepositoryURL(bucket, "some/prefix"), gw.Env())
	skewed := newTap(t, gw.URL, func(_ http.ResponseWriter, r *http.Request) bool {
		// As if this host's clock were behind.
		r.Header.Set("X-Amz-Date", time.Now().Add(-time.Hour).UTC().Format("20060102T150405Z"))
		return false
	})
	expired := newTap(t, gw.URL, refusal(http.StatusBadRequest, "application/xml",
		"<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"))
	at := func(url string) string { return "AWS_ENDPOINT_URL=" + url }
	for _, c := range []badCase{
		{"wrong bucket", []string{"AGENT_REPOSITORY=s3://no-such-bucket/x"}, 5, []string{" of s3://no-such-bucket/x: ", "NoSuchBucket (404)"}},
		{"wrong region", []string{"AWS_REGION=eu-central-1"}, 2, []string{"get ", "AuthorizationHeaderMalformed (400)", "AWS_REGION=us-east-1"}},
		{"wrong secret", []string{"AWS_SECRET_ACCESS_KEY=wrong-secret-value"}, 5, []string{"SignatureDoesNotMatch (403)"}},
		{"wrong key", []string{"AWS_ACCESS_KEY_ID=unknown"}, 5, []string{"InvalidAccessKeyId (403)"}},
		{"expired", []string{"AWS_SESSION_TOKEN=secret-token-value", at(expired.URL)}, 5, []string{"ExpiredToken (400)", "Renew"}},
		{"no credentials", []string{"AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY="}, 5, []string{"get credentials", "AWS_ACCESS_KEY_ID"}},
		{"clock skew", []string{at(skewed.URL)}, 5, []string{"RequestTimeTooSkewed (403)", "clock"}},
		{"unknown scheme", []string{"AGENT_REPOSITORY=swift://bucket/x"}, 2, []string{"unknown scheme swift", "s3://bucket/prefix"}},
		{"prefix with blanks", []string{"AGENT_REPOSITORY=s3://" + bucket + "/a b"}, 2, []string{"prefix that cannot be used"}},
		{"prefix beyond ASCII", []string{"AGENT_REPOSITORY=s3://" + bucket + "/größe"}, 2, []string{"prefix that cannot be used"}},
		{"prefix with dots", []string{"AGENT_REPOSITORY=s3://" + bucket + "/a/../b"}, 2, []string{"prefix that cannot be used"}},
		{"prefix with an escape", []string{"AGENT_REPOSITORY=s3://" + bucket + "/a%zz"}, 2, []string{"cannot be understood"}},
		{"a password in the URL", []string{"AGENT_REPOSITORY=s3://key:hidden-password@" + bucket + "/x"}, 2, []string{"password"}},
		{"untrusted certificate", []string{at(secure.URL)}, 2, []string{"certificate is not trusted", "ca_file"}},
		{"https for http", []string{at("https://" + gw.Address)}, 2, []string{"does not speak TLS", "http://"}},
	} {
		t.Run(c.name, func(t *testing.T) { a.bad(t, c) })
	}
	// These might be over in a moment, and are tried until the time is up.
	for name, url := range map[string]string{
		"http for https": "http://" + secure.Address, "unknown host": "http://no-such-host.invalid:80", "nobody listens": "http://" + stores.FreeAddress(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a.unreachable(t, at(url))
		})
	}
	t.Run("prefix with all that is allowed", func(t *testing.T) {
		env := append(a.env(), "AGENT_STATE_DIR="+fresh(t), "AGENT_REPOSITORY=s3://"+bucket+"/Az09._+=@,-/x")
		must(t, harness.Agent(t, env, "repo", "init"))
		must(t, harness.Agent(t, env, "wal-push", a.segment))
		dest := filepath.Join(harness.TempDir(t), "x")
		must(t, harness.Agent(t, env, "wal-fetch", filepath.Base(a.segment), dest))
		if string(readFile(t, dest)) != string(readFile(t, a.segment)) {
			t.Error("other bytes came")
		}
	})
	t.Run("denied", func(t *testing.T) { deniedS3(t, gw, a, bucket) })
	if got := a.backups(t); len(got) < 1 {
		t.Errorf("the backups are %q", got)
	}
}

// deniedS3 takes one right after the other away.
func deniedS3(t *testing.T, gw *stores.S3, a *archived, bucket string) {
	t.Helper()
	rights := map[string][]string{
		"put":    {"s3:GetObject", "s3:ListBucket", "s3:ListBucketVersions", "s3:GetObjectVersion", "s3:DeleteObject"},
		"get":    {"s3:PutObject", "s3:ListBucket", "s3:DeleteObject"},
		"list":   {"s3:PutObject", "s3:GetObject", "s3:DeleteObject"},
		"delete": {"s3:PutObject", "s3:GetObject", "s3:ListBucket"},
	}
	env := make(map[string][]string)
	var statements []map[string]any
	for denied, actions := range rights {
		key, secret := gw.User(t, gw.NewBucket(t, stores.S3Bucket{}), actions...)
		env[denied] = append(a.env(), append(gw.EnvOf(key, secret), "AGENT_LOG_LEVEL=debug", "AGENT_WAL_TIMEOUT=5s")...)
		statements = append(statements, map[string]any{
			"Effect": "Allow", "Principal": map[string]any{"AWS": []string{key}}, "Action": actions,
			"Resource": []string{"arn:aws:s3:::" + bucket, "arn:aws:s3:::" + bucket + "/*"},
		})
	}
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": statements})
	if err != nil {
		t.Fatal(err)
	}
	_, err = gw.Client(t, gw.Key, gw.Secret).PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: aws.String(string(policy))})
	if err != nil {
		t.Fatal(err)
	}
	name, dest := filepath.Base(a.segment), filepath.Join(a.DataDir, "pg_wal", "RECOVERYXLOG")
	for _, c := range []struct {
		denied string
		code   int
		args   []string
		text   string
	}{
		{"put", 1, []string{"wal-push", a.segment}, "put "},
		{"put", 5, []string{"backup-push"}, "put "},
		{"get", 126, []string{"wal-fetch", name, dest}, "get "},
		{"get", 126, []string{"wal-fetch", notArchived, dest}, "get "},
		{"get", 5, []string{"backup-list"}, "get "},
		{"get", 5, []string{"backup-fetch", fresh(t)}, "get "},
		{"list", 126, []string{"wal-fetch", notArchived, dest}, ""},
		{"list", 5, []string{"backup-list"}, "list "},
		{"list", 5, []string{"backup-fetch", fresh(t)}, "list "},
		{"list", 5, []string{"backup-push"}, "list "},
	} {
		t.Run(c.denied+" "+c.args[0], func(t *testing.T) {
			e := env[c.denied]
			if c.denied == "get" && c.args[0] != "wal-fetch" {
				e = append(e, "AGENT_STATE_DIR="+fresh(t))
			}
			r := harness.Agent(t, e, c.args...)
			hinted(t, r, c.code, a.repo, c.text, "AccessDenied (403)", "docs/providers.md")
			keepsSecrets(t, e, r)
		})
	}
	t.Run("delete", func(t *testing.T) {
		before := len(a.backups(t))
		// Twice: the claim of the first is left, and does not count.
		for range 2 {
			r := must(t, harness.Agent(t, env["delete"], "backup-push"))
			keepsSecrets(t, env["delete"], r)
		}
		if got := len(a.backups(t)); got != before+2 {
			t.Errorf("%d backups, not %d", got, before+2)
		}
	})
	t.Run("list wal-fetch", func(t *testing.T) {
		must(t, harness.Agent(t, env["list"], "wal-fetch", name, dest))
		if err := os.Remove(dest); err != nil {
			t.Fatal(err)
		}
	})
}

func badGCS(t *testing.T) {
	t.Helper()
	g := stores.StartGCS(t, stores.GCSOptions{})
	g.MakeBucket(t, "backups")
	a := archiveOne(t, g.RepositoryURL("backups", "some/prefix"), g.Env())
	answer := func(status int, reason, message string) string {
		return "STORAGE_EMULATOR_HOST=" + newTap(t, g.URL, refusal(status, "application/json",
			fmt.Sprintf(`{"error":{"code":%d,"message":%q,"errors":[{"reason":%q,"message":%q}]}}`, status, message, reason, message))).URL
	}
	for _, c := range []badCase{
		{"wrong bucket", []string{"AGENT_REPOSITORY=gs://no-such-bucket/x"}, 5, []string{" of gs://no-such-bucket/x: ", "404"}},
		{"expired", []string{answer(http.StatusUnauthorized, "authError", "Invalid Credentials")}, 5, []string{"get ", "(401)"}},
		{"denied", []string{answer(http.StatusForbidden, "forbidden", "x does not have storage.objects.get access")}, 5, []string{"get ", "(403)"}},
		{"no credentials", []string{"STORAGE_EMULATOR_HOST="}, 5, []string{"credentials"}},
		{"prefix with blanks", []string{"AGENT_REPOSITORY=gs://backups/a b"}, 2, []string{"prefix that cannot be used"}},
	} {
		t.Run(c.name, func(t *testing.T) { a.bad(t, c) })
	}
}

func badAzure(t *testing.T) {
	t.Helper()
	store := stores.StartAzurite(t, stores.AzureOptions{})
	secure := stores.StartAzurite(t, stores.AzureOptions{TLS: true})
	store.MakeContainer(t, "backups")
	a := archiveOne(t, store.RepositoryURL("backups", "some/prefix"), store.Env())
	connection := store.ConnectionString()
	sas := strings.Replace(connection, "AccountKey="+stores.AzuriteKey, "SharedAccessSignature=sv=2021-08-06&ss=b&srt=sco&sp=rwl&se=2021-01-01T00:00:00Z&sig=hidden-password", 1)
	for _, c := range []badCase{
		{"wrong container", []string{"AGENT_REPOSITORY=azblob://no-such-container/x"}, 5, []string{" of azblob://no-such-container/x: ", "ContainerNotFound (404)"}},
		{"wrong key", []string{"AZURE_STORAGE_CONNECTION_STRING=" + strings.Replace(connection, stores.AzuriteKey, "d3Jvbmc=", 1)}, 5, []string{"(403)"}},
		{"expired", []string{"AZURE_STORAGE_CONNECTION_STRING=" + sas}, 5, []string{"(403)"}},
		{"untrusted certificate", secure.Env(), 2, []string{"certificate", "ca_file"}},
		{"prefix with blanks", []string{"AGENT_REPOSITORY=azblob://backups/a b"}, 2, []string{"prefix that cannot be used"}},
	} {
		t.Run(c.name, func(t *testing.T) { a.bad(t, c) })
	}
}

func badSFTP(t *testing.T) {
	t.Helper()
	s := stores.StartSFTP(t, stores.SFTPOptions{})
	a := archiveOne(t, s.RepositoryURL("backups"), s.Env())
	dir := harness.TempDir(t)
	hosts := func(name, text string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, []byte(text))
		return "AGENT_SFTP_KNOWN_HOSTS=" + path
	}
	other := filepath.Join(dir, "other")
	stores.NewSSHKey(t, other, "ed25519", "")
	harness.Own(t, dir)
	for _, c := range []badCase{
		{"unknown host key", []string{hosts("none", "")}, 2, []string{"is not in", "ssh-keyscan"}},
		{"changed host key", []string{hosts("changed", s.KnownHost(s.Address, other+".pub"))}, 2, []string{"key"}},
		{"no known_hosts", []string{"AGENT_SFTP_KNOWN_HOSTS=" + filepath.Join(dir, "missing")}, 2, []string{"read known_hosts", "ssh-keyscan"}},
		{"wrong user key", []string{"AGENT_SFTP_IDENTITY_FILE=" + other}, 5, []string{s.User}},
		{"wrong password", []string{"AGENT_SFTP_IDENTITY_FILE=" + other, "AGENT_SFTP_PASSWORD=hidden-password"}, 5, []string{s.User}},
	} {
		t.Run(c.name, func(t *testing.T) { a.bad(t, c) })
	}
	t.Run("no such folder", func(t *testing.T) { a.unreachable(t, "AGENT_REPOSITORY="+s.RepositoryURL("nowhere")) })
}
