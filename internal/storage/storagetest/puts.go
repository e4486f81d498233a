package storagetest

import (
	"context"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"

	"agent/internal/storage"
)

func (s *suite) testRoundTrip() {
	big := pattern(s.h.BigObject, 1)
	for _, size := range []int64{0, 1, 511, 4096, 65537, 1 << 20, 1<<20 + 1, s.h.BigObject} {
		data := big[:size]
		key := fmt.Sprintf("round/trip/%d", size)
		sum := sumOf(data)
		info, err := s.b.Put(s.ctx, key, storage.Bytes(data), storage.PutOptions{SHA256: &sum})
		if err != nil {
			s.Fatalf("put %d bytes: %v", size, err)
		}
		if info.Key != key || info.Size != size || info.SHA256 != sum {
			s.Fatalf("put %d bytes: %+v, want SHA-256 %x", size, info, sum)
		}
		s.wantObject(s.b, key, data)
		// The same through a reader, without the digest.
		key += "/read"
		key = "by/" + key
		info, err = s.b.Put(s.ctx, key, says(size, data), storage.PutOptions{})
		if err != nil {
			s.Fatalf("put %d bytes from a reader: %v", size, err)
		}
		if info.Key != key || info.Size != size || info.SHA256 != sum {
			s.Fatalf("put %d bytes from a reader: %+v, want SHA-256 %x", size, info, sum)
		}
		s.wantObject(s.b, key, data)
		// And when nobody asks what it is.
		key = "unhashed/" + key
		info, err = s.b.Put(s.ctx, key, storage.Bytes(data), storage.PutOptions{Unhashed: true})
		if err != nil {
			s.Fatalf("put %d bytes without a digest: %v", size, err)
		}
		if none := [32]byte{}; info.Key != key || info.Size != size || info.SHA256 != sum && info.SHA256 != none {
			s.Fatalf("put %d bytes without a digest: %+v, want SHA-256 %x or none", size, info, sum)
		}
		s.wantObject(s.b, key, data)
	}
}

func (s *suite) testCreateIfAbsent() {
	first := []byte("first")
	s.put("once/key", first)
	for _, second := range []string{"first", "other", "", "much longer than the first one"} {
		_, err := s.b.Put(s.ctx, "once/key", storage.Bytes(second), storage.PutOptions{})
		if !is(err, storage.ErrExists) {
			s.Fatalf("put over an object: %v, want ErrExists", err)
		}
		s.wantObject(s.b, "once/key", first)
	}
	// It is decided anew once the object is gone.
	if err := s.b.Delete(s.ctx, "once/key"); err != nil {
		s.Fatalf("delete: %v", err)
	}
	s.wantFree("once/key")
}

