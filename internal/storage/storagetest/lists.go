package storagetest

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"agent/internal/storage"
)

// fill puts objects whose bytes are their keys, several at a time.
func (s *suite) fill(keys []string) {
	s.Helper()
	const workers = 16
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(keys) && errs[w] == nil; i += workers {
				_, errs[w] = s.b.Put(s.ctx, keys[i], storage.Bytes(keys[i]), storage.PutOptions{})
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		s.Fatalf("put: %v", err)
	}
}

// listKeys are more than two thousand keys, or a few hundred, whose order is
// easily got wrong: with bytes on both sides of the slash, and directories of
// all sizes.
func (s *suite) listKeys() []string {
	big, tree := 1100, 1000
	if s.h.Few {
		big, tree = 150, 100
	}
	keys := []string{
		"a-b", "a/b", "a.b", "a0", "ab", "a/b-c", "a+b/c", "a,b/c", "a-b/c0", "a/c/d", "a/c-d", "a/c.d", "a/c0d", "a/c/d0/e",
		"B/x", "b/x", "_/x", "z/y-/x", "z/y/x", "z/y./x.y", "z/y+", "z/y,", "z/y", "zz", "=", "@",
	}
	for i := range big {
		keys = append(keys, fmt.Sprintf("big/%024X", i*7))
	}
	for i := range tree {
		keys = append(keys, fmt.Sprintf("tree/%x/%02x/%x", i%10, i/10%20, i))
	}
	keys = slices.DeleteFunc(keys, func(k string) bool {
		// A folder cannot hold an object and objects below it.
		below := slices.ContainsFunc(keys, func(o string) bool { return strings.HasPrefix(o, k+"/") })
		return below || storage.CheckKey(k) != nil
	})
	slices.Sort(keys)
	return slices.Compact(keys)
}

func (s *suite) testList() {
	keys := s.listKeys()
	shuffled := slices.Clone(keys)
	rnd := rand.New(rand.NewPCG(3, 4))
	rnd.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	s.fill(shuffled)
	i := 0
	for info, err := range s.b.List(s.ctx, "", "") {
		if err != nil {
			s.Fatalf("list: %v", err)
		}
		if i >= len(keys) || info.Key != keys[i] {
			s.Fatalf("key %d of the list is %q, want %q", i, info.Key, keys[min(i, len(keys)-1)])
		}
		if info.Size != int64(len(info.Key)) || info.ModTime.IsZero() {
			s.Fatalf("listed with size %d and time %v: %s", info.Size, info.ModTime, info.Key)
		}
		i++
	}
	if i != len(keys) {
		s.Fatalf("%d keys are listed, want %d", i, len(keys))
	}
	prefixes := []string{"", "a", "a/", "a/c", "a/c/", "a-", "z/y", "z/y/", "big", "big/", "big/00", "tree/3/", "tree/3/1", "none", "zzz", "b", "="}
	after := []string{"", "a", "a/", "a/b", "a/c", "a/c/", "a-b", "big/", "big0", "tree", "tree/4/", "tree/4/0", "tree/40", "zz", "zzzz", "+", "@"}
	for range 20 {
		k := keys[rnd.IntN(len(keys))]
		prefixes = append(prefixes, k[:rnd.IntN(len(k))+1])
		k = keys[rnd.IntN(len(keys))]
		after = append(after, k[:rnd.IntN(len(k))+1], k)
	}
	for n, prefix := range prefixes {
		// Every prefix without a start, and with some of the starts.
		starts := append([]string{""}, after[n%5])
		for range 4 {
			starts = append(starts, after[rnd.IntN(len(after))])
		}
		for _, start := range starts {
			want := slices.DeleteFunc(slices.Clone(keys), func(k string) bool {
				return !strings.HasPrefix(k, prefix) || k <= start
			})
			if got := s.list(prefix, start); !slices.Equal(got, want) {
				s.Fatalf("list %q after %q: %d keys %q…, want %d keys %q…", prefix, start,
					len(got), got[:min(len(got), 5)], len(want), want[:min(len(want), 5)])
			}
		}
	}
}

