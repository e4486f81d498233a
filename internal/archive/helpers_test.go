package archive

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage/fs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testSize    postgres.SegmentSize = 16 << 20
	testCluster repo.ClusterID       = 7
)

var testTime = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

func seg(t postgres.Timeline, n uint64) postgres.Segment {
	return postgres.Segment{Timeline: t, Number: n}
}

func span(t postgres.Timeline, first, last uint64) Span { return Span{seg(t, first), seg(t, last)} }

// ranges reads "1:3-5".
func ranges(t testing.TB, texts ...string) []repo.WALRange {
	t.Helper()
	var all []repo.WALRange
	for _, text := range texts {
		var tli, first, last uint64
		if _, err := fmt.Sscanf(text, "%d:%d-%d", &tli, &first, &last); err != nil {
			t.Fatal(err)
		}
		all = append(all, repo.WALRange{First: seg(postgres.Timeline(tli), first), Last: seg(postgres.Timeline(tli), last), Bytes: int64(last - first + 1)})
	}
	return all
}

// show is spans as "1:3-5".
func show(spans []Span) string {
	var all []string
	for _, s := range spans {
		all = append(all, fmt.Sprintf("%d:%d-%d", s.First.Timeline, s.First.Number, s.Last.Number))
	}
	return strings.Join(all, " ")
}

func dropped(t postgres.Timeline, first, last uint64) repo.DroppedRange {
	return repo.DroppedRange{First: seg(t, first).Name(testSize), Last: seg(t, last).Name(testSize), At: testTime}
}

// backup is one whose first and last segment these are.
func backup(name string, t postgres.Timeline, start, stop uint64) *repo.Backup {
	return &repo.Backup{
		Name: repo.BackupName(name), Timeline: t, SegmentSize: testSize, StartSegment: seg(t, start).Name(testSize), StopSegment: seg(t, stop).Name(testSize),
		StartLSN: seg(t, start).Start(testSize) + 0x28, StopLSN: seg(t, stop).Start(testSize) + 0x100,
	}
}

func history(t testing.TB, tli postgres.Timeline, lines ...string) postgres.History {
	t.Helper()
	h, err := postgres.ParseHistory(tli, []byte(strings.Join(lines, "\n")+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// surveyed is a survey of one place that has all.
func surveyed(t testing.TB, texts ...string) *Survey {
	t.Helper()
	all := ranges(t, texts...)
	return &Survey{
		Cluster: testCluster, Size: testSize, Histories: map[postgres.Timeline]postgres.History{}, Damaged: map[postgres.Timeline]error{},
		Scan: &repo.WALScan{Ranges: all, Places: []repo.WALHeld{{Name: "main", Required: true, Ranges: all, Histories: []postgres.Timeline{2, 3, 4}}}},
	}
}

// fixture is a file of the postgres package's test data.
func fixture(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile("../postgres/testdata/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(path, ".zst") {
		return b
	}
	raw, err := io.ReadAll(compress.NewReader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// stored is a repository in a folder.
type stored struct {
	*repo.Repository
	dir string
	t   *testing.T
}

func newStored(t *testing.T, keys repo.Keys) *stored {
	t.Helper()
	dir := t.TempDir()
	b, err := fs.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r := repo.New([]repo.Place{{Name: "main", Bucket: b, Required: true}}, repo.Options{
		Keys: keys, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return testTime }, Version: "test", SpoolDir: t.TempDir(),
	})
	t.Cleanup(func() { r.Close() })
	if _, err := r.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &stored{Repository: r, dir: dir, t: t}
}

type unchecked struct{}

func (unchecked) Write(p []byte) (int, error) { return len(p), nil }
func (unchecked) Close() error                { return nil }

func (s *stored) put(cluster repo.ClusterID, name string, body []byte) {
	s.t.Helper()
	f, err := postgres.ParseWALFile(name)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.PutWAL(s.t.Context(), cluster, f, bytes.NewReader(body), int64(len(body)), unchecked{}, nil); err != nil {
		s.t.Fatal(err)
	}
}

// path is the file of an archived WAL file.
func (s *stored) path(name string) string {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.dir, "cluster/*/wal/*", name))
	if histories, _ := filepath.Glob(filepath.Join(s.dir, "cluster/*/history", name)); len(found) == 0 {
		found = histories
	}
	if err != nil || len(found) != 1 {
		s.t.Fatalf("%s: %v (%v)", name, found, err)
	}
	return found[0]
}
