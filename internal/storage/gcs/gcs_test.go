package gcs

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	gstorage "cloud.google.com/go/storage"

	"agent/internal/errs"
	"agent/internal/storage"
	"agent/testing/stores"
)

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{}, "name of a bucket"},
		{Options{Bucket: "UPPER"}, "name of a bucket"},
		{Options{Bucket: "a/b"}, "name of a bucket"},
		{Options{Bucket: "bucket", Prefix: "/a"}, "prefix"},
		{Options{Bucket: "bucket", Prefix: "a/"}, "prefix"},
		{Options{Bucket: "bucket", KMSKey: "key"}, "Cloud KMS"},
		{Options{Bucket: "bucket", StorageClass: "nearline"}, "storage class"},
		{Options{Bucket: "bucket", Endpoint: "http://host"}, "not https"},
		{Options{Bucket: "bucket", Endpoint: "host"}, "address of a server"},
		{Options{Bucket: "bucket", Endpoint: "https://u:hunter2@host"}, "address of a server"},
		{Options{Bucket: "bucket", Endpoint: "https://host/?token=hunter2"}, "address of a server"},
		{Options{Bucket: "bucket", Endpoint: "https://host/path"}, "has a path"},
		{Options{Bucket: "bucket", Endpoint: "https://host", Emulator: "host:1"}, "both"},
		{Options{Bucket: "bucket", Emulator: "ftp://host"}, "address of a server"},
		{Options{Bucket: "bucket", Emulator: "host:1", CAFile: "/none"}, "ca_file"},
	} {
		_, err := Open(t.Context(), tt.o)
		if err == nil || !strings.Contains(err.Error(), tt.want) || errs.KindOf(err) != errs.Config || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v", tt.o, err)
		}
	}
}

func TestNames(t *testing.T) {
	for want, o := range map[string]Options{
		"gs://bucket":     {Bucket: "bucket", Emulator: "h:1"},
		"gs://bucket/p/q": {Bucket: "bucket", Prefix: "p/q", Emulator: "http://h:1/storage/v1/"},
		"gs://other":      {Bucket: "bucket", URL: "gs://other", Emulator: "h:1"},
	} {
		b := openIn(t, o)
		if b.String() != want || b.base.String() != "http://h:1" {
			t.Errorf("%q at %s, want %q", b, b.base, want)
		}
		b.Close()
	}
}

func TestBase(t *testing.T) {
	for want, o := range map[string]Options{
		"https://storage.googleapis.com": {},
		"https://psc.example:8443":       {Endpoint: "https://psc.example:8443/"},
		"http://h:1":                     {Emulator: "h:1"},
		"https://h:1":                    {Emulator: "https://h:1"},
	} {
		if u, err := o.base(); err != nil || u.String() != want {
			t.Errorf("%v, %v, want %s", u, err, want)
		}
	}
}

// google is a server that gives out tokens and holds a bucket.
func google(t *testing.T, token func(http.ResponseWriter, *http.Request)) (server *httptest.Server, o Options, seen chan http.Header) {
	t.Helper()
	seen = make(chan http.Header, 100)
	server = quietTLS(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			token(w, r)
			return
		}
		seen <- r.Header.Clone()
		fmt.Fprint(w, `{"name":"k"}`)
	}))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, certificate(server), 0o600); err != nil {
		t.Fatal(err)
	}
	return server, Options{Bucket: "bucket", Endpoint: server.URL, CAFile: ca}, seen
}

