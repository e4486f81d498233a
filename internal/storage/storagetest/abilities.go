package storagetest

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"agent/internal/storage"
)

// testExtendLock is of stores that are a storage.Extender. Those that lock
// nothing here must say so, and not take a lock for a remark.
func (s *suite) testExtendLock() {
	plain, ok := storage.As[storage.Extender](s.b)
	if !ok {
		return
	}
	s.put("lock/plain", []byte("x"))
	today := s.storeTime("lock/plain")
	// The suite's locks end in the middle of a second, and must not be shorter.
	day := func(n int) time.Time { return today.Add(time.Duration(n)*24*time.Hour + 500*time.Millisecond) }
	if s.h.OpenLocking == nil {
		err := plain.ExtendLock(s.ctx, "lock/plain", storage.Lock{Mode: storage.Governance, Until: day(2)})
		if !is(err, storage.ErrUnsupported) {
			s.Fatalf("extend a lock where there are none: %v, want ErrUnsupported", err)
		}
		s.wantObject(s.b, "lock/plain", []byte("x"))
		return
	}
	b := s.h.OpenLocking(s.T)
	defer b.Close()
	e, ok := storage.As[storage.Extender](b)
	if !ok {
		s.Fatal("a bucket with locks cannot extend them")
	}
	for _, key := range []string{"lock/absent", "absent"} {
		if err := e.ExtendLock(s.ctx, key, storage.Lock{Mode: storage.Governance, Until: day(2)}); !is(err, storage.ErrNotExist) {
			s.Errorf("extend the lock of a missing object: %v, want ErrNotExist", err)
		}
	}
	if err := e.ExtendLock(s.ctx, "../x", storage.Lock{Mode: storage.Governance, Until: day(2)}); !is(err, storage.ErrKey) {
		s.Errorf("extend the lock of an invalid key: %v, want ErrKey", err)
	}
	other := map[storage.LockMode]storage.LockMode{storage.Governance: storage.Compliance, storage.Compliance: storage.Governance}
	for _, born := range []*storage.Lock{nil, {Mode: storage.Governance, Until: day(1)}, {Mode: storage.Compliance, Until: day(1)}} {
		key, mode := "lock/none", storage.Governance
		if born != nil && born.Mode == storage.Compliance && s.h.OnlyGovernance {
			continue
		}
		if born != nil {
			key, mode = "lock/"+string(born.Mode), born.Mode
		}
		if _, err := b.Put(s.ctx, key, storage.Bytes("body"), storage.PutOptions{Lock: born}); err != nil {
			s.Fatalf("put with the lock %+v: %v", born, err)
		}
		lasts := time.Time{}
		for i, step := range []storage.Lock{
			{Mode: mode, Until: day(3)},
			{Mode: mode, Until: day(2)},         // never shortened
			{Mode: other[mode], Until: day(2)},  // nor by this
			{Mode: other[mode], Until: day(10)}, // extended, in its own mode
		} {
			if err := e.ExtendLock(s.ctx, key, step); err != nil {
				s.Fatalf("%s, step %d: extend: %v", key, i, err)
			}
			if step.Until.After(lasts) {
				lasts = step.Until
			}
			info, err := b.Stat(s.ctx, key)
			if err != nil || info.Lock == nil {
				s.Fatalf("%s, step %d: stat: %+v, %v", key, i, info, err)
			}
			if info.Lock.Mode != mode || info.Lock.Until.Before(lasts) || info.Lock.Until.After(lasts.Add(2*time.Second)) {
				s.Fatalf("%s, step %d: the lock is %+v, want %s until %v", key, i, *info.Lock, mode, lasts)
			}
		}
		s.wantObject(b, key, []byte("body"))
	}
}

