//go:build bench

package bench_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/repo"
	"agent/internal/storage/fs"
	"agent/testing/harness"
)

// The geometry of the simulated database: files of 1 GiB, of pages of 8 KiB,
// whose megabytes take 400 kB when they are compressed. Two workers read, each
// 4 MiB at a time, so that the frames of two files lie between each other.
const (
	simPage      = 8 << 10
	simFile      = 1 << 30
	simPages     = simFile / simPage
	simFrame     = 1 << 20
	simStored    = 400_000
	simStretch   = 4 << 20
	simPackBytes = 32 << 20
	simFirstPack = 1 << 20 // numbers of packs of data, which are not written
)

// simulation makes manifests of a database that is not there.
type simulation struct {
	t      *testing.T
	repo   *repo.Repository
	dir    string
	files  int
	random *rand.Rand
	chain  []*repo.Backup
	made   int
}

// simulated is what a manifest took.
type simulated struct {
	name        string
	runs        int64
	stored      int64         // bytes of what was written
	write, load time.Duration // CPU
	wall        time.Duration // of loading
	peak        int64
}

func newSimulation(t *testing.T, gigabytes int) *simulation {
	t.Helper()
	dir := harness.TempDir(t)
	bucket, err := fs.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	identity, recipient, err := crypto.Generate(false)
	if err != nil {
		t.Fatal(err)
	}
	to, err := crypto.ParseRecipients([]string{recipient})
	if err != nil {
		t.Fatal(err)
	}
	codec, err := compress.Parse("zstd")
	if err != nil {
		t.Fatal(err)
	}
	return &simulation{
		t: t, dir: dir, files: gigabytes, random: rand.New(rand.NewPCG(1, 2)),
		repo: repo.New([]repo.Place{{Name: "main", Bucket: bucket, Required: true}}, repo.Options{
			Keys:  repo.Keys{Data: to, WAL: to, Meta: to, Identities: crypto.NewIdentities(t.Context(), crypto.Sources{Text: identity})},
			Codec: codec, Log: slog.New(slog.DiscardHandler), Now: time.Now, Version: "bench", SpoolDir: filepath.Join(dir, "spool"),
		}),
	}
}

// simPacks gives out places in packs that are not written.
type simPacks struct {
	name        repo.BackupName
	number      uint32
	offset, raw int64
	open        []repo.PackFrames // with the frames of the part that is made
	left        int64             // of the frame that is being filled
	at          int64
	list        []repo.Pack
}

// frame begins the next frame of n raw bytes; pack is 1 + its index in open.
func (p *simPacks) frame(n, stored int64) (pack int32, at int64) {
	if p.number == 0 || p.offset >= simPackBytes {
		p.number++
		p.offset, p.raw = 0, 0
		pack := repo.Pack{Number: simFirstPack + p.number, Kind: repo.PackData, Size: simPackBytes}
		for i := 0; i < len(pack.SHA256); i += 8 {
			binary.LittleEndian.PutUint64(pack.SHA256[i:], rand.Uint64())
		}
		p.list = append(p.list, pack)
	}
	id := repo.PackID{Backup: p.name, Number: simFirstPack + p.number}
	if last := len(p.open) - 1; last < 0 || p.open[last].PackID != id {
		p.open = append(p.open, repo.PackFrames{PackID: id})
	}
	last := &p.open[len(p.open)-1]
	last.Frames = append(last.Frames, repo.Frame{Offset: p.offset, Length: stored, RawOffset: p.raw, RawLen: n, Ending: [4]byte(binary.LittleEndian.AppendUint32(nil, rand.Uint32()))})
	at = p.raw
	p.offset, p.raw = p.offset+stored, p.raw+n
	return int32(len(p.open)), at
}

// fresh is the content of two files that are read whole, side by side.
func (p *simPacks) fresh(random *rand.Rand) [2][]repo.FilePart {
	p.open = nil
	var runs [2][]repo.Run
	for n := 0; n < 2*simFile; n += simFrame {
		of := &runs[n/simStretch%2]
		id, at := p.frame(simFrame, simStored-50_000+random.Int64N(100_000))
		if last := len(*of) - 1; last >= 0 && (*of)[last].Pack == id && (*of)[last].Raw+(*of)[last].Length == at {
			(*of)[last].Length += simFrame
			continue
		}
		*of = append(*of, repo.Run{Length: simFrame, Pack: id, Raw: at})
	}
	section := &repo.Section{Packs: p.open}
	var parts [2][]repo.FilePart
	for i := range parts {
		parts[i] = []repo.FilePart{{Part: repo.Part{Runs: runs[i]}, Section: section, Index: -1}}
	}
	return parts
}

