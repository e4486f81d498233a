package azure

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"agent/internal/storage"
	"agent/testing/stores"
)

// The emulator has no immutability policies: the answers are those of the REST
// reference ("Set Blob Immutability Policy", "Get Blob Properties").
func TestExtendLock(t *testing.T) {
	const (
		near    = "Thu, 24 Dec 2026 17:00:01 GMT"
		far     = "Fri, 24 Dec 2027 17:00:01 GMT"
		changed = "Fri, 20 Nov 2026 10:15:30 GMT"
	)
	want := time.Date(2027, 1, 2, 3, 4, 5, 600, time.UTC)
	for _, tt := range []struct {
		name        string
		mode, until string // of the blob
		after       string // that of another host, once ours was refused
		ask         storage.LockMode
		status      int
		code        string
		sent        string // mode; "": nothing
		err         error
	}{
		{name: "none", ask: storage.Governance, sent: "unlocked"},
		{name: "none", ask: storage.Compliance, sent: "locked"},
		{name: "governance", mode: "unlocked", until: near, ask: storage.Governance, sent: "unlocked"},
		{name: "governance stays", mode: "unlocked", until: near, ask: storage.Compliance, sent: "unlocked"},
		{name: "compliance", mode: "locked", until: near, ask: storage.Compliance, sent: "locked"},
		{name: "compliance stays", mode: "locked", until: near, ask: storage.Governance, sent: "locked"},
		{name: "long enough", mode: "unlocked", until: far, ask: storage.Governance},
		{name: "no such mode", ask: "other", err: storage.ErrUnsupported},
		{name: "no locks", ask: storage.Governance, status: 409, code: "FeatureNotSupportedForAccount", sent: "unlocked", err: storage.ErrUnsupported},
		{name: "no right", mode: "locked", until: near, ask: storage.Governance, status: 403, code: "AuthorizationPermissionMismatch", sent: "locked", err: storage.ErrPermission},
		{name: "replaced", ask: storage.Governance, status: 412, code: "ConditionNotMet", sent: "unlocked", err: storage.ErrUnavailable},
		{name: "gone", ask: storage.Governance, status: 404, code: "BlobNotFound", sent: "unlocked", err: storage.ErrNotExist},
		{name: "passing", ask: storage.Governance, status: 503, code: "ServerBusy", sent: "unlocked", err: storage.ErrUnavailable},
		{name: "longer meanwhile", mode: "locked", until: near, after: far, ask: storage.Governance, status: 409, code: "BlobImmutableDueToPolicy", sent: "locked"},
		{name: "refused", mode: "locked", until: near, ask: storage.Governance, status: 409, code: "BlobImmutableDueToPolicy", sent: "locked", err: storage.ErrPermission},
	} {
		t.Run(tt.name, func(t *testing.T) {
			until, sent := tt.until, ""
			b := answering(t, func(w http.ResponseWriter, req *http.Request) {
				if req.Method == http.MethodHead {
					w.Header().Set("Content-Length", "1")
					w.Header().Set("Last-Modified", changed)
					if tt.mode != "" {
						w.Header().Set("x-ms-immutability-policy-mode", tt.mode)
						w.Header().Set("x-ms-immutability-policy-until-date", until)
					}
					return
				}
				h := req.Header
				if req.Method != http.MethodPut || req.URL.Query().Get("comp") != "immutabilityPolicies" || h.Get("If-Unmodified-Since") != changed ||
					h.Get("x-ms-immutability-policy-until-date") != "Sat, 02 Jan 2027 03:04:06 GMT" {
					t.Errorf("%s %s: %v", req.Method, req.URL, h)
				}
				sent = strings.ToLower(h.Get("x-ms-immutability-policy-mode"))
				if tt.after != "" {
					until = tt.after
				}
				if tt.code != "" {
					refuse(w, req, tt.status, tt.code)
				}
			})
			err := b.ExtendLock(t.Context(), "some/key", storage.Lock{Mode: tt.ask, Until: want})
			if !errors.Is(err, tt.err) || tt.err == nil && err != nil || sent != tt.sent {
				t.Errorf("extend: %v, want %v; sent %q, want %q", err, tt.err, sent, tt.sent)
			}
		})
	}
}

