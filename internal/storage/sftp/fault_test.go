package sftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"agent/internal/storage"
	"agent/internal/storage/decorate"
	"agent/testing/stores"
)

// proxied is a bucket behind a proxy that breaks things, over one connection.
func proxied(t *testing.T, change func(*Options)) (*Bucket, *stores.FaultProxy, string) {
	t.Helper()
	s := start(t, stores.SFTPOptions{})
	proxy := stores.NewFaultProxy(t, s.Address)
	s.Trust(proxy.Address)
	b, root := folder(t, s, func(o *Options) {
		if _, err := fmt.Sscanf(proxy.Address, "127.0.0.1:%d", &o.Port); err != nil {
			t.Fatal(err)
		}
		o.Connections = 1
		if change != nil {
			change(o)
		}
	})
	return b, proxy, root
}

func retrying(b storage.Bucket) storage.Bucket {
	return decorate.Retry(b, decorate.RetryOptions{Initial: 10 * time.Millisecond, Now: time.Now})
}

// Connections that are reset in the middle of a Put and of a Get do no harm.
func TestResets(t *testing.T) {
	b, proxy, root := proxied(t, nil)
	r := retrying(b)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
	const times = 3
	proxy.Reset(stores.Requests, 3<<20, times)
	before := proxy.Struck()
	if _, err := r.Put(t.Context(), "a/b", storage.Bytes(body), storage.PutOptions{}); err != nil {
		t.Fatalf("put: %v", err)
	}
	if got := proxy.Struck() - before; got == 0 {
		t.Error("no connection was reset in a put")
	}
	proxy.Heal()
	before = proxy.Struck()
	proxy.Reset(stores.Answers, 3<<20, times)
	rc, info, err := r.Get(t.Context(), "a/b")
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	got, err := io.ReadAll(rc)
	if err != nil || !bytes.Equal(got, body) || info.Size != int64(len(body)) {
		t.Errorf("get: %d bytes, %v", len(got), err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if got := proxy.Struck() - before; got == 0 {
		t.Error("no connection was reset in a get")
	}
	proxy.Heal()
	// What the broken connections left is removed by a later Put.
	mustPut(t, b, "a/c", "x")
	b.tasks.Wait()
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// Without Retry each operation that meets a broken connection says so, and the
// next one is made on a new one.
func TestBrokenConnection(t *testing.T) {
	b, proxy, _ := proxied(t, nil)
	for range 3 {
		mustPut(t, b, filepath.Base(t.TempDir()), "x")
		c, release, err := b.pool.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		release()
		proxy.Drop()
		<-c.dead
	}
	proxy.Down()
	c, release, err := b.pool.acquire(t.Context())
	if err == nil {
		<-c.dead
		release()
	}
	got := everything(t.Context(), b)
	for _, op := range operations {
		if !errors.Is(got[op], storage.ErrUnavailable) {
			t.Errorf("%s without a server: %v, want ErrUnavailable", op, got[op])
		}
	}
	proxy.Up(t)
	mustPut(t, b, "again", "x")
}

// A server that hangs is found out by itself.
func TestKeepAlive(t *testing.T) {
	b, proxy, _ := proxied(t, func(o *Options) { o.KeepAlive = 200 * time.Millisecond })
	mustPut(t, retrying(b), "key", "x")
	proxy.Hang(stores.Answers, 0, 1)
	if _, err := b.Stat(t.Context(), "key"); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("stat on a dead connection: %v, want ErrUnavailable", err)
	}
	proxy.Heal()
	if _, err := retrying(b).Stat(t.Context(), "key"); err != nil {
		t.Errorf("stat on a new connection: %v", err)
	}
}

// hangs runs an operation against a server that does not answer, cancels it,
// and gives its error.
func hangs(t *testing.T, proxy *stores.FaultProxy, do func(ctx context.Context) error) error {
	t.Helper()
	proxy.Hang(stores.Answers, 0, 1)
	defer proxy.Heal()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	return do(ctx)
}

// A blocked call ends when its context does, whatever it waits for.
func TestCancelHanging(t *testing.T) {
	b, proxy, _ := proxied(t, nil)
	mustPut(t, b, "key", "x")
	for name, do := range map[string]func(ctx context.Context) error{
		"stat":   func(ctx context.Context) error { _, err := b.Stat(ctx, "key"); return err },
		"get":    func(ctx context.Context) error { _, _, err := b.Get(ctx, "key"); return err },
		"delete": func(ctx context.Context) error { return b.Delete(ctx, "other") },
		"put": func(ctx context.Context) error {
			_, err := b.Put(ctx, "new", storage.Bytes("x"), storage.PutOptions{})
			return err
		},
		"list": func(ctx context.Context) error {
			for _, err := range b.List(ctx, "", "") {
				return err
			}
			return nil
		},
	} {
		if err := hangs(t, proxy, do); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want DeadlineExceeded", name, err)
		}
		// The connection that hangs is of no use to the next.
		proxy.Drop()
		c, release, err := b.pool.acquire(t.Context())
		if err == nil {
			release()
			if !c.alive() {
				<-c.dead
			}
		}
		if _, err := retrying(b).Stat(t.Context(), "key"); err != nil {
			t.Fatalf("after %s: %v", name, err)
		}
	}
	// The handshake too.
	proxy.Drop()
	if err := hangs(t, proxy, func(ctx context.Context) error {
		_, err := retrying(b).Stat(ctx, "key")
		return err
	}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("handshake: %v, want DeadlineExceeded", err)
	}
}

// A large Put into a connection that takes nothing more ends too.
func TestCancelHangingPut(t *testing.T) {
	b, proxy, root := proxied(t, nil)
	mustPut(t, b, "key", "x")
	proxy.Hang(stores.Requests, 1<<20, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := b.Put(ctx, "big", storage.Bytes(make([]byte, 16<<20)), storage.PutOptions{})
	if !errors.Is(err, context.DeadlineExceeded) || proxy.Struck() != 1 {
		t.Errorf("put: %v, want DeadlineExceeded; struck %d", err, proxy.Struck())
	}
	proxy.Heal()
	proxy.Drop()
	if _, err := retrying(b).Stat(t.Context(), "big"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("after it: %v, want ErrNotExist", err)
	}
	mustPut(t, b, "next", "x")
	b.tasks.Wait()
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// Several connections are made for several callers, one for one.
func TestConnections(t *testing.T) {
	b, proxy, _ := proxied(t, func(o *Options) { o.Connections = 100 })
	for i := range 5 {
		mustPut(t, b, fmt.Sprint("k", i), "x")
	}
	if got := proxy.Accepted(); got != 1 {
		t.Errorf("%d connections for one caller", got)
	}
	var readers []io.ReadCloser
	for range 3 * maxConnections {
		r, _, err := b.Get(t.Context(), "k0")
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	if got := proxy.Accepted(); got != maxConnections {
		t.Errorf("%d connections for many callers, want %d", got, maxConnections)
	}
	for _, r := range slices.Backward(readers) {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
