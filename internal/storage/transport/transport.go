// Package transport makes the HTTP client that the backends of object stores
// share: certificates, connections that are kept, and limits on what a server
// may make us wait for. It knows no store.
package transport

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"time"

	"agent/internal/errs"
)

// Options of a client.
type Options struct {
	// CAFile is a file of PEM certificates to trust besides those of the system.
	CAFile string
	// Insecure turns off the check of certificates. Whoever sets it says so to
	// the user.
	Insecure bool
	// Connections is how many connections to one host are kept open, at least 2.
	Connections int
}

const (
	dialTimeout = 15 * time.Second
	tlsTimeout  = 15 * time.Second
	// keepAlive finds a dead peer.
	keepAlive = 15 * time.Second
	// idle is how long an unused connection is kept.
	idle = 90 * time.Second
)

// New makes a transport. It speaks HTTP/1.1 alone: one connection for each
// request moves bulk data faster than streams that share one window, and a
// broken one fails one request. The proxy is that of the environment.
func New(o Options) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Insecure}
	if o.CAFile != "" {
		pool, err := roots(o.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	connections := max(o.Connections, 2)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         hearEarly((&net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}).DialContext),
		TLSClientConfig:     config,
		TLSHandshakeTimeout: tlsTimeout,
		Protocols:           protocols,
		MaxIdleConns:        2 * connections,
		MaxIdleConnsPerHost: connections,
		IdleConnTimeout:     idle,
		// Objects come as they were stored.
		DisableCompression: true,
		WriteBufferSize:    64 << 10,
		ReadBufferSize:     64 << 10,
	}, nil
}

func roots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.Wrap(err, errs.Config, "Name a file with PEM certificates that the agent's user can read.", "read ca_file")
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errs.New(errs.Config, "Give certificates in PEM form (-----BEGIN CERTIFICATE-----).", "ca_file %s holds no certificate", file)
	}
	return pool, nil
}
