package s3

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/storage"
)

// recorder is a service that takes everything and remembers what it got.
type recorder struct {
	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
	answer   func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		body = []byte(err.Error())
	}
	rec.mu.Lock()
	rec.requests, rec.bodies = append(rec.requests, r), append(rec.bodies, string(body))
	rec.mu.Unlock()
	if rec.answer != nil && rec.answer(w, r) {
		return
	}
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodHead:
		w.WriteHeader(http.StatusNotFound)
	case q.Has("uploads"):
		fmt.Fprint(w, `<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>`)
	case q.Has("partNumber"):
		w.Header().Set("ETag", `"`+q.Get("partNumber")+`"`)
	case r.Method == http.MethodPost && q.Has("uploadId"):
		fmt.Fprint(w, `<CompleteMultipartUploadResult><ETag>"all"</ETag></CompleteMultipartUploadResult>`)
	case r.Method == http.MethodPost && q.Has("delete"):
		fmt.Fprint(w, `<DeleteResult></DeleteResult>`)
	}
}

// ops names the requests by method and what distinguishes their queries.
func (rec *recorder) ops() []string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	var ops []string
	for _, r := range rec.requests {
		op := r.Method
		for _, k := range []string{"uploads", "partNumber", "uploadId", "delete", "retention"} {
			if r.URL.Query().Has(k) {
				op += " " + k
				break
			}
		}
		ops = append(ops, op)
	}
	return ops
}

