package repo

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"io"
	"iter"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/storage"
	"agent/internal/storage/fs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testCluster ClusterID  = 7_321_654_987_321_654_987
	testName    BackupName = "20261120T101530Z-k3v7qa"
	otherName   BackupName = "20261119T101530Z-aaaaaa"
)

var testTime = time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)

// memory is a bucket in memory whose answers a test can script: a hook that
// returns an error replaces the operation.
type memory struct {
	mu      sync.Mutex
	objects map[string]memoryObject
	clock   time.Time
	cheap   bool
	hook    func(op, key string) error
	// took is called after a Put was done; its error hides the success.
	took func(key string) error
	gets map[string]int
}

type memoryObject struct {
	body []byte
	at   time.Time
}

func newMemory() *memory {
	return &memory{objects: make(map[string]memoryObject), gets: make(map[string]int), clock: testTime, cheap: true}
}

func (m *memory) before(op, key string) error {
	if m.hook == nil {
		return nil
	}
	return m.hook(op, key)
}

func (m *memory) fail(op, key string, err error) error {
	return &storage.Error{Op: op, Bucket: m.String(), Key: key, Err: err}
}

func (m *memory) Put(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
	if err := errorsFirst(storage.CheckKey(key), ctx.Err(), m.before("put", key)); err != nil {
		return storage.Info{}, m.fail("put", key, err)
	}
	r, err := src.Open()
	if err != nil {
		return storage.Info{}, err
	}
	defer r.Close()
	body, err := io.ReadAll(r)
	if err != nil || int64(len(body)) != src.Size() {
		return storage.Info{}, m.fail("put", key, cmp.Or(err, storage.ErrBadLength))
	}
	if o.SHA256 != nil && *o.SHA256 != sha(body) {
		return storage.Info{}, m.fail("put", key, storage.ErrBadDigest)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; ok {
		return storage.Info{}, m.fail("put", key, storage.ErrExists)
	}
	m.objects[key] = memoryObject{body, m.clock}
	if m.took != nil {
		if err := m.took(key); err != nil {
			return storage.Info{}, err
		}
	}
	return storage.Info{Key: key, Size: int64(len(body)), ModTime: m.clock, SHA256: sha(body)}, nil
}

func errorsFirst(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) find(op, key string) (memoryObject, error) {
	if err := m.before(op, key); err != nil {
		return memoryObject{}, m.fail(op, key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gets[key]++
	o, ok := m.objects[key]
	if !ok {
		return o, m.fail(op, key, storage.ErrNotExist)
	}
	return o, nil
}

func (m *memory) Get(_ context.Context, key string) (io.ReadCloser, storage.Info, error) {
	o, err := m.find("get", key)
	if err != nil {
		return nil, storage.Info{}, err
	}
	return io.NopCloser(bytes.NewReader(o.body)), storage.Info{Key: key, Size: int64(len(o.body)), ModTime: o.at}, nil
}

func (m *memory) GetRange(_ context.Context, key string, off, n int64) (io.ReadCloser, error) {
	o, err := m.find("get", key)
	if err != nil {
		return nil, err
	}
	if off+n > int64(len(o.body)) {
		return nil, m.fail("get", key, storage.ErrRange)
	}
	return io.NopCloser(bytes.NewReader(o.body[off : off+n])), nil
}

func (m *memory) Stat(_ context.Context, key string) (storage.Info, error) {
	o, err := m.find("stat", key)
	return storage.Info{Key: key, Size: int64(len(o.body)), ModTime: o.at}, err
}

func (m *memory) List(_ context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := m.before("list", prefix); err != nil {
			yield(storage.Info{}, m.fail("list", prefix, err))
			return
		}
		m.mu.Lock()
		var all []storage.Info
		for key, o := range m.objects {
			if len(key) >= len(prefix) && key[:len(prefix)] == prefix && key > after {
				all = append(all, storage.Info{Key: key, Size: int64(len(o.body)), ModTime: o.at})
			}
		}
		m.mu.Unlock()
		slices.SortFunc(all, func(a, b storage.Info) int { return cmp.Compare(a.Key, b.Key) })
		for _, info := range all {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (m *memory) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return storage.SkipFolders(ctx, m, prefix)
}

func (m *memory) Versions(context.Context, string) iter.Seq2[storage.Info, error] {
	return storage.NoVersions()
}

func (m *memory) GetVersion(_ context.Context, key, _ string) (io.ReadCloser, storage.Info, error) {
	return nil, storage.Info{}, m.fail("get", key, storage.ErrNotExist)
}

func (m *memory) Delete(_ context.Context, keys ...string) error {
	for _, key := range keys {
		if err := m.before("delete", key); err != nil {
			return m.fail("delete", key, err)
		}
		m.mu.Lock()
		delete(m.objects, key)
		m.mu.Unlock()
	}
	return nil
}

func (m *memory) Capabilities() storage.Capabilities {
	return storage.Capabilities{CheapCheck: m.cheap}
}
func (m *memory) String() string { return "memory:///" }
func (m *memory) Close() error   { return nil }

// set puts bytes in the place of an object, as a damaged store does.
func (m *memory) set(key string, body []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key] = memoryObject{body, m.clock}
}

func (m *memory) keys() []string {
	var all []string
	for info := range m.List(context.Background(), "", "") {
		all = append(all, info.Key)
	}
	return all
}

// folder is a bucket in a folder, in memory where there is one.
func folder(t testing.TB) (storage.Bucket, string) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "repo-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	b, err := fs.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return b, dir
}

// testKeys are one recipient for all classes and its identity.
func testKeys(t testing.TB) (Keys, string) {
	t.Helper()
	identity, recipient, err := crypto.Generate(false)
	if err != nil {
		t.Fatal(err)
	}
	to, err := crypto.ParseRecipients([]string{recipient})
	if err != nil {
		t.Fatal(err)
	}
	return Keys{
		Data: to, WAL: to, Meta: to,
		Identities: crypto.NewIdentities(t.Context(), crypto.Sources{Text: identity}),
	}, identity
}

func setting(t testing.TB, s string) compress.Setting {
	t.Helper()
	c, err := compress.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func testRepo(b storage.Bucket, keys Keys, codec compress.Setting) *Repository {
	return New([]Place{{Name: "main", Bucket: b, Required: true}}, Options{
		Keys: keys, Codec: codec, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return testTime }, Version: "test",
	})
}

// packs is a PackSet with the group that its uploads run in.
type packs struct {
	*PackSet
	group *errgroup.Group
	ctx   context.Context
}

func newPacks(ctx context.Context, r *Repository, name BackupName, uploads int) packs {
	g, ctx := errgroup.WithContext(ctx)
	return packs{r.NewPackSet(ctx, g, testCluster, name, uploads), g, ctx}
}

// byID is how LoadPacks gives a list of packs back.
func byID(name BackupName, list []Pack) map[PackID]Pack {
	all := make(map[PackID]Pack)
	for _, p := range list {
		id := PackID{name, p.Number}
		if p.Lender != "" {
			id.Backup = p.Lender
		}
		all[id] = p
	}
	return all
}

// noise is bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		b[i] = byte(seed >> 32)
	}
	return b
}

func sha(b []byte) Digest { return sha256.Sum256(b) }
