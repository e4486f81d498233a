package gcs

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
	gstorage "cloud.google.com/go/storage"

	"agent/internal/errs"
	"agent/internal/storage"
	"agent/internal/storage/transport"
)

const (
	defaultEndpoint = "https://storage.googleapis.com"
	userAgent       = "walagent"
)

// base is the address of the service: scheme and host alone.
func (o Options) base() (*url.URL, error) {
	address, setting := defaultEndpoint, "endpoint"
	switch {
	case o.Endpoint != "" && o.Emulator != "":
		return nil, errs.New(errs.Config, "Set one of them.", "both an endpoint and STORAGE_EMULATOR_HOST are set")
	case o.Emulator != "":
		address, setting = o.Emulator, "STORAGE_EMULATOR_HOST"
		if !strings.Contains(address, "://") {
			address = "http://" + address
		}
	case o.Endpoint != "":
		address = o.Endpoint
	}
	u, err := url.Parse(address)
	// The value is not shown: it may hold a secret by mistake.
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errs.New(errs.Config, "Write it as https://host or https://host:port.", "%s is not the address of a server", setting)
	}
	if path := strings.Trim(u.Path, "/"); path != "" && path != "storage/v1" {
		return nil, errs.New(errs.Config, "Write it as https://host or https://host:port.", "%s has a path", setting)
	}
	if u.Scheme != "https" && o.Emulator == "" {
		return nil, errs.New(errs.Config, "Write it as https://host; an emulator is set with STORAGE_EMULATOR_HOST.",
			"endpoint is not https, and the access token would go over the network in the clear")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// httpClient makes the client that adds credentials to each request, and
// returns what closes its idle connections.
func (o Options) httpClient() (*http.Client, func(), error) {
	below, err := transport.New(transport.Options{CAFile: o.CAFile, Insecure: o.Insecure, Connections: o.Connections})
	if err != nil {
		return nil, nil, err
	}
	idle := below.CloseIdleConnections
	options := &httptransport.Options{
		BaseRoundTripper:      observer{below},
		Headers:               http.Header{"User-Agent": {userAgent}},
		DisableTelemetry:      true,
		DisableAuthentication: o.Emulator != "",
	}
	if o.Emulator == "" {
		tokens, err := transport.New(transport.Options{CAFile: o.CAFile, Connections: 1})
		if err != nil {
			return nil, nil, err
		}
		idle = func() {
			below.CloseIdleConnections()
			tokens.CloseIdleConnections()
		}
		if options.Credentials, err = detect(&http.Client{Transport: tokens}); err != nil {
			return nil, nil, err
		}
	}
	client, err := httptransport.NewClient(options)
	if err != nil {
		return nil, nil, errs.Wrap(err, errs.Config, "", "make a client for Google Cloud Storage")
	}
	return client, idle, nil
}

// detect finds Application Default Credentials. The scope is the widest that
// Cloud Storage knows, as in the SDK: what may be done is up to the roles of
// the account, and setting a retention needs full control.
func detect(client *http.Client) (*auth.Credentials, error) {
	found, err := credentials.DetectDefault(&credentials.DetectOptions{
		Scopes: []string{gstorage.ScopeFullControl}, Client: client, DisableAsyncRefresh: true,
	})
	if err != nil {
		return nil, errs.Wrap(withClass(storage.ErrPermission, err), errs.Storage,
			"Name a file of credentials in GOOGLE_APPLICATION_CREDENTIALS that the agent's user can read, or give the instance a service account.",
			"no usable credentials for Google Cloud Storage")
	}
	return found, nil
}

// observer lets a caller see of its own requests what the SDK does not hand
// on: it fills the *notes in the context of a request.
type observer struct{ http.RoundTripper }

// RoundTrip sends the request as it is.
func (o observer) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := o.RoundTripper.RoundTrip(req)
	if n, ok := req.Context().Value(notesKey{}).(*notes); ok && err == nil {
		n.take(req, resp)
	}
	return resp, err
}

type notesKey struct{}

// notes are what was seen of the answers to the requests of one operation.
type notes struct {
	mu      sync.Mutex
	session string // address of a resumable upload: it is a key to the upload, and never shown
	date    string // of the last answer
}

// noting makes a context whose requests are noted.
func noting(ctx context.Context) (context.Context, *notes) {
	n := new(notes)
	return context.WithValue(ctx, notesKey{}, n), n
}

func (n *notes) take(req *http.Request, resp *http.Response) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.date = resp.Header.Get("Date")
	if req.URL.Query().Get("uploadType") == "resumable" && resp.StatusCode/100 == 2 {
		if to := resp.Header.Get("Location"); to != "" {
			n.session = to
		}
	}
}

func (n *notes) seen() (session, date string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.session, n.date
}
