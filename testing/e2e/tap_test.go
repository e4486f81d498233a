package e2e_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// request is one that went to a store.
type request struct {
	*http.Request
	head bytes.Buffer // the first bytes of its body
}

// tap is a proxy in front of a store that remembers what was asked of it.
type tap struct {
	URL     string
	Address string // host:port

	mu      sync.Mutex
	seen    []*request
	running int
	idle    sync.Cond
}

// headSize is how much of a body is remembered.
const headSize = 4 << 10

// newTap puts a proxy in front of a store. answer, if there is one, may answer
// a request itself, which it says by returning true.
func newTap(t *testing.T, upstream string, answer func(http.ResponseWriter, *http.Request) bool) *tap {
	t.Helper()
	target, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{Transport: tr, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}}
	p := &tap{}
	p.idle.L = &p.mu
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &request{Request: r}
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(r.Body, &headWriter{to: &seen.head}), r.Body}
		p.busy(1)
		defer p.busy(-1)
		if answer == nil || !answer(w, r) {
			proxy.ServeHTTP(w, r)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.seen = append(p.seen, seen)
	}))
	t.Cleanup(server.Close)
	p.URL, p.Address = server.URL, strings.TrimPrefix(server.URL, "http://")
	return p
}

// headWriter keeps the first bytes of what is written.
type headWriter struct{ to *bytes.Buffer }

func (h *headWriter) Write(p []byte) (int, error) {
	h.to.Write(p[:min(len(p), headSize-h.to.Len())])
	return len(p), nil
}

func (p *tap) busy(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running += n
	p.idle.Broadcast()
}

// taken gives what was asked and answered since the last call. What is just
// being asked is waited for.
func (p *tap) taken() []*request {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.running > 0 {
		p.idle.Wait()
	}
	seen := p.seen
	p.seen = nil
	return seen
}
