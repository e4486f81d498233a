package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"agent/internal/errs"
	"agent/internal/repo"
	"agent/internal/storage"
)

// locking makes a store that locks objects for at least a time.
func locking(s *store, least time.Duration, told bool, tried *[]string) {
	s.caps = storage.Capabilities{Locks: true, Versions: true}
	locks := map[string]*storage.Lock{}
	s.put = func(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
		if o.Lock != nil {
			*tried = append(*tried, key[strings.LastIndexByte(key, '/')+1:])
			if time.Until(o.Lock.Until) < least {
				return storage.Info{}, fmt.Errorf("%w: InvalidRetention (400)", storage.ErrUnsupported)
			}
			locks[key] = o.Lock
			o.Lock = nil
		}
		return s.Bucket.Put(ctx, key, src, o)
	}
	s.stat = func(i storage.Info, err error) (storage.Info, error) {
		if told {
			i.Lock = locks[i.Key]
		}
		return i, err
	}
}

func immutable(p *Place) {
	p.Immutable = &repo.Immutable{Mode: storage.Governance, For: 30 * 24 * time.Hour, FullEvery: 7 * 24 * time.Hour}
}

// TestLock looks whether objects can be locked.
func TestLock(t *testing.T) {
	facts := func(f storage.Facts) func() (storage.Facts, error) {
		return func() (storage.Facts, error) { return f, nil }
	}
	for _, c := range []struct {
		name   string
		change func(s *store, tried *[]string) storage.Bucket
		want   Status
		texts  []string
		tried  []string
	}{
		{
			"it says so", func(s *store, tried *[]string) storage.Bucket {
				locking(s, 0, true, tried)
				return prober{s, facts(storage.Facts{Lockable: true, Versioned: true, Retention: "governance 1d"})}
			}, OK, []string{"governance mode until", "by itself: governance 1d"}, nil,
		},
		{
			"it is tried", func(s *store, tried *[]string) storage.Bucket { locking(s, 0, true, tried); return s },
			OK,
			[]string{"lock of 2m0s", "governance mode until"},
			[]string{"locked-2m0s"},
		},
		{
			"a day at least", func(s *store, tried *[]string) storage.Bucket {
				locking(s, 24*time.Hour, true, tried)
				return s
			},
			OK,
			[]string{"lock of 25h0m0s"},
			[]string{"locked-2m0s", "locked-25h0m0s"},
		},
		{
			"it refuses", func(s *store, tried *[]string) storage.Bucket {
				locking(s, 1<<62, true, tried)
				return s
			},
			Failed,
			[]string{"InvalidRetention (400)", "object lock"},
			[]string{"locked-2m0s", "locked-25h0m0s"},
		},
		{
			"it takes a lock and has none", func(s *store, tried *[]string) storage.Bucket { locking(s, 0, false, tried); return s },
			Failed,
			[]string{"does not say that the object has one"},
			[]string{"locked-2m0s"},
		},
		{
			"it shortens locks", func(s *store, tried *[]string) storage.Bucket {
				locking(s, 0, true, tried)
				locked := s.stat
				s.stat = func(i storage.Info, err error) (storage.Info, error) {
					if i, err = locked(i, err); i.Lock != nil {
						i.Lock = &storage.Lock{Mode: i.Lock.Mode, Until: i.Lock.Until.Add(-time.Minute)}
					}
					return i, err
				}
				return s
			},
			Failed,
			[]string{"and not until"},
			[]string{"locked-2m0s"},
		},
		{
			"the right is lacking", func(s *store, tried *[]string) storage.Bucket {
				locking(s, 0, true, tried)
				put := s.put
				s.put = func(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
					if o.Lock != nil {
						*tried = append(*tried, "denied")
						return storage.Info{}, fmt.Errorf("%w: AccessDenied (403)", storage.ErrPermission)
					}
					return put(ctx, key, src, o)
				}
				return s
			},
			Failed,
			[]string{"AccessDenied (403)"},
			[]string{"denied"},
		},
		{
			"no such store", func(s *store, _ *[]string) storage.Bucket { return s },
			Failed,
			[]string{"this kind of store cannot lock"},
			nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRun(t)
			s, _ := newStore(t, r)
			var tried []string
			l := probed(t, r, c.change(s, &tried), immutable)
			got := l.wants(t, RepositoryLock, c.want, c.texts...)
			if !slices.Equal(tried, c.tried) {
				t.Errorf("tried %q, not %q", tried, c.tried)
			}
			// The promise, the longest chain, and two days.
			if got.Facts[LockMode] != "governance" || got.Facts[LockSeconds] != int64(39*24*3600) || got.Facts[Lockable] != (c.want == OK) {
				t.Errorf("facts %v", got.Facts)
			}
			if c.want == Failed && (got.Kind == errs.Other || got.Hint == "") {
				t.Errorf("kind %v, hint %q", got.Kind, got.Hint)
			}
		})
	}
}

// TestVersions judges whether older versions are kept.
func TestVersions(t *testing.T) {
	for _, c := range []struct {
		name   string
		facts  storage.Facts
		err    error
		change []func(*Place)
		want   Status
	}{
		{"on", storage.Facts{Versioned: true}, nil, nil, OK},
		{"off", storage.Facts{}, nil, nil, OK},
		{"off, with locks", storage.Facts{Lockable: true}, nil, []func(*Place){immutable}, Warning},
		{"on, with locks", storage.Facts{Lockable: true, Versioned: true}, nil, []func(*Place){immutable}, OK},
		{"not told", storage.Facts{Lockable: true, Notes: map[string]string{"versioning": "not told: AccessDenied"}}, nil, []func(*Place){immutable}, Skipped},
		{"not asked", storage.Facts{}, storage.ErrPermission, nil, Skipped},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRun(t)
			s, _ := newStore(t, r)
			s.caps = storage.Capabilities{Locks: true, Versions: true}
			l := probed(t, r, prober{s, func() (storage.Facts, error) { return c.facts, c.err }}, c.change...)
			l.wants(t, RepositoryVersions, c.want)
		})
	}
}

// TestTimeout: a store that does not answer ends with the reason.
func TestTimeout(t *testing.T) {
	r := newRun(t)
	s, _ := newStore(t, r)
	s.put = func(ctx context.Context, _ string, _ storage.Source, _ storage.PutOptions) (storage.Info, error) {
		<-ctx.Done()
		return storage.Info{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errTooLong(placeLimit))
	defer cancel()
	p := &probe{run: r, place: Place{Place: repo.Place{Name: "main", Bucket: s, Required: true}}}
	p.all(ctx)
	c := p.wants(t, RepositoryPut, Failed, "gave up after 45s", "how long an answer takes")
	if c.Kind != errs.Storage || errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("%+v", c)
	}
}
