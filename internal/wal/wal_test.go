package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/storage/fs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a file of the postgres package's test data.
func fixture(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile("../postgres/testdata/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(path, ".zst") {
		return b
	}
	raw, err := io.ReadAll(compress.NewReader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// failing is a bucket that fails as a test says.
type failing struct {
	storage.Bucket
	left atomic.Int64 // how many operations fail; negative: all
	err  error
	put  func(key string) error // before each Put; nil: nothing
	far  bool                   // a look costs a request
}

func (f *failing) Capabilities() storage.Capabilities {
	if f.far {
		return storage.Capabilities{}
	}
	return f.Bucket.Capabilities()
}

func (f *failing) next() error {
	switch n := f.left.Load(); {
	case n == 0:
		return nil
	case n > 0:
		f.left.Add(-1)
	}
	return &storage.Error{Op: "get", Bucket: f.String(), Key: "x", Err: f.err}
}

func (f *failing) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	if err := f.next(); err != nil {
		return nil, storage.Info{}, err
	}
	return f.Bucket.Get(ctx, key)
}

func (f *failing) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	if err := f.next(); err != nil {
		return func(yield func(storage.Info, error) bool) { yield(storage.Info{}, err) }
	}
	return f.Bucket.List(ctx, prefix, after)
}

func (f *failing) Put(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
	if err := f.next(); err != nil {
		return storage.Info{}, err
	}
	if f.put != nil {
		if err := f.put(key); err != nil {
			return storage.Info{}, &storage.Error{Op: "put", Bucket: f.String(), Key: key, Err: err}
		}
	}
	return f.Bucket.Put(ctx, key, src, o)
}

// world is a repository and a data directory of the server of the fixtures.
type world struct {
	t      *testing.T
	bucket *failing
	folder string
	repo   *repo.Repository
	pgdata string
	push   *Pusher
	fetch  *Fetcher
}

const major = "pg15"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, folder: t.TempDir(), pgdata: t.TempDir()}
	inner, err := fs.Open(t.Context(), w.folder)
	if err != nil {
		t.Fatal(err)
	}
	w.bucket = &failing{Bucket: inner, err: storage.ErrUnavailable}
	log := slog.New(slog.DiscardHandler)
	w.repo = w.open(t.TempDir())
	if _, err := w.repo.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.push = &Pusher{Repo: w.repo, Log: log, Now: time.Now, StateDir: t.TempDir()}
	w.fetch = &Fetcher{Repo: w.repo, Log: log, OnOutage: OutageWait}
	w.write("global/pg_control", fixture(t, major+"/pg_control.zst"))
	w.write("pg_wal/x", nil)
	return w
}

func (w *world) open(stateDir string) *repo.Repository {
	return repo.New([]repo.Place{{Name: "main", Bucket: w.bucket, Required: true}}, repo.Options{
		SpoolDir: stateDir, Log: slog.New(slog.DiscardHandler), Now: time.Now, Pins: repo.NewPins(stateDir),
	})
}

func (w *world) write(rel string, body []byte) string {
	w.t.Helper()
	path := filepath.Join(w.pgdata, rel)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, body, 0o600)); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) archive(name string, body []byte) error {
	w.t.Helper()
	return w.push.Push(w.t.Context(), w.write("pg_wal/"+name, body))
}

func (w *world) restore(name string) ([]byte, error) {
	w.t.Helper()
	dest := filepath.Join(w.pgdata, "pg_wal", "RECOVERYXLOG")
	os.Remove(dest)
	err := w.fetch.Fetch(w.t.Context(), name, dest)
	b, rerr := os.ReadFile(dest)
	if (rerr == nil) != (err == nil) {
		w.t.Fatalf("fetch says %v, but the file: %v", err, rerr)
	}
	if left, _ := filepath.Glob(filepath.Join(w.pgdata, "pg_wal", TempPrefix+"*")); len(left) != 0 {
		w.t.Fatalf("left behind: %v", left)
	}
	return b, err
}

const (
	first  = "00000001000000000000000B"
	second = "00000001000000000000000C"
)

