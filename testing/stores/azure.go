package stores

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"agent/internal/storage/transport"
)

// AzuriteAccount and AzuriteKey are the published credentials of every Azurite.
const (
	AzuriteAccount = "devstoreaccount1"
	AzuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// AzureOptions say how an Azurite is started.
type AzureOptions struct {
	// TLS gives it a certificate. It then takes OAuth tokens too: any JWT with
	// the right claims, since it does not check signatures.
	TLS bool
}

// Azure is a running Azurite. It keeps no versions and no locks.
type Azure struct {
	*Server
	CAFile string // with TLS: the certificate to trust
	scheme string
}

// keepConnections makes Node keep connections that are not in use for two
// minutes. It would close them after 5 s, and on a busy machine break a request
// that is just being sent; the real service keeps them for minutes. Azurite's
// own option for it, --blobKeepAliveTimeout, has no effect.
const keepConnections = `for (const m of ["http", "https"])
  Object.defineProperty(require(m).Server.prototype, "keepAliveTimeout", { get: () => 120000, set() {} });
`

// StartAzurite starts an Azurite whose files are below a folder of the test's.
func StartAzurite(t testing.TB, o AzureOptions) *Azure {
	t.Helper()
	script := installed(t, "azurite", "node_modules", "azurite", "dist", "src", "blob", "main.js")
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("a store for tests is missing (run testing/install/stores.sh): %v", err)
	}
	dir := tempDir(t)
	a := &Azure{scheme: "http"}
	address := FreeAddress(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	keep := filepath.Join(dir, "keep.js")
	if err := os.WriteFile(keep, []byte(keepConnections), 0o600); err != nil {
		t.Fatal(err)
	}
	// It knows fewer versions of the service's API than the SDK speaks.
	args := []string{
		"--require", keep, script, "--blobHost", host, "--blobPort", port, "--location", data,
		"--silent", "--disableTelemetry", "--skipApiVersionCheck",
	}
	if o.TLS {
		pair := NewTLS(t, dir, "cert.pem", "key.pem")
		a.scheme, a.CAFile = "https", pair.CertFile
		args = append(args, "--cert", pair.CertFile, "--key", pair.KeyFile, "--oauth", "basic")
	}
	a.Server = start(t, dir, address, nil, listening(address), node, args...)
	return a
}

// Endpoint is the URL of the blob service, with the account in its path.
func (a *Azure) Endpoint() string { return a.EndpointAt(a.Address) }

// EndpointAt is Endpoint through a proxy at another host:port.
func (a *Azure) EndpointAt(address string) string {
	return a.scheme + "://" + address + "/" + AzuriteAccount
}

// ConnectionString holds endpoint, account and key.
func (a *Azure) ConnectionString() string { return a.connectionString(a.Address) }

func (a *Azure) connectionString(address string) string {
	return strings.Join([]string{
		"DefaultEndpointsProtocol=" + a.scheme, "AccountName=" + AzuriteAccount, "AccountKey=" + AzuriteKey, "BlobEndpoint=" + a.EndpointAt(address) + ";",
	}, ";")
}

// Env is the environment that an agent needs to reach the server. With TLS it
// needs CAFile in its configuration as well.
func (a *Azure) Env() []string { return a.EnvAt(a.Address) }

// EnvAt is Env through a proxy at another host:port.
func (a *Azure) EnvAt(address string) []string {
	return []string{"AZURE_STORAGE_CONNECTION_STRING=" + a.connectionString(address)}
}

// RepositoryURL is the URL of a repository in a container.
func (a *Azure) RepositoryURL(bucket, prefix string) string {
	return strings.TrimSuffix("azblob://"+bucket+"/"+prefix, "/")
}

// Container is the SDK's client of a container, to look at what is there and
// to do what an agent never does. Its connections end with the test.
func (a *Azure) Container(t testing.TB, name string) *container.Client {
	t.Helper()
	rt, err := transport.New(transport.Options{CAFile: a.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rt.CloseIdleConnections)
	c, err := container.NewClientFromConnectionString(a.ConnectionString(), name,
		&container.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: &http.Client{Transport: rt}}})
	if err != nil {
		t.Fatalf("make a client for container %s: %v", name, err)
	}
	return c
}

// MakeContainer makes a container and gives its client.
func (a *Azure) MakeContainer(t testing.TB, name string) *container.Client {
	t.Helper()
	c := a.Container(t, name)
	if _, err := c.Create(context.Background(), nil); err != nil {
		t.Fatalf("make container %s: %v", name, err)
	}
	return c
}
