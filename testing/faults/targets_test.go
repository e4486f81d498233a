package faults_test

import (
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/goleak"

	"agent/internal/storage"
	"agent/internal/storage/azure"
	"agent/internal/storage/decorate"
	"agent/internal/storage/gcs"
	"agent/internal/storage/s3"
	"agent/internal/storage/sftp"
	"agent/testing/stores"
)

// TestMain lets all backends run at a time, whatever the number of cores: they
// mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// front puts something between clients and the server at an address, and
// returns where clients find it.
type front func(t *testing.T, upstream string) (address string)

// target is a store behind a front.
type target struct {
	name    string
	address string                            // of the front
	open    func(t *testing.T) storage.Bucket // one more client, without decorators
	// unfinished names uploads that were begun and neither finished nor given up.
	unfinished func(t *testing.T) []string
	// abandon leaves an upload of a key behind; nil: the store shows none.
	abandon func(t *testing.T, key string)
	locks   bool // locks can be extended
}

const connections = 4

// targets starts one server of each kind. Its test must not run beside others,
// since credentials are the process's environment.
func targets(t *testing.T, f front) []target {
	t.Helper()
	return append(httpTargets(t, f), s3Target(t, f, "s3 https", stores.S3Options{TLS: true}), sftpTarget(t, f))
}

// httpTargets are those of targets of which a reverse proxy can be the front.
func httpTargets(t *testing.T, f front) []target {
	t.Helper()
	for _, name := range []string{"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		t.Setenv(name, "")
	}
	return []target{s3Target(t, f, "s3", stores.S3Options{}), gcsTarget(t, f), azureTarget(t, f)}
}

// opener makes a target's way to open it out of one that gives an error.
func opener[B storage.Bucket](open func(context.Context) (B, error)) func(*testing.T) storage.Bucket {
	return func(t *testing.T) storage.Bucket {
		t.Helper()
		b, err := open(t.Context())
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		return b
	}
}

func s3Target(t *testing.T, f front, name string, o stores.S3Options) target {
	server := stores.StartVersityGW(t, o)
	t.Setenv("AWS_ACCESS_KEY_ID", server.Key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.Secret)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	bucket := server.NewBucket(t, stores.S3Bucket{Lockable: true})
	scheme := "http://"
	if o.TLS {
		scheme = "https://"
	}
	address := f(t, server.Address)
	options := s3.Options{
		Bucket: bucket, Prefix: "prefix", Endpoint: scheme + address, Region: server.Region, PathStyle: true,
		CAFile: server.CAFile, Connections: connections,
	}
	return target{
		name: name, address: address,
		open:       opener(func(ctx context.Context) (*s3.Bucket, error) { return s3.Open(ctx, options) }),
		unfinished: func(t *testing.T) []string { return server.Uploads(t, bucket) },
		abandon: func(t *testing.T, key string) {
			t.Helper()
			client := server.Client(t, server.Key, server.Secret)
			if _, err := client.CreateMultipartUpload(t.Context(), &awss3.CreateMultipartUploadInput{Bucket: &bucket, Key: aws.String("prefix/" + key)}); err != nil {
				t.Fatal(err)
			}
		},
		locks: true,
	}
}

func gcsTarget(t *testing.T, f front) target {
	// It answers only those who call it by the name that it goes by.
	behind := stores.FreeAddress(t)
	address := f(t, behind)
	server := stores.StartGCS(t, stores.GCSOptions{Address: behind, Behind: address})
	server.MakeBucket(t, "bucket")
	options := gcs.Options{Bucket: "bucket", Prefix: "prefix", Emulator: server.Host, Connections: connections}
	return target{name: "gcs", address: address, locks: true, open: opener(func(ctx context.Context) (*gcs.Bucket, error) { return gcs.Open(ctx, options) })}
}

func azureTarget(t *testing.T, f front) target {
	server := stores.StartAzurite(t, stores.AzureOptions{})
	container := server.MakeContainer(t, "container")
	address := f(t, server.Address)
	options := azure.Options{
		Container: "container", Prefix: "prefix", Account: stores.AzuriteAccount, Endpoint: server.EndpointAt(address),
		Secrets: azure.Secrets{AccountKey: stores.AzuriteKey}, Connections: connections,
	}
	return target{
		name: "azure", address: address,
		open: opener(func(ctx context.Context) (*azure.Bucket, error) { return azure.Open(ctx, options) }),
		abandon: func(t *testing.T, key string) {
			t.Helper()
			id := base64.StdEncoding.EncodeToString([]byte("sixteen bytes..."))
			if _, err := container.NewBlockBlobClient("prefix/"+key).StageBlock(t.Context(), id, streaming.NopCloser(strings.NewReader("half")), nil); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func sftpTarget(t *testing.T, f front) target {
	server := stores.StartSFTP(t, stores.SFTPOptions{})
	address := f(t, server.Address)
	server.Trust(address)
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(server.Dir, "folder")
	options := sftp.Options{
		Host: host, Port: port, User: server.User, Folder: folder, Create: true,
		KnownHostsFile: server.KnownHostsFile, IdentityFiles: []string{server.IdentityFile}, Connections: connections,
	}
	return target{
		name: "sftp", address: address,
		open: opener(func(ctx context.Context) (*sftp.Bucket, error) { return sftp.Open(ctx, options) }),
		abandon: func(t *testing.T, key string) {
			t.Helper()
			dir, name := filepath.Split(filepath.Join(folder, key))
			if err := os.WriteFile(filepath.Join(dir, storage.TempPrefix+name), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// Limits that make a fault cost a second and not a minute.
const (
	base = 700 * time.Millisecond
	idle = 500 * time.Millisecond
	rate = 16 << 20
)

// decorated is a bucket as the agent uses it. retried is called with the number
// of the retry before each.
func decorated(b storage.Bucket, retried func(n int)) (storage.Bucket, *decorate.Counter) {
	count := decorate.Count(b)
	limited := decorate.Timeout(count, decorate.TimeoutOptions{Base: base, Idle: idle, MinRate: rate, Grace: base})
	return decorate.Retry(limited, decorate.RetryOptions{
		Initial: 20 * time.Millisecond, Max: 200 * time.Millisecond, Elapsed: 20 * time.Second,
		Log: slog.New(&onRetry{Handler: slog.DiscardHandler, do: retried}), Now: time.Now,
	}), count
}

// onRetry calls a function for each warning of Retry.
type onRetry struct {
	slog.Handler
	n  atomic.Int64
	do func(n int)
}

func (h *onRetry) Enabled(context.Context, slog.Level) bool { return true }

func (h *onRetry) Handle(context.Context, slog.Record) error {
	if n := h.n.Add(1); h.do != nil {
		h.do(int(n))
	}
	return nil
}
