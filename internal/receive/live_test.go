package receive

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage/fs"
	"agent/testing/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRun receives until a position in the middle of a segment, twice, while
// another receiver runs until it is told to end.
func TestRun(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Options{Major: 15, NoFsync: true, WALSegSizeMB: 1, Conf: map[string]string{"wal_keep_size": "1GB"}})
	dir := filepath.Join(t.TempDir(), "repo")
	open := func(ctx context.Context) (*repo.Repository, error) {
		b, err := fs.Create(ctx, dir)
		if err != nil {
			return nil, err
		}
		return repo.New([]repo.Place{{Name: "main", Bucket: b, Required: true}}, repo.Options{
			Codec: compress.Setting{}, SpoolDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Now: time.Now, Version: "test",
		}), nil
	}
	r, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Open: open, ConnInfo: s.ConnInfo(), Slot: "one", CreateSlot: true, Synchronous: true, FlushInterval: time.Millisecond,
		StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	beside := make(chan error, 1)
	go func() { beside <- Run(ctx, o) }()
	other := o
	other.Slot, other.Synchronous = "two", false
	s.Exec(t, "CREATE TABLE t (i int, m text)")
	for range 2 {
		s.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 12000) g")
		if other.Until, err = postgres.ParseLSN(s.QueryString(t, "SELECT pg_current_wal_flush_lsn()::text")); err != nil {
			t.Fatal(err)
		}
		if err := Run(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		ids, err := r.Clusters(t.Context())
		if err != nil || len(ids) != 1 {
			t.Fatalf("%v, %v", ids, err)
		}
		last := postgres.Segment{Timeline: 1, Number: other.Until.LastSegment(postgres.MinSegmentSize)}
		ranges, err := r.StreamRanges(t.Context(), ids[0], last, postgres.MinSegmentSize)
		if err != nil {
			t.Fatal(err)
		}
		if _, end := repo.StreamChain(ranges, last.Start(postgres.MinSegmentSize)); end < other.Until {
			t.Errorf("stored until %s, not %s", end, other.Until)
		}
	}
	cancel()
	if err := <-beside; err != nil {
		t.Error(err)
	}
}
