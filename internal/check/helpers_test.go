package check

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/storage/fs"
)

// store is a folder that misbehaves where a function is set. It is no Prober;
// see prober.
type store struct {
	storage.Bucket
	caps   storage.Capabilities
	put    func(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error)
	get    func(key string, b []byte) []byte
	stat   func(storage.Info, error) (storage.Info, error)
	list   func(storage.Info) bool
	delete func(keys []string) error
}

func (s *store) Capabilities() storage.Capabilities { return s.caps }

func (s *store) Put(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
	if s.put != nil {
		return s.put(ctx, key, src, o)
	}
	return s.Bucket.Put(ctx, key, src, o)
}

func (s *store) changed(key string, r io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil || s.get == nil {
		return r, err
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	return storage.Bytes(s.get(key, b)).Open()
}

func (s *store) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	r, info, err := s.Bucket.Get(ctx, key)
	r, err = s.changed(key, r, err)
	return r, info, err
}

func (s *store) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := s.Bucket.GetRange(ctx, key, off, n)
	return s.changed(key+"#", r, err)
}

func (s *store) Stat(ctx context.Context, key string) (storage.Info, error) {
	info, err := s.Bucket.Stat(ctx, key)
	if s.stat != nil {
		return s.stat(info, err)
	}
	return info, err
}

func (s *store) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range s.Bucket.List(ctx, prefix, after) {
			if err == nil && s.list != nil && !s.list(info) {
				continue
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func (s *store) Delete(ctx context.Context, keys ...string) error {
	if s.delete != nil {
		return s.delete(keys)
	}
	return s.Bucket.Delete(ctx, keys...)
}

// prober is a store that tells facts.
type prober struct {
	*store
	probe func() (storage.Facts, error)
}

func (p prober) Probe(context.Context) (storage.Facts, error) { return p.probe() }

// newRun is one with a state directory and no server, at the real time.
func newRun(t *testing.T) *run {
	t.Helper()
	return &run{
		Options: Options{
			StateDir: filepath.Join(t.TempDir(), "state"), Program: "/usr/bin/agent",
			Advise: func(err error) error { return err }, Log: slog.New(slog.DiscardHandler), Now: time.Now, Version: "test",
		},
		sys: linux(),
	}
}

// newStore is an initialised repository in a folder, which is returned too.
func newStore(t *testing.T, r *run) (s *store, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "repo")
	b, err := fs.Create(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	init := repo.New([]repo.Place{{Name: "main", Bucket: b, Required: true}}, repo.Options{
		Pins: r.pins(), Log: r.Log, Now: r.Now, Version: r.Version,
	})
	if _, err := init.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &store{Bucket: b}, dir
}

// probed checks a repository in a bucket.
func probed(t *testing.T, r *run, b storage.Bucket, change ...func(*Place)) list {
	t.Helper()
	p := &probe{run: r, place: Place{Place: repo.Place{Name: "main", Bucket: b, URL: b.String(), Required: true}}}
	for _, f := range change {
		f(&p.place)
	}
	p.all(t.Context())
	return p.list
}

// find returns the only check of a name.
func (l list) find(t *testing.T, n Name) Check {
	t.Helper()
	var found []Check
	for _, c := range l {
		if c.Name == n {
			found = append(found, c)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d checks %s: %+v", len(found), n, l)
	}
	return found[0]
}

// wants fails the test unless the check has the status and says the texts.
func (l list) wants(t *testing.T, n Name, s Status, texts ...string) Check {
	t.Helper()
	c := l.find(t, n)
	if c.Status != s {
		t.Errorf("%s is %s, not %s: %+v", n, c.Status, s, c)
	}
	for _, text := range texts {
		if !strings.Contains(c.Text+"\n"+c.Hint, text) {
			t.Errorf("%s does not say %q: %+v", n, text, c)
		}
	}
	return c
}

// only fails the test unless these and no others are neither ok nor skipped.
func (l list) only(t *testing.T, names ...Name) {
	t.Helper()
	var bad []Name
	for _, c := range l {
		if c.Status == Failed || c.Status == Warning {
			bad = append(bad, c.Name)
		}
	}
	if !slices.Equal(bad, names) {
		t.Errorf("bad are %v and not %v: %+v", bad, names, l)
	}
}
