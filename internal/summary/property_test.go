package summary

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
	"agent/internal/postgres/xlog/xlogtest"
)

var sameTables = cmp.Comparer(func(a, b *Table) bool { return slices.Equal(lines(a), lines(b)) })

// drawBlock draws block numbers that crowd, and those at the edges of chunks.
func drawBlock(t *rapid.T) uint32 {
	return rapid.OneOf(
		rapid.Uint32Range(0, 1000), rapid.Uint32Range(65_000, 66_000), rapid.Uint32Range(0, math.MaxUint32-1),
		rapid.SampledFrom([]uint32{0, 65_535, 65_536, 131_071, 131_072, math.MaxUint32 - 1}),
	).Draw(t, "block")
}

// TestBlockSet compares a set with one that is simple.
func TestBlockSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s blockSet
		model := make(map[uint32]bool)
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				limit := drawBlock(t)
				s.limit(limit)
				for block := range model {
					if block >= limit {
						delete(model, block)
					}
				}
			case 1: // many, so that a chunk becomes a bitmap
				first, step := drawBlock(t), rapid.Uint32Range(1, 5).Draw(t, "step width")
				for i := range uint32(rapid.IntRange(1, 600).Draw(t, "n")) {
					if block := first + i*step; block >= first && block < math.MaxUint32 {
						s.add(block)
						model[block] = true
					}
				}
			default:
				block := drawBlock(t)
				s.add(block)
				model[block] = true
			}
		}
		from, to := uint32(0), uint32(math.MaxUint32)
		if rapid.Bool().Draw(t, "part") {
			from, to = drawBlock(t), drawBlock(t)
		}
		var want []uint32
		for block := range model {
			if block >= from && block < to {
				want = append(want, block)
			}
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, slices.Collect(s.all(from, to))); diff != "" {
			t.Fatal(diff)
		}
		e := &encoder{}
		e.runs(&s)
		d := &decoder{b: e.b, left: math.MaxUint32}
		var back blockSet
		d.runs(&back)
		if d.err != nil || len(d.b) > 0 || !slices.Equal(slices.Collect(s.all(0, math.MaxUint32)), slices.Collect(back.all(0, math.MaxUint32))) {
			t.Fatalf("%v: what was encoded is not what is decoded", d.err)
		}
	})
}

// TestJoin: wherever a row of changes is cut, the joined tables say the same.
func TestJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole, joined, part := NewTable(), NewTable(), NewTable()
		for range rapid.IntRange(1, 60).Draw(t, "changes") {
			k := Key{
				xlog.Locator{Tablespace: 1663, Database: 5, Relation: rapid.Uint32Range(1, 3).Draw(t, "relation")},
				postgres.Fork(rapid.IntRange(0, 3).Draw(t, "fork")),
			}
			block := rapid.Uint32Range(0, 40).Draw(t, "block")
			if rapid.IntRange(0, 4).Draw(t, "change") == 0 {
				whole.Cut(k, block)
				part.Cut(k, block)
			} else {
				whole.Touch(k, block)
				part.Touch(k, block)
			}
			if rapid.IntRange(0, 9).Draw(t, "next segment") == 0 {
				joined.Join(part)
				part = NewTable()
			}
		}
		joined.Join(part)
		if d := cmp.Diff(known(whole), known(joined)); d != "" {
			t.Fatal(d)
		}
	})
}

// TestMergeWriter: records of any length, cut into segments of 1 MiB, are all in
// the merged table.
func TestMergeWriter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := xlogtest.NewWriter(1 << 20)
		want := NewTable()
		lengths := rapid.SampledFrom([][2]int{{1, 60_000}, {50_000, 60_000}, {1, 100}}).Draw(t, "lengths")
		for range rapid.IntRange(1, 120).Draw(t, "records") {
			n := rapid.IntRange(lengths[0], lengths[1]).Draw(t, "length")
			block := rapid.Uint32Range(0, 200_000).Draw(t, "block")
			w.Record(10, 0, xlogtest.Block(1663, 5, 16384, block, n))
			want.Touch(Key{Locator: xlog.Locator{Tablespace: 1663, Database: 5, Relation: 16384}}, block)
			if rapid.IntRange(0, 40).Draw(t, "long") == 0 {
				w.Record(21, 0, xlogtest.Main(make([]byte, rapid.IntRange(1<<20, 3<<20).Draw(t, "message"))))
			}
		}
		w.FillTo(0)
		m := NewMerger()
		for _, segment := range w.Segments() {
			b := NewBuilder()
			b.Write(segment)
			s, err := b.Finish([32]byte{})
			if err != nil {
				t.Fatal(err)
			}
			back, err := Decode(s.Encode())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(s, back, sameTables, cmp.Comparer(bytes.Equal)); diff != "" {
				t.Fatal(diff)
			}
			if err := m.Add(back); err != nil {
				t.Fatal(err)
			}
		}
		if m.End() != w.At {
			t.Fatalf("merged up to %s, not %s", m.End(), w.At)
		}
		if diff := cmp.Diff(lines(want), lines(m.Table())); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, dir := range []string{"pg13", "pg18", "timeline"} {
		for _, segment := range folder(f, dir) {
			f.Add(summarise(f, segment).Encode())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			return
		}
		encoded := s.Encode()
		again, err := Decode(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encoded, again.Encode()) {
			t.Fatal("what was decoded is encoded in another way")
		}
	})
}

// FuzzMerge: no two summaries, however wrong, bring a merger down, and what it
// accepts it can go on from.
func FuzzMerge(f *testing.F) {
	for _, dir := range []string{"pg13", "pg16", "timeline"} {
		all := folder(f, dir)
		for i := range all[1:] {
			f.Add(summarise(f, all[i]).Encode(), summarise(f, all[i+1]).Encode())
		}
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		m := NewMerger()
		for _, raw := range [][]byte{a, b} {
			s, err := Decode(raw)
			if err != nil {
				return
			}
			if m.Add(s) != nil {
				return
			}
			if m.End() < s.Start && m.joiner.Start() >= s.Start {
				t.Fatalf("merged up to %s, before the segment at %s", m.End(), s.Start)
			}
		}
	})
}
