package azure

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"agent/internal/storage"
	"agent/testing/stores"
)

// zeros is a body in memory, or a plain stream.
type zeros struct {
	size  int64
	plain bool
}

func (z zeros) Size() int64 { return z.size }
func (z zeros) Open() (io.ReadCloser, error) {
	r := io.NewSectionReader(zeroAt{}, 0, z.size)
	if z.plain {
		return io.NopCloser(struct{ io.Reader }{r}), nil
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{r, io.NopCloser(nil)}, nil
}

type zeroAt struct{}

func (zeroAt) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// TestWire looks at the requests that reach a real server.
func TestWire(t *testing.T) {
	server := stores.StartAzurite(t, stores.AzureOptions{})
	raw := server.MakeContainer(t, "wire")
	seen, endpoint := record(t, server)
	o := Options{Container: "wire", Prefix: "p", Account: stores.AzuriteAccount, Endpoint: endpoint, Secrets: Secrets{AccountKey: stores.AzuriteKey}}
	plain := open(t, o)
	o.StorageClass, o.EncryptionScope = "cool", "scope1"
	full := open(t, o)
	t.Cleanup(func() { plain.Close(); full.Close() })

	t.Run("OnePut", func(t *testing.T) {
		for name, src := range map[string]storage.Source{
			"bytes": storage.Bytes("x"), "empty": storage.Bytes(nil), "seekable": zeros{maxSingle, false}, "stream": zeros{blockSize, true},
		} {
			seen.take()
			if _, err := plain.Put(t.Context(), "one/"+name, src, storage.PutOptions{}); err != nil {
				t.Fatalf("put %s: %v", name, err)
			}
			got := seen.take()
			if diff := cmp.Diff([]string{"PUT"}, kinds(got)); diff != "" {
				t.Fatalf("put %s: %s", name, diff)
			}
			h := got[0].Header
			if h.Get("If-None-Match") != "*" || (h.Get("x-ms-content-crc64") == "") != (src.Size() == 0) || got[0].ContentLength != src.Size() {
				t.Errorf("put %s: length %d, %v", name, got[0].ContentLength, h)
			}
			for _, absent := range []string{"x-ms-access-tier", "x-ms-encryption-scope", "x-ms-immutability-policy-mode", "x-ms-immutability-policy-until-date", "Expect", "User-Agent"} {
				if v := h.Get(absent); v != "" && absent != "User-Agent" || strings.Contains(v, "azsdk") {
					t.Errorf("put %s sends %s: %s", name, absent, v)
				}
			}
		}
	})
	t.Run("Settings", func(t *testing.T) {
		until := time.Date(2026, 12, 24, 18, 0, 0, 1, time.FixedZone("", 3600))
		for _, tt := range []struct {
			mode storage.LockMode
			want string
			src  storage.Source
			reqs int
		}{
			{storage.Governance, "unlocked", storage.Bytes("x"), 1},
			{storage.Compliance, "locked", storage.Bytes("x"), 1},
			{storage.Governance, "unlocked", zeros{blockSize + 1, true}, 4},
			{storage.Compliance, "locked", zeros{maxSingle + 1, false}, 7},
		} {
			seen.take()
			key := fmt.Sprintf("set/%s/%d", tt.mode, tt.src.Size())
			_, err := full.Put(t.Context(), key, tt.src, storage.PutOptions{Lock: &storage.Lock{Mode: tt.mode, Until: until}})
			if err != nil {
				t.Fatalf("put %s: %v", key, err)
			}
			got := seen.take()
			if len(got) != tt.reqs {
				t.Fatalf("put %s: %q, want %d requests", key, kinds(got), tt.reqs)
			}
			h := got[len(got)-1].Header // what makes the blob
			want := map[string]string{
				"If-None-Match": "*", "x-ms-access-tier": "Cool", "x-ms-encryption-scope": "scope1",
				"x-ms-immutability-policy-mode": tt.want, "x-ms-immutability-policy-until-date": "Thu, 24 Dec 2026 17:00:01 GMT",
			}
			for name, value := range want {
				if got := h.Get(name); !strings.EqualFold(got, value) {
					t.Errorf("put %s sends %s: %q, want %q", key, name, got, value)
				}
			}
			for _, req := range got[:len(got)-1] {
				if req.Method == http.MethodPut && (req.Header.Get("x-ms-content-crc64") == "" || req.Header.Get("x-ms-encryption-scope") != "scope1") {
					t.Errorf("block of %s: %v", key, req.Header)
				}
			}
		}
		for _, lock := range []storage.Lock{{Mode: "other"}, {}} {
			if _, err := full.Put(t.Context(), "bad/lock", storage.Bytes("x"), storage.PutOptions{Lock: &lock}); !errors.Is(err, storage.ErrUnsupported) {
				t.Errorf("put with the lock %+v: %v", lock, err)
			}
		}
	})
	t.Run("OneRequestEach", func(t *testing.T) {
		keys := make([]string, 300)
		for i := range keys {
			keys[i] = fmt.Sprintf("many/%d/%03d", i%3, i)
			if _, err := plain.Put(t.Context(), keys[i], storage.Bytes("x"), storage.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		calls := []struct {
			name string
			want []string
			call func() error
		}{
			{"get", []string{"GET"}, func() error {
				r, _, err := plain.Get(t.Context(), keys[0])
				if err == nil {
					_, err = io.ReadAll(r)
					r.Close()
				}
				return err
			}},
			{"range", []string{"GET"}, func() error {
				r, err := plain.GetRange(t.Context(), keys[0], 0, 1)
				if err == nil {
					r.Close()
				}
				return err
			}},
			{"empty range", nil, func() error { _, err := plain.GetRange(t.Context(), keys[0], 1, 0); return err }},
			{"stat", []string{"HEAD"}, func() error { _, err := plain.Stat(t.Context(), keys[0]); return err }},
			{"list", []string{"GET list"}, func() (err error) {
				for _, e := range plain.List(t.Context(), "many/", "") {
					err = e
				}
				return err
			}},
			{"folders", []string{"GET list"}, func() (err error) {
				for _, e := range plain.Folders(t.Context(), "many/") {
					err = e
				}
				return err
			}},
			{"put again", []string{"PUT", "HEAD"}, func() error {
				_, err := plain.Put(t.Context(), keys[0], storage.Bytes("y"), storage.PutOptions{})
				if !errors.Is(err, storage.ErrExists) {
					return fmt.Errorf("%w, not ErrExists", err)
				}
				return nil
			}},
			{"delete one", []string{"DELETE"}, func() error { return plain.Delete(t.Context(), keys[0]) }},
			{"delete many", []string{"POST batch", "POST batch"}, func() error { return plain.Delete(t.Context(), keys...) }},
			{"delete nothing", nil, func() error { return plain.Delete(t.Context()) }},
		}
		for _, c := range calls {
			seen.take()
			if err := c.call(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if diff := cmp.Diff(c.want, kinds(seen.take())); diff != "" {
				t.Errorf("%s: %s", c.name, diff)
			}
		}
	})
	t.Run("StartFrom", func(t *testing.T) {
		for _, tt := range []struct{ prefix, after, want string }{
			{"", "", ""}, {"one/", "one/empty", "p/one/empty"}, {"one/", "a", ""}, {"one/", "z", ""}, {"", "one/", "p/one/"},
		} {
			seen.take()
			for _, err := range plain.List(t.Context(), tt.prefix, tt.after) {
				if err != nil {
					t.Fatal(err)
				}
			}
			if got := seen.take()[0].URL.Query().Get("startFrom"); got != tt.want {
				t.Errorf("list %q after %q starts from %q, want %q", tt.prefix, tt.after, got, tt.want)
			}
		}
	})
	t.Run("Probe", func(t *testing.T) {
		facts, err := plain.Probe(t.Context())
		if err != nil || time.Since(facts.Time).Abs() > time.Hour || facts.Versioned || facts.Lockable || facts.Notes["endpoint"] == "" {
			t.Errorf("probe: %+v, %v", facts, err)
		}
	})
	if left := leftovers(t, raw); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}

// TestBlocks puts bodies that need several blocks.
func TestBlocks(t *testing.T) {
	server := stores.StartAzurite(t, stores.AzureOptions{})
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	raw := server.MakeContainer(t, "blocks")
	o := Options{Container: "blocks", Account: stores.AzuriteAccount, Endpoint: server.Endpoint(), Secrets: Secrets{AccountKey: stores.AzuriteKey}}
	b := open(t, o)
	t.Cleanup(func() { b.Close() })

	t.Run("Lies", func(t *testing.T) {
		const size = 2*blockSize + 5
		wrong := [32]byte{1}
		for _, tt := range []struct {
			name string
			src  storage.Source
			sum  *[32]byte
			want error
		}{
			{"short", lying{zeros{size - 1, true}, size}, nil, storage.ErrBadLength},
			{"short by blocks", lying{zeros{5, true}, size}, nil, storage.ErrBadLength},
			{"long", lying{zeros{size + 1, true}, size}, nil, storage.ErrBadLength},
			{"digest", zeros{size, true}, &wrong, storage.ErrBadDigest},
			{"broken", failing{zeros{size, true}, errBroken}, nil, errBroken},
			{"too big", lying{zeros{1, true}, maxBlocks*blockSize + 1}, nil, storage.ErrUnsupported},
		} {
			key := "lie/" + strings.ReplaceAll(tt.name, " ", "-")
			if _, err := b.Put(t.Context(), key, tt.src, storage.PutOptions{SHA256: tt.sum}); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
			if _, err := b.Stat(t.Context(), key); !errors.Is(err, storage.ErrNotExist) {
				t.Errorf("%s: stat afterwards: %v", tt.name, err)
			}
			// What was staged is no hindrance, and goes.
			if _, err := b.Put(t.Context(), key, storage.Bytes("x"), storage.PutOptions{}); err != nil {
				t.Errorf("%s: put afterwards: %v", tt.name, err)
			}
		}
		if left := leftovers(t, raw); len(left) != 0 {
			t.Errorf("left over: %q", left)
		}
	})
	t.Run("Race", func(t *testing.T) {
		// Each writer has its own bytes: blocks of two must never mix.
		const writers = 4
		results := make([]error, writers)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				data := bytes.Repeat([]byte{byte('a' + w)}, 2*blockSize+w)
				for {
					_, results[w] = b.Put(t.Context(), "race/key", stream(data), storage.PutOptions{})
					if !errors.Is(results[w], storage.ErrUnavailable) {
						return // a retry is what follows, as by decorate.Retry
					}
				}
			})
		}
		wg.Wait()
		winner := -1
		for w, err := range results {
			switch {
			case err == nil && winner < 0:
				winner = w
			case !errors.Is(err, storage.ErrExists):
				t.Fatalf("writer %d: %v", w, err)
			}
		}
		r, info, err := b.Get(t.Context(), "race/key")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		want := bytes.Repeat([]byte{byte('a' + winner)}, 2*blockSize+winner)
		if err != nil || !bytes.Equal(got, want) || info.Size != int64(len(want)) {
			t.Fatalf("writer %d won, and there are %d other bytes (%v)", winner, len(got), err)
		}
	})
	t.Run("StagedByAnother", func(t *testing.T) {
		// A blob of staged blocks alone is none.
		other := raw.NewBlockBlobClient("staged/key")
		if _, err := other.StageBlock(t.Context(), strings.Repeat("A", 22)+"==", nopSeek("old"), &blockblob.StageBlockOptions{}); err != nil {
			t.Fatal(err)
		}
		if left := leftovers(t, raw); len(left) != 1 {
			t.Fatalf("staged blobs: %q", left)
		}
		if _, err := b.Put(t.Context(), "staged/key", storage.Bytes("new"), storage.PutOptions{}); err != nil {
			t.Fatalf("put over staged blocks: %v", err)
		}
		if left := leftovers(t, raw); len(left) != 0 {
			t.Errorf("left over: %q", left)
		}
	})
}

// TestCreateOnly has a SAS token with the rights to create, read and list.
func TestCreateOnly(t *testing.T) {
	server := stores.StartAzurite(t, stores.AzureOptions{})
	raw := server.MakeContainer(t, "create")
	seen, endpoint := record(t, server)
	key, err := container.NewSharedKeyCredential(stores.AzuriteAccount, stores.AzuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	token := func(permissions sas.ContainerPermissions, until time.Time) string {
		query, err := sas.BlobSignatureValues{
			Version: "2024-11-04", ContainerName: "create", Permissions: permissions.String(), ExpiryTime: until,
			StartTime: time.Now().Add(-2 * time.Hour),
		}.SignWithSharedKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return query.Encode()
	}
	rights := sas.ContainerPermissions{Create: true, Read: true, List: true}
	o := Options{Container: "create", Endpoint: endpoint, Secrets: Secrets{SASToken: token(rights, time.Now().Add(time.Hour))}}
	b := open(t, o)
	t.Cleanup(func() { b.Close() })
	ctx := t.Context()
	for _, name := range []string{"first", "second"} {
		if _, err := b.Put(ctx, "key/"+name, storage.Bytes("x"), storage.PutOptions{}); err != nil {
			t.Fatalf("put: %v", err)
		}
	}
	if _, err := b.Put(ctx, "key/first", storage.Bytes("y"), storage.PutOptions{}); !errors.Is(err, storage.ErrExists) {
		t.Errorf("put again: %v, want ErrExists", err)
	}
	for _, keys := range [][]string{{"key/first"}, {"key/first", "key/second"}} {
		err := b.Delete(ctx, keys...)
		if !errors.Is(err, storage.ErrPermission) || strings.Count(err.Error(), "AuthorizationPermissionMismatch (403)") != len(keys) {
			t.Errorf("delete of %q: %v, want ErrPermission", keys, err)
		}
	}
	if _, err := b.Stat(ctx, "key/absent"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
	if facts, err := b.Probe(ctx); err != nil || facts.Time.IsZero() {
		t.Errorf("probe: %+v, %v", facts, err)
	}
	// Staging is refused, so that the body goes in one request.
	seen.take()
	if _, err := b.Put(ctx, "key/big", zeros{maxSingle + 1, false}, storage.PutOptions{}); err != nil {
		t.Errorf("put of a big body: %v", err)
	}
	if got := kinds(seen.take()); got[0] != "HEAD" || got[len(got)-1] != "PUT" {
		t.Errorf("a big body was sent by %q", got)
	}
	if _, err := b.Put(ctx, "key/stream", zeros{maxSingle + 1, true}, storage.PutOptions{}); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("put of a stream: %v, want ErrPermission", err)
	}
	if got := blobs(t, raw, container.ListBlobsInclude{}); len(got) != 3 {
		t.Errorf("there is %q", got)
	}

	o.Secrets.SASToken = token(rights, time.Now().Add(-time.Hour))
	late := open(t, o)
	t.Cleanup(func() { late.Close() })
	_, err = late.Stat(ctx, "key/first")
	if !errors.Is(err, storage.ErrPermission) || errors.Is(err, storage.ErrNotExist) || strings.Contains(err.Error(), "sig=") {
		t.Errorf("stat with a token that has expired: %v", err)
	}
}

var errBroken = errors.New("the body broke")

// lying announces another size.
type lying struct {
	storage.Source
	size int64
}

func (l lying) Size() int64 { return l.size }

// failing breaks at its end.
type failing struct {
	storage.Source
	err error
}

func (f failing) Open() (io.ReadCloser, error) {
	r, err := f.Source.Open()
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.MultiReader(io.LimitReader(r, f.Size()-1), brokenReader(f))), nil
}

type brokenReader failing

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

// stream hides that bytes are in memory.
type stream []byte

func (s stream) Size() int64 { return int64(len(s)) }
func (s stream) Open() (io.ReadCloser, error) {
	return io.NopCloser(struct{ io.Reader }{bytes.NewReader(s)}), nil
}

type seekNopCloser struct{ io.ReadSeeker }

func (seekNopCloser) Close() error { return nil }

func nopSeek(s string) io.ReadSeekCloser { return seekNopCloser{strings.NewReader(s)} }