// What is asked when staged blocks are removed, and what the answers mean.
func TestDiscard(t *testing.T) {
	now := time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)
	missing := []int{404}
	for _, tt := range []struct {
		name   string
		since  time.Time
		heads  []int // statuses, of which the last stays
		status int
		code   string
		want   string // the condition; "": nothing is deleted
		err    error
	}{
		{"old", now.Add(-24 * time.Hour), missing, 202, "", "Thu, 19 Nov 2026 10:15:30 GMT", nil},
		{"fresh", now, missing, 202, "", "Fri, 20 Nov 2026 10:15:20 GMT", nil},
		{"of another clock", now.Add(time.Hour), missing, 202, "", "Fri, 20 Nov 2026 10:15:20 GMT", nil},
		{"finished before", now, []int{200}, 0, "", "", nil},
		{"finished meanwhile", now, []int{404, 200}, 412, "ConditionNotMet", "Fri, 20 Nov 2026 10:15:20 GMT", nil},
		{"being written", now, missing, 412, "ConditionNotMet", "Fri, 20 Nov 2026 10:15:20 GMT", storage.ErrUnavailable},
		{"gone", now, missing, 404, "BlobNotFound", "Fri, 20 Nov 2026 10:15:20 GMT", nil},
		{"no right", now, missing, 403, "AuthorizationPermissionMismatch", "Fri, 20 Nov 2026 10:15:20 GMT", storage.ErrPermission},
		{"not told", now, []int{403}, 0, "", "", storage.ErrPermission},
		{"no age", time.Time{}, missing, 0, "", "", storage.ErrKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, heads := "", slices.Clone(tt.heads)
			b := answering(t, func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Date", now.Format(http.TimeFormat))
				switch req.Method {
				case http.MethodHead:
					status := heads[0]
					heads = heads[min(1, len(heads)-1):]
					if status != http.StatusOK {
						refuse(w, req, status, map[int]string{404: "BlobNotFound", 403: "AuthorizationFailure"}[status])
					}
				case http.MethodDelete:
					got = req.Header.Get("If-Unmodified-Since")
					if tt.code != "" {
						refuse(w, req, tt.status, tt.code)
						return
					}
					w.WriteHeader(tt.status)
				default:
					t.Errorf("unexpected request: %s", req.Method)
				}
			})
			err := b.Discard(t.Context(), storage.Unfinished{Key: "some/key", ID: uncommitted, Since: tt.since})
			if !errors.Is(err, tt.err) || tt.err == nil && err != nil || got != tt.want {
				t.Errorf("discard: %v, want %v; condition %q, want %q", err, tt.err, got, tt.want)
			}
		})
	}
}

// A Put that ends between the look and the deletion keeps its object.
func TestDiscardRace(t *testing.T) {
	server := stores.StartAzurite(t, stores.AzureOptions{})
	raw := server.MakeContainer(t, "race")
	target, err := url.Parse("http://" + server.Address)
	if err != nil {
		t.Fatal(err)
	}
	var finish func()
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = target.Scheme, target.Host, p.In.Host
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodDelete {
			finish()
		}
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(front.Close)
	o := Options{Container: "race", Account: stores.AzuriteAccount, Secrets: Secrets{AccountKey: stores.AzuriteKey}}
	o.Endpoint = server.Endpoint()
	direct := open(t, o)
	defer direct.Close()
	o.Endpoint = server.EndpointAt(front.Listener.Addr().String())
	b := open(t, o)
	defer b.Close()
	abandon(t, raw, "k")
	deletes := 0
	finish = func() {
		deletes++
		if _, err := direct.Put(t.Context(), "k", storage.Bytes("finished"), storage.PutOptions{}); err != nil {
			t.Errorf("put: %v", err)
		}
	}
	for u, err := range b.Unfinished(t.Context(), "") {
		if err == nil {
			err = b.Discard(t.Context(), u)
		}
		if err != nil {
			t.Error(err)
		}
	}
	r, _, err := direct.Get(t.Context(), "k")
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); string(got) != "finished" || err != nil || deletes != 1 {
		t.Errorf("read %q, %v after %d deletes", got, err, deletes)
	}
}

// Only what has no object, a size and an age is unfinished.
func TestUnfinished(t *testing.T) {
	undated := strings.Replace(versionItem("undated", "", false, 0), "<Last-Modified>Fri, 20 Nov 2026 10:15:30 GMT</Last-Modified>", "", 1)
	created := strings.Replace(undated, "<Properties>", "<Properties><Creation-Time>Thu, 19 Nov 2026 10:15:30 GMT</Creation-Time>", 1)
	pages := map[string]string{
		"": fmt.Sprintf(listing(versionItem("full", "", false, 7), versionItem("staged", "", false, 0), versionItem("empty", "", false, 0)),
			"<NextMarker>more</NextMarker>"),
		"more": fmt.Sprintf(listing(undated, strings.ReplaceAll(created, "undated", "created"), versionItem("no key", "", false, 0),
			versionItem("bare", "", false, 0)), "<NextMarker />"),
	}
	b := answering(t, func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		name := req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:]
		w.Header().Set("Date", "Fri, 20 Nov 2026 10:15:30 GMT")
		switch {
		case q.Get("comp") == "list" && q.Get("include") == "uncommittedblobs":
			w.Header().Set("Content-Type", "application/xml")
			io.WriteString(w, pages[q.Get("marker")])
		case req.Method == http.MethodHead && name == "empty":
			w.Header().Set("Content-Length", "0")
		case req.Method == http.MethodHead && (name == "staged" || name == "created" || name == "bare"):
			refuse(w, req, 404, "BlobNotFound")
		case q.Get("comp") == "blocklist" && name == "bare":
			refuse(w, req, 404, "BlobNotFound")
		case q.Get("comp") == "blocklist" && q.Get("blocklisttype") == "uncommitted" && name != "empty":
			w.Header().Set("Content-Type", "application/xml")
			io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?><BlockList><UncommittedBlocks><Block><Name>YQ==</Name><Size>5</Size></Block>`+
				`<Block><Name>Yg==</Name><Size>6</Size></Block></UncommittedBlocks></BlockList>`)
		default:
			t.Errorf("unexpected request: %s %s", req.Method, req.URL)
			refuse(w, req, 400, "InvalidUri")
		}
	})
	var got []string
	for u, err := range b.Unfinished(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d %s", u.Key, u.Size, u.Since.Format(time.DateOnly)))
	}
	if want := []string{"staged 11 2026-11-20", "created 11 2026-11-19"}; !slices.Equal(got, want) {
		t.Errorf("unfinished: %q, want %q", got, want)
	}
}
