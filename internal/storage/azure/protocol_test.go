package azure

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
	"agent/internal/storage"
)

// The answers here are those of the REST reference ("List Blobs", "Get Blob
// Properties", "Get Container Properties"), for what the emulator lacks.

func listing(items ...string) string {
	return `<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="https://account.blob.core.windows.net/" ContainerName="backup"><Blobs>` +
		strings.Join(items, "") + `</Blobs>%s</EnumerationResults>`
}

func versionItem(name, version string, current bool, size int) string {
	item := "<Blob><Name>" + name + "</Name>"
	if version != "" {
		item += "<VersionId>" + version + "</VersionId>"
	}
	if current {
		item += "<IsCurrentVersion>true</IsCurrentVersion>"
	}
	return item + fmt.Sprintf("<Properties><Last-Modified>Fri, 20 Nov 2026 10:15:30 GMT</Last-Modified><Etag>0x8</Etag>"+
		"<Content-Length>%d</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>", size)
}

const (
	v1 = "2026-11-20T10:00:00.0000001Z"
	v2 = "2026-11-20T11:00:00.0000001Z"
	v3 = "2026-11-20T12:00:00.0000001Z"
)

func TestVersions(t *testing.T) {
	pages := []string{
		fmt.Sprintf(listing(versionItem("p/a", v1, false, 1), versionItem("p/a", v2, false, 2)), "<NextMarker>more</NextMarker>"),
		fmt.Sprintf(listing(versionItem("p/a", v3, true, 3), versionItem("p/b", v1, false, 4), versionItem("p/b", v2, false, 5), versionItem("p/b c", v1, true, 1)),
			"<NextMarker>most</NextMarker>"),
		fmt.Sprintf(listing(versionItem("p/d", v1, false, 6), versionItem("p/d", "", false, 7), versionItem("p/e", v2, true, 8)), "<NextMarker />"),
	}
	b := answering(t, func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		w.Header().Set("x-ms-request-id", "1")
		switch {
		case q.Get("comp") == "list" && q.Get("include") == "versions" && q.Get("prefix") == "p/":
			w.Header().Set("Content-Type", "application/xml")
			io.WriteString(w, pages[map[string]int{"": 0, "more": 1, "most": 2}[q.Get("marker")]])
		case req.Method == http.MethodGet && q.Get("versionid") == v1 && req.URL.Path == "/account/backup/p/b":
			w.Header().Set("x-ms-version-id", v1)
			io.WriteString(w, "four")
		case req.Method == http.MethodGet && q.Get("comp") == "":
			refuse(w, req, 404, "BlobNotFound")
		default:
			refuse(w, req, 400, "InvalidQueryParameterValue")
		}
	})
	b.prefix = "p/"
	var got []storage.Info
	for info, err := range b.Versions(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if !info.Hidden && info.ModTime.IsZero() {
			t.Errorf("%s has no time", info.Key)
		}
		info.ModTime = time.Time{}
		got = append(got, info)
	}
	want := []storage.Info{
		{Key: "a", Version: v3, Size: 3},
		{Key: "a", Version: v2, Size: 2},
		{Key: "a", Version: v1, Size: 1},
		{Key: "b", Hidden: true},
		{Key: "b", Version: v2, Size: 5},
		{Key: "b", Version: v1, Size: 4},
		{Key: "d", Size: 7},
		{Key: "d", Version: v1, Size: 6},
		{Key: "e", Version: v2, Size: 8},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for n := range want {
		i := 0
		for info := range b.Versions(t.Context(), "") {
			if info.Key != want[i].Key {
				t.Errorf("version %d is of %s", i, info.Key)
			}
			if i++; i > n {
				break
			}
		}
	}
	r, info, err := b.GetVersion(t.Context(), "b", v1)
	if err != nil || info.Version != v1 || info.Size != 4 {
		t.Fatalf("get version: %+v, %v", info, err)
	}
	defer r.Close()
	if body, err := io.ReadAll(r); err != nil || string(body) != "four" {
		t.Errorf("read version: %q, %v", body, err)
	}
	if _, _, err := b.GetVersion(t.Context(), "b", v3); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("get a version that is not there: %v", err)
	}
}

