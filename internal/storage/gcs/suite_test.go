package gcs

import (
	"fmt"
	"sync/atomic"
	"testing"

	"agent/internal/storage"
	"agent/internal/storage/storagetest"
	"agent/testing/stores"
)

func openIn(t *testing.T, o Options) *Bucket {
	t.Helper()
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// suite runs the acceptance suite, with a bucket of the server for each test.
func suite(t *testing.T, server *stores.GCS, prefix string) {
	t.Helper()
	var buckets atomic.Int64
	storagetest.Run(t, func(t *testing.T) storagetest.Harness {
		o := Options{
			Bucket: fmt.Sprintf("suite-%d", buckets.Add(1)), Prefix: prefix, Emulator: server.Host, CAFile: server.CAFile, Connections: 16,
		}
		server.MakeBucket(t, o.Bucket)
		return storagetest.Harness{
			Open: func(t *testing.T) storage.Bucket { return openIn(t, o) },
			// The emulator locks nothing, but remembers what it was told. It lets
			// nobody extend what is Locked.
			OpenLocking:    func(t *testing.T) storage.Bucket { return openIn(t, o) },
			OnlyGovernance: true,
			Leftovers:      func(t *testing.T) []string { return leftovers(t, o) },
			BigObject:      oneRequest + 5<<20 + 4099, // in chunks
			Few:            server.CAFile != "",
		}
	})
}

// leftovers names what is in the bucket and is no object of ours. Unfinished
// uploads are in no listing; that they are given up is shown over the wire.
func leftovers(t *testing.T, o Options) []string {
	t.Helper()
	b := openIn(t, o)
	defer b.Close()
	ours := make(map[string]bool)
	for info, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		ours[b.root+info.Key] = true
	}
	var left []string
	names := b.bucket.Objects(t.Context(), nil)
	for {
		attrs, err := names.Next()
		if err != nil {
			break
		}
		if !ours[attrs.Name] {
			left = append(left, attrs.Name)
		}
	}
	return left
}

func TestSuite(t *testing.T) {
	suite(t, stores.StartGCS(t, stores.GCSOptions{}), "pre/fix")
}

func TestSuiteTLS(t *testing.T) {
	suite(t, stores.StartGCS(t, stores.GCSOptions{TLS: true}), "")
}
