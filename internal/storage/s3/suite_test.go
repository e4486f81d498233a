package s3

import (
	"path"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"agent/internal/storage"
	"agent/internal/storage/decorate"
	"agent/internal/storage/storagetest"
	"agent/testing/stores"
)

// in gives the options for a bucket of a server. Credentials come by the
// environment, as they do for users.
func in(server *stores.S3, bucket string) Options {
	return Options{
		Bucket: bucket, Endpoint: server.URL, Region: server.Region, PathStyle: true, CAFile: server.CAFile, Connections: 16,
	}
}

// login sets the credentials until the test ends, and takes this host's own
// settings away.
func login(t testing.TB, key, secret string) {
	t.Helper()
	for _, name := range []string{
		"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE",
		"AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_ACCESS_KEY_ID", key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
}

func open(t *testing.T, o Options) *Bucket {
	t.Helper()
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// patiently repeats what versitygw refuses for the moment: a put into a folder
// that a delete empties.
func patiently(b storage.Bucket) storage.Bucket {
	return decorate.Retry(b, decorate.RetryOptions{Initial: time.Millisecond, Max: 20 * time.Millisecond, Tries: 50, Now: time.Now})
}

func asItIs(b storage.Bucket) storage.Bucket { return b }

// suite runs the acceptance suite, with smaller parts than the true ones for
// the sake of time.
func suite(t *testing.T, server *stores.S3, bucket stores.S3Bucket, prefix string, wrap func(storage.Bucket) storage.Bucket) {
	storagetest.Run(t, func(t *testing.T) storagetest.Harness {
		name := server.NewBucket(t, bucket)
		openIn := func(t *testing.T, name string) storage.Bucket {
			o := in(server, name)
			o.Prefix = prefix
			b, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			b.singleMax, b.minPart = 6<<20, 5<<20
			return wrap(b)
		}
		return storagetest.Harness{
			Open:      func(t *testing.T) storage.Bucket { return openIn(t, name) },
			Leftovers: func(t *testing.T) []string { return server.Uploads(t, name) },
			OpenLocking: func(t *testing.T) storage.Bucket {
				return openIn(t, server.NewBucket(t, stores.S3Bucket{Lockable: true}))
			},
			Abandon:   func(t *testing.T, key string) { abandon(t, server, name, path.Join(prefix, key)) },
			BigObject: 16<<20 + 4099,
			Few:       prefix == "", // one run of three is enough
		}
	})
}

// abandon begins an upload and sends a part of it.
func abandon(t *testing.T, server *stores.S3, bucket, name string) {
	t.Helper()
	client := server.Client(t, server.Key, server.Secret)
	upload, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
		Bucket: &bucket, Key: &name, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
	})
	if err == nil {
		_, err = client.UploadPart(t.Context(), &s3.UploadPartInput{
			Bucket: &bucket, Key: &name, UploadId: upload.UploadId, PartNumber: aws.Int32(1), Body: strings.NewReader("part"),
			ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
		})
	}
	if err != nil {
		t.Fatalf("leave an upload behind: %v", err)
	}
}

func TestVersityGW(t *testing.T) {
	server := stores.StartVersityGW(t, stores.S3Options{})
	login(t, server.Key, server.Secret)
	t.Run("Suite", func(t *testing.T) { suite(t, server, stores.S3Bucket{}, "some/prefix", patiently) })
	t.Run("Own", func(t *testing.T) { ownTests(t, server) })
	t.Run("Archiver", func(t *testing.T) { testArchiver(t, server) })
	t.Run("Keeper", func(t *testing.T) { testKeeper(t, server) })
}

func TestVersityGWOverTLS(t *testing.T) {
	server := stores.StartVersityGW(t, stores.S3Options{TLS: true})
	login(t, server.Key, server.Secret)
	t.Run("Suite", func(t *testing.T) { suite(t, server, stores.S3Bucket{}, "", patiently) })
	t.Run("Own", func(t *testing.T) { ownTests(t, server) })
	t.Run("Certificates", func(t *testing.T) { testCertificates(t, server) })
}

// MinIO takes a deletion's marker for an absent object, as Amazon does;
// versitygw does not.
func TestMinIO(t *testing.T) {
	server := stores.StartMinIO(t, stores.S3Options{})
	login(t, server.Key, server.Secret)
	t.Run("Suite", func(t *testing.T) { suite(t, server, stores.S3Bucket{Versioned: true}, "prefix", asItIs) })
	t.Run("Own", func(t *testing.T) { ownTests(t, server) })
	t.Run("Encryption", func(t *testing.T) { testEncryption(t, server) })
}
