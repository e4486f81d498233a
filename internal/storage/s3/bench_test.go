package s3

import (
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"

	"agent/internal/storage"
)

// BenchmarkPut sends packs of 32 MiB to a service that only reads them; the
// CPU time is that of both sides.
func BenchmarkPut(b *testing.B) {
	for _, tls := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%t", tls), func(b *testing.B) {
			sink := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
			o := serve(b, sink, tls)
			bucket, err := Open(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			defer bucket.Close()
			body := storage.Bytes(make([]byte, 32<<20))
			b.SetBytes(body.Size())
			var before, after syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := bucket.Put(b.Context(), "k", body, storage.PutOptions{}); err != nil {
					b.Fatal(err)
				}
			}
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
				b.Fatal(err)
			}
			used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(used)/float64(int64(b.N)*body.Size()), "cpu-s/GB")
		})
	}
}