func (s *suite) testListStops() {
	keys := make([]string, 30)
	for i := range keys {
		keys[i] = fmt.Sprintf("stop/%d/%02d", i/10, i)
	}
	s.fill(keys)
	for stop := 1; stop <= len(keys); stop++ {
		var got []string
		for info, err := range s.b.List(s.ctx, "stop/", "") {
			if err != nil {
				s.Fatalf("list: %v", err)
			}
			if got = append(got, info.Key); len(got) == stop {
				break
			}
		}
		if !slices.Equal(got, keys[:stop]) {
			s.Fatalf("the first %d keys are %q", stop, got)
		}
	}
	// A sequence can be used again, and two of them at a time.
	seq := s.b.List(s.ctx, "stop/", "")
	n := 0
	for range seq {
		for range seq {
			n++
		}
	}
	if n != len(keys)*len(keys) {
		s.Fatalf("nested listings give %d keys, want %d", n, len(keys)*len(keys))
	}
}

// testListUnderChange wants each object that was there all the time listed
// exactly once, whatever comes and goes beside it.
func (s *suite) testListUnderChange() {
	var stay, keys []string
	for i := range 200 {
		key := fmt.Sprintf("change/%d/%03d", i/20, i)
		keys = append(keys, key)
		if i%5 == 0 {
			stay = append(stay, key)
		}
	}
	s.fill(keys)
	var got []string
	n := 0
	for info, err := range s.b.List(s.ctx, "", "") {
		if err != nil {
			s.Fatalf("list: %v", err)
		}
		if n < len(keys) && n%5 != 0 {
			if err := s.b.Delete(s.ctx, keys[len(keys)-n]); err != nil && n > 0 {
				s.Fatalf("delete: %v", err)
			}
			s.put(fmt.Sprintf("change/%d/new%03d", n%10, n), nil)
		}
		n++
		if slices.Contains(stay, info.Key) {
			got = append(got, info.Key)
		}
	}
	if !slices.Equal(got, stay) {
		s.Fatalf("of what stayed %d keys are listed, want %d: %q", len(got), len(stay), got)
	}
}

func (s *suite) testDelete() {
	if err := s.b.Delete(s.ctx); err != nil {
		s.Fatalf("delete of nothing: %v", err)
	}
	if err := s.b.Delete(s.ctx, "missing", "no/such/thing"); err != nil {
		s.Fatalf("delete of missing objects: %v", err)
	}
	s.fill([]string{"d/one", "d/two", "d/three", "d/onetwo", "e/f/g"})
	for range 2 {
		if err := s.b.Delete(s.ctx, "d/one"); err != nil {
			s.Fatalf("delete: %v", err)
		}
		s.wantAbsent("d/one")
	}
	if got := s.list("", ""); !slices.Equal(got, []string{"d/onetwo", "d/three", "d/two", "e/f/g"}) {
		s.Fatalf("after one delete there is %q", got)
	}
	// A prefix is not an object.
	if err := s.b.Delete(s.ctx, "d", "e", "e/f"); err != nil {
		s.Fatalf("delete of prefixes: %v", err)
	}
	// The invalid key is refused, the others go; one of them is there twice.
	err := s.b.Delete(s.ctx, "d/two", "../d/three", "missing", "d/two", "e/f/g")
	if !is(err, storage.ErrKey) {
		s.Fatalf("delete with an invalid key: %v, want ErrKey", err)
	}
	if one := (*storage.Error)(nil); !errors.As(err, &one) || one.Key != "../d/three" {
		s.Fatalf("delete with an invalid key: %v, which names another", err)
	}
	if got := s.list("", ""); !slices.Equal(got, []string{"d/onetwo", "d/three"}) {
		s.Fatalf("after several deletes there is %q", got)
	}
	s.wantObject(s.b, "d/three", []byte("d/three"))
	s.wantFree("d/two")
}

