package faults_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"agent/internal/storage"
	"agent/testing/stores"
)

const (
	deadline = 30 * time.Second // of one operation, with all its tries
	middle   = 1 << 20          // bytes of a body
	size     = 3 << 20
)

// fault is what happens to the network while an operation runs.
type fault struct {
	name   string
	set    func(t *testing.T, p *stores.FaultProxy)
	breaks bool // some connection must have been struck
	// retry is called before each retry with its number.
	retry func(t *testing.T, p *stores.FaultProxy, n int)
}

// slow are faults that break nothing.
func slow() []fault {
	return []fault{
		{name: "none", set: func(*testing.T, *stores.FaultProxy) {}},
		{name: "latency", set: func(t *testing.T, p *stores.FaultProxy) { p.Latency(t, 30*time.Millisecond) }},
		{name: "bandwidth", set: func(t *testing.T, p *stores.FaultProxy) { p.Bandwidth(t, 10_000) }},
		{name: "slices", set: func(t *testing.T, p *stores.FaultProxy) { p.Slice(t, 4_000) }},
		{
			name:  "down at first",
			set:   func(_ *testing.T, p *stores.FaultProxy) { p.Down() },
			retry: upAgain,
		},
	}
}

// upAgain starts the server before the third try.
func upAgain(t *testing.T, p *stores.FaultProxy, n int) {
	if n == 2 {
		p.Up(t)
	}
}

// breaking are the faults in the middle of a body that goes in one direction.
func breaking(d stores.Direction) []fault {
	return []fault{
		{name: "reset", set: func(_ *testing.T, p *stores.FaultProxy) { p.Reset(d, middle, 2) }, breaks: true},
		{name: "cut", set: func(_ *testing.T, p *stores.FaultProxy) { p.Cut(d, middle, 2) }, breaks: true},
		{name: "hang", set: func(_ *testing.T, p *stores.FaultProxy) { p.Hang(d, middle, 1) }, breaks: true},
	}
}

// lost are the faults that take answers away. 60 bytes are beyond an interim
// answer ("100 Continue") and within the header of a final one.
func lost() []fault {
	return []fault{
		{name: "answer reset", set: func(_ *testing.T, p *stores.FaultProxy) { p.Reset(stores.Answers, 60, 2) }, breaks: true},
		{name: "answer cut", set: func(_ *testing.T, p *stores.FaultProxy) { p.Cut(stores.Answers, 60, 2) }, breaks: true},
		{name: "answer hangs", set: func(_ *testing.T, p *stores.FaultProxy) { p.Hang(stores.Answers, 60, 1) }, breaks: true},
		{name: "no answer", set: func(_ *testing.T, p *stores.FaultProxy) { p.Hang(stores.Requests, 0, 1) }, breaks: true},
	}
}

// under runs an operation under a fault, and takes the fault away again.
func under(t *testing.T, p *stores.FaultProxy, b storage.Bucket, f fault, do func(ctx context.Context, b storage.Bucket) error) error {
	t.Helper()
	p.Up(t)
	p.Heal()
	before := p.Struck()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	full, count := decorated(b, func(n int) {
		if f.retry != nil {
			f.retry(t, p, n)
		}
	})
	f.set(t, p)
	err := do(ctx, full)
	if f.breaks && p.Struck() == before {
		t.Error("the fault did not happen")
	}
	if f.retry != nil && count.Counts().Put.Errors+count.Counts().Get.Errors == 0 {
		t.Error("the server was not down")
	}
	p.Up(t)
	p.Heal()
	return err
}

// Every backend ends every operation over every fault as if nothing had
// happened.
func TestMatrix(t *testing.T) {
	proxies := map[string]*stores.FaultProxy{}
	for _, tt := range targets(t, func(t *testing.T, upstream string) string {
		p := stores.NewFaultProxy(t, upstream)
		proxies[p.Address] = p
		return p.Address
	}) {
		p := proxies[tt.address]
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := matrix{target: tt, p: p, raw: tt.open(t), data: random(size)}
			// A fault that is over leaves broken connections behind.
			m.b, _ = decorated(m.raw, nil)
			t.Run("put", m.puts)
			t.Run("get", m.gets)
			t.Run("rest", m.others)
			t.Run("large", m.large)
			t.Run("gives up", m.givesUp)
		})
	}
}

type matrix struct {
	target
	p    *stores.FaultProxy
	raw  storage.Bucket // without decorators
	b    storage.Bucket // to look at what came of it
	data []byte
}

// random does not compress and has no pattern that an offset could hide in.
func random(n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(data) // never fails
	return data
}

func clean(name string) string { return strings.ReplaceAll(name, " ", "-") }

