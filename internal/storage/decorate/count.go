package decorate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync/atomic"

	"agent/internal/storage"
)

// KindCounts are the requests of one kind.
type KindCounts struct {
	Requests uint64
	Errors   uint64 // failures; "no such object", "exists" and "beyond the end" are answers
}

// Counts is what went to a store and came from it.
type Counts struct {
	Put, Get, List, Stat, Delete KindCounts

	Up   uint64 // bytes of bodies that the store's client took to send them, of failed requests too
	Down uint64 // bytes read from objects
}

// Sub is what was added since an earlier snapshot of the same bucket.
func (c Counts) Sub(earlier Counts) Counts {
	sub := func(a, b KindCounts) KindCounts { return KindCounts{a.Requests - b.Requests, a.Errors - b.Errors} }
	return Counts{
		Put: sub(c.Put, earlier.Put), Get: sub(c.Get, earlier.Get), List: sub(c.List, earlier.List),
		Stat: sub(c.Stat, earlier.Stat), Delete: sub(c.Delete, earlier.Delete),
		Up: c.Up - earlier.Up, Down: c.Down - earlier.Down,
	}
}

// Kinds gives the counts by the names of the kinds ("PUT", "GET", "LIST",
// "STAT", "DELETE"), in this order.
func (c Counts) Kinds() iter.Seq2[string, KindCounts] {
	return func(yield func(string, KindCounts) bool) {
		_ = yield("PUT", c.Put) && yield("GET", c.Get) && yield("LIST", c.List) && yield("STAT", c.Stat) && yield("DELETE", c.Delete)
	}
}

// String reads "21 PUT, 3 GET", with the failures if there are any: "21 PUT (2
// failed), 3 GET". Bytes are left to the caller.
func (c Counts) String() string {
	var parts []string
	for name, k := range c.Kinds() {
		switch {
		case k.Errors > 0:
			parts = append(parts, fmt.Sprintf("%d %s (%d failed)", k.Requests, name, k.Errors))
		case k.Requests > 0:
			parts = append(parts, fmt.Sprintf("%d %s", k.Requests, name))
		}
	}
	if parts == nil {
		return "no requests"
	}
	return strings.Join(parts, ", ")
}

// Counter is a bucket that counts; see Count.
type Counter struct {
	storage.Bucket
	put, get, list, stat, delete kindCounter

	up, down atomic.Uint64
}

type kindCounter struct{ requests, errors atomic.Uint64 }

// Count counts the operations on b: one for each call, whatever number of
// requests the store's client makes of it (a listing of many pages and a
// delete of many keys are one). A range of no bytes is none.
func Count(b storage.Bucket) *Counter { return &Counter{Bucket: b} }

// Counts is a snapshot. It may be taken at any time; each number is exact, but
// they are not taken at one instant.
func (c *Counter) Counts() Counts {
	return Counts{
		Put: c.put.load(), Get: c.get.load(), List: c.list.load(), Stat: c.stat.load(), Delete: c.delete.load(),
		Up: c.up.Load(), Down: c.down.Load(),
	}
}

func (k *kindCounter) load() KindCounts { return KindCounts{k.requests.Load(), k.errors.Load()} }

func (k *kindCounter) ended(err error) {
	k.requests.Add(1)
	k.failed(err)
}

func (k *kindCounter) failed(err error) {
	if !answered(err) {
		k.errors.Add(1)
	}
}

// Put counts and passes on; see storage.Bucket.
func (c *Counter) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	info, err := c.Bucket.Put(ctx, key, source{src, func(r io.ReadCloser) io.ReadCloser {
		return seekable(&counted{ReadCloser: r, bytes: &c.up}, r)
	}}, opts)
	c.put.ended(err)
	return info, err
}

// Get counts and passes on; see storage.Bucket. A reader that breaks is one
// failure.
func (c *Counter) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	r, info, err := c.Bucket.Get(ctx, key)
	return c.got(r, info, err)
}

func (c *Counter) got(r io.ReadCloser, info storage.Info, err error) (io.ReadCloser, storage.Info, error) {
	c.get.ended(err)
	if err != nil {
		return nil, storage.Info{}, err
	}
	return &counted{ReadCloser: r, bytes: &c.down, kind: &c.get}, info, nil
}

// GetRange counts and passes on; see storage.Bucket.
func (c *Counter) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := c.Bucket.GetRange(ctx, key, off, n)
	if n == 0 {
		return r, err
	}
	c.get.ended(err)
	if err != nil {
		return nil, err
	}
	return &counted{ReadCloser: r, bytes: &c.down, kind: &c.get}, nil
}

// Stat counts and passes on; see storage.Bucket.
func (c *Counter) Stat(ctx context.Context, key string) (storage.Info, error) {
	info, err := c.Bucket.Stat(ctx, key)
	c.stat.ended(err)
	return info, err
}

// List counts each use of the sequence; see storage.Bucket.
func (c *Counter) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return counting(c, c.Bucket.List(ctx, prefix, startAfter))
}

func counting[T any](c *Counter, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		c.list.requests.Add(1)
		for item, err := range seq {
			c.list.failed(err)
			if !yield(item, err) {
				return
			}
		}
	}
}

// Folders counts each use of the sequence as a listing; see storage.Bucket.
func (c *Counter) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return counting(c, c.Bucket.Folders(ctx, prefix))
}

// Versions counts each use of the sequence as a listing; see storage.Bucket.
func (c *Counter) Versions(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return counting(c, c.Bucket.Versions(ctx, prefix))
}

// GetVersion counts and passes on; see storage.Bucket.
func (c *Counter) GetVersion(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	r, info, err := c.Bucket.GetVersion(ctx, key, version)
	return c.got(r, info, err)
}

// Unwrap is the bucket whose operations are counted.
func (c *Counter) Unwrap() storage.Bucket { return c.Bucket }

// Delete counts and passes on; see storage.Bucket.
func (c *Counter) Delete(ctx context.Context, keys ...string) error {
	err := c.Bucket.Delete(ctx, keys...)
	if len(keys) > 0 {
		c.delete.ended(err)
	}
	return err
}

// counted is a body whose bytes are counted.
type counted struct {
	io.ReadCloser
	bytes  *atomic.Uint64
	kind   *kindCounter // where a failure counts; nil for bodies of Put
	passed uint64       // of this pass
	failed bool
}

// rewound takes back what was only read to be hashed: it counts when it is
// sent.
func (r *counted) rewound() {
	r.bytes.Add(-r.passed)
	r.passed = 0
}

func (r *counted) add(n int64) {
	r.bytes.Add(uint64(n))
	r.passed += uint64(n)
}

func (r *counted) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.add(int64(n))
	r.end(err)
	return n, err
}

// WriteTo lets a body in memory hand over its own bytes, as it would without
// being counted.
func (r *counted) WriteTo(w io.Writer) (int64, error) {
	to, ok := r.ReadCloser.(io.WriterTo)
	if !ok {
		return io.Copy(w, struct{ io.Reader }{r})
	}
	n, err := to.WriteTo(w)
	r.add(n)
	r.end(err)
	return n, err
}

func (r *counted) end(err error) {
	if r.kind == nil || r.failed || err == nil || errors.Is(err, io.EOF) {
		return
	}
	r.failed = true
	r.kind.failed(err)
}
