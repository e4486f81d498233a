package retention

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/archive"
	"agent/internal/compress"
	"agent/internal/host"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	folder "agent/internal/storage/fs"
)

const worldSegment postgres.SegmentSize = 16 << 20

// world is a repository in a folder whose clock is ours: a server that archives,
// forks and takes backups, with files of a few bytes.
type world struct {
	t      *testing.T
	random *rand.Rand
	dir    string
	bucket *flaky
	repo   *repo.Repository
	state  string
	now    time.Time

	cluster  repo.ClusterID
	lines    map[postgres.Timeline]postgres.History
	next     map[postgres.Timeline]uint64 // segment that is written next
	archived map[postgres.Segment]time.Time
	backups  map[repo.BackupName]*made
	order    []repo.BackupName
	files    []string // the content of the database's files now
}

// made is a backup and what it must restore to.
type made struct {
	*repo.Backup
	files []string
	kept  time.Time // marked until; zero: not marked
}

// flaky is a bucket that breaks for good after some deletions, as a process that
// is killed does.
type flaky struct {
	storage.Bucket
	left   int // deletions; less than 0: any number
	dead   bool
	stored func(key string) error // sets the object's time
	refuse string                 // the key that the store does not remove
	before func(key string)       // is told of each Put
}

var errDead = errors.New("killed")

func (f *flaky) Delete(ctx context.Context, keys ...string) error {
	var refused error
	for i, key := range keys {
		if f.dead {
			return errDead
		}
		if key == f.refuse {
			refused = &storage.Error{Op: "delete", Key: key, Err: storage.ErrPermission}
			continue
		}
		if f.left == 0 {
			f.dead = true
			return errDead
		}
		f.left--
		if err := f.Bucket.Delete(ctx, key); err != nil {
			return fmt.Errorf("delete %d: %w", i, err)
		}
	}
	return refused
}

func (f *flaky) Put(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
	if f.dead {
		return storage.Info{}, errDead
	}
	if f.before != nil {
		f.before(key)
	}
	info, err := f.Bucket.Put(ctx, key, src, o)
	if err != nil {
		return info, err
	}
	return info, f.stored(key)
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), dir: inMemory(t), state: inMemory(t),
		now:   time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		files: []string{"a", "b", "c", "d"},
	}
	w.upgrade(7312345678901234567)
	bucket, err := folder.Open(t.Context(), w.dir)
	if err != nil {
		t.Fatal(err)
	}
	w.bucket = &flaky{Bucket: bucket, left: -1, stored: func(key string) error {
		return os.Chtimes(filepath.Join(w.dir, filepath.FromSlash(key)), w.now, w.now)
	}}
	codec, err := compress.Parse("zstd")
	if err != nil {
		t.Fatal(err)
	}
	w.repo = repo.New([]repo.Place{{Name: "main", Bucket: w.bucket, Required: true}}, repo.Options{
		Codec: codec, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now }, SpoolDir: w.state, Version: "test",
	})
	if _, err := w.repo.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// inMemory is a folder that costs no wait for a disk, where there is such a place.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "agent-retention-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// upgrade goes on with a new cluster, as pg_upgrade does.
func (w *world) upgrade(to repo.ClusterID) {
	w.cluster = to
	w.lines = map[postgres.Timeline]postgres.History{1: {{Timeline: 1}}}
	w.next = map[postgres.Timeline]uint64{1: 1}
	w.archived, w.backups, w.order = make(map[postgres.Segment]time.Time), make(map[repo.BackupName]*made), nil
}

func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

// switchWAL archives some segments of a timeline.
func (w *world) switchWAL(t postgres.Timeline, n int) {
	w.t.Helper()
	for range n {
		seg := postgres.Segment{Timeline: t, Number: w.next[t]}
		w.next[t]++
		name := seg.Name(worldSegment)
		key := fmt.Sprintf("cluster/%020d/wal/%s/%s", uint64(w.cluster), name[:16], name)
		w.file(key, "segment")
		w.archived[seg] = w.now
	}
}

// file stores an object at the present time.
func (w *world) file(key, body string) {
	w.t.Helper()
	path := filepath.Join(w.dir, filepath.FromSlash(key))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(body), 0o600), os.Chtimes(path, w.now, w.now)); err != nil {
		w.t.Fatal(err)
	}
}

