package delta

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/summary"
)

const (
	blockSize = 8192
	segBlocks = 16 // of the model; PostgreSQL has 131072
)

func relation(segment uint32) postgres.FileClass {
	return postgres.FileClass{Relation: true, Rel: postgres.RelFile{Tablespace: 1663, Database: 5, Filenode: 16384, SegmentNo: segment}}
}

// Whatever the WAL does to a relation, and whatever lengths its file had and has,
// each block that may differ from the parent's is read, and no other.
func TestFilePlan(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		segment := uint32(rapid.IntRange(0, 2).Draw(rt, "segment"))
		first := segment * segBlocks
		table := summary.NewTable()
		key := summary.Key{Fork: postgres.MainFork}
		key.Tablespace, key.Database, key.Relation = 1663, 5, 16384
		limit := uint32(math.MaxUint32)
		touched := make(map[uint32]bool)
		for range rapid.IntRange(0, 8).Draw(rt, "records") {
			block := uint32(rapid.IntRange(0, 3*segBlocks).Draw(rt, "block"))
			if rapid.IntRange(0, 5).Draw(rt, "what") == 0 {
				table.Cut(key, block)
				limit = min(limit, block)
			} else {
				table.Touch(key, block)
				touched[block] = true
			}
		}
		parent := int64(rapid.IntRange(0, segBlocks).Draw(rt, "parent")) * blockSize
		now := int64(rapid.IntRange(0, segBlocks).Draw(rt, "now")) * blockSize
		c := &Changes{method: BySummaries, geo: Geometry{blockSize, segBlocks}, table: table}
		plan := c.File(relation(segment), parent, true, now)
		if plan.Whole != (limit <= first) {
			rt.Fatalf("whole is %v with the limit %d of a file from %d on", plan.Whole, limit, first)
		}
		if plan.Whole {
			return
		}
		read := make(map[uint32]bool)
		last := int64(-1)
		for _, s := range plan.Stretches {
			if s.Offset%blockSize != 0 || s.Length%blockSize != 0 || s.Length <= 0 || s.Offset <= last || s.Offset+s.Length > now {
				rt.Fatalf("stretches %v of %d bytes", plan.Stretches, now)
			}
			last = s.Offset + s.Length // the next one does not touch it
			for at := s.Offset; at < s.Offset+s.Length; at += blockSize {
				read[first+uint32(at/blockSize)] = true
			}
		}
		for b := first; b < first+uint32(now/blockSize); b++ {
			want := touched[b] || b >= limit || int64(b-first)*blockSize >= parent
			if read[b] != want {
				rt.Fatalf("block %d is read: %v; touched %v, limit %d, parent has %d blocks", b, read[b], touched[b], limit, parent/blockSize)
			}
		}
	})
}

func TestFileWhole(t *testing.T) {
	table := summary.NewTable()
	table.CutDatabase(1663, 7)
	other := relation(0)
	other.Rel.Database = 7
	var d Databases
	d.New("base/8/PG_VERSION")
	d.New("PG_VERSION") // the cluster's own is nobody's database
	moved := relation(0)
	moved.Rel.Database = 8
	summaries := &Changes{geo: Geometry{blockSize, segBlocks}, table: table}
	lsn := &Changes{geo: Geometry{blockSize, segBlocks}, from: 100, whole: d.whole}
	for what, plan := range map[string]Plan{
		"not in the parent":         summaries.File(relation(0), 0, false, blockSize),
		"no whole blocks":           summaries.File(relation(0), blockSize, true, blockSize+1),
		"no whole blocks before":    summaries.File(relation(0), 1, true, blockSize),
		"longer than a file can be": summaries.File(relation(0), blockSize, true, (segBlocks+1)*blockSize),
		"of a database made anew":   summaries.File(other, blockSize, true, blockSize),
		"of a moved one, by LSN":    lsn.File(moved, blockSize, true, blockSize),
		"not in the parent, by LSN": lsn.File(relation(0), 0, false, blockSize),
	} {
		if !plan.Whole {
			t.Errorf("a file %s is read as %+v", what, plan)
		}
	}
	if len(d.whole) != 1 {
		t.Errorf("databases %v", d.whole)
	}
	plan := lsn.File(relation(0), blockSize, true, blockSize)
	if !plan.Scan || plan.Whole {
		t.Fatalf("by LSN a file is read as %+v", plan)
	}
	page := func(lsn byte, upper byte) []byte {
		p := make([]byte, blockSize)
		p[4], p[14] = lsn, upper
		return p
	}
	for what, test := range map[string]struct {
		page []byte
		keep bool
	}{
		"before":       {page(99, 1), false},
		"at the start": {page(100, 1), true},
		"behind it":    {page(101, 1), true},
		"new":          {page(0, 0), true},
		"without LSN":  {page(0, 1), true},
		"not in use":   {page(50, 0), true},
	} {
		if plan.Keep(test.page) != test.keep {
			t.Errorf("a page %s is kept: %v", what, !test.keep)
		}
	}
}

