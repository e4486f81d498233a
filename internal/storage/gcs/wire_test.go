package gcs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/storage"
	"agent/testing/stores"
)

// call is a request as it came over the wire.
type call struct {
	Method, Path string
	Query        url.Values
	Header       http.Header
	Body         []byte
}

// wire stands in front of a server, or in place of one, and records.
type wire struct {
	*httptest.Server
	mu    sync.Mutex
	calls []call
	// answer writes an answer and returns true, or returns false to let the
	// server behind answer.
	answer func(http.ResponseWriter, call) bool
	behind http.Handler
}

// newWire records with no server behind: what answer does not answer fails.
func newWire(t *testing.T, answer func(http.ResponseWriter, call) bool) *wire {
	t.Helper()
	w := &wire{answer: answer, behind: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("unexpected request: %s %s", r.Method, r.URL)
	})}
	w.Server = httptest.NewServer(w)
	t.Cleanup(w.Close)
	return w
}

// inFront records in front of a real server, which has the bucket "bucket".
func inFront(t *testing.T) *wire {
	t.Helper()
	w := newWire(t, nil)
	server := stores.StartGCS(t, stores.GCSOptions{Behind: w.Listener.Addr().String()})
	server.MakeBucket(t, "bucket")
	to, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	w.behind = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	return w
}

func (w *wire) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // it was cut, and nobody waits for an answer
	}
	c := call{r.Method, r.URL.Path, r.URL.Query(), r.Header.Clone(), body}
	w.mu.Lock()
	w.calls = append(w.calls, c)
	answer := w.answer
	w.mu.Unlock()
	if answer != nil && answer(rw, c) {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	w.behind.ServeHTTP(rw, r)
}

// taken is what was recorded since the last look.
func (w *wire) taken() []call {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := w.calls
	w.calls = nil
	return calls
}

