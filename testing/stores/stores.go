// Package stores starts the real object stores that tests run against: each
// in a temporary folder, on a free port of the loopback address, stopped when
// its test ends. testing/install/stores.sh installs them; one that is missing
// fails the test. FaultProxy stands between a client and a store and breaks the
// connection in the ways that networks do.
package stores

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"agent/testing/harness"
)

// startLimit bounds the wait for a server.
const startLimit = 60 * time.Second

// installed returns the path of something that testing/install/stores.sh
// installed, below the cache folder.
func installed(t testing.TB, parts ...string) string {
	t.Helper()
	cache, err := harness.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(append([]string{cache, "stores"}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("a store for tests is missing (run testing/install/stores.sh): %v", err)
	}
	return path
}

// FreeAddress returns a loopback address with a port that nobody uses.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("find a free port: %v", err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatalf("free a port: %v", err)
	}
	return address
}

// Server is a running store.
type Server struct {
	Address string // host:port
	cmd     *exec.Cmd
	output  *syncBuffer
	exited  chan struct{}
}

// start runs a server until the test ends, and waits until ready says nil. dir
// becomes its working folder.
func start(t testing.TB, dir, address string, env []string, ready func(context.Context) error, path string, args ...string) *Server {
	t.Helper()
	s := &Server{Address: address, output: &syncBuffer{}, exited: make(chan struct{})}
	s.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), path, args...) // Stop ends it
	s.cmd.Dir = dir
	s.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + os.TempDir(), "LC_ALL=C.UTF-8", "TZ=UTC"}, env...)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", filepath.Base(path), err)
	}
	go func() {
		_ = s.cmd.Wait() // it is killed in the end
		close(s.exited)
	}()
	t.Cleanup(s.Stop)
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return s
		}
		select {
		case <-s.exited:
			t.Fatalf("%s ended by itself: %s", filepath.Base(path), s.Output())
		case <-ctx.Done():
			t.Fatalf("%s is not ready after %s: %v\n%s", filepath.Base(path), startLimit, err, s.Output())
		case <-time.After(20 * time.Millisecond): // nothing tells when it listens
		}
	}
}

// Stop kills the server and waits for its end. It may be called more than once.
func (s *Server) Stop() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	<-s.exited
}

// Output is what the server has printed.
func (s *Server) Output() string { return s.output.String() }

// listening is the simplest sign of readiness.
func listening(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TLS is a server certificate for 127.0.0.1 and localhost, signed by itself.
type TLS struct{ CertFile, KeyFile string }

// NewTLS makes a key and a certificate below dir, readable by everybody, with
// the given file names.
func NewTLS(t testing.TB, dir, certName, keyName string) TLS {
	t.Helper()
	pair := TLS{filepath.Join(dir, certName), filepath.Join(dir, keyName)}
	if err := pair.write(); err != nil {
		t.Fatalf("make a certificate: %v", err)
	}
	return pair
}

func (p TLS) write() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return errors.Join(
		os.WriteFile(p.CertFile, block("CERTIFICATE", cert), 0o644),
		os.WriteFile(p.KeyFile, block("PRIVATE KEY", private), 0o644),
	)
}

// tempDir is a folder of the test's that every user can enter.
func tempDir(t testing.TB) string {
	t.Helper()
	dir := harness.TempDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(fmt.Errorf("open the test's folder: %w", err))
	}
	return dir
}