func TestPushAndFetch(t *testing.T) {
	w := newWorld(t)
	files := map[string][]byte{
		first: fixture(t, major+"/"+first+".zst"), second: fixture(t, major+"/"+second+".zst"),
		first + ".partial":         fixture(t, major+"/"+first+".zst"),
		"00000002.history":         fixture(t, "timeline/00000002.history"),
		first + ".00000028.backup": fixture(t, "timeline/000000010000000000000009.00000028.backup"),
	}
	for name, body := range files {
		for range 2 { // the same again is success
			if err := w.archive(name, body); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	for name, body := range files {
		if got, err := w.restore(name); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%s: %d of %d bytes, %v", name, len(got), len(body), err)
		}
	}
	other := bytes.Clone(files[first])
	other[len(other)-100] ^= 1
	if err := w.archive(first, other); errs.KindOf(err) != errs.Conflict {
		t.Fatalf("other bytes: %v", err)
	}
	if got, err := w.restore(first); err != nil || !bytes.Equal(got, files[first]) {
		t.Fatalf("the archived file has changed: %v", err)
	}
}

func TestPushRefuses(t *testing.T) {
	good := fixture(t, major+"/"+first+".zst")
	change := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] ^= v
		return b
	}
	foreign := bytes.Clone(good)
	binary.LittleEndian.PutUint64(foreign[24:], 5)
	tests := map[string]struct {
		name string
		body []byte
		kind errs.Kind
	}{
		"cut":                        {first, good[:len(good)-8192], errs.Damaged},
		"cut in the header":          {first, good[:20], errs.Damaged},
		"empty":                      {first, nil, errs.Damaged},
		"longer":                     {first, append(bytes.Clone(good), 0), errs.Damaged},
		"zeros":                      {first, make([]byte, len(good)), errs.Damaged},
		"another name":               {"00000001000000000000000D", good, errs.Damaged},
		"of another cluster":         {first, foreign, errs.Foreign},
		"a page's address":           {first, change(8192+8, 1), errs.Damaged},
		"a page's magic":             {first, change(8192, 1), errs.Damaged},
		"a later timeline's pages":   {"000000020000000000000009", fixture(t, "timeline/00000002000000000000000A.zst"), errs.Foreign},
		"history that is not one":    {"00000002.history", []byte("hello\n"), errs.Damaged},
		"empty history":              {"00000002.history", nil, errs.Damaged},
		"history of gigabytes":       {"00000002.history", bytes.Repeat([]byte("1\t0/A019D0\tx\n"), 200_000), errs.Damaged},
		"backup history that is not": {first + ".00000028.backup", []byte("STOP"), errs.Damaged},
		"no WAL file's name":         {"hello", good, errs.Usage},
		"lower case":                 {strings.ToLower(first), good, errs.Usage},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			err := w.archive(test.name, test.body)
			if errs.KindOf(err) != test.kind || errs.HintOf(err) == "" {
				t.Fatalf("got %v (hint %q)", err, errs.HintOf(err))
			}
			if _, err := os.Stat(filepath.Join(w.folder, "cluster")); !errors.Is(err, os.ErrNotExist) {
				t.Fatal("something was stored")
			}
		})
	}
	t.Run("not a file", func(t *testing.T) {
		w := newWorld(t)
		dir := filepath.Join(w.pgdata, "pg_wal", first)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := w.push.Push(t.Context(), dir); err == nil {
			t.Fatal("a directory was archived")
		}
	})
	t.Run("no repository", func(t *testing.T) {
		w := newWorld(t)
		if err := os.Remove(filepath.Join(w.folder, "repository.json")); err != nil {
			t.Fatal(err)
		}
		if err := w.archive(first, good); errs.KindOf(err) != errs.NotInitialised {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("no control file", func(t *testing.T) {
		w := newWorld(t)
		os.RemoveAll(filepath.Join(w.pgdata, "global"))
		if err := w.archive(first, good); err != nil {
			t.Fatalf("a segment says itself whose it is: %v", err)
		}
		history := fixture(t, "timeline/00000002.history")
		if err := w.archive("00000002.history", history); errs.KindOf(err) != errs.Usage {
			t.Fatalf("got %v", err)
		}
		w.push.Cluster = 5
		if err := w.archive(second, fixture(t, major+"/"+second+".zst")); errs.KindOf(err) != errs.Foreign {
			t.Fatalf("got %v", err)
		}
		if err := w.archive("00000002.history", history); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFetchMisses(t *testing.T) {
	good, later := fixture(t, major+"/"+first+".zst"), fixture(t, major+"/"+second+".zst")
	t.Run("the end", func(t *testing.T) {
		w := newWorld(t)
		if err := w.archive(first, good); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{second, "00000002.history", "00000001000000000000000A.00000028.backup"} {
			if _, err := w.restore(name); !errors.Is(err, ErrNotFound) {
				t.Fatalf("%s: %v", name, err)
			}
		}
	})
	t.Run("a gap", func(t *testing.T) {
		w := newWorld(t)
		if err := w.archive(second, later); err != nil {
			t.Fatal(err)
		}
		if _, err := w.restore(first); errors.Is(err, ErrNotFound) || errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), second) {
			t.Fatalf("got %v", err)
		}
		w.write("standby.signal", nil)
		if _, err := w.restore(first); !errors.Is(err, ErrNotFound) {
			t.Fatalf("a standby can stream it: %v", err)
		}
	})
	t.Run("a repository that is gone", func(t *testing.T) {
		w := newWorld(t)
		if err := os.Remove(filepath.Join(w.folder, "repository.json")); err != nil {
			t.Fatal(err)
		}
		if _, err := w.restore(first); errors.Is(err, ErrNotFound) || errs.KindOf(err) != errs.NotInitialised {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		w := newWorld(t)
		if err := w.archive(first, good); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(w.folder, "cluster/*/wal/*/*"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%v, %v", files, err)
		}
		body, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		body[len(body)/2] ^= 1
		if err := errors.Join(os.Remove(files[0]), os.WriteFile(files[0], body, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.restore(first); errors.Is(err, ErrNotFound) || errs.KindOf(err) != errs.Damaged {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("a wrong name", func(t *testing.T) {
		if _, err := newWorld(t).restore("RECOVERYXLOG"); errs.KindOf(err) != errs.Usage {
			t.Fatalf("got %v", err)
		}
	})
}

// TestFetchBestEffortGone comes to the end of the archive, more than once by one
// handle, beside a best-effort repository that is not there any more.
func TestFetchBestEffortGone(t *testing.T) {
	w := newWorld(t)
	spare := t.TempDir()
	b, err := fs.Open(t.Context(), spare)
	if err != nil {
		t.Fatal(err)
	}
	r := repo.New([]repo.Place{{Name: "main", Bucket: w.bucket, Required: true}, {Name: "spare", Bucket: b}}, repo.Options{
		SpoolDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Now: time.Now, Pins: repo.NewPins(t.TempDir()), Debts: repo.NewDebts(t.TempDir()),
	})
	if _, err := r.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.push.Repo, w.fetch.Repo = r, r
	good := fixture(t, major+"/"+first+".zst")
	if err := w.archive(first, good); err != nil {
		t.Fatal(err)
	}
	// What is above an empty mount point.
	if err := errors.Join(os.Remove(filepath.Join(spare, "repository.json")), os.RemoveAll(filepath.Join(spare, "cluster"))); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := w.restore(second); !errors.Is(err, ErrNotFound) {
			t.Errorf("behind the end: %v", err)
		}
		if got, err := w.restore(first); err != nil || !bytes.Equal(got, good) {
			t.Errorf("before it: %d bytes, %v", len(got), err)
		}
	}
}

// What an outage means depends on whether the server is a standby and what
// was set.
func TestFetchOutage(t *testing.T) {
	for _, outage := range []error{storage.ErrUnavailable, storage.ErrPermission} {
		for what, test := range map[string]struct {
			policy   OutagePolicy
			standby  bool
			fails    int64
			notFound bool
			ok       bool
		}{
			"a primary stops":               {OutageWait, false, -1, false, false},
			"a primary stops whatever set":  {OutageNotFound, false, -1, false, false},
			"a standby waits":               {OutageWait, true, 1, false, true},
			"a standby that shall not wait": {OutageNotFound, true, -1, true, false},
			"a standby that shall stop":     {OutageStop, true, -1, false, false},
		} {
			t.Run(what+"/"+outage.Error(), func(t *testing.T) {
				w := newWorld(t)
				if err := w.archive(first, fixture(t, major+"/"+first+".zst")); err != nil {
					t.Fatal(err)
				}
				if test.standby {
					w.write("standby.signal", nil)
				}
				w.bucket.err = outage
				w.bucket.left.Store(test.fails)
				w.fetch.OnOutage = test.policy
				_, err := w.restore(first)
				if (err == nil) != test.ok || errors.Is(err, ErrNotFound) != test.notFound || err != nil && !errors.Is(err, outage) {
					t.Fatalf("got %v", err)
				}
			})
		}
	}
	t.Run("waiting ends with the context", func(t *testing.T) {
		w := newWorld(t)
		w.write("standby.signal", nil)
		w.bucket.left.Store(-1)
		ctx, cancel := context.WithCancel(t.Context())
		w.fetch.Log = slog.New(onLog{slog.DiscardHandler, cancel})
		err := w.fetch.Fetch(ctx, first, filepath.Join(w.pgdata, "pg_wal", "RECOVERYXLOG"))
		if err == nil || errors.Is(err, ErrNotFound) {
			t.Fatalf("got %v", err)
		}
	})
}

// onLog calls do for each record.
type onLog struct {
	slog.Handler
	do func()
}

func (onLog) Enabled(context.Context, slog.Level) bool { return true }
func (h onLog) Handle(context.Context, slog.Record) error {
	h.do()
	return nil
}

// Whatever breaks, the final name is never there half written.
func TestPlaceIsAtomic(t *testing.T) {
	good := fixture(t, major+"/"+first+".zst")
	file, err := postgres.ParseWALFile(first)
	if err != nil {
		t.Fatal(err)
	}
	control, err := postgres.ParseControl(fixture(t, major+"/pg_control.zst"))
	if err != nil {
		t.Fatal(err)
	}
	cluster := repo.ClusterID(control.SystemIdentifier)
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatalf("mount a tmpfs (these tests run as root): %v", err)
	}
	defer func() {
		if err := unix.Unmount(full, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	cut := errors.New("cut")
	for what, test := range map[string]struct {
		dir  string
		body io.Reader
		id   repo.ClusterID
		kind errs.Kind
	}{
		"a full disk":            {full, bytes.NewReader(good), cluster, errs.NoSpace},
		"a transfer that is cut": {t.TempDir(), io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(cut)), cluster, errs.Other},
		"a short body":           {t.TempDir(), bytes.NewReader(good[:len(good)/2]), cluster, errs.Damaged},
		"no body":                {t.TempDir(), bytes.NewReader(nil), cluster, errs.Damaged},
		"another cluster's":      {t.TempDir(), bytes.NewReader(good), cluster + 1, errs.Damaged},
		"a directory not there":  {t.TempDir() + "/x", bytes.NewReader(good), cluster, errs.Destination},
	} {
		t.Run(what, func(t *testing.T) {
			err := place(test.body, file, filepath.Join(test.dir, "RECOVERYXLOG"), test.id)
			if err == nil || errs.KindOf(err) != test.kind {
				t.Fatalf("got %v", err)
			}
			if entries, err := os.ReadDir(test.dir); err == nil && len(entries) != 0 {
				t.Fatalf("left: %v", entries)
			}
		})
	}
	dir := t.TempDir()
	if err := place(bytes.NewReader(good), file, filepath.Join(dir, "RECOVERYXLOG"), cluster); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "RECOVERYXLOG")); err != nil || !bytes.Equal(got, good) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	alive, dead := strconv.Itoa(os.Getppid()), "4194304" // beyond the most that Linux gives
	for _, name := range []string{TempPrefix + dead + "-" + first, TempPrefix + alive + "-" + first, TempPrefix + "x-" + first, first} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sweep(dir)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	if _, err := os.Stat(filepath.Join(dir, TempPrefix+dead+"-"+first)); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("what a dead process left is still there")
	}
}

// One call archives what is ready behind its file, and the calls for the rest
// ask the store nothing.
func TestPushBatch(t *testing.T) {
	w := newWorld(t)
	w.bucket.far = true
	names := []string{first, second}
	bodies := map[string][]byte{first: fixture(t, major+"/"+first+".zst"), second: fixture(t, major+"/"+second+".zst"), "00000002.history": fixture(t, "timeline/00000002.history")}
	for name, body := range bodies {
		w.write("pg_wal/"+name, body)
		w.write("pg_wal/archive_status/"+name+".ready", nil)
	}
	w.write("pg_wal/archive_status/junk.ready", nil)
	w.write("pg_wal/archive_status/00000001000000000000000A.ready", nil) // before what is asked for, and gone
	push := func(name string) error { return w.push.Push(t.Context(), filepath.Join(w.pgdata, "pg_wal", name)) }
	if err := push(first); err != nil {
		t.Fatal(err)
	}
	for name, body := range bodies {
		if got, err := w.restore(name); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	// The store is away, and nobody notices.
	w.bucket.left.Store(-1)
	for _, name := range []string{"00000002.history", second} {
		if err := push(name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := push(name); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("%s is taken for archived a second time: %v", name, err)
		}
	}
	w.bucket.left.Store(0)
	// A file of the same name that is another one is never taken for archived.
	for what, change := range map[string]func(path string){
		"other bytes": func(path string) {
			body := bytes.Clone(bodies[second])
			body[len(body)-1] ^= 1
			w.write("pg_wal/"+second, body)
		},
		"another file": func(path string) {
			if err := errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, bodies[second], 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		"touched": func(path string) {
			if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			w.write("pg_wal/"+second, bodies[second])
			if err := push(names[0]); err != nil {
				t.Fatal(err)
			}
			change(filepath.Join(w.pgdata, "pg_wal", second))
			w.bucket.left.Store(-1)
			defer w.bucket.left.Store(0)
			if err := push(second); !errors.Is(err, storage.ErrUnavailable) {
				t.Fatalf("it is taken for archived: %v", err)
			}
		})
	}
	t.Run("other repository", func(t *testing.T) {
		w.write("pg_wal/"+second, bodies[second])
		if err := push(first); err != nil {
			t.Fatal(err)
		}
		other := newWorld(t)
		other.push.StateDir = w.push.StateDir
		if err := other.push.Push(t.Context(), filepath.Join(w.pgdata, "pg_wal", second)); err != nil {
			t.Fatal(err)
		}
		if _, err := other.restore(second); err != nil {
			t.Fatalf("it was not archived there: %v", err)
		}
	})
}

// A file behind that cannot be archived changes nothing for the one that was
// asked for, and is an error when its turn comes.
func TestPushBatchBad(t *testing.T) {
	w := newWorld(t)
	for name, body := range map[string][]byte{first: fixture(t, major+"/"+first+".zst"), second: make([]byte, 16<<20)} {
		w.write("pg_wal/"+name, body)
		w.write("pg_wal/archive_status/"+name+".ready", nil)
	}
	if err := w.push.Push(t.Context(), filepath.Join(w.pgdata, "pg_wal", first)); err != nil {
		t.Fatal(err)
	}
	if err := w.push.Push(t.Context(), filepath.Join(w.pgdata, "pg_wal", second)); errs.KindOf(err) != errs.Damaged {
		t.Fatalf("got %v", err)
	}
}

// What was archived ahead into a repository that is gone, or was made anew, does
// not count.
func TestPushBatchOtherRepository(t *testing.T) {
	for what, again := range map[string]bool{"gone": false, "made anew": true} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			for _, name := range []string{first, second} {
				w.write("pg_wal/"+name, fixture(t, major+"/"+name+".zst"))
				w.write("pg_wal/archive_status/"+name+".ready", nil)
			}
			push := func(name string) error { return w.push.Push(t.Context(), filepath.Join(w.pgdata, "pg_wal", name)) }
			if err := push(first); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(w.folder)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				os.RemoveAll(filepath.Join(w.folder, e.Name()))
			}
			if !again {
				if err := push(second); err == nil {
					t.Fatal("a segment is archived, but nowhere")
				}
				return
			}
			w.repo = w.open(t.TempDir())
			if _, err := w.repo.Init(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.push.Repo, w.fetch.Repo = w.repo, w.repo
			if err := push(second); err != nil {
				t.Fatal(err)
			}
			if _, err := w.restore(second); err != nil {
				t.Fatalf("it is not there: %v", err)
			}
		})
	}
}

// Files go into the archive behind the one that was asked for, and none when it
// did not.
func TestPushBatchInOrder(t *testing.T) {
	w := newWorld(t)
	names := []string{first, second, second + ".partial"}
	for _, name := range names {
		w.write("pg_wal/"+name, fixture(t, major+"/"+strings.TrimSuffix(name, ".partial")+".zst"))
		w.write("pg_wal/archive_status/"+name+".ready", nil)
	}
	var mu sync.Mutex
	var order []string
	w.bucket.put = func(key string) error {
		mu.Lock()
		defer mu.Unlock()
		if len(order) == 1 {
			order = append(order, "refused")
			return storage.ErrPermission
		}
		order = append(order, filepath.Base(key))
		return nil
	}
	push := func(name string) error { return w.push.Push(t.Context(), filepath.Join(w.pgdata, "pg_wal", name)) }
	if err := push(first); err != nil {
		t.Fatal(err)
	}
	if order[0] != first || len(order) < 2 || order[1] != "refused" {
		t.Fatalf("stored %q, want %q first", order, first)
	}
	// None goes when the one that was asked for did not.
	order = nil
	w.bucket.put = func(string) error {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, "refused")
		return storage.ErrPermission
	}
	if err := push(first); err != nil && !errors.Is(err, storage.ErrPermission) || len(order) != 1 {
		t.Fatalf("%v, %q", err, order)
	}
}

// A segment that is lost for good ends a recovery where somebody says so.
func TestEndBefore(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{first, second} {
		if err := w.archive(name, fixture(t, major+"/"+name+".zst")); err != nil {
			t.Fatal(err)
		}
	}
	w.fetch.EndBefore = second
	if _, err := w.restore(first); err != nil {
		t.Fatal(err)
	}
	if _, err := w.restore(second); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	w.fetch.EndBefore = "hello"
	if _, err := w.restore(first); errs.KindOf(err) != errs.Usage || errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
}
