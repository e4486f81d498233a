package sftp

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"agent/internal/storage"
	"agent/testing/stores"
)

// BenchmarkObjects moves 512 MiB in objects of 32 MiB, four at a time, the way
// backup and restore do.
func BenchmarkObjects(b *testing.B) {
	const objects, size, workers = 16, 32 << 20, 4
	body := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{1})
	if _, err := rnd.Read(body); err != nil {
		b.Fatal(err)
	}
	server := stores.StartSFTP(b, stores.SFTPOptions{})
	for _, delay := range []time.Duration{0, 25 * time.Millisecond} {
		for _, connections := range []int{1, 2, 4} {
			proxy := stores.NewFaultProxy(b, server.Address)
			name := fmt.Sprintf("delay=%s/connections=%d", delay, connections)
			o := Options{
				Host: server.Host(), Port: server.Port(), User: server.User, Folder: server.Dir + "/" + name, Create: true,
				KnownHostsFile: server.KnownHostsFile, IdentityFiles: []string{server.IdentityFile}, Connections: connections,
			}
			if delay > 0 {
				proxy.Latency(b, delay)
				server.Trust(proxy.Address)
				_, err := fmt.Sscanf(proxy.Address, "127.0.0.1:%d", &o.Port)
				if err != nil {
					b.Fatal(err)
				}
			}
			bucket, err := Open(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			all := func(do func(key string) error) {
				var wg sync.WaitGroup
				keys := make(chan string)
				for range workers {
					wg.Go(func() {
						for key := range keys {
							if err := do(key); err != nil {
								b.Error(err)
							}
						}
					})
				}
				for i := range objects {
					keys <- fmt.Sprintf("pack/%d", i)
				}
				close(keys)
				wg.Wait()
			}
			b.Run(name+"/put", func(b *testing.B) {
				b.SetBytes(objects * size)
				for b.Loop() {
					all(func(key string) error {
						_, err := bucket.Put(b.Context(), key, storage.Bytes(body), storage.PutOptions{})
						return err
					})
					b.StopTimer()
					all(func(key string) error { return bucket.Delete(b.Context(), key) })
					b.StartTimer()
				}
			})
			all(func(key string) error {
				_, err := bucket.Put(b.Context(), key, storage.Bytes(body), storage.PutOptions{})
				return err
			})
			b.Run(name+"/get", func(b *testing.B) {
				b.SetBytes(objects * size)
				for b.Loop() {
					all(func(key string) error {
						r, _, err := bucket.Get(b.Context(), key)
						if err != nil {
							return err
						}
						defer r.Close()
						_, err = io.Copy(io.Discard, r)
						return err
					})
				}
			})
			if err := bucket.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