func (s *suite) testDeleteMany() {
	n := 1500
	if s.h.Few {
		n = 300
	}
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("many/%d/%04d", i%7, i)
	}
	s.fill(keys)
	s.put("many/0/stays", []byte("x"))
	if err := s.b.Delete(s.ctx, append(keys, "many/0/missing")...); err != nil {
		s.Fatalf("delete: %v", err)
	}
	if got := s.list("", ""); !slices.Equal(got, []string{"many/0/stays"}) {
		s.Fatalf("after deleting 1,500 objects there are %d: %q…", len(got), got[:min(len(got), 5)])
	}
}

// testDeleteBesidePut empties a folder again and again while others put into
// it: no Put may fail or lose its object.
func (s *suite) testDeleteBesidePut() {
	const writers, rounds = 4, 60
	handles := []storage.Bucket{s.b, s.open()}
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		b := handles[w%2]
		wg.Go(func() {
			for i := range rounds {
				key := fmt.Sprintf("busy/folder/%d-%d", w, i)
				_, err := b.Put(s.ctx, key, storage.Bytes(key), storage.PutOptions{})
				_, serr := b.Stat(s.ctx, key)
				errs[w] = cmp.Or(errs[w], err, serr, b.Delete(s.ctx, key))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		s.Fatal(err)
	}
	if got := s.list("", ""); len(got) != 0 {
		s.Fatalf("there is %q", got)
	}
}

// testFolders compares with what the keys themselves say.
func (s *suite) testFolders() {
	keys := s.listKeys()
	s.fill(keys)
	for _, prefix := range []string{"", "a/", "big/", "tree/", "tree/3/", "tree/3/0a/", "z/", "none/"} {
		var want []string
		for _, k := range keys {
			rest, below := strings.CutPrefix(k, prefix)
			if name, _, folder := strings.Cut(rest, "/"); below && folder && !slices.Contains(want, name) {
				want = append(want, name) // the keys are sorted: "a-b/" before "a/"
			}
		}
		var got []string
		for name, err := range s.b.Folders(s.ctx, prefix) {
			if err != nil {
				s.Fatalf("folders of %q: %v", prefix, err)
			}
			got = append(got, name)
		}
		if !slices.Equal(got, want) {
			s.Fatalf("folders of %q: %q, want %q", prefix, got, want)
		}
		for name := range s.b.Folders(s.ctx, prefix) {
			if name != want[0] {
				s.Fatalf("first folder of %q: %q", prefix, name)
			}
			break
		}
	}
	for _, err := range s.b.Folders(s.ctx, "x y") {
		if !is(err, storage.ErrKey) {
			s.Fatalf("folders of an invalid prefix: %v", err)
		}
	}
}

// testVersions wants that what Versions names can be read, and that it hides
// nothing that Get would give.
func (s *suite) testVersions() {
	s.put("old/one", []byte("1"))
	s.put("old/two", []byte("22"))
	if err := s.b.Delete(s.ctx, "old/two"); err != nil {
		s.Fatalf("delete: %v", err)
	}
	for info, err := range s.b.Versions(s.ctx, "old/") {
		if err != nil {
			s.Fatalf("versions: %v", err)
		}
		if info.Hidden {
			continue
		}
		r, got, err := s.b.GetVersion(s.ctx, info.Key, info.Version)
		if err != nil {
			s.Fatalf("get version %q of %s: %v", info.Version, info.Key, err)
		}
		body, err := io.ReadAll(r)
		r.Close()
		if err != nil || int64(len(body)) != info.Size || got.Version != info.Version {
			s.Fatalf("read version %+v: %d bytes, %+v, %v", info, len(body), got, err)
		}
	}
	if _, _, err := s.b.GetVersion(s.ctx, "old/none", "no-such-version"); err == nil {
		s.Fatal("a version that does not exist is read")
	}
}

// testLockRefused wants that no store takes a lock for a remark.
func (s *suite) testLockRefused() {
	if s.b.Capabilities().Locks {
		return // proved by the backend's own tests
	}
	lock := &storage.Lock{Mode: storage.Governance, Until: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}
	_, err := s.b.Put(s.ctx, "locked", storage.Bytes("x"), storage.PutOptions{Lock: lock})
	if !is(err, storage.ErrUnsupported) {
		s.Fatalf("put with a lock: %v, want ErrUnsupported", err)
	}
	s.wantFree("locked")
}
