package gcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"agent/internal/errs"
	"agent/internal/storage"
	"agent/testing/stores"
)

// says answers each request with an error: in XML to reads of the XML API,
// and else in JSON, as Google does.
func says(status int, code, text string) func(http.ResponseWriter, call) bool {
	return func(w http.ResponseWriter, c call) bool {
		if strings.HasPrefix(c.Path, "/bucket/") {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<?xml version='1.0' encoding='UTF-8'?><Error><Code>%s</Code><Message>%s</Message></Error>", code, text)
			return true
		}
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"errors":[{"message":%q,"domain":"global","reason":%q}]}}`, status, text, text, code)
		return true
	}
}

// allOps runs each operation on the key "k".
func allOps(ctx context.Context, b *Bucket) map[string]error {
	got := make(map[string]error)
	_, got[opPut] = b.Put(ctx, "k", storage.Bytes("x"), storage.PutOptions{})
	r, info, err := b.Get(ctx, "k")
	got[opGet] = get(r, info, err)
	r, err = b.GetRange(ctx, "k", 0, 1)
	got["range"] = get(r, info, err)
	r, info, err = b.GetVersion(ctx, "k", "1")
	got["version"] = get(r, info, err)
	_, got[opStat] = b.Stat(ctx, "k")
	got[opList] = last(b.List(ctx, "", ""))
	got["folders"] = last(b.Folders(ctx, ""))
	got["versions"] = last(b.Versions(ctx, ""))
	got[opDelete] = b.Delete(ctx, "k")
	_, got[opProbe] = b.Probe(ctx)
	got[opLock] = b.ExtendLock(ctx, "k", storage.Lock{Mode: storage.Governance, Until: time.Now().Add(time.Hour)})
	return got
}

func TestAnswers(t *testing.T) {
	tests := []struct {
		status     int
		code, text string
		want       error
		not        error
	}{
		{401, "authError", "Invalid Credentials", storage.ErrPermission, storage.ErrNotExist},
		{403, "forbidden", "x@y.iam does not have storage.objects.get access", storage.ErrPermission, storage.ErrNotExist},
		{403, "AccessDenied", "Access denied.", storage.ErrPermission, storage.ErrNotExist},
		{403, "rateLimitExceeded", "slow down", storage.ErrUnavailable, storage.ErrPermission},
		{403, "quotaExceeded", "over the quota", storage.ErrNoSpace, storage.ErrPermission},
		{404, "NoSuchBucket", "The specified bucket does not exist.", storage.ErrNoBucket, storage.ErrNotExist},
		{404, "notFound", "The specified bucket does not exist.", storage.ErrNoBucket, storage.ErrNotExist},
		{409, "conflict", "at the same time", storage.ErrUnavailable, storage.ErrExists},
		{410, "gone", "begin anew", storage.ErrUnavailable, storage.ErrNotExist},
		{412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.", storage.ErrExists, storage.ErrUnavailable},
		{416, "InvalidRange", "The requested range cannot be satisfied.", storage.ErrRange, storage.ErrUnavailable},
		{429, "rateLimitExceeded", "slow down", storage.ErrUnavailable, storage.ErrPermission},
		{400, "UserProjectMissing", "Bucket is a requester pays bucket but no user project provided.", storage.ErrPermission, storage.ErrUnavailable},
		{400, "invalid", "Provided CRC32C \"a\" doesn't match calculated CRC32C \"b\".", storage.ErrUnavailable, storage.ErrPermission},
		{503, "backendError", "try again", storage.ErrUnavailable, storage.ErrPermission},
		{507, "full", "no room", storage.ErrNoSpace, storage.ErrUnavailable},
	}
	for _, tt := range tests {
		w := newWire(t, says(tt.status, tt.code, tt.text))
		b := w.open(t, Options{URL: "gs://named"})
		for op, err := range allOps(t.Context(), b) {
			if !errors.Is(err, tt.want) || errors.Is(err, tt.not) {
				t.Errorf("%s answered with %s (%d): %v, want %v", op, tt.code, tt.status, err, tt.want)
				continue
			}
			var one *storage.Error
			if !errors.As(err, &one) || one.Bucket != "gs://named" {
				t.Errorf("%s: %v is not a storage.Error of the bucket", op, err)
			}
			for _, part := range []string{tt.code + " (" + strconv.Itoa(tt.status) + ")", tt.text, "gs://named"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s answered with %s (%d): %q does not say %q", op, tt.code, tt.status, err, part)
				}
			}
			if strings.Contains(err.Error(), w.URL) {
				t.Errorf("%s: the address is in %q", op, err)
			}
		}
	}
}

// A miss that says what is missing costs one request and is no error of Delete.
func TestMiss(t *testing.T) {
	w := newWire(t, func(rw http.ResponseWriter, c call) bool {
		if strings.HasPrefix(c.Path, "/bucket/") {
			return says(404, "NoSuchKey", "The specified key does not exist.")(rw, c)
		}
		return says(404, "notFound", "No such object: bucket/k")(rw, c)
	})
	b := w.open(t, Options{})
	got := allOps(t.Context(), b)
	for _, op := range []string{opGet, "range", "version", opStat} {
		if !errors.Is(got[op], storage.ErrNotExist) {
			t.Errorf("%s: %v", op, got[op])
		}
	}
	if got[opDelete] != nil {
		t.Errorf("delete: %v", got[opDelete])
	}
	w.taken()
	_, _, _ = b.Get(t.Context(), "k")
	_, _ = b.Stat(t.Context(), "k")
	if n := len(w.taken()); n != 2 {
		t.Errorf("two misses cost %d requests", n)
	}
}

// A 404 that does not say what is missing is no answer: the bucket is asked.
func TestUnclearMiss(t *testing.T) {
	for name, tt := range map[string]struct {
		list func(http.ResponseWriter, call) bool
		want error
	}{
		"there":   {func(w http.ResponseWriter, _ call) bool { fmt.Fprint(w, "{}"); return true }, storage.ErrNotExist},
		"missing": {says(404, "notFound", "Not Found"), storage.ErrNoBucket},
		"denied":  {says(403, "forbidden", "no"), storage.ErrPermission},
		"away":    {says(503, "backendError", "no"), storage.ErrUnavailable},
	} {
		w := newWire(t, func(rw http.ResponseWriter, c call) bool {
			if c.Path == "/storage/v1/b/bucket/o" {
				if c.Query.Get("maxResults") != "1" || c.Query.Get("prefix") != "p/k" {
					t.Errorf("the bucket is asked by %v", c.Query)
				}
				return tt.list(rw, c)
			}
			http.Error(rw, "<html>not here</html>", http.StatusNotFound)
			return true
		})
		b := w.open(t, Options{Prefix: "p"})
		_, _, gerr := b.Get(t.Context(), "k")
		_, serr := b.Stat(t.Context(), "k")
		derr := b.Delete(t.Context(), "k")
		_, perr := b.Put(t.Context(), "k", storage.Bytes("x"), storage.PutOptions{})
		for op, err := range map[string]error{"get": gerr, "stat": serr, "delete": derr, "put": perr} {
			want := tt.want
			switch {
			case name == "there" && op == "delete":
				if err != nil {
					t.Errorf("%s, %s: %v", name, op, err)
				}
				continue
			case name == "there" && op == "put":
				want = storage.ErrUnavailable // an upload was lost
			}
			if !errors.Is(err, want) || errors.Is(err, storage.ErrNotExist) != errors.Is(want, storage.ErrNotExist) {
				t.Errorf("%s, %s: %v, want %v", name, op, err, want)
			}
		}
	}
}

// What the emulator says of a bucket that is not there.
func TestNoBucket(t *testing.T) {
	server := stores.StartGCS(t, stores.GCSOptions{Versioning: true})
	b := openIn(t, Options{Bucket: "none", Emulator: server.Host})
	defer b.Close()
	got := allOps(t.Context(), b)
	// It lets uploads make the bucket, which Google does not.
	for op, err := range got {
		if op != opPut && !errors.Is(err, storage.ErrNoBucket) {
			t.Errorf("%s: %v, want ErrNoBucket", op, err)
		}
	}
}

func TestReaders(t *testing.T) {
	const body = "0123456789"
	headers := func(w http.ResponseWriter) {
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		w.Header().Set("X-Goog-Meta-Origin", "Test")
	}
	cut := func(w http.ResponseWriter, _ call) bool {
		headers(w)
		w.Header().Set("Content-Length", "20")
		fmt.Fprint(w, body)
		return true
	}
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, call) bool
		want   error
	}{
		"whole": {func(w http.ResponseWriter, _ call) bool {
			headers(w)
			w.Header().Add("X-Goog-Hash", "crc32c="+crcCode([]byte(body)))
			w.Header().Add("X-Goog-Hash", "md5=AAAA")
			fmt.Fprint(w, body)
			return true
		}, nil},
		"chunked": {func(w http.ResponseWriter, _ call) bool {
			headers(w)
			w.Header().Set("X-Goog-Stored-Content-Length", "10")
			http.NewResponseController(w).Flush()
			fmt.Fprint(w, body)
			return true
		}, nil},
		"cut": {cut, io.ErrUnexpectedEOF},
		"cut chunks": {func(w http.ResponseWriter, _ call) bool {
			headers(w)
			w.Header().Set("X-Goog-Stored-Content-Length", "20")
			http.NewResponseController(w).Flush()
			fmt.Fprint(w, body)
			return true
		}, io.ErrUnexpectedEOF},
		"garbled": {func(w http.ResponseWriter, _ call) bool {
			headers(w)
			w.Header().Add("X-Goog-Hash", "crc32c="+crcCode([]byte("9876543210"))+",md5=AAAA")
			fmt.Fprint(w, body)
			return true
		}, storage.ErrBadDigest},
		"of unpacked": {func(w http.ResponseWriter, _ call) bool {
			headers(w)
			w.Header().Add("X-Goog-Hash", "crc32c="+crcCode([]byte("packed")))
			w.Header().Add("X-Goog-Stored-Content-Encoding", "gzip")
			fmt.Fprint(w, body)
			return true
		}, nil},
	} {
		w := newWire(t, tt.answer)
		b := w.open(t, Options{})
		r, info, err := b.Get(t.Context(), "k")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if !errors.Is(err, tt.want) || errors.Is(err, storage.ErrUnavailable) != errors.Is(tt.want, io.ErrUnexpectedEOF) || string(got) != body {
			t.Errorf("%s: read %q, %v, want %v", name, got, err, tt.want)
		}
		if info.Metadata["origin"] != "Test" || info.ModTime != time.Date(2006, 1, 2, 15, 4, 5, 0, time.UTC) {
			t.Errorf("%s: %+v", name, info)
		}
		if n := len(w.taken()); n != 1 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
}

func TestRangeAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		status    int
		byteRange string
		body      string
		want      error
		text      string
	}{
		"part":      {206, "bytes 2-4/10", "234", nil, ""},
		"short":     {206, "bytes 2-3/4", "23", storage.ErrRange, ""},
		"cut":       {206, "bytes 2-4/10", "23", io.ErrUnexpectedEOF, ""},
		"elsewhere": {206, "bytes 0-2/10", "012", nil, "did not answer with the range"},
		"nonsense":  {206, "bytes */10", "", nil, "did not answer with the range"},
		"whole":     {200, "", "0123456789", nil, "did not answer with the range"},
		"small":     {200, "", "012", storage.ErrRange, ""},
		"beyond":    {416, "bytes */2", "<Error><Code>InvalidRange</Code></Error>", storage.ErrRange, "InvalidRange (416)"},
	} {
		w := newWire(t, func(rw http.ResponseWriter, c call) bool {
			if c.Header.Get("Range") != "bytes=2-4" {
				t.Errorf("%s: asked for %s", name, c.Header.Get("Range"))
			}
			rw.Header().Set("Content-Range", tt.byteRange)
			rw.WriteHeader(tt.status)
			fmt.Fprint(rw, tt.body)
			return true
		})
		r, err := w.open(t, Options{}).GetRange(t.Context(), "k", 2, 3)
		if err == nil {
			var got []byte
			got, err = io.ReadAll(r)
			r.Close()
			if err == nil && string(got) != tt.body {
				t.Errorf("%s: %q", name, got)
			}
		}
		if tt.want != nil && !errors.Is(err, tt.want) || (tt.want != nil || tt.text != "") != (err != nil) || err != nil && !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v %q", name, err, tt.want, tt.text)
		}
	}
}

// What ends a connection passes; a certificate does not.
func TestTransport(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	cut := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer cut.Close()
	secure := quietTLS(http.NotFoundHandler())
	defer secure.Close()
	tlsCut, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tlsCut.Close()
	go func() {
		for {
			c, err := tlsCut.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for name, tt := range map[string]struct {
		address string
		want    error
		kind    errs.Kind
		hint    string
	}{
		"refused":        {gone.URL, storage.ErrUnavailable, errs.Other, ""},
		"cut":            {cut.URL, storage.ErrUnavailable, errs.Other, ""},
		"handshake cut":  {"https://" + tlsCut.Addr().String(), storage.ErrUnavailable, errs.Other, ""},
		"no such host":   {"http://none.invalid", storage.ErrUnavailable, errs.Other, ""},
		"not trusted":    {secure.URL, nil, errs.Config, "ca_file"},
		"not TLS at all": {strings.Replace(cut.URL, "http:", "https:", 1), nil, errs.Config, "endpoint"},
	} {
		b := openIn(t, Options{Bucket: "bucket", Emulator: tt.address})
		for op, err := range allOps(t.Context(), b) {
			if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && errors.Is(err, storage.ErrUnavailable) ||
				errs.KindOf(err) != tt.kind || !strings.Contains(errs.HintOf(err), tt.hint) || err == nil {
				t.Errorf("%s, %s: %v (kind %d, hint %q), want %v", name, op, err, errs.KindOf(err), errs.HintOf(err), tt.want)
			}
			if errors.Is(err, storage.ErrNotExist) {
				t.Errorf("%s, %s: a miss: %v", name, op, err)
			}
		}
		b.Close()
	}
	// The same server with its certificate known, and with no check.
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, certificate(secure), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{"ca_file": {CAFile: ca}, "insecure": {Insecure: true}} {
		o.Bucket, o.Emulator = "bucket", secure.URL
		b := openIn(t, o)
		if _, err := b.Stat(t.Context(), "k"); !errors.Is(err, storage.ErrNoBucket) {
			t.Errorf("%s: %v", name, err)
		}
		b.Close()
	}
}

// quietTLS starts a server that does not print what its clients refuse.
func quietTLS(h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	return s
}

// The address of an upload is a key to it.
func TestNoSecretInErrors(t *testing.T) {
	const secret = "hunter2"
	w := newWire(t, nil)
	w.answers(func(rw http.ResponseWriter, c call) bool {
		if c.Query.Has("upload_id") {
			panic(http.ErrAbortHandler)
		}
		rw.Header().Set("Location", w.URL+"/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id="+secret)
		return true
	})
	_, err := w.open(t, Options{}).Put(t.Context(), "k", storage.Bytes(big()), storage.PutOptions{})
	if !errors.Is(err, storage.ErrUnavailable) || strings.Contains(err.Error(), secret) {
		t.Errorf("%v", err)
	}
	if calls := w.taken(); len(calls) != 3 || calls[2].Method != http.MethodDelete {
		t.Errorf("%d requests", len(calls))
	}
}

func TestLockedDelete(t *testing.T) {
	for name, tt := range map[string]struct{ text, stat, want string }{
		"policy": {
			"Object 'bucket/k2' is subject to bucket's retention policy and cannot be deleted, overwritten or archived until 2031-01-02T03:04:05Z",
			"", "until 2031-01-02T03:04:05Z",
		},
		"object": {
			"Object is retained", `{"name":"k2","retention":{"mode":"Locked","retainUntilTime":"2031-02-03T04:05:06Z"}}`,
			"it is locked (compliance) until 2031-02-03T04:05:06Z",
		},
		"denied": {"no right", `{"name":"k2"}`, "no right"},
	} {
		w := newWire(t, func(rw http.ResponseWriter, c call) bool {
			switch {
			case c.Method == http.MethodDelete && strings.HasSuffix(c.Path, "/k2"):
				return says(403, "forbidden", tt.text)(rw, c)
			case c.Method == http.MethodDelete:
				rw.WriteHeader(http.StatusNoContent)
			default:
				fmt.Fprint(rw, tt.stat)
			}
			return true
		})
		err := w.open(t, Options{}).Delete(t.Context(), "k1", "k2", "k3", "k2", "bad key")
		if !errors.Is(err, storage.ErrPermission) || !errors.Is(err, storage.ErrKey) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		deletes := 0
		for _, c := range w.taken() {
			if c.Method == http.MethodDelete {
				deletes++
			}
		}
		if deletes != 3 {
			t.Errorf("%s: %d deletes, want 3", name, deletes)
		}
	}
}

func TestLockRefusedByBucket(t *testing.T) {
	w := newWire(t, says(400, "invalid", "Object retention is not enabled for this bucket."))
	b := w.open(t, Options{})
	lock := &storage.Lock{Mode: storage.Governance, Until: time.Now().Add(time.Hour)}
	_, err := b.Put(t.Context(), "k", storage.Bytes("x"), storage.PutOptions{Lock: lock})
	if !errors.Is(err, storage.ErrUnsupported) || errs.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	if _, err := b.Put(t.Context(), "k", storage.Bytes("x"), storage.PutOptions{}); errors.Is(err, storage.ErrUnsupported) {
		t.Errorf("without a lock: %v", err)
	}
}

func TestContextEnds(t *testing.T) {
	release := make(chan struct{})
	w := newWire(t, func(http.ResponseWriter, call) bool {
		<-release
		return true
	})
	defer close(release)
	b := w.open(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for op, err := range allOps(ctx, b) {
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v, want DeadlineExceeded", op, err)
		}
	}
}
