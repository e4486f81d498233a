package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage/fs"
)

// walCluster is the one whose WAL is in the test data.
const walCluster repo.ClusterID = 7710217270864087352

const (
	walSize  postgres.SegmentSize = 1 << 20
	pageSize                      = 8192
	walFirst                      = "00000001000000000000000B"
	walLast                       = "00000001000000000000000C"
)

// written is a backup in two places, with real WAL, as a test has changed it.
type written struct {
	repo *repo.Repository
	opts Options
}

// odd says what is wrong with a backup when it is written.
type odd struct {
	page  bool                // a page with a wrong checksum
	frame func(f *repo.Frame) // of a relation's pack
	sum   bool                // of a small file
	list  func([]repo.Pack) []repo.Pack
	about func(b *repo.Backup)
}

// goodPage is a page of a relation, with its checksum.
func goodPage(n uint32) []byte {
	p := make([]byte, pageSize)
	binary.LittleEndian.PutUint32(p[4:], 0x100)
	binary.LittleEndian.PutUint16(p[14:], 4000)
	for i := 4000; i < pageSize; i++ {
		p[i] = byte(i) ^ byte(n)
	}
	binary.LittleEndian.PutUint16(p[8:], postgres.PageChecksum(p, n))
	return p
}

func write(t *testing.T, o odd) *written {
	t.Helper()
	w := &written{opts: Options{
		Cluster: walCluster, Depth: Deep, Concurrency: 8, MaxAge: time.Hour, StateDir: t.TempDir(), ToLatest: true,
		Log: slog.New(slog.DiscardHandler), Now: time.Now, Mark: true, Host: "here",
	}}
	var places []repo.Place
	for _, name := range []string{"near", "far"} {
		b, err := fs.Open(t.Context(), t.TempDir())
		must(t, err)
		places = append(places, repo.Place{Name: name, Bucket: b, Required: true})
	}
	w.repo = repo.New(places, repo.Options{Log: w.opts.Log, Now: w.opts.Now, Version: "test", SpoolDir: w.opts.StateDir})
	t.Cleanup(func() { w.repo.Close() })
	_, err := w.repo.Init(t.Context())
	must(t, err)
	must(t, w.repo.EnsureCluster(t.Context(), repo.Cluster{ID: walCluster, SegmentSize: walSize, BlockSize: pageSize, RelSegBlocks: 131072}))
	for _, name := range []string{walFirst, walLast} {
		w.wal(t, name)
	}
	w.backup(t, o)
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type unchecked struct{}

func (unchecked) Write(p []byte) (int, error) { return len(p), nil }
func (unchecked) Close() error                { return nil }

func (w *written) wal(t *testing.T, name string) {
	t.Helper()
	packed, err := os.ReadFile("../postgres/testdata/pg15/" + name + ".zst")
	must(t, err)
	body, err := io.ReadAll(compress.NewReader(bytes.NewReader(packed)))
	must(t, err)
	f, err := postgres.ParseWALFile(name)
	must(t, err)
	_, err = w.repo.PutWAL(t.Context(), walCluster, f, bytes.NewReader(body), int64(len(body)), unchecked{}, nil)
	must(t, err)
}

// file stores the bytes of a file in a pack of its own.
func (w *written) file(t *testing.T, g *repo.Writer, raw []byte) ([]repo.FilePart, *repo.Frame) {
	t.Helper()
	enc, err := compress.NewEncoder(compress.Setting{})
	must(t, err)
	frame, err := enc.AppendFrame(nil, raw)
	must(t, err)
	ref, err := g.Append(t.Context(), frame, int64(len(raw)))
	must(t, err)
	must(t, g.Close())
	id := repo.PackID{Backup: testName, Number: ref.Pack}
	frames := []repo.Frame{ref.Frame()}
	return []repo.FilePart{{
		Part: repo.Part{Runs: []repo.Run{{Length: int64(len(raw)), Pack: 1, Raw: ref.RawOffset}}}, Index: -1,
		Section: &repo.Section{Packs: []repo.PackFrames{{PackID: id, Frames: frames}}},
	}}, &frames[0]
}

// backup writes a backup of some relations and a small file.
func (w *written) backup(t *testing.T, o odd) {
	t.Helper()
	ctx := t.Context()
	group, gctx := errgroup.WithContext(ctx)
	set := w.repo.NewPackSet(gctx, group, walCluster, testName, 2)
	m, err := w.repo.NewManifestWriter(set, repo.ManifestHeader{Backup: testName, BlockSize: pageSize, Mode: 0o700}, nil)
	must(t, err)
	defer m.Close()
	data := set.Writer(repo.PackData)
	settings := []byte("some settings")
	sum := sha256.Sum256(settings)
	e := repo.Entry{Kind: repo.EntryFile, Path: "PG_VERSION", Size: int64(len(settings)), HasSum: true, Sum: [16]byte(sum[:16])}
	if o.sum {
		e.Sum[0] ^= 1
	}
	parts, _ := w.file(t, data, settings)
	must(t, m.Add(ctx, e, parts))
	for n := range 20 {
		var raw []byte
		for b := range uint32(3) {
			raw = append(raw, goodPage(b)...)
		}
		if o.page && n == 7 {
			raw[pageSize+5000] ^= 1
		}
		parts, frame := w.file(t, data, raw)
		if o.frame != nil && n == 7 {
			o.frame(frame)
		}
		must(t, m.Add(ctx, repo.Entry{Kind: repo.EntryFile, Path: fmt.Sprintf("base/1/%d", 1000+n), Size: int64(len(raw))}, parts))
	}
	totals, err := m.Finish(ctx)
	must(t, err)
	must(t, group.Wait())
	packs, err := set.Packs()
	must(t, err)
	if o.list != nil {
		packs = o.list(packs)
	}
	list, err := w.repo.EncodePacks(packs)
	must(t, err)
	first, err := postgres.ParseSegment(walFirst, walSize)
	must(t, err)
	b := &repo.Backup{
		Format: repo.Format, Name: testName, Type: repo.TypeFull, Cluster: walCluster, Timeline: 1, Started: time.Now(), Stopped: time.Now(),
		StartLSN: first.Start(walSize) + 0x28, StopLSN: first.Start(walSize) + 0x100, StartSegment: walFirst, StopSegment: walFirst,
		SegmentSize: walSize, BlockSize: pageSize, Checksums: true, Files: totals.Files, DataBytes: totals.Bytes,
	}
	b.Manifest, err = m.Store(ctx)
	must(t, err)
	b.Packs, err = w.repo.StorePacks(ctx, walCluster, testName, list)
	must(t, err)
	if o.about != nil {
		o.about(b)
	}
	_, err = w.repo.StoreBackup(ctx, b, nil)
	must(t, err)
}

// What was stored wrong, by whatever mistake, is as it was stored: the hashes are
// right in all places, and only a deep look at it tells.
func TestStoredWrong(t *testing.T) {
	for what, c := range map[string]struct {
		odd  odd
		kind Kind
		text string
		deep bool // only then
	}{
		"nothing":                      {},
		"a page":                       {odd{page: true}, Damaged, "has 1 pages whose checksums are wrong, and counted 0 when it was made, the first: base/1/1007 block 1", true},
		"a page that was counted":      {odd{page: true, about: func(b *repo.Backup) { b.BadPages = 1 }}, BadPages, "1 pages whose checksums are wrong, the first: base/1/1007 block 1", true},
		"a page, without checksums":    {odd: odd{page: true, about: func(b *repo.Backup) { b.Checksums = false }}},
		"a page that WAL puts right":   {odd: odd{page: true, about: func(b *repo.Backup) { b.StartLSN = 0x80 }}},
		"the checksum of a frame":      {odd{frame: func(f *repo.Frame) { f.Ending[0] ^= 1 }}, Damaged, "not the one that the manifest names", true},
		"where a frame is":             {odd{frame: func(f *repo.Frame) { f.Offset, f.Length = f.Offset+1, f.Length-1 }}, Damaged, "not where it says", true},
		"a frame behind the pack":      {odd{frame: func(f *repo.Frame) { f.Offset += 1 << 30 }}, Damaged, "it has a frame at", false},
		"the hash of a file":           {odd{sum: true}, Damaged, "PG_VERSION is another file", true},
		"how many files there are":     {odd{about: func(b *repo.Backup) { b.Files++ }}, Damaged, "it has 21 files", false},
		"a pack that is not listed":    {odd{list: func(p []repo.Pack) []repo.Pack { return slices.Delete(p, 5, 6) }}, Damaged, "not in the list of packs", false},
		"a pack with another hash":     {odd{list: func(p []repo.Pack) []repo.Pack { p[5].SHA256[0] ^= 1; return p }}, Damaged, "its SHA-256 is not that", false},
		"a pack that was never stored": {odd{list: func(p []repo.Pack) []repo.Pack { return append(p, repo.Pack{Number: 77, Kind: repo.PackData, Size: 9}) }}, Missing, "pack/0000004d", false},
	} {
		t.Run(what, func(t *testing.T) {
			w := write(t, c.odd)
			for _, depth := range []Depth{Deep, Deep, Stored} {
				w.opts.Depth = depth
				res, err := Run(t.Context(), w.repo, w.opts)
				must(t, err)
				// What is wrong is found again.
				w.opts.SinceLast = c.kind == Damaged || c.kind == Missing
				if c.kind == "" || c.deep && depth != Deep {
					if len(res.Findings) != 0 || res.Backups[0].Status != StatusOK || !res.Backups[0].Marked {
						t.Errorf("%s: %+v", depth, res)
					}
					continue
				}
				if len(res.Findings) == 0 {
					t.Fatalf("%s: nothing is found", depth)
				}
				for _, f := range res.Findings {
					if f.Kind != c.kind || !strings.Contains(f.Text, c.text) || !f.Everywhere || !slices.Equal(f.Backups, []repo.BackupName{testName}) {
						t.Errorf("%s: %+v", depth, f)
					}
				}
				want := StatusLost
				if c.kind == BadPages {
					want = StatusOK
				}
				if res.Backups[0].Status != want || res.Backups[0].Marked != (want == StatusOK) {
					t.Errorf("%s: the backup is %+v", depth, res.Backups[0])
				}
			}
		})
	}
}

// Each object is read once in each place, and not again when that was a short time
// ago.
func TestReadOnce(t *testing.T) {
	w := write(t, odd{})
	w.opts.SinceLast = true
	res, err := Run(t.Context(), w.repo, w.opts)
	must(t, err)
	// The list, the manifest, 21 packs, one of sections, and two segments.
	if want := int64(2 * (2 + 21 + 1 + 2)); res.Objects != want || res.Skipped != 0 {
		t.Errorf("%d objects are read instead of %d", res.Objects, want)
	}
	res, err = Run(t.Context(), w.repo, w.opts)
	must(t, err)
	if res.Objects != 0 || res.Backups[0].Status != StatusRecent {
		t.Errorf("the second time: %+v", res)
	}
}

// What was found good is written down from time to time, so that a run which is
// killed was not in vain.
func TestCheckpoint(t *testing.T) {
	now := time.Now()
	s, err := openSeen(t.TempDir(), "near", now, time.Hour)
	must(t, err)
	x := &run{Options: Options{Depth: Deep, Now: func() time.Time { return now }}, places: []*place{{seen: s}}, saved: now}
	written := func() bool {
		t.Helper()
		must(t, x.checkpoint())
		_, err := os.Stat(s.path)
		return err == nil
	}
	s.add(1, true, now)
	if now = now.Add(saveEvery - time.Second); written() {
		t.Error("it is written all the time")
	}
	if now = now.Add(time.Second); !written() {
		t.Error("it is not written in time")
	}
	must(t, os.Remove(s.path))
	s.add(2, true, now)
	if now = now.Add(time.Second); written() {
		t.Error("it is written again at once")
	}
}