// fork starts a new timeline off another one, at the beginning of a segment.
func (w *world) fork(from postgres.Timeline, at uint64) postgres.Timeline {
	w.t.Helper()
	t := postgres.Timeline(1)
	for o := range w.lines {
		t = max(t, o+1)
	}
	line := slices.Clone(w.lines[from])
	line[len(line)-1].Switch = postgres.LSN(at*uint64(worldSegment) + 100)
	line = append(line, postgres.HistoryEntry{Timeline: t})
	var body strings.Builder
	for _, e := range line[:len(line)-1] {
		fmt.Fprintf(&body, "%d\t%s\tforked\n", e.Timeline, e.Switch)
	}
	f, err := postgres.ParseWALFile(t.String() + ".history")
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.repo.PutWAL(w.t.Context(), w.cluster, f, strings.NewReader(body.String()), int64(body.Len()), believed{}, nil); err != nil {
		w.t.Fatal(err)
	}
	w.lines[t], w.next[t] = line, at
	return t
}

type believed struct{}

func (believed) Write(p []byte) (int, error) { return len(p), nil }
func (believed) Close() error                { return nil }

// backup takes a backup of a server on a timeline: full, or with what has not
// changed from its parent.
func (w *world) backup(t postgres.Timeline, parent repo.BackupName) repo.BackupName {
	w.t.Helper()
	for range 1 + w.random.IntN(2) {
		w.files[w.random.IntN(len(w.files))] = fmt.Sprint("content ", w.random.Uint64())
	}
	b := &repo.Backup{
		Format: repo.Format, Type: repo.TypeFull, Cluster: w.cluster, PostgresVersion: 170000, Started: w.now, Stopped: w.now.Add(time.Minute),
		Timeline: t, SegmentSize: worldSegment, BlockSize: 8192,
	}
	first := w.next[t]
	b.StartLSN = postgres.LSN(first*uint64(worldSegment) + 0x28)
	b.StopLSN = postgres.LSN((first+1)*uint64(worldSegment) + 0x100)
	b.StartSegment = postgres.Segment{Timeline: t, Number: first}.Name(worldSegment)
	b.StopSegment = postgres.Segment{Timeline: t, Number: first + 1}.Name(worldSegment)
	w.switchWAL(t, 2)
	var err error
	if b.Name, err = repo.NewBackupName(w.now); err != nil {
		w.t.Fatal(err)
	}
	if parent != "" {
		p := w.backups[parent]
		b.Type, b.Parent, b.Full, b.Depth = repo.TypeIncremental, parent, parent, p.Depth+1
		if p.Full != "" {
			b.Full = p.Full
		}
	}
	if err := w.store(b, parent); err != nil {
		w.t.Fatal(err)
	}
	w.backups[b.Name] = &made{Backup: b, files: slices.Clone(w.files)}
	w.order = append(w.order, b.Name)
	return b.Name
}

// store writes the packs, the manifest, the lists and backup.json.
func (w *world) store(b *repo.Backup, parent repo.BackupName) error {
	ctx := w.t.Context()
	group, gctx := errgroup.WithContext(ctx)
	set := w.repo.NewPackSet(gctx, group, b.Cluster, b.Name, 1)
	mw, err := w.repo.NewManifestWriter(set, repo.ManifestHeader{Backup: b.Name, BlockSize: b.BlockSize, Mode: 0o700}, nil)
	if err != nil {
		return err
	}
	defer mw.Close()
	var lent map[repo.PackID]repo.Pack
	var old []string
	var reader *repo.ManifestReader
	if parent != "" {
		p := w.backups[parent]
		old = p.files
		m, packs, err := w.open(p.Backup)
		if err != nil {
			return err
		}
		defer m.Close()
		if reader, err = m.Read(packs); err != nil {
			return err
		}
		lent = packs
	}
	data := set.Writer(repo.PackData)
	for i, content := range w.files {
		e := repo.Entry{Kind: repo.EntryFile, Path: fmt.Sprint(i), Mode: 0o600, ModTime: w.now, Size: int64(len(content))}
		var parts []repo.FilePart
		if reader != nil {
			if _, parts, err = reader.Next(ctx); err != nil {
				return err
			}
		}
		if reader == nil || old[i] != content {
			if parts, err = w.fresh(data, b.Name, content); err != nil {
				return err
			}
			// Each file lies in a pack of its own.
			if err := data.Close(); err != nil {
				return err
			}
		}
		if err := mw.Add(ctx, e, parts); err != nil {
			return err
		}
	}
	if _, err := mw.Finish(ctx); err != nil {
		return err
	}
	if err := group.Wait(); err != nil {
		return err
	}
	packs, err := set.Packs()
	if err != nil {
		return err
	}
	borrowed, err := mw.Borrowed(lent)
	if err != nil {
		return err
	}
	list, err := w.repo.EncodePacks(append(packs, borrowed...))
	if err != nil {
		return err
	}
	if b.Manifest, err = mw.Store(ctx); err != nil {
		return err
	}
	if b.Packs, err = w.repo.StorePacks(ctx, b.Cluster, b.Name, list); err != nil {
		return err
	}
	_, err = w.repo.StoreBackup(ctx, b, borrowed)
	return err
}

