package receive

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage/fs"
	"agent/testing/harness"
	"agent/testing/stores"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testOptions are for a receiver of the server with a repository of its own.
func testOptions(t *testing.T, s *harness.Server) Options {
	t.Helper()
	dir, spool := filepath.Join(t.TempDir(), "repo"), t.TempDir()
	open := func(ctx context.Context) (*repo.Repository, error) {
		b, err := fs.Create(ctx, dir)
		if err != nil {
			return nil, err
		}
		return repo.New([]repo.Place{{Name: "main", Bucket: b, Required: true}}, repo.Options{
			Codec: compress.Setting{}, SpoolDir: spool, Log: slog.New(slog.DiscardHandler), Now: time.Now, Version: "test",
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
	return Options{
		Open: open, ConnInfo: s.ConnInfo(), Slot: "one", CreateSlot: true, Synchronous: true, FlushInterval: time.Millisecond,
		StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

// eventually waits until done says yes.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("waited for: %s", what)
		}
	}
}

// TestRun receives until a position in the middle of a segment, twice, while
// another receiver runs until it is told to end.
func TestRun(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Options{Major: 15, NoFsync: true, WALSegSizeMB: 1, Conf: map[string]string{"wal_keep_size": "1GB"}})
	o := testOptions(t, s)
	r, err := o.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
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

// TestSilentServer loses a server without the connection's end, and finds it
// again.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Options{Major: 15, NoFsync: true, WALSegSizeMB: 1, Conf: map[string]string{"wal_sender_timeout": "0"}})
	link := stores.NewFaultProxy(t, "127.0.0.1:"+strconv.Itoa(s.Port))
	host, port, err := net.SplitHostPort(link.Address)
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions(t, s)
	o.ConnInfo = "host=" + host + " port=" + port + " user=postgres dbname=postgres"
	o.Silence = time.Second
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o) }()
	confirmed := func() bool {
		return s.QueryInt(t, "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn = pg_current_wal_flush_lsn()") == 1
	}
	eventually(t, "the first connection", confirmed)
	// It says nothing of its own accord: without a question it would be lost.
	before := link.Accepted()
	s.Exec(t, "CREATE TABLE t (i int)")
	eventually(t, "what came", confirmed)
	link.Hang(stores.Answers, 0, 1)
	s.Exec(t, "INSERT INTO t VALUES (1)")
	eventually(t, "the next connection", confirmed)
	if link.Accepted() == before {
		t.Error("it did not connect again")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