func TestLocks(t *testing.T) {
	mode, until := "", ""
	b := answering(t, func(w http.ResponseWriter, req *http.Request) {
		switch req.Method {
		case http.MethodHead:
			w.Header().Set("Content-Length", "1")
			w.Header().Set("Last-Modified", "Fri, 20 Nov 2026 10:15:30 GMT")
			if mode != "" {
				w.Header().Set("x-ms-immutability-policy-mode", mode)
			}
			if until != "" {
				w.Header().Set("x-ms-immutability-policy-until-date", until)
			}
		case http.MethodDelete:
			refuse(w, req, 409, "BlobImmutableDueToPolicy")
		default:
			refuse(w, req, 409, "FeatureNotSupportedForAccount")
		}
	})
	end := time.Date(2026, 12, 24, 17, 0, 1, 0, time.UTC)
	for _, tt := range []struct {
		mode, until string
		want        *storage.Lock
		text        string
	}{
		{"", "", nil, "container's policy or a legal hold"},
		{"unlocked", "Thu, 24 Dec 2026 17:00:01 GMT", &storage.Lock{Mode: storage.Governance, Until: end}, "(governance) until 2026-12-24T17:00:01Z"},
		{"locked", "Thu, 24 Dec 2026 17:00:01 GMT", &storage.Lock{Mode: storage.Compliance, Until: end}, "(compliance) until 2026-12-24T17:00:01Z"},
	} {
		mode, until = tt.mode, tt.until
		info, err := b.Stat(t.Context(), "some/key")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, info.Lock); diff != "" {
			t.Errorf("lock %q: %s", tt.mode, diff)
		}
		err = b.Delete(t.Context(), "some/key")
		if !errors.Is(err, storage.ErrPermission) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), "BlobImmutableDueToPolicy (409)") {
			t.Errorf("delete with lock %q: %v", tt.mode, err)
		}
	}
	// A container that keeps no locks is no success and no passing failure.
	_, err := b.Put(t.Context(), "some/key", storage.Bytes("x"), storage.PutOptions{Lock: &storage.Lock{Mode: storage.Governance, Until: end}})
	if !errors.Is(err, storage.ErrUnsupported) || !strings.Contains(err.Error(), "FeatureNotSupportedForAccount (409)") {
		t.Errorf("put with a lock: %v", err)
	}
	if _, err = b.Put(t.Context(), "some/key", storage.Bytes("x"), storage.PutOptions{}); err == nil || errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("put without a lock: %v", err)
	}
}

// TestRangesOfOthers has servers and proxies that do not keep to the range.
func TestRangesOfOthers(t *testing.T) {
	for _, tt := range []struct {
		name, header, body string
		status             int
		want               error // nil: just not success
	}{
		{"whole", "", "0123456789", 200, nil},
		{"other part", "bytes 4-8/10", "45678", 206, nil},
		{"too short", "bytes 3-5/6", "345", 206, storage.ErrRange},
		{"too long", "bytes 3-9/10", "3456789", 206, nil},
		{"empty", "", "", 200, nil},
	} {
		b := answering(t, func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("x-ms-range") != "bytes=3-7" {
				t.Errorf("%s: asked for %q", tt.name, req.Header.Get("x-ms-range"))
			}
			if tt.header != "" {
				w.Header().Set("Content-Range", tt.header)
			}
			w.WriteHeader(tt.status)
			io.WriteString(w, tt.body)
		})
		r, err := b.GetRange(t.Context(), "some/key", 3, 5)
		if err == nil {
			r.Close()
		}
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// TestCutBody has connections that end within an answer.
func TestCutBody(t *testing.T) {
	b := answering(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", "1000")
		if req.Header.Get("x-ms-range") != "" {
			w.Header().Set("Content-Range", "bytes 0-999/1000")
			w.WriteHeader(http.StatusPartialContent)
		}
		io.WriteString(w, "begun")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	whole, info, err := b.Get(t.Context(), "some/key")
	if err != nil || info.Size != 1000 {
		t.Fatalf("get: %+v, %v", info, err)
	}
	part, err := b.GetRange(t.Context(), "some/key", 0, 1000)
	if err != nil {
		t.Fatalf("get range: %v", err)
	}
	for _, r := range []io.ReadCloser{whole, part} {
		got, err := io.ReadAll(r)
		if string(got) != "begun" || !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("read: %q, %v", got, err)
		}
		r.Close()
	}
	for _, err := range b.List(t.Context(), "", "") {
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("list: %v", err)
		}
	}
}

