package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"agent/internal/errs"
	"agent/internal/repo"
	"agent/internal/storage"
)

// TestGood checks a folder that does what it must, and leaves nothing there.
func TestGood(t *testing.T) {
	r := newRun(t)
	s, dir := newStore(t, r)
	l := probed(t, r, s, func(p *Place) { p.Dir = dir })
	l.only(t)
	put, get := l.wants(t, RepositoryPut, OK), l.wants(t, RepositoryGet, OK)
	for f, v := range map[Fact]any{PutMS: put.Facts[PutMS], GetMS: get.Facts[GetMS]} {
		if ms, ok := v.(float64); !ok || ms < 0 || ms > 60_000 {
			t.Errorf("%s is %v", f, v)
		}
	}
	if c := l.wants(t, RepositoryDelete, OK); c.Facts[Deletable] != true {
		t.Errorf("facts %v", c.Facts)
	}
	if _, err := os.Stat(filepath.Join(dir, "probe")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
	// One that is best effort tells besides that it lacks nothing.
	l = probed(t, r, s, func(p *Place) { p.Required = false })
	l.only(t)
	l.wants(t, RepositoryBehind, OK)
}

// replacing puts as a store does that ignores the condition.
func replacing(s *store) {
	s.put = func(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
		if err := s.Bucket.Delete(ctx, key); err != nil {
			return storage.Info{}, err
		}
		return s.Bucket.Put(ctx, key, src, o)
	}
}

// TestBadStores shows each check a store that fails it.
func TestBadStores(t *testing.T) {
	denied := &storage.Error{Op: "delete", Bucket: "x", Key: "y", Err: storage.ErrPermission}
	for _, c := range []struct {
		name   string
		change func(*store)
		want   []Name // that failed or warn
		text   string // of the first of them
		kind   errs.Kind
	}{
		{
			"put is denied", func(s *store) {
				s.put = func(context.Context, string, storage.Source, storage.PutOptions) (storage.Info, error) {
					return storage.Info{}, fmt.Errorf("%w: AccessDenied (403)", storage.ErrPermission)
				}
			},
			[]Name{RepositoryPut},
			"AccessDenied (403)", errs.Storage,
		},
		{
			"other bytes are read", func(s *store) {
				s.get = func(key string, b []byte) []byte {
					if strings.HasSuffix(key, "/object") {
						b = bytes.ToUpper(b)
					}
					return b
				}
			},
			[]Name{RepositoryGet, RepositoryConditional},
			"not what was put", errs.Damaged,
		},
		{
			"a range is of another place", func(s *store) {
				s.get = func(key string, b []byte) []byte {
					if strings.HasSuffix(key, "#") {
						b = append(b[1:], 'x')
					}
					return b
				}
			},
			[]Name{RepositoryRange},
			"a part", errs.Damaged,
		},
		{
			"a wrong size", func(s *store) {
				s.stat = func(i storage.Info, err error) (storage.Info, error) { i.Size++; return i, err }
			},
			[]Name{RepositoryStat},
			"1025 bytes and not 1024", errs.Damaged,
		},
		{
			"a listing comes late", func(s *store) { s.list = func(storage.Info) bool { return false } },
			[]Name{RepositoryList},
			"not listed", errs.Storage,
		},
		{"the condition is ignored", replacing, []Name{RepositoryConditional}, "ignores the condition", errs.Storage},
		{
			"the condition is refused", func(s *store) {
				s.put = func(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
					info, err := s.Bucket.Put(ctx, key, src, o)
					if errors.Is(err, storage.ErrExists) {
						err = fmt.Errorf("%w: NotImplemented (501)", storage.ErrUnsupported)
					}
					return info, err
				}
			},
			[]Name{RepositoryConditional},
			"NotImplemented (501)", errs.Storage,
		},
		{
			"it refuses and replaces", func(s *store) {
				replace := *s
				replacing(&replace)
				s.put = func(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
					info, err := s.Bucket.Put(ctx, key, src, o)
					if strings.HasSuffix(key, "/object") && errors.Is(err, storage.ErrExists) {
						if _, err := replace.put(ctx, key, src, o); err != nil {
							return info, err
						}
					}
					return info, err
				}
			},
			[]Name{RepositoryConditional},
			"took its bytes", errs.Storage,
		},
		{
			"two win a race", func(s *store) {
				s.put = func(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
					info, err := s.Bucket.Put(ctx, key, src, o)
					if strings.HasSuffix(key, "/race") && errors.Is(err, storage.ErrExists) {
						err = nil
					}
					return info, err
				}
			},
			[]Name{RepositoryRace},
			"4 of 4", errs.Storage,
		},
		{
			"the winner's bytes are not kept", func(s *store) {
				s.get = func(key string, b []byte) []byte {
					if strings.HasSuffix(key, "/race") {
						b = body("nobody")
					}
					return b
				}
			},
			[]Name{RepositoryRace},
			"other bytes", errs.Storage,
		},
		{"delete is denied", func(s *store) { s.delete = func([]string) error { return denied } }, nil, "", errs.Other},
		{"delete does nothing", func(s *store) { s.delete = func([]string) error { return nil } }, []Name{RepositoryDelete}, "still there", errs.Other},
		{
			"delete fails", func(s *store) { s.delete = func([]string) error { return errors.New("InternalError (500)") } },
			[]Name{RepositoryDelete},
			"InternalError (500)", errs.Storage,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRun(t)
			s, _ := newStore(t, r)
			c.change(s)
			l := probed(t, r, s)
			l.only(t, c.want...)
			if len(c.want) == 0 {
				return
			}
			got := l.find(t, c.want[0])
			if !strings.Contains(got.Text, c.text) || got.Hint == "" || got.Kind != c.kind {
				t.Errorf("kind %v: %+v", got.Kind, got)
			}
		})
	}
}