func (w *world) fresh(data *repo.Writer, name repo.BackupName, content string) ([]repo.FilePart, error) {
	codec, err := compress.Parse("zstd")
	if err != nil {
		return nil, err
	}
	enc, err := compress.NewEncoder(codec)
	if err != nil {
		return nil, err
	}
	frame, err := enc.AppendFrame(nil, []byte(content))
	if err != nil {
		return nil, err
	}
	ref, err := data.Append(w.t.Context(), frame, int64(len(content)))
	if err != nil {
		return nil, err
	}
	id := repo.PackID{Backup: name, Number: ref.Pack}
	return []repo.FilePart{{
		Part:    repo.Part{Runs: []repo.Run{{Length: int64(len(content)), Pack: 1, Raw: ref.RawOffset}}},
		Section: &repo.Section{Packs: []repo.PackFrames{{PackID: id, Frames: []repo.Frame{ref.Frame()}}}}, Index: -1,
	}}, nil
}

func (w *world) open(b *repo.Backup) (*repo.Manifest, map[repo.PackID]repo.Pack, error) {
	packs, err := w.repo.LoadPacks(w.t.Context(), b)
	if err != nil {
		return nil, nil, err
	}
	m, err := w.repo.OpenManifest(w.t.Context(), b)
	return m, packs, err
}

// restores fails the test unless the backup, as the repository has it, gives the
// files back that it was made of.
func (w *world) restores(b *repo.Backup) {
	w.t.Helper()
	ctx := w.t.Context()
	m, packs, err := w.open(b)
	if err != nil {
		w.t.Fatalf("backup %s: %v", b.Name, err)
	}
	defer m.Close()
	reader, err := m.Read(packs)
	if err != nil {
		w.t.Fatalf("backup %s: %v", b.Name, err)
	}
	defer reader.Close()
	for i, want := range w.backups[b.Name].files {
		_, parts, err := reader.Next(ctx)
		if err != nil {
			w.t.Fatalf("backup %s: %v", b.Name, err)
		}
		var got bytes.Buffer
		for _, p := range parts {
			for _, run := range p.Runs {
				pack := p.Section.PackOf(run)
				at, ok := repo.FrameAt(pack.Frames, run.Raw)
				if !ok {
					w.t.Fatalf("backup %s: a run has no frame", b.Name)
				}
				f := pack.Frames[at]
				err := w.repo.ReadFrames(ctx, b.Cluster, pack.Backup, packs[pack.PackID], []repo.Extent{{Offset: f.Offset, Length: f.Length}}, func(s *repo.PackStream) error {
					stored := make([]byte, f.Length)
					if err := s.ReadFrame(f.Offset, stored); err != nil {
						return err
					}
					raw := compress.NewReader(bytes.NewReader(stored))
					_, err := io.Copy(&got, raw)
					return errors.Join(err, raw.Close())
				})
				if err != nil {
					w.t.Fatalf("backup %s: %v", b.Name, err)
				}
			}
		}
		if got.String() != want {
			w.t.Fatalf("backup %s: file %d is %q, not %q", b.Name, i, got.String(), want)
		}
	}
}

