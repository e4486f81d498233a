// Package azure is the storage backend for Azure Blob Storage.
//
// An object is a block blob, created by one Put Blob with "If-None-Match: *",
// so that the service decides that the key is new (REST reference, "Specifying
// conditional headers for Blob service operations"). Bodies of more than 64 MiB
// are staged in blocks and become visible by one Put Block List with the same
// condition. Each request with a body carries its CRC-64, which the service
// compares before it stores anything.
//
// The account must not have a hierarchical namespace (Data Lake Storage):
// there a listing is not in the order of the keys, folders are objects, and
// single objects cannot be locked. Such an account is found out and refused.
package azure

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"agent/internal/errs"
	"agent/internal/storage"
)

// Options say which container is meant and how it is reached.
type Options struct {
	Container string
	Prefix    string // of all keys, without slashes at its ends; may be empty
	URL       string // for messages, without secrets; "" makes one of Container and Prefix

	// Account is the storage account, as in AZURE_STORAGE_ACCOUNT. It may be
	// empty with a connection string, or with Endpoint and a SAS or a token.
	Account string
	// Endpoint is the whole URL of the blob service, for emulators and
	// sovereign clouds. Default: https://ACCOUNT.blob.core.windows.net.
	Endpoint string
	// Secrets are the credentials. Without any those of the environment, of a
	// workload or managed identity or of the Azure CLI are looked for, by
	// azidentity.DefaultAzureCredential.
	Secrets Secrets
	// Credential is taken in place of DefaultAzureCredential if it is not nil.
	Credential azcore.TokenCredential

	// StorageClass is the access tier of new objects: Hot, Cool or Cold, in any
	// case of letters; "" leaves it to the account.
	StorageClass string
	// EncryptionScope encrypts new objects with that scope's key; "" leaves it
	// to the container.
	EncryptionScope string

	Log         *slog.Logger // nil: none
	Connections int          // parallel requests to expect
	CAFile      string       // PEM certificates to trust besides the system's
	// Insecure turns off the check of the service's certificate, not of those
	// of the token services. Whoever sets it warns the user.
	Insecure bool
}

// Bucket is a container, or a part of one, as a storage.Bucket. It is safe for
// concurrent use.
type Bucket struct {
	container *container.Client
	prefix    string // "" or with a slash at its end
	url       string
	tier      *blob.AccessTier
	scope     *blob.CPKScopeInfo
	parallel  int
	idle      []*http.Transport
}

var (
	_ storage.Bucket   = (*Bucket)(nil)
	_ storage.Prober   = (*Bucket)(nil)
	_ storage.Extender = (*Bucket)(nil)
	_ storage.Cleaner  = (*Bucket)(nil)
)

// containerName follows the REST reference, "Naming and Referencing
// Containers, Blobs, and Metadata"; $root and $web are the service's own.
var containerName = regexp.MustCompile(`^(\$root|\$web|[a-z0-9](-?[a-z0-9])*)$`)

// accountName follows the same; "-secondary" is the copy of a read-access
// geo-redundant account.
var accountName = regexp.MustCompile(`^[a-z0-9]{3,24}(-secondary)?$`)

// Open makes a client. It sends no request, so that a wrong name or wrong
// credentials are found by the first operation. Errors are *errs.Error of the
// kind Config.
func Open(ctx context.Context, o Options) (*Bucket, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open container: %w", err)
	}
	if n := len(o.Container); n < 3 || n > 63 || !containerName.MatchString(o.Container) {
		return nil, errs.New(errs.Config, "A container's name has 3 to 63 lower-case letters, digits and single hyphens.",
			"%q cannot be the name of an Azure container", o.Container)
	}
	if o.Prefix != "" {
		if err := storage.CheckKey(o.Prefix); err != nil {
			return nil, errs.Wrap(err, errs.Config, "Choose another folder in the container.", "prefix of the repository cannot be used")
		}
	}
	b := &Bucket{url: o.URL, parallel: min(max(o.Connections, 1), maxParallel)}
	if b.url == "" {
		b.url = (&url.URL{Scheme: storage.SchemeAzure, Host: o.Container, Path: o.Prefix}).String()
	}
	if o.Prefix != "" {
		b.prefix = o.Prefix + "/"
	}
	var err error
	if b.tier, err = tierOf(o.StorageClass); err != nil {
		return nil, err
	}
	if o.EncryptionScope != "" {
		b.scope = &blob.CPKScopeInfo{EncryptionScope: &o.EncryptionScope}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if b.container, b.idle, err = connect(o); err != nil {
		return nil, err
	}
	return b, nil
}

// maxParallel bounds the requests of one call that deletes many objects.
const maxParallel = 4

// tierOf takes the tiers that can be read at once. An archived blob cannot,
// for hours.
func tierOf(class string) (*blob.AccessTier, error) {
	if class == "" {
		return nil, nil
	}
	for _, tier := range []blob.AccessTier{blob.AccessTierHot, blob.AccessTierCool, blob.AccessTierCold} {
		if strings.EqualFold(class, string(tier)) {
			return &tier, nil
		}
	}
	return nil, errs.New(errs.Config, "Use Hot, Cool or Cold, or leave it out. Archive cannot be read without hours of waiting.",
		"%q is not an access tier that can be used", class)
}

// Capabilities says that metadata, locks and versions are understood.
func (b *Bucket) Capabilities() storage.Capabilities {
	return storage.Capabilities{Metadata: true, Locks: true, Versions: true}
}

// String is the URL for messages.
func (b *Bucket) String() string { return b.url }

// Close gives up the connections that are not in use.
func (b *Bucket) Close() error {
	for _, t := range b.idle {
		t.CloseIdleConnections()
	}
	return nil
}

// name is the blob's name of a key.
func (b *Bucket) name(key string) string { return b.prefix + key }

// fail names the operation and the object.
func (b *Bucket) fail(ctx context.Context, op, key string, err error) error {
	return &storage.Error{Op: op, Bucket: b.url, Key: key, Err: translate(ctx, op, err)}
}
