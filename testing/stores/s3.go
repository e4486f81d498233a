package stores

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// S3Options say how an S3 server runs.
type S3Options struct {
	TLS bool // https, with a certificate of its own in S3.CAFile
	// Fast leaves the MD5 of each object away (versitygw only), which is most
	// of what a server costs beside a benchmark.
	Fast bool
}

// S3 is a running S3 server. Its methods may be used by several tests at a
// time.
type S3 struct {
	*Server
	URL    string // of the endpoint, http or https
	Region string
	Key    string // the administrator's access key
	Secret string
	CAFile string // PEM, readable by everybody; empty without TLS

	addUser func(t testing.TB, key, secret string)
	client  *s3.Client
	names   atomic.Int64
}

// S3Bucket says how a bucket is made.
type S3Bucket struct {
	Versioned bool
	Lockable  bool // Object Lock; versioned too
	// Governance is a default lock for that many days.
	Governance int32
}

const (
	s3Region = "us-east-1"
	s3Key    = "testadministrator"
	s3Secret = "testadministratorsecret"
)

// StartVersityGW runs versitygw until the test ends. It keeps versions, locks
// objects, and has users and bucket policies.
func StartVersityGW(t testing.TB, o S3Options) *S3 {
	t.Helper()
	dir := tempDir(t)
	path := installed(t, "bin", "versitygw")
	s := newS3(t, dir, o, "public.crt", "private.key")
	args := []string{"-p", s.address(), "--quiet", "--keep-alive", "--region", s3Region, "--iam-dir", s3Dir(t, dir, "iam")}
	if o.TLS {
		args = append(args, "--cert", s.CAFile, "--key", filepath.Join(dir, "certs", "private.key"))
	}
	args = append(args, "posix", "--versioning-dir", s3Dir(t, dir, "versions"))
	if o.Fast {
		args = append(args, "--data-integrity-etag")
	}
	args = append(args, s3Dir(t, dir, "data"))
	env := []string{"ROOT_ACCESS_KEY_ID=" + s3Key, "ROOT_SECRET_ACCESS_KEY=" + s3Secret}
	s.Server = start(t, dir, s.address(), env, listening(s.address()), path, args...)
	s.addUser = func(t testing.TB, key, secret string) {
		t.Helper()
		admin := exec.CommandContext(t.Context(), path, "admin", "--access", s3Key, "--secret", s3Secret, "--endpoint-url", s.URL, "--allow-insecure",
			"create-user", "--access", key, "--secret", secret, "--role", "user")
		if out, err := admin.CombinedOutput(); err != nil {
			t.Fatalf("add a user: %v: %s", err, out)
		}
	}
	return s
}

// StartMinIO runs MinIO until the test ends. It keeps versions, locks objects,
// and encrypts them with a key that is made for it (SSE-S3, SSE-KMS).
func StartMinIO(t testing.TB, o S3Options) *S3 {
	t.Helper()
	dir := tempDir(t)
	s := newS3(t, dir, o, "public.crt", "private.key")
	env := []string{
		"MINIO_ROOT_USER=" + s3Key, "MINIO_ROOT_PASSWORD=" + s3Secret, "MINIO_UPDATE=off", "MINIO_CALLHOME_ENABLE=off", "MINIO_BROWSER=off",
		"MINIO_KMS_SECRET_KEY=test-key:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
	}
	ready := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/minio/health/ready", http.NoBody)
		if err != nil {
			return err
		}
		resp, err := s.http(t).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("answers %s", resp.Status)
		}
		return nil
	}
	s.Server = start(t, dir, s.address(), env, ready, installed(t, "bin", "minio"),
		"server", "--quiet", "--address", s.address(), "--certs-dir", s3Dir(t, dir, "certs"), s3Dir(t, dir, "data"))
	return s
}

// newS3 chooses an address, and makes the certificate and a client for the
// administrator.
func newS3(t testing.TB, dir string, o S3Options, cert, key string) *S3 {
	t.Helper()
	s := &S3{Region: s3Region, Key: s3Key, Secret: s3Secret, URL: "http://" + FreeAddress(t)}
	if o.TLS {
		s.URL = "https://" + strings.TrimPrefix(s.URL, "http://")
		s.CAFile = NewTLS(t, s3Dir(t, dir, "certs"), cert, key).CertFile
	}
	s.client = s.Client(t, s3Key, s3Secret)
	return s
}

func s3Dir(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *S3) address() string { return s.URL[strings.LastIndex(s.URL, "/")+1:] }

