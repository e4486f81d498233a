package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/internal/errs"
	"agent/internal/storage"
	"agent/testing/stores"
)

// ownTests are what every server can show beyond the suite.
func ownTests(t *testing.T, server *stores.S3) {
	for name, test := range map[string]func(*testing.T, *stores.S3){
		"WrongBucket": testWrongBucket, "WrongCredentials": testWrongCredentials, "WrongRegion": testWrongRegion,
		"Locks": testLocks, "NoLocks": testNoLocks, "ExtendRace": testExtendRace, "HiddenAndReplaced": testHiddenAndReplaced, "Versions": testVersionsOfDeleted, "Probe": testProbe,
		"BigAndThere": testBigAndThere, "TrueParts": testTrueParts, "SourceFile": testSourceFile, "Foreign": testForeignObjects,
	} {
		t.Run(name, func(t *testing.T) { test(t, server) })
	}
}

func put(t *testing.T, b storage.Bucket, key, body string) {
	t.Helper()
	if _, err := b.Put(t.Context(), key, storage.Bytes(body), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

// everyWay gives the error of each operation.
func everyWay(ctx context.Context, b *Bucket) map[string]error {
	got := make(map[string]error)
	_, got["put"] = b.Put(ctx, "a/key", storage.Bytes("x"), storage.PutOptions{})
	r, _, err := b.Get(ctx, "a/key")
	if err == nil {
		r.Close()
	}
	got["get"] = err
	r, err = b.GetRange(ctx, "a/key", 0, 1)
	if err == nil {
		r.Close()
	}
	got["range"] = err
	_, got["stat"] = b.Stat(ctx, "a/key")
	got["extend"] = b.ExtendLock(ctx, "a/key", storage.Lock{Mode: storage.Governance, Until: time.Now().Add(time.Hour)})
	for _, got["list"] = range b.List(ctx, "", "") {
		break
	}
	for _, got["folders"] = range b.Folders(ctx, "") {
		break
	}
	for _, got["versions"] = range b.Versions(ctx, "") {
		break
	}
	got["delete"] = b.Delete(ctx, "a/key")
	for _, got["unfinished"] = range b.Unfinished(ctx, "") {
		break
	}
	got["discard"] = b.Discard(ctx, storage.Unfinished{Key: "a/key", ID: "none"})
	got["delete two"] = b.Delete(ctx, "a/key", "b/key")
	_, got["probe"] = b.Probe(ctx)
	return got
}

func testWrongBucket(t *testing.T, server *stores.S3) {
	b := open(t, in(server, "no-such-bucket"))
	for op, err := range everyWay(t.Context(), b) {
		if !errors.Is(err, storage.ErrNoBucket) || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: %v, want ErrNoBucket", op, err)
			continue
		}
		if !strings.Contains(err.Error(), "NoSuchBucket (404)") || !strings.Contains(err.Error(), "s3://no-such-bucket") || errs.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q)", op, err, errs.HintOf(err))
		}
	}
}

func testWrongCredentials(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{})
	const secret = "averyverysecretsecret"
	for _, key := range []string{server.Key, "nosuchuser"} {
		login(t, key, secret)
		b := open(t, in(server, bucket))
		for op, err := range everyWay(t.Context(), b) {
			if !errors.Is(err, storage.ErrPermission) || errors.Is(err, storage.ErrNotExist) {
				t.Errorf("%s with wrong credentials: %v, want ErrPermission", op, err)
				continue
			}
			if errs.HintOf(err) == "" || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "Signature=") {
				t.Errorf("%s with wrong credentials: %v (hint %q)", op, err, errs.HintOf(err))
			}
		}
	}
}

func testWrongRegion(t *testing.T, server *stores.S3) {
	o := in(server, server.NewBucket(t, stores.S3Bucket{}))
	o.Region = "eu-central-1"
	b := open(t, o)
	for op, err := range everyWay(t.Context(), b) {
		if err == nil || op == "extend" && errors.Is(err, storage.ErrUnsupported) {
			t.Logf("%s: this server takes any region", op)
			continue
		}
		if errs.KindOf(err) != errs.Config || !strings.Contains(errs.HintOf(err), "AWS_REGION="+server.Region) {
			t.Errorf("%s in a wrong region: %v (hint %q)", op, err, errs.HintOf(err))
		}
	}
}