func certificate(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// serviceAccount writes a key file whose tokens come from the server.
func serviceAccount(t *testing.T, server *httptest.Server) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "1", "client_email": "agent@p.iam.gserviceaccount.com",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"token_uri":   server.URL + "/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The credentials are those of the environment; tokens and requests go through
// our own transport, with the same authorities.
func TestServiceAccount(t *testing.T) {
	tokens := 0
	server, o, seen := google(t, func(w http.ResponseWriter, r *http.Request) {
		tokens++
		if r.FormValue("assertion") == "" {
			t.Error("no assertion")
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"hunter2","token_type":"Bearer","expires_in":3600}`)
	})
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", serviceAccount(t, server))
	b := openIn(t, o)
	defer b.Close()
	if tokens != 0 {
		t.Error("Open asks for a token")
	}
	_, serr := b.Stat(t.Context(), "k")
	_, perr := b.Put(t.Context(), "k", storage.Bytes("x"), storage.PutOptions{})
	r, err := b.GetRange(t.Context(), "k", 0, 1)
	if err == nil {
		r.Close()
	}
	if err := errors.Join(serr, perr, err); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		h := <-seen
		if h.Get("Authorization") != "Bearer hunter2" || h.Get("User-Agent") != userAgent {
			t.Errorf("sent with %v", h)
		}
	}
	if tokens != 1 {
		t.Errorf("%d tokens for three requests", tokens)
	}
}

// Insecure is about the service alone: a server of tokens that is not trusted
// gets no signed assertion.
func TestInsecureIsNotForTokens(t *testing.T) {
	server, o, seen := google(t, func(http.ResponseWriter, *http.Request) { t.Error("a token was asked for") })
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", serviceAccount(t, server))
	o.CAFile, o.Insecure = "", true
	b := openIn(t, o)
	defer b.Close()
	if _, err := b.Stat(t.Context(), "k"); errs.KindOf(err) != errs.Config || len(seen) != 0 {
		t.Errorf("%v", err)
	}
}

func TestTokensRefused(t *testing.T) {
	const secret = "hunter2"
	for name, tt := range map[string]struct {
		status     int
		body       string
		want       error
		text, hint string
	}{
		"expired": {400, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`, storage.ErrPermission, "invalid_grant", "Renew"},
		"skew": {
			400,
			`{"error":"invalid_grant","error_description":"Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim."}`,
			storage.ErrPermission, "invalid_grant", "clock",
		},
		"away":  {503, secret, storage.ErrUnavailable, "(503)", ""},
		"proxy": {407, "<html>\n" + secret, storage.ErrPermission, "(407)", ""},
	} {
		server, o, _ := google(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(tt.status)
			fmt.Fprint(w, tt.body)
		})
		t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", serviceAccount(t, server))
		b := openIn(t, o)
		for op, err := range allOps(t.Context(), b) {
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(errs.HintOf(err), tt.hint) ||
				errors.Is(err, storage.ErrNotExist) || strings.Contains(err.Error(), secret) {
				t.Errorf("%s, %s: %v (hint %q)", name, op, err, errs.HintOf(err))
			}
		}
		b.Close()
	}
}

