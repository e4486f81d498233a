package stores

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"

	"agent/internal/storage/transport"
)

// GCSOptions of a server of StartGCS.
type GCSOptions struct {
	// TLS makes the server speak https, with a certificate in CAFile.
	TLS bool
	// Versioning keeps the server's objects in memory, where it can keep older
	// generations of them (MakeBucket then turns that on). Otherwise they are files.
	Versioning bool
	// Behind is the address (host:port) under which clients reach the server, if
	// it is not its own: that of a proxy in front of it. The server answers reads
	// only by the name that it goes by.
	Behind string
	// Address to listen on; empty: a free one.
	Address string
}

// GCS is a running fake-gcs-server, an emulator of Google Cloud Storage. It
// knows no credentials, and enforces no retention.
type GCS struct {
	*Server
	URL    string // of the server itself
	Host   string // as STORAGE_EMULATOR_HOST has it, for clients; a proxy's if there is one
	CAFile string // readable by everybody; empty without TLS

	versioning bool
	client     *http.Client
}

// StartGCS starts a server without buckets, until the test ends.
func StartGCS(t testing.TB, o GCSOptions) *GCS {
	t.Helper()
	dir := tempDir(t)
	if o.Address == "" {
		o.Address = FreeAddress(t)
	}
	if o.Behind == "" {
		o.Behind = o.Address
	}
	host, port, err := net.SplitHostPort(o.Address)
	if err != nil {
		t.Fatalf("split the server's address: %v", err)
	}
	scheme, backend := "http", "filesystem"
	if o.Versioning {
		backend = "memory"
	}
	g := &GCS{versioning: o.Versioning}
	args := []string{}
	if o.TLS {
		scheme = "https"
		pair := NewTLS(t, dir, "cert.pem", "key.pem")
		g.CAFile = pair.CertFile
		args = append(args, "-cert-location", pair.CertFile, "-private-key-location", pair.KeyFile)
	}
	g.URL, g.Host = scheme+"://"+o.Address, scheme+"://"+o.Behind
	below, err := transport.New(transport.Options{CAFile: g.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	g.client = &http.Client{Transport: below}
	t.Cleanup(below.CloseIdleConnections)
	args = append(args, "-scheme", scheme, "-host", host, "-port", port, "-backend", backend, "-filesystem-root", objectDir(t),
		"-public-host", o.Behind, "-external-url", g.Host, "-log-level", "error")
	ready := func(ctx context.Context) error {
		return g.do(ctx, http.MethodGet, "/_internal/healthcheck", nil)
	}
	g.Server = start(t, dir, o.Address, nil, ready, installed(t, "bin", "fake-gcs-server"), args...)
	return g
}

// objectDir is a folder in memory where there is one, since the server syncs
// nothing and the suites make thousands of objects.
func objectDir(t testing.TB) string {
	t.Helper()
	const memory = "/dev/shm"
	if st, err := os.Stat(memory); err != nil || !st.IsDir() {
		return tempDir(t)
	}
	dir, err := os.MkdirTemp(memory, "gcs")
	if err != nil {
		return tempDir(t)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the server's objects: %v", err)
		}
	})
	return dir
}

// MakeBucket makes an empty bucket.
func (g *GCS) MakeBucket(t testing.TB, name string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"name": name, "versioning": map[string]bool{"enabled": g.versioning}})
	if err == nil {
		err = g.do(t.Context(), http.MethodPost, "/storage/v1/b", body)
	}
	if err != nil {
		t.Fatalf("make the bucket %s: %v", name, err)
	}
}

func (g *GCS) do(ctx context.Context, method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, g.URL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return nil
}

// Env is the environment with which an agent's process reaches the server. The
// certificate, if there is one, is a setting of the repository.
func (g *GCS) Env() []string { return []string{"STORAGE_EMULATOR_HOST=" + g.Host} }

// RepositoryURL is the URL of a repository in a bucket; prefix may be empty.
func (g *GCS) RepositoryURL(bucket, prefix string) string {
	url := "gs://" + bucket
	if prefix != "" {
		url += "/" + prefix
	}
	return url
}
