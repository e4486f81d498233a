package azure

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"

	"agent/testing/stores"
)

// recorder stands before a server and keeps what goes over the wire.
type recorder struct {
	mu   sync.Mutex
	seen []*http.Request // without bodies
}

// record starts a recorder before an Azurite.
func record(t *testing.T, server *stores.Azure) (*recorder, string) {
	t.Helper()
	target, err := url.Parse("http://" + server.Address)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	r := &recorder{}
	// The host stays as it was signed.
	proxy := &httputil.ReverseProxy{Transport: transport, Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = target.Scheme, target.Host, p.In.Host
		p.Out.URL.RawQuery = p.In.URL.RawQuery
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.add(req)
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(front.Close)
	u, err := url.Parse(front.URL)
	if err != nil {
		t.Fatal(err)
	}
	return r, server.EndpointAt(u.Host)
}

func (r *recorder) add(req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, req.Clone(req.Context()))
}

// take gives the requests since the last call.
func (r *recorder) take() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

// kinds names requests as METHOD and comp, with their number in a row.
func kinds(seen []*http.Request) []string {
	var out []string
	for _, req := range seen {
		kind := req.Method
		if comp := req.URL.Query().Get("comp"); comp != "" {
			kind += " " + comp
		}
		out = append(out, kind)
	}
	return out
}

// answering is a bucket over a server that gives the answers of handle.
func answering(t *testing.T, handle http.HandlerFunc) *Bucket {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	b := open(t, Options{
		Container: "backup", Account: "account", Endpoint: server.URL + "/account", Secrets: Secrets{AccountKey: secret},
	})
	t.Cleanup(func() { b.Close() })
	return b
}

// refuse answers as the service does.
func refuse(w http.ResponseWriter, req *http.Request, status int, code string) {
	_, _ = io.Copy(io.Discard, req.Body)
	w.Header().Set("x-ms-error-code", code)
	w.Header().Set("x-ms-request-id", "1")
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if req.Method != http.MethodHead {
		io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>`+code+`</Code><Message>secret-message</Message></Error>`)
	}
}