// serve runs a service and gives the options that lead to it.
func serve(t testing.TB, h http.Handler, tls bool) Options {
	t.Helper()
	login(t, "key", "secret")
	o := Options{Bucket: "bucket", Prefix: "pre", PathStyle: true, Region: "us-east-1"}
	var server *httptest.Server
	if tls {
		server = httptest.NewTLSServer(h)
		o.CAFile = filepath.Join(t.TempDir(), "ca.pem")
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		if err := os.WriteFile(o.CAFile, ca, 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		server = httptest.NewServer(h)
	}
	t.Cleanup(server.Close)
	o.Endpoint = server.URL
	return o
}

// pick takes the headers that matter.
func pick(h http.Header) map[string]string {
	got := make(map[string]string)
	for k := range h {
		switch k {
		case "User-Agent", "Amz-Sdk-Invocation-Id", "Amz-Sdk-Request", "Authorization", "X-Amz-Date", "Accept-Encoding", "Accept":
		default:
			got[k] = h.Get(k)
		}
	}
	return got
}

func TestPutOnTheWire(t *testing.T) {
	const text = "hello"
	sum := sha256.Sum256([]byte(text))
	until := time.Date(2030, 1, 2, 3, 4, 5, 600, time.UTC)
	base := map[string]string{
		"If-None-Match": "*", "Content-Length": "5", "Content-Type": "application/octet-stream",
		"X-Amz-Content-Sha256": hex.EncodeToString(sum[:]), "X-Amz-Checksum-Crc32c": "mnG7TA==", // printf hello | crc32c, base64
	}
	for _, tt := range []struct {
		name string
		tls  bool
		set  func(*Options)
		opts storage.PutOptions
		want map[string]string // differs from base by this; "" is absent
	}{
		{name: "http"},
		{name: "https", tls: true, want: map[string]string{"X-Amz-Content-Sha256": "UNSIGNED-PAYLOAD"}},
		{name: "md5", set: func(o *Options) { o.Checksum = ChecksumMD5 }, want: map[string]string{"X-Amz-Checksum-Crc32c": "", "Content-Md5": "XUFAKrxLKna5cZ2REBfFkg=="}},
		{name: "none", set: func(o *Options) { o.Checksum = ChecksumNone }, want: map[string]string{"X-Amz-Checksum-Crc32c": ""}},
		{
			name: "lock",
			opts: storage.PutOptions{Lock: &storage.Lock{Mode: storage.Compliance, Until: until}, Metadata: map[string]string{"a-b": "C d"}},
			want: map[string]string{
				"X-Amz-Object-Lock-Mode": "COMPLIANCE", "X-Amz-Object-Lock-Retain-Until-Date": "2030-01-02T03:04:06Z", "X-Amz-Meta-A-B": "C d",
			},
		},
		{
			name: "class and key",
			set: func(o *Options) {
				o.StorageClass, o.SSE, o.KMSKeyID = "STANDARD_IA", "aws:kms", "alias/x"
			},
			want: map[string]string{
				"X-Amz-Storage-Class": "STANDARD_IA", "X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "alias/x",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := &recorder{}
			o := serve(t, rec, tt.tls)
			if tt.set != nil {
				tt.set(&o)
			}
			b := open(t, o)
			info, err := b.Put(t.Context(), "a/key", storage.Bytes(text), tt.opts)
			if err != nil || info.SHA256 != sum || info.Size != 5 {
				t.Fatalf("put: %+v, %v", info, err)
			}
			if len(rec.requests) != 1 || rec.bodies[0] != text || rec.requests[0].URL.Path != "/bucket/pre/a/key" {
				t.Fatalf("%d requests: %q", len(rec.requests), rec.bodies)
			}
			want := make(map[string]string)
			for _, m := range []map[string]string{base, tt.want} {
				for k, v := range m {
					if want[k] = v; v == "" {
						delete(want, k)
					}
				}
			}
			if diff := cmp.Diff(want, pick(rec.requests[0].Header)); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBigBodyIsOneRequest wants no round trip before the body either.
func TestBigBodyIsOneRequest(t *testing.T) {
	rec := &recorder{}
	b := open(t, serve(t, rec, false))
	if _, err := b.Put(t.Context(), "pack", storage.Bytes(make([]byte, 32<<20)), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(rec.requests) != 1 || rec.requests[0].Header.Get("Expect") != "" || len(rec.bodies[0]) != 32<<20 {
		t.Fatalf("%d requests, Expect %q", len(rec.requests), rec.requests[0].Header.Get("Expect"))
	}
}

func TestPartsOnTheWire(t *testing.T) {
	rec := &recorder{}
	o := serve(t, rec, true)
	o.StorageClass, o.SSE = "GLACIER_IR", "AES256"
	b := open(t, o)
	b.singleMax, b.minPart = 1<<20, 1<<20
	lock := &storage.Lock{Mode: storage.Governance, Until: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	body := make([]byte, 2<<20+5)
	if _, err := b.Put(t.Context(), "k", storage.Bytes(body), storage.PutOptions{Lock: lock, Metadata: map[string]string{"m": "v"}}); err != nil {
		t.Fatal(err)
	}
	ops := rec.ops()
	if want := []string{"HEAD", "POST uploads", "PUT partNumber", "PUT partNumber", "PUT partNumber", "POST uploadId"}; !slices.Equal(ops, want) {
		t.Fatalf("requests %q, want %q", ops, want)
	}
	want := map[string]string{
		"Content-Length": "0", "X-Amz-Checksum-Algorithm": "CRC32C", "X-Amz-Meta-M": "v", "X-Amz-Storage-Class": "GLACIER_IR", "X-Amz-Server-Side-Encryption": "AES256",
		"X-Amz-Object-Lock-Mode": "GOVERNANCE", "X-Amz-Object-Lock-Retain-Until-Date": "2030-01-02T03:04:05Z",
	}
	got := pick(rec.requests[1].Header)
	delete(got, "X-Amz-Content-Sha256") // of no body
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("create (-want +got):\n%s", diff)
	}
	for i, r := range rec.requests[2:5] {
		if h := r.Header; h.Get("X-Amz-Checksum-Crc32c") == "" || h.Get("X-Amz-Content-Sha256") != "UNSIGNED-PAYLOAD" || h.Get("Expect") != "" {
			t.Errorf("part %d: %v", i, pick(h))
		}
	}
	if rec.requests[5].Header.Get("If-None-Match") != "*" || strings.Count(rec.bodies[5], "<ChecksumCRC32C>") != 3 {
		t.Errorf("complete: %v %s", pick(rec.requests[5].Header), rec.bodies[5])
	}
}

// TestPartsAborted wants that an upload which fails anywhere is aborted, and
// that the cause is told.
func TestPartsAborted(t *testing.T) {
	for _, tt := range []struct {
		fails  string
		status int
		code   string
		want   error
	}{
		{"partNumber", 403, "AccessDenied", storage.ErrPermission},
		{"partNumber", 503, "SlowDown", storage.ErrUnavailable},
		{"uploadId", 412, "PreconditionFailed", storage.ErrExists},
		{"uploadId", 409, "ConditionalRequestConflict", storage.ErrUnavailable},
		{"uploadId", 404, "NoSuchUpload", storage.ErrUnavailable},
		{"uploadId", 200, "InternalError", storage.ErrUnavailable}, // an error within an answer that began well
	} {
		t.Run(tt.fails+tt.code, func(t *testing.T) {
			rec := &recorder{}
			rec.answer = func(w http.ResponseWriter, r *http.Request) bool {
				q := r.URL.Query()
				if !q.Has(tt.fails) || r.Method == http.MethodDelete || tt.fails == "uploadId" && q.Has("partNumber") {
					return false
				}
				w.WriteHeader(tt.status)
				fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", tt.code)
				return true
			}
			b := open(t, serve(t, rec, false))
			b.singleMax, b.minPart = 1<<20, 1<<20
			_, err := b.Put(t.Context(), "k", zeros(9<<20), storage.PutOptions{})
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.code) {
				t.Errorf("put: %v, want %v", err, tt.want)
			}
			if ops := rec.ops(); ops[len(ops)-1] != "DELETE uploadId" {
				t.Errorf("requests: %q", ops)
			}
		})
	}
}

func TestPartSize(t *testing.T) {
	for size, want := range map[int64]int64{1: minPart, 160_000 << 20: minPart, 160_000<<20 + 1: 17 << 20, 5 << 40: 525 << 20} {
		got := partSize(size, minPart)
		if got != want || (size+got-1)/got > maxParts {
			t.Errorf("parts of %d bytes: %d, want %d", size, got, want)
		}
	}
}

func TestDeleteOnTheWire(t *testing.T) {
	rec := &recorder{}
	b := open(t, serve(t, rec, false))
	keys := make([]string, 1001)
	for i := range keys {
		keys[i] = fmt.Sprintf("k/%d", i)
	}
	if err := b.Delete(t.Context(), keys...); err != nil {
		t.Fatal(err)
	}
	if ops := rec.ops(); !slices.Equal(ops, []string{"POST delete", "DELETE"}) {
		t.Fatalf("requests: %q", ops)
	}
	h := rec.requests[0].Header
	if h.Get("Content-Md5") == "" || h.Get("X-Amz-Checksum-Crc32") != "" || h.Get("X-Amz-Sdk-Checksum-Algorithm") != "" {
		t.Errorf("headers of a batch: %v", pick(h))
	}
	if n := strings.Count(rec.bodies[0], "<Key>pre/k/"); n != 1000 {
		t.Errorf("a batch of %d keys", n)
	}
}

// TestDeleteWithoutBatches is a service such as GCS, which has none.
func TestDeleteWithoutBatches(t *testing.T) {
	rec := &recorder{}
	rec.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Query().Has("delete"):
			w.WriteHeader(http.StatusNotImplemented)
		case strings.HasSuffix(r.URL.Path, "/missing"):
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
		case strings.HasSuffix(r.URL.Path, "/denied"):
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, "<Error><Code>AccessDenied</Code></Error>")
		default:
			w.WriteHeader(http.StatusNoContent)
		}
		return true
	}
	b := open(t, serve(t, rec, false))
	err := b.Delete(t.Context(), "a", "missing", "denied")
	var one *storage.Error
	if !errors.As(err, &one) || one.Key != "denied" || !errors.Is(err, storage.ErrPermission) || strings.Contains(err.Error(), "missing") {
		t.Fatalf("delete: %v", err)
	}
	if err := b.Delete(t.Context(), "a", "b"); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if ops := rec.ops(); slices.Index(ops[1:], "POST delete") >= 0 {
		t.Errorf("batches are tried again: %q", ops)
	}
}

// TestBatchAnswers wants one error for each key that remains.
func TestBatchAnswers(t *testing.T) {
	rec := &recorder{}
	rec.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if !r.URL.Query().Has("delete") {
			return false
		}
		fmt.Fprint(w, `<DeleteResult><Error><Key>pre/a</Key><Code>SlowDown</Code></Error><Error><Key>pre/b</Key><Code>InternalError</Code><Message>m</Message></Error>`+
			`<Error><Key>pre/c</Key><Code>NoSuchKey</Code></Error></DeleteResult>`)
		return true
	}
	b := open(t, serve(t, rec, false))
	err := b.Delete(t.Context(), "a", "b", "c", "d")
	want := "delete a of s3://bucket/pre: store unavailable: SlowDown\ndelete b of s3://bucket/pre: store unavailable: InternalError: m"
	if err == nil || err.Error() != want {
		t.Errorf("delete: %v, want %s", err, want)
	}
}
