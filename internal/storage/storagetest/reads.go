package storagetest

import (
	"bytes"
	"context"
	"io"
	"math"
	"math/rand/v2"
	"strings"

	"agent/internal/storage"
)

func (s *suite) testNotFound() {
	for _, key := range []string{"absent", "deep/down/absent"} {
		s.wantAbsent(key)
	}
	if keys := s.list("", ""); len(keys) != 0 {
		s.Fatalf("a new store lists %q", keys)
	}
	if keys := s.list("no/such/", ""); len(keys) != 0 {
		s.Fatalf("an absent prefix lists %q", keys)
	}
}

// testNeighbours wants that a key is not taken for one that begins with it, or
// that it begins with.
func (s *suite) testNeighbours() {
	s.put("a/bc/d", []byte("x"))
	for _, key := range []string{"a", "a/b", "a/bc", "a/bc/", "a/bc/d/e", "a/bc/dd", "A/bc/d", "bc/d"} {
		for op, err := range s.reads(s.ctx, s.b, key) {
			want := storage.ErrNotExist
			if strings.HasSuffix(key, "/") {
				want = storage.ErrKey
			}
			if !is(err, want) {
				s.Errorf("%s of %s beside a/bc/d: %v, want %v", op, key, err, want)
			}
		}
	}
}

func (s *suite) testKeys() {
	keys := []string{
		"a", "Z", "0", "-", "_", "+", "=", "@", ",", "-x", "..a", ".hidden", "a..b", "a.b", "x+y=z@w,v-u_t",
		"plus+plus/a", "equal=equal/a", "at@at/a", "comma,comma/a", ".dot/.dot",
		"cluster/07300000000000000001/wal/0000000100000000/000000010000000000000001",
		"UPPER/lower", "upper/LOWER",
		strings.Repeat("c", storage.MaxComponent),
		strings.Repeat("d/", 30) + "dd",
		strings.Repeat(strings.Repeat("e", 100)+"/", 5) + "e",
	}
	for _, key := range keys {
		s.put(key, []byte(key))
	}
	for _, key := range keys {
		s.wantObject(s.b, key, []byte(key))
		if got := s.list(key, ""); len(got) == 0 || got[0] != key {
			s.Errorf("list with the prefix %q: %q", key, got)
		}
	}
	if got := s.list("", ""); len(got) != len(keys) {
		s.Errorf("%d keys are listed, want %d: %q", len(got), len(keys), got)
	}
	if err := s.b.Delete(s.ctx, keys...); err != nil {
		s.Fatalf("delete: %v", err)
	}
	if got := s.list("", ""); len(got) != 0 {
		s.Errorf("after delete there is %q", got)
	}
}

func (s *suite) testInvalidKeys() {
	s.put("a/b", []byte("x"))
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../a/b", "./a/b", "a/./b", "a.", "a b", "a\\b", "a\x00b",
		"a\nb", "a?b", "a*b", "a:b", "a%2fb", "ä", "\xff", storage.TempPrefix + "x", "a/" + storage.TempPrefix + "x/b",
		strings.Repeat("c", storage.MaxComponent+1), strings.Repeat("a/", storage.MaxKey/2) + "b",
	} {
		errs := s.reads(s.ctx, s.b, key)
		_, errs["put"] = s.b.Put(s.ctx, key, storage.Bytes("x"), storage.PutOptions{})
		_, errs["empty range"] = s.b.GetRange(s.ctx, key, 0, 0)
		errs["delete"] = s.b.Delete(s.ctx, key)
		if storage.CheckPrefix(key) != nil {
			for _, err := range s.b.List(s.ctx, key, "") {
				errs["list"] = err
			}
			for _, err := range s.b.List(s.ctx, "", key) {
				errs["list after"] = err
			}
			if errs["list"] == nil || errs["list after"] == nil {
				s.Errorf("list with the prefix or start %q gives no error", key)
			}
		}
		for op, err := range errs {
			if !is(err, storage.ErrKey) {
				s.Errorf("%s of %q: %v, want ErrKey", op, key, err)
			}
		}
	}
	s.wantObject(s.b, "a/b", []byte("x"))
	if keys := s.list("", ""); len(keys) != 1 {
		s.Errorf("after the refusals there is %q", keys)
	}
}

func (s *suite) testCancelledContext() {
	s.put("here", []byte("x"))
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	errs := s.reads(ctx, s.b, "here")
	_, errs["put"] = s.b.Put(ctx, "there", storage.Bytes("x"), storage.PutOptions{})
	errs["delete"] = s.b.Delete(ctx, "here")
	listed := 0
	for _, err := range s.b.List(ctx, "", "") {
		listed++
		errs["list"] = err
	}
	if listed != 1 {
		s.Errorf("a cancelled list yields %d times, want one error", listed)
	}
	for op, err := range errs {
		if !is(err, context.Canceled) {
			s.Errorf("cancelled %s: %v, want context.Canceled", op, err)
		}
	}
	s.wantObject(s.b, "here", []byte("x"))
	s.wantFree("there")
}

