package restore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/storage/fs"
)

const (
	testCluster repo.ClusterID = 7_321_654_987_321_654_987
	testBlock   int64          = 8192
)

var testTime = time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)

// counted is a bucket that counts what is read of packs of data.
type counted struct {
	storage.Bucket
	mu            sync.Mutex
	whole, ranges int
	bytes         int64
}

func (c *counted) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	body, info, err := c.Bucket.Get(ctx, key)
	if strings.Contains(key, "/pack/") {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.whole++
		c.bytes += info.Size
	}
	return body, info, err
}

func (c *counted) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if strings.Contains(key, "/pack/") {
		c.mu.Lock()
		c.ranges++
		c.bytes += n
		c.mu.Unlock()
	}
	return c.Bucket.GetRange(ctx, key, off, n)
}

// chain is a full backup of some files and incrementals behind it, made without
// a server.
type chain struct {
	t       testing.TB
	dir     string
	repo    *repo.Repository
	store   *counted
	rand    *rand.Rand
	enc     *compress.Encoder
	files   [][]byte
	runs    [][]repo.Run // for each block of a file, where it lies
	packs   []repo.PackFrames
	list    map[repo.PackID]repo.Pack
	backups []*repo.Backup
}

func newChain(t testing.TB, sealed bool, codec string) *chain {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "restore-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "repository"), 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := fs.Open(t.Context(), filepath.Join(dir, "repository"))
	if err != nil {
		t.Fatal(err)
	}
	c := &chain{t: t, dir: dir, store: &counted{Bucket: b}, rand: rand.New(rand.NewPCG(1, 2)), list: make(map[repo.PackID]repo.Pack)}
	var keys repo.Keys
	if sealed {
		identity, recipient, err := crypto.Generate(false)
		if err != nil {
			t.Fatal(err)
		}
		to, err := crypto.ParseRecipients([]string{recipient})
		if err != nil {
			t.Fatal(err)
		}
		keys = repo.Keys{Data: to, WAL: to, Meta: to, Identities: crypto.NewIdentities(t.Context(), crypto.Sources{Text: identity})}
	}
	setting, err := compress.Parse(codec)
	if err != nil {
		t.Fatal(err)
	}
	if c.enc, err = compress.NewEncoder(setting); err != nil {
		t.Fatal(err)
	}
	c.repo = repo.New([]repo.Place{{Name: "main", Bucket: c.store, Required: true}}, repo.Options{
		Keys: keys, Codec: setting, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return testTime }, Version: "test",
	})
	return c
}

func (c *chain) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// page is half noise.
func (c *chain) page(dst []byte) {
	for i := 0; i < len(dst)/2; i += 8 {
		binary.LittleEndian.PutUint64(dst[i:], c.rand.Uint64())
	}
	for i := len(dst) / 2; i < len(dst); i++ {
		dst[i] = 'x'
	}
}