// TestLostAnswer: a put whose answer was lost is repeated below, and then told
// that the object exists. That is no failure.
func TestLostAnswer(t *testing.T) {
	r := newRun(t)
	s, _ := newStore(t, r)
	s.put = func(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
		if info, err := s.Bucket.Put(ctx, key, src, o); err != nil {
			return info, err
		}
		return storage.Info{}, storage.ErrExists
	}
	probed(t, r, s).only(t)
}

// TestNothingThere checks places that are no repository.
func TestNothingThere(t *testing.T) {
	r := newRun(t)
	away := fmt.Errorf("dial: %w", storage.ErrUnavailable)
	p := &probe{run: r, place: Place{Place: repo.Place{Name: "main", URL: "s3://x/y", Required: true, Err: away}}}
	p.all(t.Context())
	p.only(t, RepositoryOpen)
	p.wants(t, RepositoryPut, Skipped)
	if p.unusable == "" {
		t.Error("it can be used")
	}
	// Of a best-effort one that is a warning, a wrong key is not.
	for err, want := range map[error]Status{away: Warning, storage.ErrPermission: Failed} {
		p = &probe{run: r, place: Place{Place: repo.Place{Name: "main", URL: "s3://x/y", Err: err}}}
		p.all(t.Context())
		p.wants(t, RepositoryOpen, want)
	}

	s, dir := newStore(t, r)
	if err := os.Remove(filepath.Join(dir, "repository.json")); err != nil {
		t.Fatal(err)
	}
	l := probed(t, r, s)
	l.only(t, RepositoryID)
	if c := l.wants(t, RepositoryID, Failed, "is gone"); c.Kind != errs.NotInitialised {
		t.Errorf("kind %v", c.Kind)
	}
}

