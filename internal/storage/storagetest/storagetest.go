// Package storagetest is the acceptance suite that every storage.Bucket must
// pass, whether it is a store or a decorator over one.
package storagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"agent/internal/storage"
)

// Harness is one store, empty at first, for one test.
type Harness struct {
	// Open returns one more handle onto the store. The suite closes it.
	Open func(t *testing.T) storage.Bucket
	// Leftovers, if set, names what is in the store and is no object, such as
	// unfinished files or uploads. The suite wants none once a Put ended.
	Leftovers func(t *testing.T) []string
	// OpenLocking opens another store that locks objects; nil: there is none of
	// this kind. Where the bucket of Open is a storage.Extender then, it must say
	// that it cannot.
	OpenLocking func(t *testing.T) storage.Bucket
	// OnlyGovernance leaves out compliance locks, which the emulator cannot extend.
	OnlyGovernance bool
	// Abandon leaves behind in the store, by other means than the backend's, what
	// a Put of the key leaves that is killed. A backend that is a storage.Cleaner
	// must have it.
	Abandon func(t *testing.T, key string)
	// BigObject is the size in bytes of the largest object that is put; 0 is
	// a little over 32 MiB. A backend with multipart uploads gives one that
	// needs several parts.
	BigObject int64
	// Few lists and deletes hundreds of objects instead of thousands: for slow
	// servers, and for a second run of one backend.
	Few bool
}

const defaultBig = 32<<20 + 4099

// Run runs the suite. Each of its tests calls newStore for a store of its own.
// At least four operations must be possible at a time.
func Run(t *testing.T, newStore func(t *testing.T) Harness) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"NotFound", (*suite).testNotFound},
		{"RoundTrip", (*suite).testRoundTrip},
		{"EqualKeysElsewhere", (*suite).testNeighbours},
		{"Keys", (*suite).testKeys},
		{"InvalidKeys", (*suite).testInvalidKeys},
		{"CreateIfAbsent", (*suite).testCreateIfAbsent},
		{"CreateRace", (*suite).testCreateRace},
		{"NeverPartial", (*suite).testNeverPartial},
		{"ReadersRace", (*suite).testReadersRace},
		{"CancelledPut", (*suite).testCancelledPut},
		{"LyingBodies", (*suite).testLyingBodies},
		{"FailingBodies", (*suite).testFailingBodies},
		{"BodyOpenedAgain", (*suite).testReopen},
		{"CancelledContext", (*suite).testCancelledContext},
		{"CancelledReader", (*suite).testCancelledReader},
		{"Ranges", (*suite).testRanges},
		{"List", (*suite).testList},
		{"Folders", (*suite).testFolders},
		{"Versions", (*suite).testVersions},
		{"LockRefused", (*suite).testLockRefused},
		{"ExtendLock", (*suite).testExtendLock},
		{"Unfinished", (*suite).testUnfinished},
		{"DiscardBesidePut", (*suite).testDiscardBesidePut},
		{"ListStops", (*suite).testListStops},
		{"ListUnderChange", (*suite).testListUnderChange},
		{"Delete", (*suite).testDelete},
		{"DeleteMany", (*suite).testDeleteMany},
		{"DeleteBesidePut", (*suite).testDeleteBesidePut},
		{"TwoHandles", (*suite).testTwoHandles},
		{"Metadata", (*suite).testMetadata},
		{"Names", (*suite).testNames},
	} {
		t.Run(test.name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			t.Cleanup(func() { noLeaks(t, leaks) })
			h := newStore(t)
			if h.BigObject == 0 {
				h.BigObject = defaultBig
			}
			s := &suite{T: t, h: h, ctx: t.Context()}
			s.b = s.open()
			test.run(s)
			s.noLeftovers()
		})
	}
}

// noLeaks wants no goroutine to be left. Each look waits a second, and to close a
// connection on which the other side reads no more takes five (crypto/tls,
// Conn.Close).
func noLeaks(t *testing.T, known goleak.Option) {
	t.Helper()
	var left error
	for range 8 {
		if left = goleak.Find(known); left == nil {
			return
		}
	}
	t.Error(left)
}

// suite is one test with its store.
type suite struct {
	*testing.T
	h   Harness
	b   storage.Bucket
	ctx context.Context
}

func (s *suite) open() storage.Bucket {
	s.Helper()
	b := s.h.Open(s.T)
	s.Cleanup(func() {
		if err := b.Close(); err != nil {
			s.Errorf("close: %v", err)
		}
	})
	return b
}