func TestUnfit(t *testing.T) {
	history := postgres.History{{Timeline: 1, Switch: 0x5000000}, {Timeline: 3}}
	now := State{Cluster: 7, Major: 15, CatalogVersion: 9, BlockSize: 8192, SegmentSize: 16 << 20, Checksums: true, Timeline: 3, History: history, Start: 0x9000028}
	good := repo.Backup{Cluster: 7, PostgresVersion: 150018, CatalogVersion: 9, BlockSize: 8192, SegmentSize: 16 << 20, Checksums: true, Timeline: 3, StopLSN: 0x8000000}
	for want, change := range map[string]func(*repo.Backup){
		"":                  func(*repo.Backup) {},
		"of cluster 8":      func(b *repo.Backup) { b.Cluster = 8 },
		"PostgreSQL 14":     func(b *repo.Backup) { b.PostgresVersion = 140001 },
		"catalog version 8": func(b *repo.Backup) { b.CatalogVersion = 8 },
		"WAL segments":      func(b *repo.Backup) { b.SegmentSize = 1 << 20 },
		"checksums":         func(b *repo.Backup) { b.Checksums = false },
		"damaged pages":     func(b *repo.Backup) { b.BadPages = 1 },
		"its timeline 2":    func(b *repo.Backup) { b.Timeline = 2 },
		"left timeline 1":   func(b *repo.Backup) { b.Timeline, b.StopLSN = 1, 0x5000001 },
		"behind 0/9000028":  func(b *repo.Backup) { b.StopLSN = 0x9000029 },
	} {
		b := good
		change(&b)
		if got := Unfit(&b, now); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q where %q is expected", got, want)
		}
	}
	old := good
	old.Timeline, old.StopLSN = 1, 0x5000000
	if reason := Unfit(&old, now); reason != "" {
		t.Errorf("a backup that ends where its timeline was left does not do: %s", reason)
	}
}