// existing are the backups that the repository has.
func (w *world) existing() []*repo.Backup {
	w.t.Helper()
	all, err := w.repo.Backups(w.t.Context(), w.cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// held are the segments that the repository has.
func (w *world) held() *repo.WALScan {
	w.t.Helper()
	scan, err := w.repo.ScanWAL(w.t.Context(), w.cluster, worldSegment)
	if err != nil {
		w.t.Fatal(err)
	}
	return scan
}

// reach are the ends of segments that a recovery can get to: along a line, from a
// backup on it, with all WAL in between.
func (w *world) reach() map[string]bool {
	w.t.Helper()
	scan := w.held()
	has := func(t postgres.Timeline, n uint64) bool {
		return len(archive.Missing(scan.Ranges, archive.Span{First: postgres.Segment{Timeline: t, Number: n}, Last: postgres.Segment{Timeline: t, Number: n}})) == 0
	}
	reached := make(map[string]bool)
	for _, b := range w.existing() {
		for t, line := range w.lines {
			if !on(line, b) {
				continue
			}
			first := b.StartLSN.Segment(worldSegment)
			for _, e := range line {
				if e.Timeline < b.Timeline {
					continue
				}
				last := w.next[e.Timeline] - 1
				if e.Switch > 0 {
					last = e.Switch.Segment(worldSegment) - 1
				}
				n := first
				for ; n <= last && has(e.Timeline, n); n++ {
					if n >= b.StopLSN.Segment(worldSegment) {
						reached[fmt.Sprintf("%s on the way to timeline %d", postgres.Segment{Timeline: e.Timeline, Number: n}.Name(worldSegment), t)] = true
					}
				}
				if n <= last {
					break
				}
				first = last + 1
			}
		}
	}
	return reached
}

// sound fails the test unless every backup that exists restores, with its own
// WAL.
func (w *world) sound() {
	w.t.Helper()
	scan := w.held()
	for _, b := range w.existing() {
		w.restores(b)
		first := postgres.Segment{Timeline: b.Timeline, Number: b.StartLSN.Segment(worldSegment)}
		last := postgres.Segment{Timeline: b.Timeline, Number: b.StopLSN.Segment(worldSegment)}
		if m := archive.Missing(scan.Ranges, archive.Span{First: first, Last: last}); len(m) > 0 {
			w.t.Fatalf("backup %s: its WAL from %s on is gone", b.Name, m[0].First.Name(worldSegment))
		}
	}
}

// run runs a delete; kill is after how many deletions it dies, less than 0: never.
func (w *world) run(q Request, rules Rules, kill int) (*Result, error) {
	w.t.Helper()
	w.bucket.left, w.bucket.dead = kill, false
	res, err := Run(w.t.Context(), w.repo, Options{
		Cluster: w.cluster, SegmentSize: worldSegment, Request: q, Rules: rules, Confirm: true, Command: "test",
		Host: host.Identity{Name: "here", State: "state"}, StateDir: w.state, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now },
	})
	w.bucket.left, w.bucket.dead = -1, false
	there := w.existing()
	maps.DeleteFunc(w.backups, func(name repo.BackupName, _ *made) bool {
		return !slices.ContainsFunc(there, func(b *repo.Backup) bool { return b.Name == name })
	})
	w.order = slices.DeleteFunc(w.order, func(n repo.BackupName) bool { return w.backups[n] == nil })
	return res, err
}

func (w *world) keep(name repo.BackupName, until time.Time) {
	w.t.Helper()
	if err := w.repo.PutMark(w.t.Context(), w.cluster, repo.Mark{Backup: name, Kind: repo.MarkKeep, Until: until, Host: "here"}); err != nil {
		w.t.Fatal(err)
	}
	w.backups[name].kept = until
}

// objects are the keys below a prefix of the cluster.
func (w *world) objects(prefix string) []string {
	w.t.Helper()
	var keys []string
	for info, err := range w.bucket.List(w.t.Context(), fmt.Sprintf("cluster/%020d/%s", uint64(w.cluster), prefix), "") {
		if err != nil {
			w.t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

// clean fails the test if there is a pack that no backup names, or a folder of
// none.
func (w *world) clean() {
	w.t.Helper()
	named := make(map[string]bool)
	for _, b := range w.existing() {
		dir := fmt.Sprintf("cluster/%020d/backup/%s/", uint64(w.cluster), b.Name)
		named[dir+"backup.json"], named[dir+"packs"], named[dir+"manifest"] = true, true, true
		err := w.repo.EachPack(w.t.Context(), b, func(id repo.PackID, _ repo.Pack) {
			named[fmt.Sprintf("cluster/%020d/backup/%s/pack/%08x", uint64(w.cluster), id.Backup, id.Number)] = true
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	for _, key := range w.objects("backup/") {
		if !named[key] {
			w.t.Errorf("%s belongs to no backup", key)
		}
	}
	for _, prefix := range []string{"tomb/", "claim/"} {
		if left := w.objects(prefix); len(left) > 0 {
			w.t.Errorf("left behind: %v", left)
		}
	}
}

// timelines are those that there are, in order.
func (w *world) timelines() []postgres.Timeline { return slices.Sorted(maps.Keys(w.lines)) }