// testLocks wants that an object is locked from its birth, also one in parts,
// and that nobody removes it.
func testLocks(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{Lockable: true})
	b := open(t, in(server, bucket))
	b.singleMax, b.minPart = 1<<20, 5<<20
	until := time.Now().Add(48 * time.Hour)
	for _, mode := range []storage.LockMode{storage.Governance, storage.Compliance} {
		for name, body := range map[string][]byte{"one": []byte("body"), "parts": bytes.Repeat([]byte("part"), 3<<19)} {
			key := string(mode) + "/" + name
			info, err := b.Put(t.Context(), key, storage.Bytes(body), storage.PutOptions{Lock: &storage.Lock{Mode: mode, Until: until}})
			if err != nil {
				t.Fatalf("put locked: %v", err)
			}
			if info.Lock == nil {
				t.Errorf("put of %s tells no lock", key)
			}
			info, err = b.Stat(t.Context(), key)
			if err != nil || info.Lock == nil || info.Lock.Mode != mode || info.Lock.Until.Before(until) || info.Lock.Until.After(until.Add(2*time.Second)) {
				t.Fatalf("stat of a locked object: %+v, %v, want %s until %v", info.Lock, err, mode, until)
			}
		}
	}
	admin := server.Client(t, server.Key, server.Secret)
	// An ordinary delete hides; the version stays, and stays readable.
	if err := b.Delete(t.Context(), "compliance/one"); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if _, err := b.Stat(t.Context(), "compliance/one"); !errors.Is(err, storage.ErrNotExist) {
		t.Fatalf("stat behind a marker: %v", err)
	}
	versions := versionsOf(t, b, "compliance/one")
	if len(versions) != 2 || !versions[0].Hidden || versions[1].Hidden || versions[1].Size != 4 {
		t.Fatalf("versions of a hidden object: %+v", versions)
	}
	if got := readVersion(t, b, versions[1]); got != "body" {
		t.Fatalf("hidden version: %q", got)
	}
	_, err := admin.DeleteObject(t.Context(), &s3.DeleteObjectInput{
		Bucket: &bucket, Key: aws.String("compliance/one"), VersionId: &versions[1].Version, BypassGovernanceRetention: aws.Bool(true),
	})
	if err == nil {
		t.Fatal("a version under a compliance lock was deleted")
	}
}

func versionsOf(t *testing.T, b storage.Bucket, prefix string) []storage.Info {
	t.Helper()
	var all []storage.Info
	for info, err := range b.Versions(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("versions: %v", err)
		}
		all = append(all, info)
	}
	return all
}

func readVersion(t *testing.T, b storage.Bucket, v storage.Info) string {
	t.Helper()
	r, _, err := b.GetVersion(t.Context(), v.Key, v.Version)
	if err != nil {
		t.Fatalf("get version: %v", err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read version: %v", err)
	}
	return string(got)
}

// testNoLocks wants that a bucket without Object Lock refuses what was to be
// locked. (versitygw v1.8.0 refuses, and yet keeps what came in one request.)
func testNoLocks(t *testing.T, server *stores.S3) {
	b := open(t, in(server, server.NewBucket(t, stores.S3Bucket{})))
	b.singleMax, b.minPart = 1<<20, 5<<20
	lock := &storage.Lock{Mode: storage.Compliance, Until: time.Now().Add(time.Hour)}
	for key, body := range map[string][]byte{"one": []byte("body"), "parts": make([]byte, 6<<20)} {
		_, err := b.Put(t.Context(), key, storage.Bytes(body), storage.PutOptions{Lock: lock})
		if !errors.Is(err, storage.ErrUnsupported) || errs.HintOf(err) == "" {
			t.Errorf("put of a locked object (%s): %v, want ErrUnsupported", key, err)
		}
	}
}

// testVersionsOfDeleted wants the newest first, over more than one page.
func testVersionsOfDeleted(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{Versioned: true})
	o := in(server, bucket)
	o.Prefix = "under/here"
	b := open(t, o)
	put(t, b, "v/a", "first")
	admin := server.Client(t, server.Key, server.Secret)
	for _, body := range []string{"second", "third!!"} {
		_, err := admin.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("under/here/v/a"), Body: strings.NewReader(body)})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(t, b, "v/b", "other")
	put(t, b, "w", "elsewhere")
	all := versionsOf(t, b, "v/")
	var got []string
	for _, v := range all {
		got = append(got, v.Key+" "+readVersion(t, b, v))
	}
	if want := []string{"v/a third!!", "v/a second", "v/a first", "v/b other"}; !slices.Equal(got, want) {
		t.Fatalf("versions %q, want %q", got, want)
	}
	if _, _, err := b.GetVersion(t.Context(), "v/a", all[3].Version); err == nil {
		t.Fatal("a version of another object is read")
	}
}