// backup stores a backup of what changed chooses: blocks of files, ascending.
func (c *chain) backup(changed func(file int) []int) {
	c.t.Helper()
	ctx := c.t.Context()
	name := repo.BackupName(fmt.Sprintf("20261120T1015%02dZ-k3v7qa", len(c.backups)))
	g, gctx := errgroup.WithContext(ctx)
	set := c.repo.NewPackSet(gctx, g, testCluster, name, 2)
	data := set.Writer(repo.PackData)
	var raw []byte
	var waiting []*repo.Run
	flush := func() {
		if len(raw) == 0 {
			return
		}
		frame, err := c.enc.AppendFrame(nil, raw)
		c.check(err)
		ref, err := data.Append(gctx, frame, int64(len(raw)))
		c.check(err)
		id := repo.PackID{Backup: name, Number: ref.Pack}
		if n := len(c.packs); n == 0 || c.packs[n-1].PackID != id {
			c.packs = append(c.packs, repo.PackFrames{PackID: id})
		}
		own := &c.packs[len(c.packs)-1]
		own.Frames = append(own.Frames, ref.Frame())
		for i, r := range waiting {
			*r = repo.Run{Length: testBlock, Pack: int32(len(c.packs)), Raw: ref.RawOffset + int64(i)*testBlock}
		}
		raw, waiting = nil, nil
	}
	for n, body := range c.files {
		for _, block := range changed(n) {
			page := body[int64(block)*testBlock:][:testBlock]
			c.page(page)
			raw = append(raw, page...)
			if waiting = append(waiting, &c.runs[n][block]); len(raw) == compress.MaxFrame {
				flush()
			}
		}
	}
	flush()
	control := bytes.Repeat([]byte{byte(len(c.backups))}, 512)
	frame, err := c.enc.AppendFrame(nil, control)
	c.check(err)
	ref, err := data.Append(gctx, frame, 512)
	c.check(err)
	last := repo.PackID{Backup: name, Number: ref.Pack}
	m, err := c.repo.NewManifestWriter(set, repo.ManifestHeader{Backup: name, BlockSize: testBlock, Mode: 0o700}, nil)
	c.check(err)
	c.check(m.Add(gctx, repo.Entry{Kind: repo.EntryDir, Path: "base", Mode: 0o700}, nil))
	for n, body := range c.files {
		var runs []repo.Run
		for _, r := range c.runs[n] {
			if k := len(runs); k > 0 && runs[k-1].Pack == r.Pack && runs[k-1].Raw+runs[k-1].Length == r.Raw {
				runs[k-1].Length += r.Length
				continue
			}
			runs = append(runs, r)
		}
		c.check(m.Add(gctx, repo.Entry{Kind: repo.EntryFile, Path: fmt.Sprintf("base/%04d", n), Mode: 0o600, ModTime: testTime, Size: int64(len(body))},
			[]repo.FilePart{{Part: repo.Part{Runs: runs}, Section: &repo.Section{Packs: c.packs}, Index: -1}}))
	}
	c.check(m.Add(gctx, repo.Entry{Kind: repo.EntryFile, Path: postgres.ControlPath, Mode: 0o600, ModTime: testTime, Size: 512, Final: true},
		[]repo.FilePart{{Part: repo.Part{Runs: []repo.Run{{Length: 512, Pack: 1, Raw: ref.RawOffset}}}, Section: &repo.Section{Packs: []repo.PackFrames{{PackID: last, Frames: []repo.Frame{ref.Frame()}}}}, Index: -1}}))
	c.check(data.Close())
	totals, err := m.Finish(gctx)
	c.check(err)
	c.check(g.Wait())
	packs, err := set.Packs()
	c.check(err)
	for _, p := range packs {
		c.list[repo.PackID{Backup: name, Number: p.Number}] = p
	}
	b := &repo.Backup{Name: name, Cluster: testCluster, Files: totals.Files, DataBytes: totals.Bytes}
	b.Manifest, err = m.Store(ctx)
	c.check(err)
	c.check(m.Close())
	c.backups = append(c.backups, b)
}

func (c *chain) full(files, blocks int) {
	for range files {
		c.files = append(c.files, make([]byte, int64(blocks)*testBlock))
		c.runs = append(c.runs, make([]repo.Run, blocks))
	}
	c.backup(func(file int) []int {
		all := make([]int, len(c.runs[file]))
		for i := range all {
			all[i] = i
		}
		return all
	})
}

// incremental changes a share of all blocks, at random.
func (c *chain) incremental(share float64) {
	c.backup(func(file int) []int {
		var some []int
		for i := range c.runs[file] {
			if c.rand.Float64() < share {
				some = append(some, i)
			}
		}
		return some
	})
}

// most changes all but the beginning of each file: little of what was before is
// needed any more.
func (c *chain) most() {
	c.backup(func(file int) []int {
		var some []int
		for i := 100; i < len(c.runs[file]); i++ {
			some = append(some, i)
		}
		return some
	})
}

