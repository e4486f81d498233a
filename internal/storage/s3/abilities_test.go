package s3

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/internal/storage"
	"agent/testing/stores"
)

// testExtendRace lets many extend one lock at a time: each of them succeeds, and
// it is never shorter than it was. Which of them wins is the service's matter:
// versitygw looks and then writes.
func testExtendRace(t *testing.T, server *stores.S3) {
	b := open(t, in(server, server.NewBucket(t, stores.S3Bucket{Lockable: true})))
	until := time.Now().Add(24 * time.Hour).Truncate(time.Second)
	for _, mode := range []storage.LockMode{storage.Governance, storage.Compliance} {
		key := string(mode)
		if _, err := b.Put(t.Context(), key, storage.Bytes("x"), storage.PutOptions{Lock: &storage.Lock{Mode: mode, Until: until}}); err != nil {
			t.Fatal(err)
		}
		const many = 12
		errs := make([]error, many)
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				errs[i] = b.ExtendLock(t.Context(), key, storage.Lock{Mode: mode, Until: until.Add(time.Duration(i) * time.Hour)})
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Errorf("extend a %s lock: %v", mode, err)
		}
		info, err := b.Stat(t.Context(), key)
		if err != nil || info.Lock == nil || info.Lock.Until.Before(until) {
			t.Errorf("after a race the %s lock is %+v, %v", mode, info.Lock, err)
		}
		longest := until.Add(many * time.Hour)
		if err := b.ExtendLock(t.Context(), key, storage.Lock{Mode: mode, Until: longest}); err != nil {
			t.Error(err)
		}
		if info, err := b.Stat(t.Context(), key); err != nil || info.Lock == nil || !info.Lock.Until.Equal(longest) {
			t.Errorf("extended once more, the %s lock is %+v, %v", mode, info.Lock, err)
		}
	}
}

// testHiddenAndReplaced wants that the current version's lock is extended, and
// that an object behind a deletion is missing.
func testHiddenAndReplaced(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{Lockable: true})
	b := open(t, in(server, bucket))
	put(t, b, "k", "first")
	admin := server.Client(t, server.Key, server.Secret)
	if _, err := admin.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("k"), Body: strings.NewReader("second")}); err != nil {
		t.Fatal(err)
	}
	lock := storage.Lock{Mode: storage.Governance, Until: time.Now().Add(24 * time.Hour)}
	if err := b.ExtendLock(t.Context(), "k", lock); err != nil {
		t.Fatal(err)
	}
	for i, v := range versionsOf(t, b, "k") {
		out, err := admin.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: aws.String("k"), VersionId: &v.Version})
		if err != nil {
			t.Fatal(err)
		}
		if locked := out.ObjectLockRetainUntilDate != nil; locked != (i == 0) {
			t.Errorf("version %d (%d bytes) is locked: %t", i, v.Size, locked)
		}
	}
	if err := b.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if err := b.ExtendLock(t.Context(), "k", lock); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("extend behind a deletion: %v", err)
	}
}

// testKeeper tries the abilities with the rights that docs/providers.md names,
// and without each of them.
func testKeeper(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{Lockable: true})
	o := in(server, bucket)
	o.Prefix = "repo"
	lock := &storage.Lock{Mode: storage.Governance, Until: time.Now().Add(24 * time.Hour)}
	if _, err := open(t, o).Put(t.Context(), "k", storage.Bytes("x"), storage.PutOptions{Lock: lock}); err != nil {
		t.Fatal(err)
	}
	needs := map[string][]string{
		"extend":  {"s3:GetObject", "s3:PutObjectRetention"},
		"list":    {"s3:ListBucketMultipartUploads"},
		"discard": {"s3:AbortMultipartUpload"},
	}
	var all []string
	for _, rights := range needs {
		all = append(all, rights...)
	}
	all = append(all, "s3:GetObjectRetention")
	for i, without := range append([]string{""}, all...) {
		abandon(t, server, bucket, "repo/up")
		key, secret := server.User(t, bucket, slices.DeleteFunc(slices.Clone(all), func(right string) bool { return right == without })...)
		login(t, key, secret)
		b := open(t, o)
		got := map[string]error{
			"extend": b.ExtendLock(t.Context(), "k", storage.Lock{Mode: storage.Governance, Until: lock.Until.Add(time.Duration(i+1) * time.Hour)}),
		}
		for _, err := range b.Unfinished(t.Context(), "") {
			got["list"] = err
		}
		upload := server.Uploads(t, bucket)
		_, id, _ := strings.Cut(upload[0], " ")
		got["discard"] = b.Discard(t.Context(), storage.Unfinished{Key: "up", ID: id})
		login(t, server.Key, server.Secret)
		for op, err := range got {
			if denied := slices.Contains(needs[op], without); denied != errors.Is(err, storage.ErrPermission) || !denied && err != nil {
				t.Errorf("%s without %q: %v", op, without, err)
			}
		}
	}
}