func testProbe(t *testing.T, server *stores.S3) {
	for _, tt := range []struct {
		bucket stores.S3Bucket
		want   storage.Facts
	}{
		{stores.S3Bucket{}, storage.Facts{}},
		{stores.S3Bucket{Versioned: true}, storage.Facts{Versioned: true}},
		{stores.S3Bucket{Lockable: true}, storage.Facts{Versioned: true, Lockable: true}},
		{stores.S3Bucket{Governance: 30}, storage.Facts{Versioned: true, Lockable: true, Retention: "governance 30d"}},
	} {
		b := open(t, in(server, server.NewBucket(t, tt.bucket)))
		got, err := b.Probe(t.Context())
		if err != nil {
			t.Fatalf("probe: %v", err)
		}
		if age := time.Since(got.Time); age < -time.Minute || age > time.Minute {
			t.Errorf("the server's clock says %v", got.Time)
		}
		if got.Versioned != tt.want.Versioned || got.Lockable != tt.want.Lockable || got.Retention != tt.want.Retention {
			t.Errorf("probe of %+v: %+v", tt.bucket, got)
		}
		if got.Notes["endpoint"] != server.URL || got.Notes["region"] != server.Region {
			t.Errorf("notes %v", got.Notes)
		}
	}
}

// testBigAndThere wants that the answer "exists" reaches us though the server
// gives it before it has read the body.
func testBigAndThere(t *testing.T, server *stores.S3) {
	b := open(t, in(server, server.NewBucket(t, stores.S3Bucket{})))
	put(t, b, "there", "small")
	for range 3 {
		if _, err := b.Put(t.Context(), "there", storage.Bytes(make([]byte, 32<<20)), storage.PutOptions{}); !errors.Is(err, storage.ErrExists) {
			t.Fatalf("put of 32 MiB over an object: %v, want ErrExists", err)
		}
	}
}

// testTrueParts sends one body that is too big for one request, with the sizes
// that users get, and one over it.
func testTrueParts(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{})
	b := open(t, in(server, bucket))
	src := zeros(singleMax + 1)
	info, err := b.Put(t.Context(), "big", src, storage.PutOptions{Metadata: map[string]string{"kind": "big"}})
	if err != nil || info.Size != singleMax+1 {
		t.Fatalf("put: %+v, %v", info, err)
	}
	got, err := b.Stat(t.Context(), "big")
	if err != nil || got.Size != singleMax+1 || got.Metadata["kind"] != "big" {
		t.Fatalf("stat: %+v, %v", got, err)
	}
	if _, err := b.Put(t.Context(), "big", src, storage.PutOptions{}); !errors.Is(err, storage.ErrExists) {
		t.Fatalf("put again: %v, want ErrExists", err)
	}
	if left := server.Uploads(t, bucket); len(left) != 0 {
		t.Fatalf("left over: %q", left)
	}
}

// zeros is a body that is in no memory.
type zeros int64

func (z zeros) Size() int64 { return int64(z) }
func (z zeros) Open() (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(zeroReader{}, int64(z))), nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// file is a source like the spool.
type file string

func (f file) Open() (io.ReadCloser, error) { return os.Open(string(f)) }
func (f file) Size() int64 {
	st, err := os.Stat(string(f))
	if err != nil {
		return -1
	}
	return st.Size()
}

