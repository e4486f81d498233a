package e2e_test

import (
	"testing"
	"path/filepath"
	"net/http"
	"fmt"
	"time"

	"walagent/testing/harness"
	"walagent/testing/stores"
)

func TestExplore(t *testing.T) {
	gw := stores.StartVersityGW(t, stores.S3Options{})
	tls := stores.StartVersityGW(t, stores.S3Options{TLS: true})
	mo := stores.StartMinIO(t, stores.S3Options{})
	bucket := gw.NewBucket(t, stores.S3Bucket{})
	_ = tls.NewBucket(t, stores.S3Bucket{})
	s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1}, url: gw.RepositoryURL(bucket, "repo"), reach: gw.Env()})
	b := s.push(t)
	name := s.switchWAL(t)
	seg := copyTo(t, filepath.Join(s.DataDir, "pg_wal", name), name, nil)
	_ = b
	skew := newTap(t, gw.URL, func(_ http.ResponseWriter, r *http.Request) bool {
		r.Header.Set("X-Amz-Date", time.Now().Add(-time.Hour).UTC().Format("20060102T150405Z"))
		return false
	})
	xml := func(code int, name string) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(code)
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>The provided token is no good</Message><RequestId>X</RequestId></Error>`, name)
		return true
		}
	}
	expired := newTap(t, gw.URL, xml(400, "ExpiredToken"))
	minioURL := mo.RepositoryURL(mo.NewBucket(t, stores.S3Bucket{}), "repo")
	must(t, harness.Agent(t, append(mo.Env(), "AGENT_REPOSITORY="+minioURL, "AGENT_STATE_DIR="+fresh(t)), "repo", "init"))
	for _, c := range []struct{ name string; env []string }{
		{"wrong bucket", []string{"AGENT_REPOSITORY=s3://no-such-bucket/repo"}},
		{"wrong region", []string{"AWS_REGION=eu-central-1"}},
		{"wrong region minio", append(mo.Env(), "AGENT_REPOSITORY="+minioURL, "AWS_REGION=eu-central-1")},
		{"wrong secret", []string{"AWS_SECRET_ACCESS_KEY=wrongsecret"}},
		{"unknown key", []string{"AWS_ACCESS_KEY_ID=unknownkey"}},
		{"expired", []string{"AWS_SESSION_TOKEN=verysecrettoken", "AWS_ENDPOINT_URL="+expired.URL}},
		{"no credentials", []string{"AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY="}},
		{"skew", []string{"AWS_ENDPOINT_URL="+skew.URL}},
		{"scheme", []string{"AGENT_REPOSITORY=swift://bucket/repo"}},
		{"odd prefix", []string{"AGENT_REPOSITORY=s3://"+bucket+"/ä ö/+%25&=a'b"}},
		{"odd prefix2", []string{"AGENT_REPOSITORY=s3://"+bucket+"/a//b"}},
		{"odd prefix3", []string{"AGENT_REPOSITORY=s3://"+bucket+"/a/../b"}},
		{"odd prefix4", []string{"AGENT_REPOSITORY=s3://"+bucket+"/a\tb"}},
		{"odd prefix5", []string{"AGENT_REPOSITORY=s3://"+bucket+"/a%zzb"}},
		{"odd prefix6", []string{"AGENT_REPOSITORY=s3://"+bucket+"/a?b"}},
		{"untrusted", tls.Env()},
		{"untrusted", append(tls.Env(), "AWS_CA_BUNDLE=")},
		{"http for https", []string{"AWS_ENDPOINT_URL=http://"+tls.Address}},
		{"https for http", []string{"AWS_ENDPOINT_URL=https://"+gw.Address}},
	} {
		for _, args := range [][]string{{"wal-push", seg}, {"wal-fetch", name, filepath.Join(s.DataDir, "pg_wal", "RECOVERYXLOG")}, {"backup-list"}, {"backup-push"}, {"repo", "init"}} {
			began := time.Now()
			r := harness.Agent(t, append(append(s.env(), "AGENT_STATE_DIR="+fresh(t), "AGENT_TIMEOUT=3s"), c.env...), args...)
			t.Logf("%s %s: %d in %v\n%s%s", c.name, args[0], r.Code, time.Since(began).Round(time.Millisecond), r.Stdout, r.Stderr)
		}
	}
}