// TestProbe opens stores that tell facts.
func TestProbe(t *testing.T) {
	r := newRun(t)
	s, _ := newStore(t, r)
	l := probed(t, r, prober{s, func() (storage.Facts, error) {
		return storage.Facts{Free: 200 << 20, Notes: map[string]string{"region": "eu-1", "host_key": "k"}}, nil
	}})
	l.only(t, RepositorySpace)
	l.wants(t, RepositoryOpen, OK, "(host key k, region eu-1)")
	l.wants(t, RepositorySpace, Warning, "200 MiB")

	// What may not be asked is not the end.
	l = probed(t, r, prober{s, func() (storage.Facts, error) { return storage.Facts{}, storage.ErrPermission }})
	l.only(t, RepositoryOpen)
	l = probed(t, r, prober{s, func() (storage.Facts, error) { return storage.Facts{}, storage.ErrNoBucket }})
	l.only(t, RepositoryOpen)
	l.wants(t, RepositoryGet, Skipped)

	// A passing failure passes.
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		l := probed(t, r, prober{s, func() (storage.Facts, error) {
			if asked++; asked < openTries {
				return storage.Facts{}, storage.ErrUnavailable
			}
			return storage.Facts{}, nil
		}})
		l.wants(t, RepositoryOpen, OK)
		if asked != openTries {
			t.Errorf("asked %d times", asked)
		}
	})
}

