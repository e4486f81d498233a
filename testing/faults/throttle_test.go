package faults_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"agent/internal/storage"
)

// throttle is a reverse proxy that tells clients to come back later.
type throttle struct {
	mu     sync.Mutex
	left   int // answers of this kind still to be given
	answer func(w http.ResponseWriter)
	given  int
}

func (th *throttle) start(t *testing.T, upstream string) (address string) {
	target, err := url.Parse("http://" + upstream)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	forward := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answer := th.next(); answer != nil {
			answer(w)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.Close()
		transport.CloseIdleConnections()
	})
	return strings.TrimPrefix(s.URL, "http://")
}

func (th *throttle) next() func(http.ResponseWriter) {
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.left == 0 {
		return nil
	}
	th.left--
	th.given++
	return th.answer
}

func (th *throttle) set(n int, answer func(http.ResponseWriter)) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.left, th.given, th.answer = n, 0, answer
}

// says is an answer in the words of a service.
func says(status int, header map[string]string, body string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // the client may have gone
	}
}

// A service that has too much to do is asked again, whatever it says so by.
func TestThrottled(t *testing.T) {
	xml := map[string]string{"Content-Type": "application/xml"}
	later := map[string]string{"Retry-After": "1"}
	answers := map[string]map[string]func(http.ResponseWriter){
		"s3": {
			"SlowDown":      says(http.StatusServiceUnavailable, xml, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"),
			"InternalError": says(http.StatusInternalServerError, xml, "<Error><Code>InternalError</Code></Error>"),
		},
		"gcs": {
			"rateLimitExceeded": says(http.StatusTooManyRequests, map[string]string{"Content-Type": "application/json"},
				`{"error":{"code":429,"message":"too many","errors":[{"reason":"rateLimitExceeded","message":"too many"}]}}`),
			"SlowDown": says(http.StatusServiceUnavailable, xml, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"),
		},
		"azure": {
			"ServerBusy": says(http.StatusServiceUnavailable, map[string]string{"Content-Type": "application/xml", "x-ms-error-code": "ServerBusy"},
				"<Error><Code>ServerBusy</Code><Message>The server is busy.</Message></Error>"),
			"OperationTimedOut": says(http.StatusInternalServerError, map[string]string{"Content-Type": "application/xml", "x-ms-error-code": "OperationTimedOut"},
				"<Error><Code>OperationTimedOut</Code></Error>"),
		},
	}
	common := map[string]func(http.ResponseWriter){
		"429 with Retry-After": says(http.StatusTooManyRequests, later, ""),
		"503 of a proxy":       says(http.StatusServiceUnavailable, map[string]string{"Content-Type": "text/html"}, "<html>come back</html>"),
		"502":                  says(http.StatusBadGateway, nil, ""),
		"504":                  says(http.StatusGatewayTimeout, nil, ""),
	}
	throttles := map[string]*throttle{}
	for _, tt := range httpTargets(t, func(t *testing.T, upstream string) string {
		th := &throttle{}
		address := th.start(t, upstream)
		throttles[address] = th
		return address
	}) {
		th := throttles[tt.address]
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			raw := tt.open(t)
			for _, set := range []map[string]func(http.ResponseWriter){answers[tt.name], common} {
				for name, answer := range set {
					t.Run(name, func(t *testing.T) { throttled(t, th, raw, clean(name), answer) })
				}
			}
		})
	}
}

func throttled(t *testing.T, th *throttle, raw storage.Bucket, folder string, answer func(http.ResponseWriter)) {
	data := random(100_000)
	const tries = 2
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for _, op := range []struct {
		name string
		do   func(b storage.Bucket) error
	}{
		{"put", func(b storage.Bucket) error { return put(ctx, b, folder+"/object", data) }},
		{"get", func(b storage.Bucket) error { return same(ctx, b, folder+"/object", data) }},
		{"stat", func(b storage.Bucket) error { _, err := b.Stat(ctx, folder+"/object"); return err }},
		{"list", func(b storage.Bucket) error {
			var keys []string
			for info, err := range b.List(ctx, folder, "") {
				if err != nil {
					return err
				}
				keys = append(keys, info.Key)
			}
			return equal(keys, []string{folder + "/object"})
		}},
		{"delete", func(b storage.Bucket) error { return b.Delete(ctx, folder+"/object") }},
	} {
		b, count := decorated(raw, nil)
		th.set(tries, answer)
		if err := op.do(b); err != nil {
			t.Errorf("%s: %v", op.name, err)
		}
		th.set(0, nil)
		c := count.Counts()
		if failed := c.Put.Errors + c.Get.Errors + c.Stat.Errors + c.List.Errors + c.Delete.Errors; failed < 1 || failed > tries {
			t.Errorf("%s: %d tries failed (%s), want up to %d", op.name, failed, c, tries)
		}
	}
}