// testUnfinished is of stores that are a storage.Cleaner.
func (s *suite) testUnfinished() {
	c, ok := storage.As[storage.Cleaner](s.b)
	if !ok {
		return
	}
	if left := s.unfinished(c, ""); len(left) != 0 {
		s.Fatalf("unfinished in an empty store: %+v", left)
	}
	s.put("up/one", []byte("first"))
	s.put("up/empty", nil)
	s.h.Abandon(s.T, "up/two")
	s.h.Abandon(s.T, "other/three")
	if got := s.list("", ""); !slices.Equal(got, []string{"up/empty", "up/one"}) {
		s.Fatalf("with unfinished uploads there is %q", got)
	}
	all := s.unfinished(c, "")
	if len(all) != 2 || !strings.HasPrefix(all[0].Key, "other/") || !strings.HasPrefix(all[1].Key, "up/") {
		s.Fatalf("unfinished: %+v, want one in other/ and one in up/", all)
	}
	now := s.storeTime("up/one")
	for _, u := range all {
		if u.ID == "" || u.Size < 0 || u.Since.Sub(now).Abs() > time.Hour {
			s.Errorf("unfinished: %+v, beside an object of %v", u, now)
		}
	}
	for prefix, want := range map[string]int{"up/": 1, "other/": 1, "o": 1, "up": 1, "none/": 0, "up/none/": 0} {
		if got := s.unfinished(c, prefix); len(got) != want {
			s.Errorf("unfinished below %q: %+v, want %d", prefix, got, want)
		}
	}
	for _, err := range c.Unfinished(s.ctx, "x y") {
		if !is(err, storage.ErrKey) {
			s.Errorf("unfinished below an invalid prefix: %v, want ErrKey", err)
		}
	}
	for range c.Unfinished(s.ctx, "") {
		break
	}

	// An object of the same key that was finished meanwhile stays.
	s.put("up/two", []byte("second"))
	for _, u := range all {
		for range 2 { // the second time it is gone
			if err := c.Discard(s.ctx, u); err != nil {
				s.Fatalf("discard %+v: %v", u, err)
			}
		}
		// Nor can anything be made up that takes an object for an upload.
		for _, key := range []string{"up/one", "up/empty"} {
			for _, id := range []string{"", "up/one", "one", u.ID} {
				_ = c.Discard(s.ctx, storage.Unfinished{Key: key, ID: id, Since: now.Add(time.Hour)}) // may be refused
			}
		}
	}
	if left := s.unfinished(c, ""); len(left) != 0 {
		s.Errorf("unfinished after all: %+v", left)
	}
	s.wantObject(s.b, "up/one", []byte("first"))
	s.wantObject(s.b, "up/empty", nil)
	s.wantObject(s.b, "up/two", []byte("second"))
	s.wantFree("other/three")
}

// testDiscardBesidePut wants that a Put whose upload is discarded fails as a
// whole, or gets through, and that one which ended is not harmed.
func (s *suite) testDiscardBesidePut() {
	c, ok := storage.As[storage.Cleaner](s.b)
	if !ok {
		return
	}
	data := pattern(s.h.BigObject, 11)
	for _, early := range []bool{false, true} {
		key := map[bool]string{false: "discard/late", true: "discard/early"}[early]
		var seen []storage.Unfinished
		var failed error
		look := func() {
			for u, err := range c.Unfinished(s.ctx, "") {
				seen, failed = append(seen, u), cmp.Or(failed, err)
				if early && err == nil {
					failed = c.Discard(s.ctx, u)
				}
				if failed != nil {
					return
				}
			}
		}
		var once sync.Once
		// Late in the body some of its parts have arrived.
		_, err := s.b.Put(s.ctx, key, hookedAt(data, len(data)/8*7, func() error {
			once.Do(look)
			return nil
		}), storage.PutOptions{})
		if failed != nil {
			s.Fatalf("while a put runs: %v", failed)
		}
		switch {
		case err == nil:
		case !early || !is(err, storage.ErrUnavailable):
			s.Fatalf("put (discarded %t of %+v): %v", early, seen, err)
		default:
			s.wantAbsent(key)
			s.put(key, data)
		}
		for _, u := range seen {
			if err := c.Discard(s.ctx, u); err != nil {
				s.Fatalf("discard of what was finished: %v", err)
			}
		}
		s.wantObject(s.b, key, data)
		if left := s.unfinished(c, ""); len(left) != 0 {
			s.Fatalf("unfinished after all: %+v", left)
		}
	}
}

// storeTime is when the object was made, by the store's clock.
func (s *suite) storeTime(key string) time.Time {
	s.Helper()
	info, err := s.b.Stat(s.ctx, key)
	if err != nil {
		s.Fatalf("stat %s: %v", key, err)
	}
	return info.ModTime.Truncate(time.Second)
}

// unfinished lists, by key.
func (s *suite) unfinished(c storage.Cleaner, prefix string) []storage.Unfinished {
	s.Helper()
	var all []storage.Unfinished
	for u, err := range c.Unfinished(s.ctx, prefix) {
		if err != nil {
			s.Fatalf("unfinished below %q: %v", prefix, err)
		}
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b storage.Unfinished) int { return strings.Compare(a.Key, b.Key) })
	return all
}