func testSourceFile(t *testing.T, server *stores.S3) {
	b := open(t, in(server, server.NewBucket(t, stores.S3Bucket{})))
	path := filepath.Join(t.TempDir(), "spool")
	if err := os.WriteFile(path, bytes.Repeat([]byte("spooled"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(t.Context(), "file", file(path), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	info, err := b.Stat(t.Context(), "file")
	if err != nil || info.Size != 700_000 {
		t.Fatalf("stat: %+v, %v", info, err)
	}
}

// testForeignObjects wants that what no key names is passed over.
func testForeignObjects(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{})
	o := in(server, bucket)
	o.Prefix = "mine"
	b := open(t, o)
	admin := server.Client(t, server.Key, server.Secret)
	for _, name := range []string{"mine/", "mine/fol der/x", "mine/ü", "mine/ok/x y", "mine2/x", "other"} {
		if _, err := admin.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &name}); err != nil {
			t.Fatalf("put %q: %v", name, err)
		}
	}
	put(t, b, "ok/x", "x")
	var got []string
	for info, err := range b.List(t.Context(), "", "") {
		got = append(got, info.Key)
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, err := range b.Folders(t.Context(), "") {
		got = append(got, name+"/")
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range versionsOf(t, b, "") {
		got = append(got, "v "+v.Key)
	}
	if want := []string{"ok/x", "ok/"}; !slices.Equal(got, want) && !slices.Equal(got, append(want, "v ok/x")) {
		t.Fatalf("listed: %q, want %q", got, want)
	}
}

// testCertificates wants that an unknown certificate is refused and said so.
func testCertificates(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{})
	o := in(server, bucket)
	o.CAFile = ""
	for op, err := range everyWay(t.Context(), open(t, o)) {
		if errs.KindOf(err) != errs.Config || !strings.Contains(errs.HintOf(err), "ca_file") || errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s of a server that is not trusted: %v (hint %q)", op, err, errs.HintOf(err))
		}
	}
	o.Insecure = true
	put(t, open(t, o), "insecure", "x")
	o.Insecure = false
	t.Setenv("AWS_CA_BUNDLE", server.CAFile)
	put(t, open(t, o), "bundle", "x")
	t.Setenv("AWS_CA_BUNDLE", "")
	o.CAFile = server.CAFile
	o.Endpoint = strings.Replace(server.URL, "https:", "http:", 1)
	if _, err := open(t, o).Stat(t.Context(), "insecure"); err == nil || errors.Is(err, storage.ErrNotExist) {
		t.Errorf("http to a TLS server: %v", err)
	}
}

// testEncryption wants that the settings reach the objects.
func testEncryption(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{})
	admin := server.Client(t, server.Key, server.Secret)
	for i, tt := range []struct{ sse, key string }{{"AES256", ""}, {"aws:kms", "test-key"}} {
		o := in(server, bucket)
		o.SSE, o.KMSKeyID = tt.sse, tt.key
		b := open(t, o)
		b.singleMax, b.minPart = 1<<20, 5<<20
		for _, size := range []int64{5, 6 << 20} {
			key := fmt.Sprintf("sse/%d/%d", i, size)
			if _, err := b.Put(t.Context(), key, zeros(size), storage.PutOptions{}); err != nil {
				t.Fatalf("put: %v", err)
			}
			out, err := admin.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
			if err != nil || string(out.ServerSideEncryption) != tt.sse || !strings.HasSuffix(aws.ToString(out.SSEKMSKeyId), tt.key) {
				t.Errorf("head: %s %q, %v, want %+v", out.ServerSideEncryption, aws.ToString(out.SSEKMSKeyId), err, tt)
			}
		}
	}
	o := in(server, bucket)
	o.StorageClass = "NOSUCHCLASS"
	_, err := open(t, o).Put(t.Context(), "class", storage.Bytes("x"), storage.PutOptions{})
	if errs.KindOf(err) != errs.Config || !strings.Contains(err.Error(), "InvalidStorageClass (400)") {
		t.Errorf("put with an unknown storage class: %v", err)
	}
	o = in(server, bucket)
	o.SSE, o.KMSKeyID = "aws:kms", "no-such-key"
	_, err = open(t, o).Put(t.Context(), "kms", storage.Bytes("x"), storage.PutOptions{})
	if errs.KindOf(err) != errs.Config || !strings.Contains(errs.HintOf(err), "KMS key") {
		t.Errorf("put with an unknown KMS key: %v (hint %q)", err, errs.HintOf(err))
	}
}