// retention serves one object in a bucket with locks.
func retention(get, put string) *recorder {
	rec := &recorder{}
	refuse := func(w http.ResponseWriter, code string) {
		w.WriteHeader(map[string]int{"AccessDenied": 403, "NoSuchObjectLockConfiguration": 404, "InvalidRequest": 400, "SlowDown": 503}[code])
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>Bucket is missing Object Lock Configuration</Message></Error>", code)
	}
	rec.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodHead:
			w.Header().Set("Content-Length", "1")
			w.Header().Set("X-Amz-Version-Id", "v1")
		case r.Method == http.MethodGet && strings.HasPrefix(get, "<"):
			fmt.Fprint(w, get)
		case r.Method == http.MethodGet:
			refuse(w, get)
		case put != "":
			refuse(w, put)
		}
		return true
	}
	return rec
}

// Without the right to read retentions a HEAD shows no lock: that is not taken
// for none, since a lock in another mode could be set over it.
func TestExtendLockOnTheWire(t *testing.T) {
	const (
		held = `<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>2030-01-02T03:04:05Z</RetainUntilDate></Retention>`
		none = "NoSuchObjectLockConfiguration"
	)
	until := time.Date(2031, 2, 3, 4, 5, 6, 700, time.UTC)
	for _, tt := range []struct {
		name, get, put string
		until          time.Time
		ops            []string
		body           string // of the last
		want           error
	}{
		{"longer", held, "", until, []string{"HEAD", "GET retention", "PUT retention"}, "COMPLIANCE 2031-02-03T04:05:07Z", nil},
		{"long enough", held, "", until.AddDate(-2, 0, 0), []string{"HEAD", "GET retention"}, "", nil},
		{"none", none, "", until, []string{"HEAD", "GET retention", "PUT retention"}, "GOVERNANCE 2031-02-03T04:05:07Z", nil},
		{"not told", "AccessDenied", "", until, []string{"HEAD", "GET retention"}, "", storage.ErrPermission},
		{"no locks", "InvalidRequest", "", until, []string{"HEAD", "GET retention"}, "", storage.ErrUnsupported},
		{"no locks set", none, "InvalidRequest", until, []string{"HEAD", "GET retention", "PUT retention", "HEAD", "GET retention"}, "", storage.ErrUnsupported},
		{"refused", none, "AccessDenied", until, []string{"HEAD", "GET retention", "PUT retention", "HEAD", "GET retention"}, "", storage.ErrPermission},
		{"passing", none, "SlowDown", until, []string{"HEAD", "GET retention", "PUT retention"}, "", storage.ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := retention(tt.get, tt.put)
			err := open(t, serve(t, rec, false)).ExtendLock(t.Context(), "k", storage.Lock{Mode: storage.Governance, Until: tt.until})
			if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
				t.Errorf("extend: %v, want %v", err, tt.want)
			}
			ops := rec.ops()
			if !slices.Equal(ops, tt.ops) {
				t.Fatalf("requests: %q, want %q", ops, tt.ops)
			}
			for i, op := range ops {
				if got := rec.requests[i].URL.Query().Get("versionId"); op != "HEAD" && got != "v1" {
					t.Errorf("%s is of version %q", op, got)
				}
			}
			if tt.body == "" {
				return
			}
			last := len(ops) - 1
			mode, date, _ := strings.Cut(tt.body, " ")
			if body := rec.bodies[last]; !strings.Contains(body, "<Mode>"+mode+"<") || !strings.Contains(body, "<RetainUntilDate>"+date+"<") {
				t.Errorf("sent: %s", body)
			}
			h := rec.requests[last].Header
			if h.Get("Content-Md5") == "" || h.Get("X-Amz-Bypass-Governance-Retention") != "" || h.Get("X-Amz-Sdk-Checksum-Algorithm") != "" {
				t.Errorf("headers: %v", pick(h))
			}
		})
	}
}