func (w *wire) answers(answer func(http.ResponseWriter, call) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

func (w *wire) open(t *testing.T, o Options) *Bucket {
	t.Helper()
	o.Bucket, o.Emulator = "bucket", w.URL
	b := openIn(t, o)
	t.Cleanup(func() { b.Close() })
	return b
}

// parts takes a multipart upload apart (JSON API, "Multipart upload").
func (c call) parts(t *testing.T) (meta map[string]any, body []byte) {
	t.Helper()
	_, params, err := mime.ParseMediaType(c.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	r := multipart.NewReader(bytes.NewReader(c.Body), params["boundary"])
	for _, into := range []func([]byte) error{
		func(b []byte) error { return json.Unmarshal(b, &meta) },
		func(b []byte) error { body = b; return nil },
	} {
		part, err := r.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(part)
		if err == nil {
			err = into(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return meta, body
}

func crcCode(b []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}

const testKey = "projects/p/locations/eu/keyRings/r/cryptoKeys/k"

// What goes with an object, in the one request that creates it.
func TestPutOnTheWire(t *testing.T) {
	w := inFront(t)
	b := w.open(t, Options{Prefix: "p", StorageClass: "NEARLINE", KMSKey: testKey, UserProject: "payer"})
	until := time.Date(2031, 2, 3, 4, 5, 6, 1, time.FixedZone("", 3600))
	for mode, want := range map[storage.LockMode]string{storage.Governance: "Unlocked", storage.Compliance: "Locked"} {
		body := []byte("body " + want)
		sum := sha256.Sum256(body)
		info, err := b.Put(t.Context(), "a/"+want, storage.Bytes(body), storage.PutOptions{
			SHA256: &sum, Metadata: map[string]string{"k": "V"}, Lock: &storage.Lock{Mode: mode, Until: until},
		})
		if err != nil {
			t.Fatal(err)
		}
		if info.Key != "a/"+want || info.Size != int64(len(body)) || info.SHA256 != sum || info.ModTime.IsZero() {
			t.Errorf("put: %+v", info)
		}
		calls := w.taken()
		if len(calls) != 1 {
			t.Fatalf("%d requests, want 1", len(calls))
		}
		c := calls[0]
		meta, sent := c.parts(t)
		query := map[string]string{}
		for _, k := range []string{"uploadType", "ifGenerationMatch", "kmsKeyName", "userProject", "name"} {
			query[k] = c.Query.Get(k)
		}
		if diff := cmp.Diff(map[string]string{
			"uploadType": "multipart", "ifGenerationMatch": "0", "kmsKeyName": testKey, "userProject": "payer", "name": "p/a/" + want,
		}, query); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]any{
			"bucket": "bucket", "name": "p/a/" + want, "contentType": "application/octet-stream", "crc32c": crcCode(body),
			"storageClass": "NEARLINE", "metadata": map[string]any{"k": "V"},
			// Not a moment shorter than what was asked for.
			"retention": map[string]any{"mode": want, "retainUntilTime": "2031-02-03T03:05:07Z"},
		}, meta); diff != "" {
			t.Error(diff)
		}
		if !bytes.Equal(sent, body) || c.Header.Get("User-Agent") != userAgent || c.Header.Get("Authorization") != "" {
			t.Errorf("sent %q with %v", sent, c.Header)
		}
		st, err := b.Stat(t.Context(), "a/"+want)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&storage.Lock{Mode: mode, Until: time.Date(2031, 2, 3, 3, 5, 7, 0, time.UTC)}, st.Lock); diff != "" {
			t.Error(diff)
		}
		w.taken()
	}
}

// Without options nothing is asked for.
func TestPlainPutOnTheWire(t *testing.T) {
	w := inFront(t)
	b := w.open(t, Options{})
	if _, err := b.Put(t.Context(), "k", storage.Bytes(nil), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	calls := w.taken()
	meta, sent := calls[0].parts(t)
	if diff := cmp.Diff(map[string]any{
		"bucket": "bucket", "name": "k", "contentType": "application/octet-stream", "crc32c": "AAAAAA==",
	}, meta); diff != "" || len(sent) != 0 || len(calls) != 1 {
		t.Errorf("%d requests, %d bytes: %s", len(calls), len(sent), diff)
	}
	for _, k := range []string{"kmsKeyName", "userProject"} {
		if calls[0].Query.Has(k) {
			t.Errorf("%s is sent", k)
		}
	}
	if st, err := b.Stat(t.Context(), "k"); err != nil || st.Lock != nil {
		t.Errorf("%+v, %v", st, err)
	}
}

// big is a body that takes several chunks, the last of them not full.
func big() []byte {
	b := make([]byte, oneRequest+chunk/2)
	for i := 0; i < len(b); i += 4096 {
		binary.LittleEndian.PutUint64(b[i:], uint64(i)*0x9E3779B97F4A7C15)
	}
	return b
}

// unseekable is a body that is not in memory.
type unseekable struct {
	data []byte
	size int64
	err  error // in place of the end
}

func (u unseekable) Open() (io.ReadCloser, error) {
	r := io.Reader(struct{ io.Reader }{bytes.NewReader(u.data)})
	if u.err != nil {
		r = io.MultiReader(r, failing{u.err})
	}
	return io.NopCloser(r), nil
}
func (u unseekable) Size() int64 { return u.size }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestChunksOnTheWire(t *testing.T) {
	w := inFront(t)
	b := w.open(t, Options{UserProject: "payer", StorageClass: "COLDLINE", KMSKey: testKey})
	data := big()
	until := time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)
	_, err := b.Put(t.Context(), "big", unseekable{data, int64(len(data)), nil},
		storage.PutOptions{Lock: &storage.Lock{Mode: storage.Compliance, Until: until}})
	if err != nil {
		t.Fatal(err)
	}
	calls := w.taken()
	const chunks = oneRequest/chunk + 1
	if len(calls) != 1+chunks {
		t.Fatalf("%d requests, want %d", len(calls), 1+chunks)
	}
	first := calls[0]
	var meta map[string]any
	if err := json.Unmarshal(first.Body, &meta); err != nil {
		t.Fatal(err)
	}
	if first.Query.Get("uploadType") != "resumable" || first.Query.Get("ifGenerationMatch") != "0" || first.Query.Get("userProject") != "payer" ||
		first.Query.Get("kmsKeyName") != testKey {
		t.Errorf("the upload begins with %v", first.Query)
	}
	if diff := cmp.Diff(map[string]any{
		"bucket": "bucket", "name": "big", "contentType": "application/octet-stream", "storageClass": "COLDLINE",
		"retention": map[string]any{"mode": "Locked", "retainUntilTime": "2031-01-01T00:00:00Z"},
	}, meta); diff != "" {
		t.Error(diff)
	}
	for i, c := range calls[1:] {
		hash := ""
		if i == chunks-1 {
			hash = "crc32c=" + crcCode(data)
		}
		if got := c.Header.Get("X-Goog-Hash"); got != hash {
			t.Errorf("chunk %d has the hash %q, want %q", i, got, hash)
		}
	}
	// The object is there: its like is refused, whole or in chunks.
	for _, body := range [][]byte{data, []byte("x")} {
		if _, err := b.Put(t.Context(), "big", storage.Bytes(body), storage.PutOptions{}); !errors.Is(err, storage.ErrExists) {
			t.Errorf("put again: %v", err)
		}
	}
}

// An upload that is not finished is given up at the service, and no request
// ends it otherwise.
func TestChunksGivenUp(t *testing.T) {
	w := inFront(t)
	b := w.open(t, Options{})
	data := big()
	size := int64(len(data))
	broke := errors.New("the disk broke")
	wrong := sha256.Sum256(nil)
	for name, tt := range map[string]struct {
		src  storage.Source
		sum  *[32]byte
		want error
	}{
		"broken":  {unseekable{data, size, broke}, nil, broke},
		"short":   {unseekable{data[:size-1], size, nil}, nil, storage.ErrBadLength},
		"long":    {unseekable{data, size - 1, nil}, nil, storage.ErrBadLength},
		"other":   {storage.Bytes(data), &wrong, storage.ErrBadDigest},
		"garbled": {unseekable{data[:oneRequest], oneRequest + 1, io.ErrUnexpectedEOF}, nil, io.ErrUnexpectedEOF},
	} {
		_, err := b.Put(t.Context(), name, tt.src, storage.PutOptions{SHA256: tt.sum})
		if !errors.Is(err, tt.want) || errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		calls := w.taken()
		if len(calls) < 2 {
			t.Fatalf("%s: %d requests", name, len(calls))
		}
		for _, c := range calls {
			if strings.Contains(c.Header.Get("Content-Range"), "/") && !strings.HasSuffix(c.Header.Get("Content-Range"), "/*") {
				t.Errorf("%s: the upload was ended with %s", name, c.Header.Get("Content-Range"))
			}
		}
		last := calls[len(calls)-1]
		if last.Method != http.MethodDelete || last.Query.Get("upload_id") == "" {
			t.Errorf("%s: the last request is %s %s", name, last.Method, last.Path)
		}
		if _, err := b.Stat(t.Context(), name); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: %v, want ErrNotExist", name, err)
		}
		w.taken()
	}
}

// twice is a body in memory that is not the same when it is read again.
type twice struct {
	data  []byte
	again func() []byte
}

func (b twice) Open() (io.ReadCloser, error) {
	return &twiceReader{Reader: bytes.NewReader(b.data), again: b.again}, nil
}
func (b twice) Size() int64 { return int64(len(b.data)) }

type twiceReader struct {
	*bytes.Reader
	again func() []byte
}

func (r *twiceReader) Seek(off int64, whence int) (int64, error) {
	if whence == io.SeekStart {
		r.Reset(r.again())
	}
	return off, nil
}
func (r *twiceReader) Close() error { return nil }

// The service refuses bytes that are not those that were measured, and makes
// nothing of an upload that breaks off.
func TestUploadBreaks(t *testing.T) {
	w := inFront(t)
	b := w.open(t, Options{})
	data := big()[:20<<20]
	other := bytes.Clone(data)
	other[len(other)-1] ^= 1
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, tt := range map[string]struct {
		ctx   context.Context
		again func() []byte
		want  error
	}{
		"damaged": {t.Context(), func() []byte { return other }, storage.ErrUnavailable},
		"shorter": {t.Context(), func() []byte { return data[:len(data)-1] }, storage.ErrBadLength},
		"longer":  {t.Context(), func() []byte { return append(bytes.Clone(data), 0) }, storage.ErrBadLength},
		"stopped": {ctx, func() []byte { cancel(); return data }, context.Canceled},
	} {
		if _, err := b.Put(tt.ctx, name, twice{data, tt.again}, storage.PutOptions{}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if _, err := b.Stat(t.Context(), name); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: %v, want ErrNotExist", name, err)
		}
	}
}

// A Put in chunks whose context ends is given up all the same.
func TestChunksCancelled(t *testing.T) {
	w := inFront(t)
	b := w.open(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.answers(func(_ http.ResponseWriter, c call) bool {
		if strings.HasPrefix(c.Header.Get("Content-Range"), "bytes 16777216-") {
			cancel()
		}
		return false
	})
	_, err := b.Put(ctx, "k", storage.Bytes(big()), storage.PutOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	calls := w.taken()
	if c := calls[len(calls)-1]; c.Method != http.MethodDelete || c.Query.Get("upload_id") == "" {
		t.Errorf("the last request is %s %s", c.Method, c.Path)
	}
	if _, err := b.Stat(t.Context(), "k"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("%v, want ErrNotExist", err)
	}
}

// Each operation is one request, and one that fails is not repeated here.
func TestOneRequestEach(t *testing.T) {
	w := inFront(t)
	b := w.open(t, Options{UserProject: "payer"})
	operations := []struct {
		name string
		run  func() error
	}{
		{"put", func() error { return put(t, b, "a/b") }},
		{"get", func() error { return get(b.Get(t.Context(), "a/b")) }},
		{"range", func() error {
			r, err := b.GetRange(t.Context(), "a/b", 1, 2)
			return get(r, storage.Info{}, err)
		}},
		{"version", func() error { return get(b.GetVersion(t.Context(), "a/b", generation(t, b, "a/b"))) }},
		{"stat", func() error { _, err := b.Stat(t.Context(), "a/b"); return err }},
		{"list", func() error { return last(b.List(t.Context(), "", "")) }},
		{"folders", func() error { return last(b.Folders(t.Context(), "")) }},
		{"versions", func() error { return last(b.Versions(t.Context(), "")) }},
		{"probe", func() error { _, err := b.Probe(t.Context()); return err }},
		{"delete", func() error { return b.Delete(t.Context(), "a/b") }},
	}
	for _, op := range operations {
		if err := op.run(); err != nil {
			t.Fatalf("%s: %v", op.name, err)
		}
		calls := w.taken()
		calls = calls[len(calls)-1:]
		payer := calls[0].Query.Get("userProject") + calls[0].Header.Get("X-Goog-User-Project")
		if payer != "payer" {
			t.Errorf("%s: the project %q pays", op.name, payer)
		}
	}
	for _, status := range []int{408, 429, 500, 502, 503, 504} {
		w.answers(func(rw http.ResponseWriter, _ call) bool {
			rw.WriteHeader(status)
			return true
		})
		for _, op := range operations {
			if op.name == "version" {
				continue
			}
			if err := op.run(); !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("%s answered with %d: %v", op.name, status, err)
			}
			if calls := w.taken(); len(calls) != 1 {
				t.Errorf("%s answered with %d: %d requests, want 1", op.name, status, len(calls))
			}
		}
	}
	// A large body: one to begin it, one chunk that fails, one to give it up.
	w.answers(func(rw http.ResponseWriter, c call) bool {
		if c.Header.Get("Content-Range") != "" {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	if _, err := b.Put(t.Context(), "big", storage.Bytes(big()), storage.PutOptions{}); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("put in chunks: %v", err)
	}
	var methods []string
	for _, c := range w.taken() {
		methods = append(methods, c.Method)
	}
	if !slices.Equal(methods, []string{"POST", "POST", "DELETE"}) {
		t.Errorf("put in chunks: %q", methods)
	}
}

func put(t *testing.T, b *Bucket, key string) error {
	t.Helper()
	_, err := b.Put(t.Context(), key, storage.Bytes("body of "+key), storage.PutOptions{})
	return err
}

func get(r io.ReadCloser, _ storage.Info, err error) error {
	if err != nil {
		return err
	}
	_, err = io.ReadAll(r)
	return errors.Join(err, r.Close())
}

func last[T any](seq func(func(T, error) bool)) (err error) {
	for _, err = range seq {
	}
	return err
}

func generation(t *testing.T, b *Bucket, key string) string {
	t.Helper()
	for info, err := range b.Versions(t.Context(), key) {
		if err != nil {
			t.Fatal(err)
		}
		if !info.Hidden {
			return info.Version
		}
	}
	t.Fatalf("there is no version of %s", key)
	return ""
}