func (s *suite) noLeftovers() {
	s.Helper()
	if s.h.Leftovers == nil {
		return
	}
	if left := s.h.Leftovers(s.T); len(left) > 0 {
		s.Errorf("left over in the store: %q", left)
	}
}

func (s *suite) put(key string, body []byte) storage.Info {
	s.Helper()
	info, err := s.b.Put(s.ctx, key, storage.Bytes(body), storage.PutOptions{})
	if err != nil {
		s.Fatalf("put %s: %v", key, err)
	}
	return info
}

// wantObject reads the object by every way and compares.
func (s *suite) wantObject(b storage.Bucket, key string, want []byte) {
	s.Helper()
	r, info, err := b.Get(s.ctx, key)
	if err != nil {
		s.Fatalf("get %s: %v", key, err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		s.Fatalf("read %s: %v", key, err)
	}
	if err := r.Close(); err != nil {
		s.Fatalf("close reader of %s: %v", key, err)
	}
	if !bytes.Equal(got, want) {
		s.Fatalf("get %s: %d bytes %x…, want %d bytes %x…", key, len(got), head(got), len(want), head(want))
	}
	if info.Key != key || info.Size != int64(len(want)) {
		s.Fatalf("get %s: key %q, size %d, want size %d", key, info.Key, info.Size, len(want))
	}
	st, err := b.Stat(s.ctx, key)
	if err != nil {
		s.Fatalf("stat %s: %v", key, err)
	}
	if st.Key != key || st.Size != int64(len(want)) || st.ModTime.IsZero() || !st.ModTime.Equal(info.ModTime) {
		s.Fatalf("stat %s: %+v, get %+v", key, st, info)
	}
	if got := s.rangeOf(b, key, 0, int64(len(want))); !bytes.Equal(got, want) {
		s.Fatalf("get range %s: %d bytes, want %d", key, len(got), len(want))
	}
}

func (s *suite) rangeOf(b storage.Bucket, key string, off, n int64) []byte {
	s.Helper()
	r, err := b.GetRange(s.ctx, key, off, n)
	if err != nil {
		s.Fatalf("get %d bytes from %d of %s: %v", n, off, key, err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		s.Fatalf("read %d bytes from %d of %s: %v", n, off, key, err)
	}
	return got
}

// wantFree wants that nothing shows the object, and that the key can be used.
func (s *suite) wantFree(key string) {
	s.Helper()
	s.wantAbsent(key)
	body := []byte("afterwards")
	s.put(key, body)
	s.wantObject(s.b, key, body)
}

// wantAbsent wants that nothing shows the object.
func (s *suite) wantAbsent(key string) {
	s.Helper()
	for op, err := range s.reads(s.ctx, s.b, key) {
		if !is(err, storage.ErrNotExist) {
			s.Fatalf("%s of the absent %s: %v, want ErrNotExist", op, key, err)
		}
	}
	if keys := s.list("", ""); slices.Contains(keys, key) {
		s.Fatalf("the absent %s is listed", key)
	}
	s.noLeftovers()
}

// reads gives the error of each way to read one object, by name.
func (s *suite) reads(ctx context.Context, b storage.Bucket, key string) map[string]error {
	errs := make(map[string]error)
	r, _, err := b.Get(ctx, key)
	if err == nil {
		_, err = io.ReadAll(r)
		r.Close()
	}
	errs["get"] = err
	r, err = b.GetRange(ctx, key, 0, 1)
	if err == nil {
		_, err = io.ReadAll(r)
		r.Close()
	}
	errs["get range"] = err
	_, errs["stat"] = b.Stat(ctx, key)
	return errs
}

func (s *suite) list(prefix, startAfter string) []string {
	s.Helper()
	return s.listOf(s.b, prefix, startAfter)
}

func (s *suite) listOf(b storage.Bucket, prefix, startAfter string) []string {
	s.Helper()
	var keys []string
	for info, err := range b.List(s.ctx, prefix, startAfter) {
		if err != nil {
			s.Fatalf("list %q after %q: %v", prefix, startAfter, err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

func sumOf(b []byte) [32]byte { return sha256.Sum256(b) }

func head(b []byte) []byte { return b[:min(len(b), 8)] }

// pattern is n bytes in which no stretch of 8 bytes on an 8-byte boundary
// occurs twice, and which differ from those of another seed.
func pattern(n int64, seed uint32) []byte {
	b := make([]byte, n+8)
	for i := int64(0); i < n; i += 8 {
		v := uint64(seed)<<40 ^ uint64(i/8)*0x9E3779B97F4A7C15
		for j := range int64(8) {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b[:n]
}