func TestBadCredentials(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"type":"hunter2"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"/none/key.json", bad} {
		t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
		_, err := Open(t.Context(), Options{Bucket: "bucket"})
		if !errors.Is(err, storage.ErrPermission) || errs.KindOf(err) != errs.Storage || errs.HintOf(err) == "" {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// The instance's own identity, by Google's metadata server.
func TestInstanceIdentity(t *testing.T) {
	_, o, seen := google(t, nil)
	status := http.StatusOK
	instance := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		switch {
		case status != http.StatusOK:
			w.WriteHeader(status)
		case strings.HasSuffix(r.URL.Path, "/token"):
			fmt.Fprint(w, `{"access_token":"hunter2","token_type":"Bearer","expires_in":3600}`)
		default:
			http.NotFound(w, r)
		}
	}))
	defer instance.Close()
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(instance.URL, "http://"))
	b := openIn(t, o)
	defer b.Close()
	if _, err := b.Stat(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if h := <-seen; h.Get("Authorization") != "Bearer hunter2" {
		t.Errorf("sent with %v", h)
	}
	// An instance without an account.
	status = http.StatusNotFound
	other := openIn(t, o)
	defer other.Close()
	if _, err := other.Stat(t.Context(), "k"); !errors.Is(err, storage.ErrPermission) || errors.Is(err, storage.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestVersions(t *testing.T) {
	server := stores.StartGCS(t, stores.GCSOptions{Versioning: true})
	server.MakeBucket(t, "bucket")
	b := openIn(t, Options{Bucket: "bucket", Prefix: "p", Emulator: server.Host})
	defer b.Close()
	bodies := map[string][]string{"gone": {"1", "22"}, "live": {"333", "4444"}, "once": {"5"}}
	for key, versions := range bodies {
		for i, body := range versions {
			if _, err := b.Put(t.Context(), key, storage.Bytes(body), storage.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if key == "gone" || i < len(versions)-1 {
				if err := b.Delete(t.Context(), key); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	var got []string
	for info, err := range b.Versions(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Hidden {
			if info.ModTime.IsZero() {
				t.Errorf("%+v", info)
			}
			got = append(got, info.Key+" hidden")
			continue
		}
		r, of, err := b.GetVersion(t.Context(), info.Key, info.Version)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		r.Close()
		if err != nil || of.Version != info.Version || of.Size != info.Size || !of.ModTime.Equal(info.ModTime) {
			t.Errorf("listed %+v, read %+v, %v", info, of, err)
		}
		got = append(got, info.Key+" "+string(body))
	}
	if diff := cmp.Diff([]string{"gone hidden", "gone 22", "gone 1", "live 4444", "live 333", "once 5"}, got); diff != "" {
		t.Error(diff)
	}
	for _, version := range []string{"", "x", "-1", "0", "1"} {
		if _, _, err := b.GetVersion(t.Context(), "once", version); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("version %q: %v", version, err)
		}
	}
	for info := range b.Versions(t.Context(), "") {
		if !info.Hidden {
			t.Errorf("%+v comes first", info)
		}
		break
	}
}

func TestProbe(t *testing.T) {
	const date = "Mon, 02 Jan 2006 15:04:05 GMT"
	now := time.Date(2006, 1, 2, 15, 4, 5, 0, time.UTC)
	for name, tt := range map[string]struct {
		bucket string // "": not allowed
		want   storage.Facts
	}{
		"plain": {`{"location":"EU"}`, storage.Facts{Time: now, Notes: map[string]string{"location": "EU"}}},
		"locks": {
			`{"location":"EU","locationType":"multi-region","storageClass":"STANDARD","versioning":{"enabled":true},"objectRetention":{"mode":"Enabled"},
			"retentionPolicy":{"retentionPeriod":"2592000","isLocked":true,"effectiveTime":"2006-01-01T00:00:00Z"},"softDeletePolicy":{"retentionDurationSeconds":"604800"},
			"encryption":{"defaultKmsKeyName":"key"},"billing":{"requesterPays":true},"defaultEventBasedHold":true}`,
			storage.Facts{Time: now, Versioned: true, Lockable: true, Retention: "compliance 30d", Notes: map[string]string{
				"location": "EU", "location_type": "multi-region", "storage_class": "STANDARD", "soft_delete": "7d", "kms_key": "key",
				"requester_pays": "true", "default_event_based_hold": "true",
			}},
		},
		"policy": {
			`{"retentionPolicy":{"retentionPeriod":"5400","effectiveTime":"2006-01-01T00:00:00Z"}}`,
			storage.Facts{Time: now, Retention: "governance 1h30m0s", Notes: map[string]string{}},
		},
		"denied": {"", storage.Facts{Time: now, Notes: map[string]string{}}},
	} {
		w := newWire(t, func(rw http.ResponseWriter, c call) bool {
			rw.Header().Set("Date", date)
			switch {
			case c.Path == "/storage/v1/b/bucket/o":
				fmt.Fprint(rw, "{}")
			case tt.bucket == "":
				return says(403, "forbidden", "no storage.buckets.get")(rw, c)
			default:
				fmt.Fprint(rw, tt.bucket)
			}
			return true
		})
		tt.want.Notes["endpoint"] = w.Listener.Addr().String()
		got, err := w.open(t, Options{}).Probe(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestLockOf(t *testing.T) {
	near, far := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		attrs gstorage.ObjectAttrs
		want  *storage.Lock
	}{
		"none":   {gstorage.ObjectAttrs{}, nil},
		"own":    {gstorage.ObjectAttrs{Retention: &gstorage.ObjectRetention{Mode: "Unlocked", RetainUntil: near}}, &storage.Lock{Mode: storage.Governance, Until: near}},
		"policy": {gstorage.ObjectAttrs{RetentionExpirationTime: far}, &storage.Lock{Mode: storage.Compliance, Until: far}},
		"longer policy": {
			gstorage.ObjectAttrs{Retention: &gstorage.ObjectRetention{Mode: "Unlocked", RetainUntil: near}, RetentionExpirationTime: far},
			&storage.Lock{Mode: storage.Compliance, Until: far},
		},
		"longer own": {
			gstorage.ObjectAttrs{Retention: &gstorage.ObjectRetention{Mode: "Unlocked", RetainUntil: far}, RetentionExpirationTime: near},
			&storage.Lock{Mode: storage.Governance, Until: far},
		},
	} {
		if diff := cmp.Diff(tt.want, lockOf(&tt.attrs)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	for _, s := range []string{"bytes 5-9/20", "bytes */20", "crc32c=AAAAAA==,md5=x", "bytes -5-9/20", "bytes 0-/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if from, size, ok := contentRange(s); ok && (from < 0 || size < 0 || !strings.HasPrefix(s, "bytes ")) {
			t.Fatalf("contentRange(%q) = %d, %d", s, from, size)
		}
		if _, ok := crcOf(http.Header{hashHeader: {s}}); ok && !strings.Contains(s, "crc32c=") {
			t.Fatalf("crcOf(%q) found one", s)
		}
	})
}

// FuzzXMLAnswer wants an error that names the status, whatever the body is.
func FuzzXMLAnswer(f *testing.F) {
	for _, s := range []string{"", "<Error><Code>NoSuchKey</Code></Error>", "<html>", "{}", "<Error><Code>NoSuchBucket</Code><Details>x</Details>"} {
		f.Add(s, 404)
	}
	f.Fuzz(func(t *testing.T, s string, status int) {
		err := xmlAnswer(&http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(s))})
		if !strings.Contains(err.Error(), fmt.Sprintf("(%d)", status)) {
			t.Fatalf("%v", err)
		}
		if err = translate(t.Context(), err); errors.Is(err, storage.ErrNotExist) && (status != 404 || !strings.Contains(s, "NoSuch") && !strings.Contains(s, "No such")) {
			t.Fatalf("%q with %d is a miss: %v", s, status, err)
		}
	})
}