func (s *S3) http(t testing.TB) *http.Client {
	t.Helper()
	// Nothing of it stays behind in a test that looks for leaks.
	tr := &http.Transport{DisableKeepAlives: true}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		tr.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: tr}
}

// Client is the SDK's own client, for what a test does beside the agent.
func (s *S3) Client(t testing.TB, key, secret string) *s3.Client {
	t.Helper()
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(s.URL), UsePathStyle: true, Region: s.Region, HTTPClient: s.http(t),
		Credentials: credentials.NewStaticCredentialsProvider(key, secret, ""),
	})
}

// NewBucket makes an empty bucket with a name that no other test has.
func (s *S3) NewBucket(t testing.TB, o S3Bucket) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	name := fmt.Sprintf("bucket-%d", s.names.Add(1))
	_, err := s.client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: aws.Bool(o.Lockable || o.Governance > 0)})
	if err != nil {
		t.Fatalf("make bucket %s: %v", name, err)
	}
	if o.Versioned {
		_, err := s.client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: &name, VersioningConfiguration: &types.VersioningConfiguration{
			Status: types.BucketVersioningStatusEnabled,
		}})
		if err != nil {
			t.Fatalf("switch on versions of %s: %v", name, err)
		}
	}
	if o.Governance > 0 {
		_, err := s.client.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: &name, ObjectLockConfiguration: &types.ObjectLockConfiguration{
			ObjectLockEnabled: types.ObjectLockEnabledEnabled,
			Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{
				Mode: types.ObjectLockRetentionModeGovernance, Days: &o.Governance,
			}},
		}})
		if err != nil {
			t.Fatalf("set a default lock of %s: %v", name, err)
		}
	}
	return name
}

// Uploads names the multipart uploads of a bucket that were neither completed
// nor aborted.
func (s *S3) Uploads(t testing.TB, bucket string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), startLimit)
	defer cancel()
	out, err := s.client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatalf("list uploads of %s: %v", bucket, err)
	}
	var names []string
	for _, u := range out.Uploads {
		names = append(names, aws.ToString(u.Key)+" "+aws.ToString(u.UploadId))
	}
	return names
}

// ArchiverActions are the rights of a host that archives: it creates, reads and
// lists, and locks what it creates. It cannot delete, nor shorten a lock.
func ArchiverActions() []string {
	return []string{
		"s3:PutObject", "s3:PutObjectRetention", "s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectRetention", "s3:ListBucket", "s3:ListBucketVersions",
		"s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
	}
}

// RestrictedUser adds a user (of versitygw) who may do in the bucket what
// ArchiverActions says and nothing else, and returns his credentials. It
// replaces the bucket's policy.
func (s *S3) RestrictedUser(t testing.TB, bucket string) (key, secret string) {
	t.Helper()
	return s.User(t, bucket, ArchiverActions()...)
}

// User is RestrictedUser with other rights.
func (s *S3) User(t testing.TB, bucket string, actions ...string) (key, secret string) {
	t.Helper()
	if s.addUser == nil {
		t.Fatal("this server has no users")
	}
	key = fmt.Sprintf("archiver%d", s.names.Add(1))
	secret = key + "secret"
	s.addUser(t, key, secret)
	policy, err := json.Marshal(map[string]any{
		"Version": "2012-10-17",
		"Statement": []map[string]any{{
			"Effect": "Allow", "Principal": map[string]any{"AWS": []string{key}}, "Action": actions,
			"Resource": []string{"arn:aws:s3:::" + bucket, "arn:aws:s3:::" + bucket + "/*"},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	if _, err := s.client.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: aws.String(string(policy))}); err != nil {
		t.Fatalf("set the policy of %s: %v", bucket, err)
	}
	return key, secret
}

// Env is what an agent's environment needs to reach the server as its
// administrator.
func (s *S3) Env() []string { return s.EnvOf(s.Key, s.Secret) }

// EnvOf is Env for another user.
func (s *S3) EnvOf(key, secret string) []string {
	env := []string{
		"AWS_ACCESS_KEY_ID=" + key, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_REGION=" + s.Region, "AWS_ENDPOINT_URL=" + s.URL,
		"AGENT_S3_PATH_STYLE=true", "AWS_EC2_METADATA_DISABLED=true",
	}
	if s.CAFile != "" {
		env = append(env, "AWS_CA_BUNDLE="+s.CAFile)
	}
	return env
}

// RepositoryURL is that of a bucket, or of what is below a prefix in it.
func (s *S3) RepositoryURL(bucket, prefix string) string {
	return strings.TrimSuffix("s3://"+bucket+"/"+prefix, "/")
}