// TestHierarchical wants that a Data Lake account is refused, and not
// misunderstood.
func TestHierarchical(t *testing.T) {
	body, hns := "", "false"
	b := answering(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.Header().Set("x-ms-is-hns-enabled", hns)
		w.Header().Set("x-ms-sku-name", "Standard_GRS")
		w.Header().Set("x-ms-immutable-storage-with-versioning-enabled", "true")
		w.Header().Set("x-ms-has-legal-hold", "true")
		w.Header().Set("x-ms-has-immutability-policy", "true")
		w.Header().Set("x-ms-default-encryption-scope", "scope1")
		w.Header().Set("Date", "Fri, 20 Nov 2026 10:15:30 GMT")
		if req.URL.Query().Get("comp") == "list" {
			io.WriteString(w, body)
		}
	})
	dir := strings.Replace(versionItem("a", "", false, 0), "<Properties>", "<Properties><ResourceType>directory</ResourceType>", 1)
	for name, items := range map[string]string{
		"order":     versionItem("a/b", "", false, 1) + versionItem("a-b", "", false, 1),
		"directory": dir + versionItem("a/b", "", false, 1),
		"folders":   "<BlobPrefix><Name>a/</Name></BlobPrefix><BlobPrefix><Name>a-b/</Name></BlobPrefix>",
	} {
		body = fmt.Sprintf(listing(items), "<NextMarker/>")
		var last error
		if name == "folders" {
			for _, err := range b.Folders(t.Context(), "") {
				last = err
			}
		} else {
			for _, err := range b.List(t.Context(), "", "") {
				last = err
			}
		}
		if errs.KindOf(last) != errs.Config || !strings.Contains(errs.HintOf(last), "Data Lake") {
			t.Errorf("%s: %v", name, last)
		}
	}
	body = fmt.Sprintf(listing(versionItem("a/b", "", false, 1)), "<NextMarker/>")
	facts, err := b.Probe(t.Context())
	want := storage.Facts{
		Time: time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC), Versioned: true, Lockable: true, Free: -1,
		Notes: map[string]string{
			"endpoint": b.host(), "legal_hold": "yes", "immutability_policy": "yes", "encryption_scope": "scope1", "redundancy": "Standard_GRS",
		},
	}
	if diff := cmp.Diff(want, facts); diff != "" || err != nil {
		t.Errorf("probe: %v, %s", err, diff)
	}
	hns = "true"
	if _, err := b.Probe(t.Context()); errs.KindOf(err) != errs.Config {
		t.Errorf("probe of a Data Lake account: %v", err)
	}
}

// TestProbeWithFewRights may not look at the container's properties.
func TestProbeWithFewRights(t *testing.T) {
	items := versionItem("a", v1, true, 1)
	b := answering(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Query().Get("comp") != "list" {
			refuse(w, req, 403, "AuthorizationPermissionMismatch")
			return
		}
		w.Header().Set("Content-Type", "application/xml")
		w.Header().Set("Date", "Fri, 20 Nov 2026 10:15:30 GMT")
		fmt.Fprintf(w, listing(items), "<NextMarker/>")
	})
	facts, err := b.Probe(t.Context())
	if err != nil || !facts.Versioned || facts.Lockable || facts.Time.IsZero() {
		t.Errorf("probe: %+v, %v", facts, err)
	}
}