// TestDeafStore: a store that does not answer is given up, and after that
// nothing is asked of it.
func TestDeafStore(t *testing.T) {
	r := newRun(t)
	s, _ := newStore(t, r)
	for required, want := range map[bool]Status{true: Failed, false: Warning} {
		synctest.Test(t, func(t *testing.T) {
			deaf := deafStore{s}
			began := time.Now()
			l := probed(t, r, deaf, func(p *Place) { p.Required = required })
			l.only(t, RepositoryOpen)
			l.wants(t, RepositoryOpen, want, "gave up after 15s")
			l.wants(t, RepositoryPut, Skipped)
			if took := time.Since(began); took != openLimit {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// deafStore is a prober that never answers.
type deafStore struct{ *store }

func (deafStore) Probe(ctx context.Context) (storage.Facts, error) {
	<-ctx.Done()
	return storage.Facts{}, fmt.Errorf("probe: %w", ctx.Err())
}

// TestClock moves the store's clock.
func TestClock(t *testing.T) {
	for _, c := range []struct {
		by   time.Duration
		want Status
		text string
	}{
		{0, OK, "agree"},
		{-900 * time.Millisecond, OK, "agree"}, // cut to seconds
		{25 * time.Second, OK, "agree"},
		{45 * time.Second, Warning, "ahead"},
		{-45 * time.Second, Warning, "behind"},
		{6 * time.Minute, Failed, "6m0s ahead"},
		{-6 * time.Minute, Failed, "behind"},
	} {
		t.Run(c.by.String(), func(t *testing.T) {
			r := newRun(t)
			s, _ := newStore(t, r)
			s.stat = func(i storage.Info, err error) (storage.Info, error) { i.ModTime = i.ModTime.Add(c.by); return i, err }
			l := probed(t, r, s)
			got := l.wants(t, RepositoryClock, c.want, c.text)
			if skew, ok := got.Facts[SkewSeconds].(float64); !ok || (c.want != OK) && skew*c.by.Seconds() <= 0 {
				t.Errorf("skew %v", got.Facts)
			}
		})
	}
	r := newRun(t)
	s, _ := newStore(t, r)
	s.stat = func(i storage.Info, err error) (storage.Info, error) { i.ModTime = time.Time{}; return i, err }
	probed(t, r, s).wants(t, RepositoryClock, Skipped)
	// Without an object's time, what the store says of itself counts.
	l := probed(t, r, prober{s, func() (storage.Facts, error) { return storage.Facts{Time: time.Now().Add(time.Hour)}, nil }})
	l.wants(t, RepositoryClock, Failed, "1h0m0s ahead")
}

// TestRun makes all checks of a setup without a server, in the order of Names.
func TestRun(t *testing.T) {
	r := newRun(t)
	s, dir := newStore(t, r)
	o := r.Options
	o.ConnInfo = "host=" + t.TempDir()
	o.Places = []Place{
		{Place: repo.Place{Name: "near", Bucket: s, URL: s.String(), Required: true}, Dir: dir},
		{Place: repo.Place{Name: "far", URL: "s3://far/x", Err: fmt.Errorf("dial: %w", storage.ErrUnavailable)}},
	}
	report := Run(t.Context(), o)
	l := list(report.Checks)
	l.only(t, Recipients, RepositoryOpen, ServerConnection)
	if err := report.Err(); errs.KindOf(err) != errs.Server {
		t.Errorf("%v", err)
	}
	last, place := -1, ""
	for _, c := range l {
		at := slices.Index(Names(), c.Name)
		if at < last && c.Repository == place {
			t.Errorf("%s %s is out of its order", c.Name, c.Repository)
		}
		last, place = at, c.Repository
	}
}

// TestSpace fills a disk.
func TestSpace(t *testing.T) {
	for free, want := range map[int64]Status{10 << 20: Failed, 500 << 20: Warning, 5 << 30: OK} {
		r := newRun(t)
		s, dir := newStore(t, r)
		r.sys.statfs = func(string) (fileSystem, error) { return fileSystem{free: free}, nil }
		c := probed(t, r, s, func(p *Place) { p.Dir = dir }).wants(t, RepositorySpace, want, "are free")
		if c.Facts[FreeBytes] != free || want == Failed && c.Kind != errs.NoSpace {
			t.Errorf("%+v", c)
		}
	}
}

// TestLeftovers removes what an earlier run left, when it is old enough.
func TestLeftovers(t *testing.T) {
	r := newRun(t)
	s, dir := newStore(t, r)
	for name, age := range map[string]time.Duration{"old": 25 * time.Hour, "young": time.Hour} {
		if _, err := s.Put(t.Context(), "probe/"+name+"/object", storage.Bytes("x"), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(dir, "probe", name, "object"), at, at); err != nil {
			t.Fatal(err)
		}
	}
	l := probed(t, r, s)
	l.only(t)
	l.wants(t, RepositoryLeftovers, OK, "removed 1 ")
	if _, err := s.Stat(t.Context(), "probe/old/object"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	if _, err := s.Stat(t.Context(), "probe/young/object"); err != nil {
		t.Errorf("the young one: %v", err)
	}
}

// TestBehind shows what a best-effort repository missed.
func TestBehind(t *testing.T) {
	r := newRun(t)
	s, _ := newStore(t, r)
	far := repo.Place{Name: "far", URL: "s3://far/x", Err: fmt.Errorf("dial: %w", storage.ErrUnavailable)}
	both := repo.New([]repo.Place{{Name: "main", Bucket: s, Required: true}, far}, repo.Options{
		Pins: r.pins(), Debts: r.debts(), Log: r.Log, Now: r.Now, Version: r.Version,
	})
	if err := both.EnsureCluster(t.Context(), repo.Cluster{ID: 7}); err != nil {
		t.Fatal(err)
	}
	p := &probe{run: r, place: Place{Place: far}}
	p.all(t.Context())
	c := p.wants(t, RepositoryBehind, Warning, "it lacks 1 objects, the first since 2", "agent repo sync")
	if c.Facts[Objects] != 1 || c.Facts[Since] == nil {
		t.Errorf("facts %v", c.Facts)
	}
}

// TestCluster looks whose objects a repository holds.
func TestCluster(t *testing.T) {
	r := newRun(t)
	s, _ := newStore(t, r)
	p := &probe{run: r, place: Place{Place: repo.Place{Name: "main", Bucket: s, Required: true}}}
	ask := func() list {
		p.list = nil
		p.cluster(t.Context(), 7)
		return p.list
	}
	ask().wants(t, RepositoryCluster, OK, "empty")
	for _, id := range []int{7, 8} {
		if _, err := s.Put(t.Context(), fmt.Sprintf("cluster/%020d/cluster.json", id), storage.Bytes("{}"), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	ask().wants(t, RepositoryCluster, OK, "of this cluster")
	if err := s.Delete(t.Context(), fmt.Sprintf("cluster/%020d/cluster.json", 7)); err != nil {
		t.Fatal(err)
	}
	ask().wants(t, RepositoryCluster, Warning, "1 others", "pg_upgrade")
}