func (s *suite) testCreateRace() {
	const creators, rounds = 16, 6
	handles := []storage.Bucket{s.b, s.open()}
	for round := range rounds {
		key := fmt.Sprintf("race/%d/key", round)
		bodies := make([][]byte, creators)
		results := make([]error, creators)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range creators {
			bodies[i] = pattern(int64(60_000+i), uint32(i+1))
			wg.Go(func() {
				<-start
				_, results[i] = handles[i%2].Put(s.ctx, key, storage.Bytes(bodies[i]), storage.PutOptions{})
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for i, err := range results {
			switch {
			case err == nil && winner < 0:
				winner = i
			case err == nil:
				s.Fatalf("creators %d and %d have both won", winner, i)
			case !is(err, storage.ErrExists):
				s.Fatalf("creator %d: %v, want ErrExists", i, err)
			}
		}
		if winner < 0 {
			s.Fatalf("none of %d creators has won", creators)
		}
		s.wantObject(s.b, key, bodies[winner])
		s.noLeftovers()
	}
}

// testNeverPartial looks at an object by every way while half of it was sent.
func (s *suite) testNeverPartial() {
	const key = "slow/object"
	s.put("slow/neighbour", nil)
	other := s.open()
	data := pattern(3<<20, 7)
	half, resume := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	var once sync.Once
	go func() {
		_, err := s.b.Put(s.ctx, key, hooked(data, func() error {
			once.Do(func() {
				close(half)
				<-resume
			})
			return nil
		}), storage.PutOptions{})
		done <- err
	}()
	select {
	case <-half:
	case err := <-done:
		s.Fatalf("put ended without reading the body: %v", err)
	}
	absent := func() error {
		for _, b := range []storage.Bucket{s.b, other} {
			for op, err := range s.reads(s.ctx, b, key) {
				if !is(err, storage.ErrNotExist) {
					return fmt.Errorf("%s of an unfinished object: %w, want ErrNotExist", op, err)
				}
			}
			for info, err := range b.List(s.ctx, "", "") {
				if err != nil || info.Key != "slow/neighbour" {
					return fmt.Errorf("listing beside an unfinished object: %q, %w", info.Key, err)
				}
			}
		}
		return nil
	}()
	close(resume)
	if err := <-done; err != nil {
		s.Fatalf("put: %v", err)
	}
	if absent != nil {
		s.Fatal(absent)
	}
	s.wantObject(other, key, data)
	if keys := s.list("slow/o", ""); len(keys) != 1 {
		s.Fatalf("list after put: %q", keys)
	}
}

// testReadersRace reads objects as soon as they are there.
func (s *suite) testReadersRace() {
	const objects = 40
	data := pattern(300_000, 9)
	key := func(i int) string { return fmt.Sprintf("fresh/%02d", i) }
	var stop atomic.Bool
	var wg sync.WaitGroup
	reader := s.open()
	seen := 0
	var failed error
	wg.Go(func() {
		for seen < objects && failed == nil {
			last := stop.Load() // before the look, so that a miss then is final
			r, info, err := reader.Get(s.ctx, key(seen))
			if is(err, storage.ErrNotExist) && !last {
				continue
			}
			if err == nil {
				var got []byte
				got, err = io.ReadAll(r)
				r.Close()
				if err == nil && (info.Size != int64(len(data)) || sumOf(got) != sumOf(data)) {
					err = fmt.Errorf("size %d, %d bytes read, want %d", info.Size, len(got), len(data))
				}
			}
			if err != nil {
				failed = fmt.Errorf("reading %s: %w", key(seen), err)
			}
			seen++
		}
	})
	var err error
	for i := range objects {
		if _, err = s.b.Put(s.ctx, key(i), storage.Bytes(data), storage.PutOptions{}); err != nil {
			break
		}
	}
	stop.Store(true)
	wg.Wait()
	if err != nil || failed != nil {
		s.Fatalf("put: %v; reader: %v", err, failed)
	}
}

func (s *suite) testCancelledPut() {
	data := pattern(3<<20, 3)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	_, err := s.b.Put(ctx, "cancelled/put", hooked(data, func() error {
		cancel()
		return nil
	}), storage.PutOptions{})
	if !is(err, context.Canceled) {
		s.Fatalf("cancelled put: %v, want context.Canceled", err)
	}
	s.wantFree("cancelled/put")
}

func (s *suite) testLyingBodies() {
	data := pattern(1<<20+100, 4)
	wrong := sumOf([]byte("something else"))
	for i, tt := range []struct {
		src  storage.Source
		sum  *[32]byte
		want error
	}{
		{says(100, data[:99]), nil, storage.ErrBadLength},
		{says(100, data[:101]), nil, storage.ErrBadLength},
		{says(1, nil), nil, storage.ErrBadLength},
		{says(0, data[:1]), nil, storage.ErrBadLength},
		{says(1<<20, data), nil, storage.ErrBadLength},
		{says(2<<20, data), nil, storage.ErrBadLength},
		{says(-1, data[:1]), nil, storage.ErrBadLength},
		{says(math.MinInt64, nil), nil, storage.ErrBadLength},
		{lyingBytes{storage.Bytes(data), 100}, nil, storage.ErrBadLength},
		{lyingBytes{storage.Bytes(data), 2 << 20}, nil, storage.ErrBadLength},
		{storage.Bytes(data), &wrong, storage.ErrBadDigest},
		{says(int64(len(data)), data), &wrong, storage.ErrBadDigest},
		{storage.Bytes(nil), &wrong, storage.ErrBadDigest},
		{storage.Bytes(nil), new([32]byte), storage.ErrBadDigest},
	} {
		for _, unhashed := range []bool{false, true} {
			key := fmt.Sprintf("lie/%d/%t", i, unhashed)
			if _, err := s.b.Put(s.ctx, key, tt.src, storage.PutOptions{SHA256: tt.sum, Unhashed: unhashed}); !is(err, tt.want) {
				s.Fatalf("lie %d, unhashed %t: %v, want %v", i, unhashed, err, tt.want)
			}
			s.wantFree(key)
		}
	}
}

// lyingBytes is in memory and says another size.
type lyingBytes struct {
	storage.Bytes
	size int64
}

func (l lyingBytes) Size() int64 { return l.size }

func (s *suite) testFailingBodies() {
	data := pattern(3<<20, 5)
	for name, src := range map[string]storage.Source{
		"open":  body{3, func() (io.ReadCloser, error) { return nil, errBody }},
		"start": hooked(nil, func() error { return errBody }),
		"half":  hooked(data, func() error { return errBody }),
		"cut":   hooked(data, func() error { return io.ErrUnexpectedEOF }),
	} {
		want := errBody
		if name == "cut" {
			want = io.ErrUnexpectedEOF
		}
		key := "broken/" + name
		if _, err := s.b.Put(s.ctx, key, src, storage.PutOptions{}); !is(err, want) {
			s.Fatalf("put of a body that fails (%s): %v, want %v", name, err, want)
		}
		s.wantFree(key)
	}
}

// testReopen wants that every body that was opened is closed, and that none is
// shared between two puts of one source.
func (s *suite) testReopen() {
	var open atomic.Int64
	data := pattern(100_000, 6)
	src := body{int64(len(data)), func() (io.ReadCloser, error) {
		open.Add(1)
		return closing{plain(data), &open}, nil
	}}
	var wg sync.WaitGroup
	results := make([]error, 4)
	for i := range results {
		wg.Go(func() {
			_, results[i] = s.b.Put(s.ctx, fmt.Sprintf("same/source/%d", i), src, storage.PutOptions{})
		})
	}
	wg.Wait()
	for i, err := range results {
		if err != nil {
			s.Fatalf("put %d: %v", i, err)
		}
		s.wantObject(s.b, fmt.Sprintf("same/source/%d", i), data)
	}
	wrong := sumOf(nil)
	if _, err := s.b.Put(s.ctx, "same/source/bad", src, storage.PutOptions{SHA256: &wrong}); err == nil {
		s.Fatal("a wrong digest is taken")
	}
	if _, err := s.b.Put(s.ctx, "same/source/0", src, storage.PutOptions{}); !is(err, storage.ErrExists) {
		s.Fatalf("put again: %v, want ErrExists", err)
	}
	if n := open.Load(); n != 0 {
		s.Fatalf("%d bodies are still open", n)
	}
}

func (s *suite) testMetadata() {
	meta := map[string]string{"origin": "storagetest", "case-kept": "Mixed Case = yes"}
	_, err := s.b.Put(s.ctx, "meta/data", storage.Bytes("x"), storage.PutOptions{Metadata: meta})
	if err != nil {
		s.Fatalf("put with metadata: %v", err)
	}
	s.wantObject(s.b, "meta/data", []byte("x"))
	info, err := s.b.Stat(s.ctx, "meta/data")
	if err != nil {
		s.Fatalf("stat: %v", err)
	}
	for k, v := range meta {
		got, ok := info.Metadata[k]
		if kept := s.b.Capabilities().Metadata; ok != kept || kept && got != v {
			s.Errorf("metadata %s: %q, %t, but the capabilities say %t", k, got, ok, kept)
		}
	}
}
