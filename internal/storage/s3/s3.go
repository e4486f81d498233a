// Package s3 is the storage backend for Amazon S3 and the services that speak
// its protocol, by aws-sdk-go-v2.
//
// An object is created by one PutObject with "If-None-Match: *", so that the
// service itself decides who is first ("Conditional writes", Amazon S3 User
// Guide); one above 64 MiB by a multipart upload with the condition on its
// completion. Each body carries its CRC32C in a header, so that the service
// refuses one that was damaged on the way. Nothing newer is asked of a service,
// and the checksum can be set to MD5 or none for those that know no other.
//
// The SDK repeats nothing: one call is one request, but for multipart uploads,
// listings of many pages, deletes of more than a thousand keys, and the look
// behind an answer without a body (HEAD), which says too little by itself.
package s3

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/internal/errs"
	"agent/internal/storage"
)

// The values of Options.Checksum.
const (
	ChecksumCRC32C = "crc32c" // x-amz-checksum-crc32c; the default
	ChecksumMD5    = "md5"    // Content-MD5, for services that know no other
	ChecksumNone   = "none"   // the service cannot tell a damaged body
)

// Options of a bucket. Credentials come by the SDK's own chain: environment,
// shared files, web identity, container and instance roles.
type Options struct {
	Bucket string // its name
	Prefix string // before every key, without a slash at either end; may be empty
	URL    string // for messages, without secrets; empty: made of Bucket and Prefix

	Region    string // empty: the SDK's own, or us-east-1 where there is an endpoint
	Endpoint  string // URL of an S3-compatible service; empty: AWS_ENDPOINT_URL, or Amazon's
	PathStyle bool   // the bucket stands in the path and not in the host name
	Profile   string // of the shared files; empty: AWS_PROFILE

	StorageClass string // such as STANDARD_IA; empty: the bucket's
	SSE          string // "AES256", "aws:kms"; empty: the bucket's
	KMSKeyID     string // with "aws:kms"; empty: the account's default key
	Checksum     string // one of the Checksum constants; empty: ChecksumCRC32C

	CAFile      string // PEM certificates to trust besides those of the system
	Insecure    bool   // certificates are not checked; the caller warns
	Connections int    // requests at a time to expect
	Log         *slog.Logger
}

// Bucket is an S3 bucket, or what is below a prefix in it. It is safe for
// concurrent use.
type Bucket struct {
	o      Options
	client *s3.Client
	http   *http.Transport
	region string
	tls    bool   // the endpoint is https
	under  string // Options.Prefix with a slash, or empty

	singleMax int64 // the largest body, in bytes, that is sent by one PutObject
	minPart   int64 // bytes of a part of a larger one

	noBatch atomic.Bool // the service has no DeleteObjects; learnt from its answer
}

var (
	_ storage.Bucket   = (*Bucket)(nil)
	_ storage.Prober   = (*Bucket)(nil)
	_ storage.Extender = (*Bucket)(nil)
	_ storage.Cleaner  = (*Bucket)(nil)
)

// Open checks the options and makes a client; it sends nothing, so that wrong
// credentials or a missing bucket show with the first call. Errors are
// *errs.Error of kind Config.
func Open(ctx context.Context, o Options) (*Bucket, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	b := &Bucket{o: o, singleMax: singleMax, minPart: minPart}
	if o.Prefix != "" {
		b.under = o.Prefix + "/"
	}
	if b.o.URL == "" {
		b.o.URL = strings.TrimSuffix(storage.SchemeS3+"://"+o.Bucket+"/"+o.Prefix, "/")
	}
	if b.o.Log == nil {
		b.o.Log = slog.New(slog.DiscardHandler)
	}
	if b.o.Checksum == "" {
		b.o.Checksum = ChecksumCRC32C
	}
	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

func (o Options) check() error {
	switch {
	case o.Bucket == "":
		return errs.New(errs.Config, "Write the URL as s3://bucket/prefix.", "repository URL names no bucket")
	case o.Prefix != "" && storage.CheckKey(o.Prefix) != nil:
		return errs.Wrap(storage.CheckKey(o.Prefix), errs.Config, "Write the URL as s3://bucket/prefix.", "repository prefix cannot be used")
	case !slices.Contains([]string{"", "AES256", "aws:kms", "aws:kms:dsse"}, o.SSE):
		return errs.New(errs.Config, "Use AES256 or aws:kms, or leave it out.", "server-side encryption %q is not known", o.SSE)
	case o.KMSKeyID != "" && !strings.HasPrefix(o.SSE, "aws:kms"):
		return errs.New(errs.Config, "Set the server-side encryption to aws:kms.", "a KMS key is given without server-side encryption by KMS")
	case !slices.Contains([]string{"", ChecksumCRC32C, ChecksumMD5, ChecksumNone}, o.Checksum):
		return errs.New(errs.Config, "Use crc32c, md5 or none.", "checksum %q is not known", o.Checksum)
	}
	return nil
}

// Capabilities says that metadata, locks and versions are understood. Whether
// this bucket keeps versions and allows locks is told by Probe.
func (b *Bucket) Capabilities() storage.Capabilities {
	return storage.Capabilities{Metadata: true, Locks: true, Versions: true}
}

// String is the URL of the bucket and prefix.
func (b *Bucket) String() string { return b.o.URL }

// Close closes the connections that are not in use.
func (b *Bucket) Close() error {
	b.http.CloseIdleConnections()
	return nil
}

// name is the object's name in the bucket.
func (b *Bucket) name(key string) *string { return aws.String(b.under + key) }

// bucket is the name as requests take it.
func (b *Bucket) bucket() *string { return aws.String(b.o.Bucket) }

// keyOf is the key of an object's name. Objects that no key names, such as the
// empty ones that consoles make for a folder, are not ours.
func (b *Bucket) keyOf(name *string) (key string, ours bool) {
	key, ours = strings.CutPrefix(aws.ToString(name), b.under)
	return key, ours && storage.CheckKey(key) == nil
}

// begin is what every operation on a key checks first.
func begin(ctx context.Context, key string) error {
	return errors.Join(storage.CheckKey(key), ctx.Err())
}
