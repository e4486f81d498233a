// Package gcs is the storage backend for Google Cloud Storage.
//
// An object is created by one upload with the condition ifGenerationMatch=0
// ("no live object has this name", Cloud Storage, "Request preconditions"), so
// that the service itself decides. The CRC32C of the whole body goes along and
// the service refuses a body that does not have it.
//
// Listings, descriptions, deletes and uploads use the JSON API through
// cloud.google.com/go/storage, whose own retries are off. Bodies are read by
// the XML API over the same client and credentials: its answers carry
// Last-Modified, which the media answers of the JSON API lack, its errors tell
// a missing object from a missing bucket by a code, and the SDK's reader sends
// requests of its own when a stream breaks, without end or wait.
//
// Google keeps generations and no delete markers. An object that was deleted
// in a versioned bucket has generations, all of them with a time of deletion;
// Versions then yields a Hidden entry before the first of them.
package gcs

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	gstorage "cloud.google.com/go/storage"
	"google.golang.org/api/option"

	"agent/internal/errs"
	"agent/internal/storage"
)

// Options of a bucket. Credentials are no option: they are Google's
// Application Default Credentials (GOOGLE_APPLICATION_CREDENTIALS, the file of
// gcloud, workload identity federation, or the instance's service account).
type Options struct {
	// Bucket is the name of the bucket. It must exist.
	Bucket string
	// Prefix comes before each key, without slashes at its ends; it may be empty.
	Prefix string
	// URL is what String returns; it holds no secret. Empty: made of Bucket and Prefix.
	URL string

	// StorageClass of new objects, such as "NEARLINE"; empty: the bucket's default.
	StorageClass string
	// KMSKey is the name of a Cloud KMS key to encrypt new objects with,
	// projects/P/locations/L/keyRings/R/cryptoKeys/K; empty: the bucket's default.
	KMSKey string
	// UserProject pays for the requests (requester pays); empty: the bucket's owner.
	UserProject string

	// Endpoint is another address of the service, as https://host[:port]:
	// Private Service Connect, a restricted VIP, another universe. It is https,
	// since the access token goes there. Empty: https://storage.googleapis.com.
	Endpoint string
	// Emulator is the address of an emulator as STORAGE_EMULATOR_HOST has it,
	// host:port or a URL. With it no credentials are looked for, and Endpoint
	// is empty.
	Emulator string

	// CAFile is a file of PEM certificates to trust besides those of the system.
	CAFile string
	// Insecure skips the check of the service's certificate, never that of the
	// server that gives out tokens. The caller warns.
	Insecure bool
	// Connections is how many requests to expect at a time; also how many
	// objects Delete removes at a time, between 4 and 32.
	Connections int
	// Log gets what is of interest only when looking for a fault; nil: nothing.
	Log *slog.Logger
}

// Bucket is a bucket of Google Cloud Storage, or the part of it below a
// prefix, as a storage.Bucket. It is safe for concurrent use.
type Bucket struct {
	o      Options
	url    string
	root   string // "" or the prefix with a slash
	base   *url.URL
	http   *http.Client // with credentials
	idle   func()
	client *gstorage.Client
	bucket *gstorage.BucketHandle
	log    *slog.Logger
}

var (
	_ storage.Bucket   = (*Bucket)(nil)
	_ storage.Prober   = (*Bucket)(nil)
	_ storage.Extender = (*Bucket)(nil)
)

// Open checks the options, looks for credentials and makes a client. It sends
// no request, except that on a host with no credentials in a file Google's
// metadata server is looked for. Errors are *errs.Error of kind Config, and of
// kind Storage, matching storage.ErrPermission, if there are no credentials.
func Open(ctx context.Context, o Options) (*Bucket, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	b := &Bucket{o: o, url: o.URL, log: o.Log}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if o.Prefix != "" {
		b.root = o.Prefix + "/"
	}
	if b.url == "" {
		b.url = (&url.URL{Scheme: storage.SchemeGCS, Host: o.Bucket, Path: o.Prefix}).String()
	}
	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *Bucket) connect(ctx context.Context) (err error) {
	if b.base, err = b.o.base(); err != nil {
		return err
	}
	if b.http, b.idle, err = b.o.httpClient(); err != nil {
		return err
	}
	// The address is always given, so that the SDK does not go by the
	// environment; the client has the credentials already.
	b.client, err = gstorage.NewClient(ctx, option.WithoutAuthentication(), option.WithHTTPClient(b.http),
		option.WithEndpoint(b.base.JoinPath("storage/v1/").String()), gstorage.WithDisabledClientMetrics())
	if err != nil {
		return errs.Wrap(err, errs.Config, "", "make a client for %s", b.url)
	}
	// RetryNever would leave the SDK's own retries of resumable uploads on;
	// "always, if the error is one of none" turns off both.
	b.client.SetRetry(gstorage.WithPolicy(gstorage.RetryAlways), gstorage.WithErrorFunc(func(error) bool { return false }))
	b.bucket = b.client.Bucket(b.o.Bucket)
	if b.o.UserProject != "" {
		b.bucket = b.bucket.UserProject(b.o.UserProject)
	}
	return nil
}

// Rules for names: Cloud Storage, "Bucket naming requirements" (looser, the
// service has the last word); Cloud KMS, "Getting a Cloud KMS resource ID".
const (
	bucketRule = `^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`
	keyRule    = `^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$`
	classRule  = `^[A-Z_]+$`
)

func (o Options) check() error {
	for _, rule := range []struct{ value, rule, hint, what string }{
		{o.Bucket, bucketRule, "Write the repository as gs://bucket/prefix.", "name of a bucket"},
		{o.KMSKey, keyRule, "Write it as projects/P/locations/L/keyRings/R/cryptoKeys/K.", "name of a Cloud KMS key"},
		{o.StorageClass, classRule, "Use one such as STANDARD, NEARLINE, COLDLINE or ARCHIVE.", "storage class"},
	} {
		if rule.value == "" && rule.rule != bucketRule {
			continue
		}
		ok, err := regexp.MatchString(rule.rule, rule.value)
		if err != nil || !ok {
			return errs.New(errs.Config, rule.hint, "%q is not a %s of Google Cloud Storage", rule.value, rule.what)
		}
	}
	if o.Prefix == "" {
		return nil
	}
	if err := storage.CheckKey(o.Prefix); err != nil {
		return errs.Wrap(err, errs.Config, "Write the repository as gs://bucket/prefix.", "prefix cannot be used")
	}
	return nil
}

// String is the URL for messages.
func (b *Bucket) String() string { return b.url }

// Capabilities says that all that there is can be done.
func (b *Bucket) Capabilities() storage.Capabilities {
	return storage.Capabilities{Metadata: true, Locks: true, Versions: true}
}

// Close gives up the connections.
func (b *Bucket) Close() error {
	err := b.client.Close()
	b.idle()
	if err != nil {
		return fmt.Errorf("close client of %s: %w", b.url, err)
	}
	return nil
}

// object is the handle of a key.
func (b *Bucket) object(key string) *gstorage.ObjectHandle { return b.bucket.Object(b.root + key) }

// key is the key of an object's name; ok is false of what is none of ours.
func (b *Bucket) key(name string) (key string, ok bool) {
	key, ok = strings.CutPrefix(name, b.root)
	return key, ok && storage.CheckKey(key) == nil
}