// Of a timeline that was left inside a segment the child's segment counts.
func TestSegments(t *testing.T) {
	const size = 16 << 20
	seg := func(tli postgres.Timeline, n uint64) postgres.Segment {
		return postgres.Segment{Timeline: tli, Number: n}
	}
	for what, test := range map[string]struct {
		history  postgres.History
		from, to postgres.LSN
		want     []postgres.Segment
		needed   postgres.LSN
	}{
		"one timeline": {
			postgres.History{{Timeline: 1}},
			2*size + 40, 4*size + 100,
			[]postgres.Segment{seg(1, 2), seg(1, 3), seg(1, 4)},
			4*size + 100,
		},
		"up to the header of a segment": {
			postgres.History{{Timeline: 1}},
			2*size + 40, 4*size + 40,
			[]postgres.Segment{seg(1, 2), seg(1, 3)},
			4 * size,
		},
		"left inside a segment": {
			postgres.History{{Timeline: 1, Switch: 3*size + 5}, {Timeline: 2}},
			2 * size, 4*size + 100,
			[]postgres.Segment{seg(1, 2), seg(2, 3), seg(2, 4)},
			4*size + 100,
		},
		"left at the end of one": {
			postgres.History{{Timeline: 1, Switch: 3 * size}, {Timeline: 2}},
			2 * size, 4*size + 100,
			[]postgres.Segment{seg(1, 2), seg(2, 3), seg(2, 4)},
			4*size + 100,
		},
		"left twice in one": {
			postgres.History{{Timeline: 1, Switch: 3*size + 5}, {Timeline: 2, Switch: 3*size + 9}, {Timeline: 3}},
			2 * size, 3*size + 100,
			[]postgres.Segment{seg(1, 2), seg(3, 3)},
			3*size + 100,
		},
	} {
		r := Range{SegmentSize: size, From: test.from, To: test.to, History: test.history}
		if r.needed() != test.needed {
			t.Errorf("%s: needed up to %s, not %s", what, r.needed(), test.needed)
		}
		if diff := cmp.Diff(test.want, r.segments(r.From, r.needed()-1)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}

func TestCover(t *testing.T) {
	history := postgres.History{{Timeline: 1, Switch: 250}, {Timeline: 2}}
	one := func(tli postgres.Timeline, start, end postgres.LSN) postgres.WALSummary {
		return postgres.WALSummary{Timeline: tli, Start: start, End: end}
	}
	all := []postgres.WALSummary{one(1, 0, 100), one(1, 100, 200), one(1, 200, 250), one(1, 250, 300), one(2, 250, 400), one(2, 400, 500)}
	for what, test := range map[string]struct {
		has      []postgres.WALSummary
		from, to postgres.LSN
		want     []postgres.WALSummary
		hole     string
	}{
		"over the switch":   {all, 120, 450, []postgres.WALSummary{all[1], all[2], all[4], all[5]}, ""},
		"one is enough":     {all, 260, 300, []postgres.WALSummary{all[4]}, ""},
		"nothing in it":     {all, 100, 100, nil, ""},
		"a hole":            {slices.Delete(slices.Clone(all), 2, 3), 120, 450, nil, "0/C8 of timeline 1"},
		"none behind":       {all, 120, 501, nil, "0/1F4 of timeline 2"},
		"none of the child": {all[:4], 120, 300, nil, "0/FA of timeline 2"},
	} {
		got, err := cover(slices.Clone(test.has), Range{From: test.from, To: test.to, History: history})
		if (err != nil) != (test.hole != "") || err != nil && !strings.Contains(err.Error(), test.hole) {
			t.Errorf("%s: %v", what, err)
		}
		if diff := cmp.Diff(test.want, got); test.hole == "" && diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}

func TestArchived(t *testing.T) {
	r := Range{SegmentSize: 16 << 20, History: postgres.History{{Timeline: 1, Switch: 5 << 24}, {Timeline: 2}}}
	end := postgres.Segment{Timeline: 1, Number: 3}
	for name, want := range map[string]bool{
		"000000010000000000000003":                 true,
		"000000010000000000000004":                 true,
		"000000020000000000000005":                 true,
		"000000010000000000000003.00000028.backup": true,
		"000000010000000000000002":                 false,
		"000000010000000000000006":                 false, // of a line that was left
		"00000002.history":                         false,
		"":                                         false,
	} {
		if r.archived(name, end) != want {
			t.Errorf("%q behind %s: %v", name, end.Name(r.SegmentSize), !want)
		}
	}
}

func TestInOrder(t *testing.T) {
	keys := make([]int, 100)
	for i := range keys {
		keys[i] = i
	}
	var got []int
	use := func(n int) error { got = append(got, n); return nil }
	if err := inOrder(t.Context(), keys, 7, func(_ context.Context, k int) (int, error) { return k * 2, nil }, use); err != nil || len(got) != 100 || !slices.IsSorted(got) {
		t.Fatalf("%v %v", got, err)
	}
	failed := errors.New("no such summary")
	err := inOrder(t.Context(), keys, 7, func(_ context.Context, k int) (int, error) {
		if k == 50 {
			return 0, failed
		}
		return k, nil
	}, func(int) error { return nil })
	if !errors.Is(err, failed) {
		t.Fatalf("got %v", err)
	}
	err = inOrder(t.Context(), keys, 7, func(_ context.Context, k int) (int, error) { return k, nil }, func(n int) error {
		if n == 3 {
			return failed
		}
		return nil
	})
	if !errors.Is(err, failed) {
		t.Fatalf("got %v", err)
	}
}