// put creates an object as the agent does: one that is there with the same
// bytes is its own.
func put(ctx context.Context, b storage.Bucket, key string, data []byte) error {
	info, err := b.Put(ctx, key, storage.Bytes(data), storage.PutOptions{})
	if errors.Is(err, storage.ErrExists) {
		return same(ctx, b, key, data)
	}
	if err == nil && (info.Size != int64(len(data)) || info.SHA256 != sha256.Sum256(data)) {
		return fmt.Errorf("put gives size %d and another digest", info.Size)
	}
	return err
}

func same(ctx context.Context, b storage.Bucket, key string, data []byte) error {
	r, info, err := b.Get(ctx, key)
	if err != nil {
		return err
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if info.Size != int64(len(data)) || !bytes.Equal(got, data) {
		return fmt.Errorf("%d bytes of %d, equal %t", len(got), info.Size, bytes.Equal(got, data))
	}
	return nil
}

func (m matrix) puts(t *testing.T) {
	for _, f := range append(append(slow(), breaking(stores.Requests)...), lost()...) {
		t.Run(f.name, func(t *testing.T) {
			folder := "put/" + clean(f.name)
			if err := under(t, m.p, m.raw, f, func(ctx context.Context, b storage.Bucket) error {
				return put(ctx, b, folder+"/object", m.data)
			}); err != nil {
				t.Fatalf("put: %v", err)
			}
			m.once(t, folder, m.data)
		})
	}
}

// once wants exactly one object in a folder, in one version, with these bytes,
// and nothing unfinished.
func (m matrix) once(t *testing.T, folder string, data []byte) {
	t.Helper()
	keys := 0
	for info, err := range m.b.List(t.Context(), folder+"/", "") {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		if keys++; info.Size != int64(len(data)) {
			t.Errorf("%s has %d bytes", info.Key, info.Size)
		}
	}
	versions := 0
	for _, err := range m.b.Versions(t.Context(), folder+"/") {
		if err != nil {
			t.Fatalf("list versions: %v", err)
		}
		versions++
	}
	if keys != 1 || versions > 1 {
		t.Errorf("%d objects in %d versions, want one", keys, versions)
	}
	if err := same(t.Context(), m.b, folder+"/object", data); err != nil {
		t.Errorf("read back: %v", err)
	}
	if m.unfinished != nil {
		if left := m.unfinished(t); len(left) > 0 {
			t.Errorf("unfinished: %q", left)
		}
	}
}

func (m matrix) gets(t *testing.T) {
	if err := put(t.Context(), m.b, "get/object", m.data); err != nil {
		t.Fatalf("put: %v", err)
	}
	for _, f := range append(append(slow(), breaking(stores.Answers)...), lost()...) {
		t.Run(f.name, func(t *testing.T) {
			if err := under(t, m.p, m.raw, f, func(ctx context.Context, b storage.Bucket) error {
				return same(ctx, b, "get/object", m.data)
			}); err != nil {
				t.Errorf("get: %v", err)
			}
			if strings.Contains(f.name, "hang") {
				return // it takes its time, and opens a range to go on
			}
			const off, n = 1000, size - 3000
			if err := under(t, m.p, m.raw, f, func(ctx context.Context, b storage.Bucket) error {
				r, err := b.GetRange(ctx, "get/object", off, n)
				if err != nil {
					return err
				}
				got, err := io.ReadAll(r)
				if !bytes.Equal(got, m.data[off:off+n]) {
					err = errors.Join(err, fmt.Errorf("%d bytes, not those of the range", len(got)))
				}
				return errors.Join(err, r.Close())
			}); err != nil {
				t.Errorf("get range: %v", err)
			}
		})
	}
}

// others are the operations without a body.
func (m matrix) others(t *testing.T) {
	const objects = 30
	for _, f := range lost() {
		if f.name == "answer hangs" {
			continue // to them it is the same as none
		}
		t.Run(f.name, func(t *testing.T) {
			folder := "rest/" + clean(f.name)
			var want []string
			for i := range objects {
				want = append(want, fmt.Sprintf("%s/%02d/object", folder, i))
				if err := put(t.Context(), m.b, want[i], []byte("x")); err != nil {
					t.Fatalf("put: %v", err)
				}
			}
			ops := map[string]func(context.Context, storage.Bucket) error{
				"stat": func(ctx context.Context, b storage.Bucket) error {
					info, err := b.Stat(ctx, want[0])
					if err == nil && info.Size != 1 {
						return fmt.Errorf("size %d", info.Size)
					}
					return err
				},
				"miss": func(ctx context.Context, b storage.Bucket) error {
					if _, _, err := b.Get(ctx, folder+"/absent"); !errors.Is(err, storage.ErrNotExist) {
						return fmt.Errorf("a missing object: %w", err)
					}
					return nil
				},
				"list": func(ctx context.Context, b storage.Bucket) error {
					var got []string
					for info, err := range b.List(ctx, folder+"/", "") {
						if err != nil {
							return err
						}
						got = append(got, info.Key)
					}
					return equal(got, want)
				},
				"folders": func(ctx context.Context, b storage.Bucket) error {
					n := 0
					for name, err := range b.Folders(ctx, folder+"/") {
						if err != nil {
							return err
						}
						if name != fmt.Sprintf("%02d", n) {
							return fmt.Errorf("folder %d is %s", n, name)
						}
						n++
					}
					if n != objects {
						return fmt.Errorf("%d folders", n)
					}
					return nil
				},
			}
			if m.locks {
				key := folder + "-locked/object"
				if err := put(t.Context(), m.b, key, []byte("x")); err != nil {
					t.Fatalf("put: %v", err)
				}
				ops["extend"] = func(ctx context.Context, b storage.Bucket) error { return extends(ctx, b, key) }
			}
			if m.abandon != nil {
				m.abandon(t, folder+"/00/left")
				ops["discard"] = func(ctx context.Context, b storage.Bucket) error { return discards(ctx, b, folder+"/") }
			}
			for op, do := range ops {
				if err := under(t, m.p, m.raw, f, do); err != nil {
					t.Errorf("%s: %v", op, err)
				}
			}
			if err := under(t, m.p, m.raw, f, func(ctx context.Context, b storage.Bucket) error { return b.Delete(ctx, want...) }); err != nil {
				t.Errorf("delete: %v", err)
			}
			for info, err := range m.b.List(t.Context(), folder+"/", "") {
				t.Errorf("left after delete: %s, %v", info.Key, err)
			}
		})
	}
}

// extends makes an object's lock last longer.
func extends(ctx context.Context, b storage.Bucket, key string) error {
	e, ok := storage.As[storage.Extender](b)
	if !ok {
		return errors.New("locks cannot be extended")
	}
	lock := storage.Lock{Mode: storage.Governance, Until: time.Now().Add(time.Hour)}
	if err := e.ExtendLock(ctx, key, lock); err != nil {
		return err
	}
	info, err := b.Stat(ctx, key)
	if err == nil && (info.Lock == nil || info.Lock.Until.Before(lock.Until)) {
		return fmt.Errorf("the lock is %+v", info.Lock)
	}
	return err
}

// discards removes the one upload that was left behind.
func discards(ctx context.Context, b storage.Bucket, prefix string) error {
	c, ok := storage.As[storage.Cleaner](b)
	if !ok {
		return errors.New("nothing unfinished is shown")
	}
	n := 0
	for u, err := range c.Unfinished(ctx, prefix) {
		if err == nil {
			err = c.Discard(ctx, u)
		}
		if err != nil {
			return err
		}
		n++
	}
	if n != 1 {
		return fmt.Errorf("%d are unfinished", n)
	}
	for u, err := range c.Unfinished(ctx, prefix) {
		return fmt.Errorf("%+v is left, %w", u, err)
	}
	return nil
}

func equal(got, want []string) error {
	if g, w := strings.Join(got, " "), strings.Join(want, " "); g != w {
		return fmt.Errorf("%s, want %s", g, w)
	}
	return nil
}

// large is a body that is sent in several requests.
func (m matrix) large(t *testing.T) {
	data := random(65<<20 + 1)
	f := fault{name: "reset", set: func(_ *testing.T, p *stores.FaultProxy) { p.Reset(stores.Requests, 12<<20, 1) }, breaks: true}
	if err := under(t, m.p, m.raw, f, func(ctx context.Context, b storage.Bucket) error {
		return put(ctx, b, "large/object", data)
	}); err != nil {
		t.Fatalf("put: %v", err)
	}
	m.once(t, "large", data)
}

// givesUp: a fault without end is a clear error within the deadline, and leaves
// no object.
func (m matrix) givesUp(t *testing.T) {
	for _, f := range []fault{
		{name: "down", set: func(_ *testing.T, p *stores.FaultProxy) { p.Down() }},
		{name: "reset", set: func(_ *testing.T, p *stores.FaultProxy) { p.Reset(stores.Requests, 0, stores.Always) }, breaks: true},
		{name: "cut", set: func(_ *testing.T, p *stores.FaultProxy) { p.Cut(stores.Requests, middle, stores.Always) }, breaks: true},
		{name: "hang", set: func(_ *testing.T, p *stores.FaultProxy) { p.Hang(stores.Requests, 0, stores.Always) }, breaks: true},
	} {
		t.Run(f.name, func(t *testing.T) {
			folder := "never/" + f.name
			var late error
			err := under(t, m.p, m.raw, f, func(ctx context.Context, b storage.Bucket) error {
				short, cancel := context.WithTimeout(ctx, base+idle)
				defer cancel()
				err := put(short, b, folder+"/object", m.data)
				late = ctx.Err()
				return err
			})
			if !errors.Is(err, storage.ErrUnavailable) || late != nil {
				t.Errorf("put: %v (%v)", err, late)
			}
			for info, err := range m.b.List(t.Context(), folder+"/", "") {
				t.Errorf("there is %s, %v", info.Key, err)
			}
		})
	}
}