// change replaces pages, which rise, in the parts of a file.
func (p *simPacks) change(parts []repo.FilePart, pages []int64) []repo.FilePart {
	var out []repo.FilePart
	begin, next := int64(0), 0
	p.left = 0
	for _, part := range parts {
		end := begin + part.Length()
		if next == len(pages) || pages[next]*simPage >= end {
			out = append(out, part)
			begin = end
			continue
		}
		p.open, p.left = nil, 0
		lent := int32(len(part.Section.Packs))
		runs := make([]repo.Run, 0, len(part.Runs)+2*len(pages))
		add := func(r repo.Run) {
			if last := len(runs) - 1; last >= 0 && runs[last].Pack == r.Pack && runs[last].Raw+runs[last].Length == r.Raw {
				runs[last].Length += r.Length
				return
			}
			runs = append(runs, r)
		}
		var id int32
		at := begin
		for _, r := range part.Runs {
			stop := at + r.Length
			raw := r.Raw
			for at < stop {
				keep := stop
				if next < len(pages) {
					keep = min(keep, pages[next]*simPage)
				}
				if keep > at {
					add(repo.Run{Length: keep - at, Pack: r.Pack, Raw: raw})
					raw, at = raw+keep-at, keep
					continue
				}
				if p.left == 0 {
					n := int64(min(len(pages)-next, simFrame/simPage)) * simPage
					id, p.at = p.frame(n, n*simStored/simFrame)
					p.left = n
				}
				add(repo.Run{Length: simPage, Pack: lent + id, Raw: p.at})
				p.at, p.left = p.at+simPage, p.left-simPage
				raw, at = raw+simPage, at+simPage
				next++
			}
		}
		section := &repo.Section{Packs: slices.Concat(part.Section.Packs, p.open)}
		out = append(out, repo.FilePart{Part: repo.Part{Runs: runs}, Section: section, Index: -1})
		begin = end
	}
	return out
}

// pages draws which pages of a file have changed.
func (s *simulation) pages(fraction float64) []int64 {
	pages := make([]int64, int(fraction*simPages))
	for i := range pages {
		pages[i] = s.random.Int64N(simPages)
	}
	slices.Sort(pages)
	return slices.Compact(pages)
}

// backup writes the manifest of a backup: of a full one, or of one of which a
// fraction of the pages has changed since the last of the chain, in files of which
// only every nth is touched.
func (s *simulation) backup(title string, fraction float64, every int) simulated {
	s.t.Helper()
	ctx := s.t.Context()
	m := simulated{name: title}
	name := repo.BackupName(fmt.Sprintf("20261120T%06dZ-k3v7qa", s.made))
	s.made++
	clearHighWater(s.t)
	began, used := time.Now(), cpuTime(s.t)
	b := &repo.Backup{Format: repo.Format, Name: name, Cluster: 1, BlockSize: simPage}
	group, gctx := errgroup.WithContext(ctx)
	set := s.repo.NewPackSet(gctx, group, b.Cluster, name, 2)
	w, err := s.repo.NewManifestWriter(set, repo.ManifestHeader{Backup: name, BlockSize: simPage, Mode: 0o700}, nil)
	s.check(err)
	defer w.Close()
	packs := &simPacks{name: name}
	var known map[repo.PackID]repo.Pack
	if len(s.chain) == 0 {
		for n := 0; n < s.files; n += 2 {
			for i, parts := range packs.fresh(s.random) {
				s.check(w.Add(gctx, repo.Entry{Kind: repo.EntryFile, Path: fmt.Sprintf("base/5/%08d", n+i), Mode: 0o600, ModTime: began, Size: simFile}, parts))
			}
		}
	} else {
		parent := s.chain[len(s.chain)-1]
		n := 0
		known = s.read(ctx, parent, func(e repo.Entry, parts []repo.FilePart) {
			if n%every == 0 {
				parts = packs.change(parts, s.pages(fraction))
			}
			n++
			s.check(w.Add(gctx, e, parts))
		})
	}
	_, err = w.Finish(gctx)
	s.check(errors.Join(err, group.Wait()))
	own, err := set.Packs()
	s.check(err)
	m.stored = set.StoredSize()
	borrowed, err := w.Borrowed(known)
	s.check(err)
	list, err := s.repo.EncodePacks(append(append(own, packs.list...), borrowed...))
	s.check(err)
	b.Packs, err = s.repo.StorePacks(ctx, b.Cluster, name, list)
	s.check(err)
	b.Manifest, err = w.Store(ctx)
	s.check(err)
	m.write = cpuTime(s.t) - used
	m.stored += b.Packs.Size + b.Manifest.Size
	s.chain = append(s.chain, b)

	began, used = time.Now(), cpuTime(s.t)
	s.read(ctx, b, func(_ repo.Entry, parts []repo.FilePart) {
		for _, p := range parts {
			m.runs += int64(len(p.Runs))
		}
	})
	m.load, m.wall = cpuTime(s.t)-used, time.Since(began)
	m.peak = highWater(os.Getpid())
	return m
}