// A listing of uploads goes on where the service says, and is complete or an
// error. What MinIO shows only without a prefix is found.
func TestUnfinishedOnTheWire(t *testing.T) {
	upload := func(key, id string) string {
		return "<Upload><Key>" + key + "</Key><UploadId>" + id + "</UploadId><Initiated>2026-11-20T10:15:30Z</Initiated></Upload>"
	}
	page := func(next string, uploads ...string) string {
		s := "<ListMultipartUploadsResult>" + strings.Join(uploads, "")
		if next != "" {
			s += "<IsTruncated>true</IsTruncated>" + next
		}
		return s + "</ListMultipartUploadsResult>"
	}
	next := "<NextKeyMarker>pre/a/1</NextKeyMarker><NextUploadIdMarker>i</NextUploadIdMarker>"
	for _, tt := range []struct {
		name  string
		pages map[string]string // by prefix, key-marker and upload-id-marker
		want  []string
		err   error
	}{
		{"pages", map[string]string{
			"pre/a/  ":         page(next, upload("pre/a/1", "i")),
			"pre/a/ pre/a/1 i": page("<NextKeyMarker>pre/a/1</NextKeyMarker><NextUploadIdMarker>j</NextUploadIdMarker>", upload("pre/a/1", "j")),
			"pre/a/ pre/a/1 j": page("<NextKeyMarker>pre/a/2</NextKeyMarker>", upload("pre/a/2", "k"), "<Upload><Key>pre/a/3</Key><UploadId>x</UploadId></Upload>"),
			"pre/a/ pre/a/2 ":  page("", upload("pre/a/no key", "l"), upload("pre/a/4", "m")),
		}, []string{"a/1 i", "a/1 j", "a/2 k", "a/4 m"}, nil},
		{"all", map[string]string{
			"pre/a/  ": page(""),
			"  ":       page("", upload("pre/a/1", "i"), upload("pre/b/1", "j"), upload("a/1", "k"), upload("pre/a/2", "l")),
		}, []string{"a/1 i", "a/2 l"}, nil},
		{"none", map[string]string{"pre/a/  ": page(""), "  ": page("")}, nil, nil},
		{"no next", map[string]string{"pre/a/  ": page(" ", upload("pre/a/1", "i"))}, []string{"a/1 i"}, storage.ErrUnavailable},
		{"in circles", map[string]string{"pre/a/  ": page(next), "pre/a/ pre/a/1 i": page(next)}, nil, storage.ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := &recorder{}
			rec.answer = func(w http.ResponseWriter, r *http.Request) bool {
				q := r.URL.Query()
				text, ok := tt.pages[q.Get("prefix")+" "+q.Get("key-marker")+" "+q.Get("upload-id-marker")]
				if !ok || !q.Has("uploads") || r.Method != http.MethodGet {
					t.Errorf("unexpected request: %s %s", r.Method, r.URL)
				}
				fmt.Fprint(w, text)
				return true
			}
			var got []string
			var last error
			for u, err := range open(t, serve(t, rec, false)).Unfinished(t.Context(), "a/") {
				if last = err; err != nil {
					break
				}
				if got = append(got, u.Key+" "+u.ID); !u.Since.Equal(time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)) {
					t.Errorf("since %v", u.Since)
				}
			}
			if !slices.Equal(got, tt.want) || !errors.Is(last, tt.err) || tt.err == nil && last != nil {
				t.Errorf("unfinished: %q, %v, want %q", got, last, tt.want)
			}
		})
	}
}

// A request without an upload's id would delete the object.
func TestDiscardOnTheWire(t *testing.T) {
	rec := &recorder{}
	b := open(t, serve(t, rec, false))
	for _, u := range []storage.Unfinished{{Key: "k"}, {Key: "bad key", ID: "i"}, {ID: "i"}} {
		if err := b.Discard(t.Context(), u); err == nil {
			t.Errorf("discard of %+v succeeds", u)
		}
	}
	if ops := rec.ops(); len(ops) != 0 {
		t.Fatalf("requests: %q", ops)
	}
	if err := b.Discard(t.Context(), storage.Unfinished{Key: "k", ID: "i"}); err != nil {
		t.Error(err)
	}
	if ops := rec.ops(); !slices.Equal(ops, []string{"DELETE uploadId"}) || rec.requests[0].URL.Query().Get("uploadId") != "i" {
		t.Errorf("requests: %q", ops)
	}
}