// restore writes a backup into a new directory, and says how many bytes.
func (c *chain) restore(n int, dest string) (int64, error) {
	c.t.Helper()
	m, err := c.repo.OpenManifest(c.t.Context(), c.backups[n])
	c.check(err)
	defer m.Close()
	x := &run{Options: Options{Cluster: testCluster, Concurrency: 2, Log: slog.New(slog.DiscardHandler), Now: time.Now}, repo: c.repo}
	x.dest = newDestination(dest, 0o700, nil)
	c.check(x.dest.begin(c.backups[n], testTime))
	x.verify, err = newPGManifest(filepath.Join(dest, "backup_manifest"), 0o600)
	c.check(err)
	defer x.verify.abandon()
	reader, err := m.Read(c.list)
	c.check(err)
	defer reader.Close()
	_, err = x.place(c.t.Context(), reader, c.list)
	c.check(x.dest.release())
	return x.meter.written.Load(), err
}

// Whatever lies scattered over the packs of many backups comes back, each byte
// written once; packs of which little is needed are read by ranges, whether
// they are sealed or not.
func TestPlaceChain(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		for _, codec := range []string{"zstd", "lz4", "none"} {
			t.Run(fmt.Sprintf("sealed %v, %s", sealed, codec), func(t *testing.T) {
				c := newChain(t, sealed, codec)
				c.full(3, 1500)
				for range 3 {
					c.incremental(0.02)
				}
				c.most()
				c.store.whole, c.store.ranges, c.store.bytes = 0, 0, 0
				dest := filepath.Join(c.dir, "data")
				wrote, err := c.restore(len(c.backups)-1, dest)
				c.check(err)
				for n, want := range c.files {
					got, err := os.ReadFile(filepath.Join(dest, fmt.Sprintf("base/%04d", n)))
					c.check(err)
					if !bytes.Equal(got, want) {
						t.Errorf("file %d differs", n)
					}
				}
				if want := int64(3*1500)*testBlock + 512; wrote != want {
					t.Errorf("%d bytes were written, not %d", wrote, want)
				}
				if c.store.ranges == 0 || c.store.whole == 0 {
					t.Errorf("%d packs were read whole, %d ranges", c.store.whole, c.store.ranges)
				}
			})
		}
	}
}

// A frame that is whole, but lies where another one was, is noticed also where
// the pack is read by ranges.
func TestPlaceSwapped(t *testing.T) {
	c := newChain(t, false, "none")
	c.full(1, 3000)
	c.most()
	name := c.backups[0].Name
	frames := c.packs[0].Frames
	n := frames[0].Length
	if n != frames[1].Length {
		t.Fatal("the frames are not of one length")
	}
	paths, err := filepath.Glob(filepath.Join(c.dir, "repository", "cluster", "*", "backup", string(name), "pack", "00000000"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v, %v", paths, err)
	}
	body, err := os.ReadFile(paths[0])
	c.check(err)
	swapped := slices.Concat(body[n:2*n], body[:n], body[2*n:])
	c.check(os.Chmod(paths[0], 0o600))
	c.check(os.WriteFile(paths[0], swapped, 0o600))
	c.store.whole, c.store.ranges = 0, 0
	_, err = c.restore(1, filepath.Join(c.dir, "data"))
	if errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), "pack/00000000") {
		t.Fatalf("got %v", err)
	}
	if c.store.ranges == 0 {
		t.Error("no pack was read by ranges")
	}
}

// BenchmarkPlace compares a full backup with one that seven incrementals have
// scattered.
func BenchmarkPlace(b *testing.B) {
	c := newChain(b, false, "zstd")
	c.full(4, 1<<13)
	for range 7 {
		c.incremental(0.01)
	}
	for _, n := range []int{0, 7} {
		b.Run(fmt.Sprintf("%d incrementals", n), func(b *testing.B) {
			b.SetBytes(c.backups[n].DataBytes)
			for range b.N {
				dest := filepath.Join(c.dir, "data")
				_, err := c.restore(n, dest)
				c.check(err)
				if err := os.RemoveAll(dest); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