func (s *simulation) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// read goes through a manifest and returns the list of its packs.
func (s *simulation) read(ctx context.Context, b *repo.Backup, each func(repo.Entry, []repo.FilePart)) map[repo.PackID]repo.Pack {
	s.t.Helper()
	packs, err := s.repo.LoadPacks(ctx, b)
	s.check(err)
	root, err := s.repo.OpenManifest(ctx, b)
	s.check(err)
	defer root.Close()
	r, err := root.Read(packs)
	s.check(err)
	defer r.Close()
	for {
		e, parts, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return packs
		}
		s.check(err)
		each(e, parts)
	}
}

// undo forgets the last backup of the chain.
func (s *simulation) undo() { s.chain = s.chain[:len(s.chain)-1] }

// cpuTime is what this process has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// clearHighWater begins to measure the peak of the memory anew.
func clearHighWater(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

func (s *simulation) table(title string, all []simulated) {
	s.t.Helper()
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	tb := float64(s.files) * simFile / 1e12
	fmt.Fprintln(w, "\truns\tstored MB\tof the database %\twrite CPU s/TB\tload CPU s/TB\tload s/TB\tpeak MB\t")
	for _, m := range all {
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%.5f\t%.2f\t%.2f\t%.2f\t%.0f\t\n", m.name, m.runs, float64(m.stored)/1e6,
			100*float64(m.stored)/(tb*1e12), m.write.Seconds()/tb, m.load.Seconds()/tb, m.wall.Seconds()/tb, float64(m.peak)/1e6)
	}
	w.Flush()
	s.t.Logf("%s\n%s", title, out.String())
}

// TestManifest makes the manifests of a database of 10 TB: a full backup, and
// incrementals in which pages anywhere have changed. BENCH_MANIFEST_GB is its
// size.
func TestManifest(t *testing.T) {
	s := newSimulation(t, scale(t, "BENCH_MANIFEST_GB", 10_000))
	all := []simulated{s.backup("full", 0, 1)}
	for _, c := range []struct {
		title    string
		fraction float64
		every    int
	}{
		{"nothing changed", 0, s.files + 1},
		{"1% of the files, 1% of their pages", 0.01, 100},
		{"0.01% of the pages", 0.0001, 1},
		{"1% of the pages", 0.01, 1},
		{"10% of the pages", 0.1, 1},
	} {
		all = append(all, s.backup(c.title, c.fraction, c.every))
		s.undo()
	}
	s.table(fmt.Sprintf("manifests of %d GiB", s.files), all)
}

// TestManifestChain makes 30 incrementals in a row, each of which has 1% of the
// pages, anywhere. BENCH_CHAIN_GB is the size of the database.
func TestManifestChain(t *testing.T) {
	s := newSimulation(t, scale(t, "BENCH_CHAIN_GB", 200))
	all := []simulated{s.backup("full", 0, 1)}
	for n := range 30 {
		m := s.backup(fmt.Sprintf("incremental %d of 1%%", n+1), 0.01, 1)
		if n == 0 || (n+1)%10 == 0 {
			all = append(all, m)
		}
	}
	s.table(fmt.Sprintf("a chain of 30 for %d GiB", s.files), all)
}