func (s *suite) testCancelledReader() {
	data := pattern(min(s.h.BigObject, defaultBig), 8)
	s.put("long/object", data)
	for _, whole := range []bool{true, false} {
		ctx, cancel := context.WithCancel(s.ctx)
		var r io.ReadCloser
		var err error
		if whole {
			r, _, err = s.b.Get(ctx, "long/object")
		} else {
			r, err = s.b.GetRange(ctx, "long/object", 1, int64(len(data)-1))
		}
		if err != nil {
			cancel()
			s.Fatalf("get: %v", err)
		}
		if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
			s.Errorf("read: %v", err)
		}
		cancel()
		n, err := io.Copy(io.Discard, r)
		if !is(err, context.Canceled) {
			s.Errorf("reading on after cancel: %d bytes, %v, want context.Canceled", n, err)
		}
		r.Close()
	}
	// A reader that is closed early leaves nothing behind (leaks are checked).
	r, _, err := s.b.Get(s.ctx, "long/object")
	if err != nil {
		s.Fatalf("get: %v", err)
	}
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		s.Errorf("read: %v", err)
	}
	if err := r.Close(); err != nil {
		s.Errorf("close in the middle: %v", err)
	}
}

func (s *suite) testRanges() {
	const key = "range/object"
	data := pattern(1_000_003, 10)
	size := int64(len(data))
	s.put(key, data)
	s.put("range/empty", nil)
	type stretch struct{ off, n int64 }
	good := []stretch{{0, 0}, {size, 0}, {0, 1}, {size - 1, 1}, {0, size}, {1, size - 1}, {0, size - 1}, {size / 2, 0}}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		off := rnd.Int64N(size)
		good = append(good, stretch{off, rnd.Int64N(size - off + 1)})
	}
	for _, g := range good {
		if got := s.rangeOf(s.b, key, g.off, g.n); !bytes.Equal(got, data[g.off:g.off+g.n]) {
			s.Errorf("range (%d, %d): other bytes (%d of them)", g.off, g.n, len(got))
		}
	}
	bad := []stretch{
		{size, 1},
		{0, size + 1},
		{size - 1, 2},
		{size + 1, 1},
		{1, size},
		{size + 1000, 1000},
		{0, math.MaxInt64},
		{1, math.MaxInt64},
		{math.MaxInt64, 1},
		{math.MaxInt64, math.MaxInt64},
		{-1, 1},
		{0, -1},
		{-1, 0},
		{-1, -1},
		{math.MinInt64, math.MinInt64},
		{size, -1},
	}
	for _, g := range bad {
		if err := s.rangeError(key, g.off, g.n); !is(err, storage.ErrRange) {
			s.Errorf("range (%d, %d) of %d: %v, want ErrRange", g.off, g.n, size, err)
		}
	}
	if got := s.rangeOf(s.b, "range/empty", 0, 0); len(got) != 0 {
		s.Errorf("range of an empty object: %d bytes", len(got))
	}
	if err := s.rangeError("range/empty", 0, 1); !is(err, storage.ErrRange) {
		s.Errorf("range (0, 1) of an empty object: %v, want ErrRange", err)
	}
}

// rangeError is the error of opening or of reading a range.
func (s *suite) rangeError(key string, off, n int64) error {
	r, err := s.b.GetRange(s.ctx, key, off, n)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

func (s *suite) testTwoHandles() {
	other := s.open()
	s.put("two/handles", []byte("one store"))
	s.wantObject(other, "two/handles", []byte("one store"))
	if keys := s.listOf(other, "", ""); len(keys) != 1 || keys[0] != "two/handles" {
		s.Fatalf("the other handle lists %q", keys)
	}
	if _, err := other.Put(s.ctx, "two/handles", storage.Bytes("x"), storage.PutOptions{}); !is(err, storage.ErrExists) {
		s.Fatalf("put by the other handle: %v, want ErrExists", err)
	}
	if err := other.Delete(s.ctx, "two/handles"); err != nil {
		s.Fatalf("delete by the other handle: %v", err)
	}
	s.wantAbsent("two/handles")
}

func (s *suite) testNames() {
	name := s.b.String()
	if name == "" || name != s.open().String() {
		s.Errorf("the bucket is called %q, and otherwise by another handle", name)
	}
	_, err := s.b.Stat(s.ctx, "absent/key")
	if err == nil || !strings.Contains(err.Error(), "absent/key") || !strings.Contains(err.Error(), name) {
		s.Errorf("the error %q names not both the object and the bucket %s", err, name)
	}
}
