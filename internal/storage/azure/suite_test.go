package azure

import (
	"context"
	"encoding/base64"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/golang-jwt/jwt/v5"

	"agent/internal/storage"
	"agent/internal/storage/storagetest"
	"agent/testing/stores"
)

// counter makes names of containers that no other test has.
type counter struct{ n atomic.Int64 }

func (c *counter) next() string { return fmt.Sprintf("test-%d", c.n.Add(1)) }

func TestSuite(t *testing.T) {
	server := stores.StartAzurite(t, stores.AzureOptions{})
	var names counter
	storagetest.Run(t, func(t *testing.T) storagetest.Harness {
		o := Options{
			Prefix: "a/pre-fix", Account: stores.AzuriteAccount, Endpoint: server.Endpoint(),
			Secrets: Secrets{AccountKey: stores.AzuriteKey}, Connections: 8,
		}
		return harness(t, server, o, names.next(), maxSingle+blockSize+4099)
	})
}

// TestSuiteTLS runs over https, with a token as of an identity, at the
// container's root.
func TestSuiteTLS(t *testing.T) {
	server := stores.StartAzurite(t, stores.AzureOptions{TLS: true})
	var names counter
	storagetest.Run(t, func(t *testing.T) storagetest.Harness {
		o := Options{Endpoint: server.Endpoint(), CAFile: server.CAFile, Credential: identity{}, Connections: 8}
		return harness(t, server, o, names.next(), 0)
	})
}

func harness(t *testing.T, server *stores.Azure, o Options, name string, big int64) storagetest.Harness {
	raw := server.MakeContainer(t, name)
	o.Container = name
	return storagetest.Harness{
		Open:      func(t *testing.T) storage.Bucket { return open(t, o) },
		Leftovers: func(t *testing.T) []string { return leftovers(t, raw) },
		Abandon:   func(t *testing.T, key string) { abandon(t, raw, path.Join(o.Prefix, key)) },
		BigObject: big,
		Few:       true, // Azurite is slow
	}
}

// abandon stages a block, with an id of the length that a Put's have.
func abandon(t *testing.T, raw *container.Client, name string) {
	t.Helper()
	id := base64.StdEncoding.EncodeToString([]byte("sixteen bytes..."))
	_, err := raw.NewBlockBlobClient(name).StageBlock(t.Context(), id, streaming.NopCloser(strings.NewReader("half")), nil)
	if err != nil {
		t.Fatalf("leave a block behind: %v", err)
	}
}

func open(t *testing.T, o Options) *Bucket {
	t.Helper()
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return b
}

// leftovers are the blobs that consist of staged blocks alone.
func leftovers(t *testing.T, raw *container.Client) []string {
	t.Helper()
	all := blobs(t, raw, container.ListBlobsInclude{UncommittedBlobs: true})
	whole := blobs(t, raw, container.ListBlobsInclude{})
	return slices.DeleteFunc(all, func(name string) bool { return slices.Contains(whole, name) })
}

func blobs(t *testing.T, raw *container.Client, include container.ListBlobsInclude) []string {
	t.Helper()
	var names []string
	for pager := raw.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Include: include}); pager.More(); {
		page, err := pager.NextPage(context.Background())
		if err != nil {
			t.Fatalf("look at the container: %v", err)
		}
		for _, item := range page.Segment.BlobItems {
			names = append(names, *item.Name)
		}
	}
	return names
}

// identity gives tokens such as those of Entra ID, which Azurite takes without
// a look at their signature.
type identity struct{}

func (identity) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	now := time.Now()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/00000000-0000-0000-0000-000000000001/",
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(), "scp": strings.Join(o.Scopes, " "),
	}).SignedString([]byte("nobody checks it"))
	return azcore.AccessToken{Token: token, ExpiresOn: now.Add(time.Hour)}, err
}
