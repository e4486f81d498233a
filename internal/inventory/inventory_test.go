package inventory

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/storage/fs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestUsed: whatever is noted in whatever order, each frame counts once.
func TestUsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := new(usedPack)
		want := make(map[int64]int64)
		for range rapid.IntRange(0, 5).Draw(t, "sections") {
			offsets := rapid.SliceOfNDistinct(rapid.Int64Range(0, 40), 0, 20, rapid.ID).Draw(t, "offsets")
			slices.Sort(offsets)
			var extents []repo.Extent
			for _, o := range offsets {
				extents = append(extents, repo.Extent{Offset: o * 1000, Length: o + 1})
				want[o*1000] = o + 1
			}
			p.use(extents)
		}
		var sum int64
		for _, n := range want {
			sum += n
		}
		var got []int64
		at := int64(0)
		for left := p.used; len(left) > 0; {
			d, n := binary.Uvarint(left)
			at, left = at+int64(d), left[n:]
			got = append(got, at)
		}
		if p.sum != sum || !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Fatalf("%d bytes at %v, and not %d of %v", p.sum, got, sum, want)
		}
	})
}

func TestGrowth(t *testing.T) {
	now := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	stored := func(ages ...time.Duration) *Holding {
		h := newHolding()
		for _, age := range ages {
			h.add("wal", repo.Object{Size: 70, Stored: now.Add(-age)}, now)
		}
		return &h
	}
	for name, c := range map[string]struct {
		h    *Holding
		want [3]Growth
	}{
		"of an hour": {stored(time.Hour, time.Minute), [3]Growth{
			{1, Count{2, 140}, 140, 2}, {7, Count{2, 140}, 140, 2}, {30, Count{2, 140}, 140, 2},
		}},
		"of ten days": {stored(10*day, 6*day, time.Hour), [3]Growth{
			{1, Count{1, 70}, 70, 1}, {7, Count{2, 140}, 20, 2.0 / 7}, {30, Count{3, 210}, 21, 0.3},
		}},
		"of years": {stored(1000*day, 29*day), [3]Growth{
			{1, Count{}, 0, 0}, {7, Count{}, 0, 0}, {30, Count{1, 70}, 70.0 / 30, 1.0 / 30},
		}},
	} {
		if got := c.h.Growth(now); !slices.Equal(got, c.want[:]) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// huge is a bucket with many more objects than were put.
type huge struct {
	storage.Bucket
	objects int
}

const hugeWAL = "cluster/00000000000000000007/wal/"

func (h huge) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		given := false
		all := func() bool {
			for n := range h.objects {
				name := fmt.Sprintf("00000001%08X%08X", n/256, n%256)
				key := hugeWAL + name[:16] + "/" + name
				if strings.HasPrefix(key, prefix) && key > after && !yield(storage.Info{Key: key, Size: 1000, ModTime: time.Unix(int64(n), 0)}, nil) {
					return false
				}
			}
			return true
		}
		for info, err := range h.Bucket.List(ctx, prefix, after) {
			if !given && err == nil && info.Key > hugeWAL {
				if given = true; !all() {
					return
				}
			}
			if !yield(info, err) {
				return
			}
		}
		if !given {
			all()
		}
	}
}

// storeBackups makes backups whose lists of packs are long. Each borrows the
// first pack of the one before.
func storeBackups(t *testing.T, r *repo.Repository, backups, packs int) {
	t.Helper()
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	work := new(errgroup.Group)
	work.SetLimit(16)
	name := func(n int) repo.BackupName { return repo.BackupName(fmt.Sprintf("20261120T100000Z-%s", letters(n))) }
	for n := range backups {
		work.Go(func() error {
			b := &repo.Backup{
				Format: repo.Format, Name: name(n), Type: repo.TypeIncremental, Cluster: 7, Stopped: at.Add(time.Duration(n) * time.Hour), Timeline: 1,
				SegmentSize: 16 << 20, BlockSize: 8192, StartSegment: "000000010000000000000001", StopSegment: "000000010000000000000001",
			}
			var list []repo.Pack
			for i := range packs {
				list = append(list, repo.Pack{Number: uint32(i), Kind: repo.PackData, Size: 32 << 20})
			}
			if n > 0 {
				list = append(list, repo.Pack{Kind: repo.PackData, Size: 32 << 20, Lender: name(n - 1)})
			}
			encoded, err := r.EncodePacks(list)
			if err == nil {
				b.Packs, err = r.StorePacks(t.Context(), 7, b.Name, encoded)
			}
			if err == nil {
				_, err = r.StoreBackup(t.Context(), b, nil)
			}
			return err
		})
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
}

// letters writes a number as the end of a backup's name.
func letters(n int) string {
	b := []byte("aaaaaa")
	for i := len(b) - 1; n > 0; i-- {
		b[i], n = byte('a'+n%26), n/26
	}
	return string(b)
}

// TestMemory: a million objects are counted, and none is kept.
func TestMemory(t *testing.T) {
	base, err := fs.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const objects = 1_000_000
	r := repo.New([]repo.Place{{Name: "main", Bucket: huge{base, objects}, Required: true}}, repo.Options{
		Log: slog.New(slog.DiscardHandler), Now: time.Now, Version: "test", SpoolDir: t.TempDir(),
	})
	t.Cleanup(func() { r.Close() })
	if _, err := r.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.EnsureCluster(t.Context(), repo.Cluster{ID: 7, SegmentSize: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	const backups, packs = 40, 5000
	storeBackups(t, r, backups, packs)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	inv, err := Take(t.Context(), r, Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if err := inv.Places[0].Err; err != nil {
		t.Fatal(err)
	}
	if got := inv.Places[0].Clusters[7].Kinds["wal"]; got != (Count{objects, 1000 * objects}) || inv.Places[0].Total.Objects != objects+2+2*backups {
		t.Errorf("counted are %+v", got)
	}
	// A backup is a kilobyte or two, its packs a bit and a half each.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20+backups*8<<10 {
		t.Errorf("%d bytes are kept", grown)
	}
	if b := inv.Clusters[0].Backups; len(b) != backups || b[1].Own != (Count{packs, packs * 32 << 20}) || b[1].Borrowed != (Count{1, 32 << 20}) ||
		b[0].Lent != (Count{1, 32 << 20}) || inv.Clusters[0].Unread != nil {
		t.Errorf("%d backups, the second is %+v", len(b), b[1])
	}
	// The heap never grows beyond what the garbage of listing makes of it.
	if grown := after.HeapSys - min(before.HeapSys, after.HeapSys); grown > 64<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	runtime.KeepAlive(inv)
}
