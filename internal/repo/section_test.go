package repo

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drawSection makes a section as a writer may: packs of several backups with
// holes in their frame tables, runs inside what the tables hold.
func drawSection(t *rapid.T) (_ *sectionBuilder, want [][]named) {
	unit := rapid.SampledFrom([]int64{1, 1024, 8192}).Draw(t, "grain")
	names := []BackupName{testName, otherName, "20261118T000000Z-bbbbbb"}
	type stretch struct {
		id         PackID
		start, end int64
		frames     []Frame
	}
	var stretches []stretch
	tables := make(map[PackID][]Frame)
	for range rapid.IntRange(1, 6).Draw(t, "packs") {
		id := PackID{
			rapid.SampledFrom(names).Draw(t, "lender"),
			rapid.SampledFrom([]uint32{0, 1, 7, 1 << 20, math.MaxUint32}).Draw(t, "number"),
		}
		if tables[id] != nil {
			continue
		}
		var offset, raw int64
		for range rapid.IntRange(1, 4).Draw(t, "stretches") {
			offset += rapid.Int64Range(0, 1<<20).Draw(t, "gap")
			// A hole before each stretch but the first keeps them apart.
			if raw += rapid.Int64Range(0, 100).Draw(t, "hole") * unit; len(tables[id]) > 0 {
				raw += unit
			}
			s := stretch{id: id, start: raw}
			for range rapid.IntRange(1, 5).Draw(t, "frames") {
				f := Frame{
					Offset: offset, Length: rapid.Int64Range(1, maxStoredFrame).Draw(t, "length"),
					RawOffset: raw, RawLen: rapid.Int64Range(1, maxRawFrame/unit).Draw(t, "blocks") * unit,
					Ending: [4]byte{byte(raw), byte(offset), byte(raw >> 8), 1},
				}
				offset, raw = offset+f.Length, raw+f.RawLen
				s.frames = append(s.frames, f)
			}
			s.end = raw
			tables[id] = append(tables[id], s.frames...)
			stretches = append(stretches, s)
		}
	}
	b := new(sectionBuilder)
	for range rapid.IntRange(1, 8).Draw(t, "parts") {
		var runs []named
		frames := make(map[PackID][]Frame)
		for range rapid.IntRange(1, 6).Draw(t, "runs") {
			if rapid.Bool().Draw(t, "zero") {
				runs = append(runs, named{Length: rapid.Int64Range(1, 1<<20).Draw(t, "zeros") * unit, Zero: true})
				continue
			}
			s := rapid.SampledFrom(stretches).Draw(t, "stretch")
			blocks := (s.end - s.start) / unit
			from := rapid.Int64Range(0, blocks-1).Draw(t, "from")
			n := rapid.Int64Range(1, blocks-from).Draw(t, "blocks")
			runs = append(runs, named{Length: n * unit, Pack: s.id, Raw: s.start + from*unit})
			frames[s.id] = tables[s.id]
		}
		want = append(want, runs)
		p := part(runs, frames)
		if err := b.add(p.Part, p.Section.Packs); err != nil {
			t.Fatal(err)
		}
	}
	return b, want
}

func TestSectionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, want := drawSection(t)
		body := b.encode(rapid.SampledFrom([]int64{1, 512, 8192, 32768}).Draw(t, "unit"))
		got, err := decodeSection(body)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Parts) != len(want) {
			t.Fatalf("%d parts instead of %d", len(got.Parts), len(want))
		}
		for i, p := range got.Parts {
			if d := cmp.Diff(want[i], nameRuns(p.Runs, got.Packs)); d != "" {
				t.Fatalf("part %d differs (-written +read):\n%s", i, d)
			}
		}
		if len(got.Packs) != len(b.packs) {
			t.Fatalf("%d frame tables instead of %d", len(got.Packs), len(b.packs))
		}
		for _, p := range b.packs {
			id, table := p.id, p.used
			at := slices.IndexFunc(got.Packs, func(p PackFrames) bool { return p.PackID == id })
			if at < 0 || len(got.Packs[at].Frames) != len(table) {
				t.Fatalf("the frames of %v are not %d: %+v", id, len(table), got.Packs)
			}
			frames := got.Packs[at].Frames
			for i, f := range frames {
				if table[f.RawOffset] != f {
					t.Fatalf("frame %d of %v is %+v, not %+v", i, id, f, table[f.RawOffset])
				}
				if at, ok := FrameAt(frames, f.RawOffset+f.RawLen-1); !ok || at != i {
					t.Fatalf("FrameAt finds frame %d, %v instead of %d", at, ok, i)
				}
			}
		}
		// Cut anywhere, it is refused.
		n := rapid.IntRange(0, len(body)-1).Draw(t, "cut")
		if _, err := decodeSection(body[:n]); !errors.Is(err, errMalformed) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(body), err)
		}
	})
}

// oneRun is a section with two frames of 100 raw bytes from raw offsets 0 and
// second on, and one run.
func oneRun(second int64, r named) []byte {
	id := PackID{testName, 3}
	if !r.Zero {
		r.Pack = id
	}
	b := new(sectionBuilder)
	p := part([]named{r}, map[PackID][]Frame{id: {
		{Offset: 0, Length: 50, RawOffset: 0, RawLen: 100},
		{Offset: 50, Length: 50, RawOffset: second, RawLen: 100},
	}})
	_ = b.add(p.Part, p.Section.Packs) // what is refused here must be refused there, too
	return b.encode(1)
}

func TestSectionRefuses(t *testing.T) {
	good := oneRun(100, named{Length: 200})
	if _, err := decodeSection(good); err != nil {
		t.Fatal(err)
	}
	version := append([]byte{2}, good[1:]...)
	tests := map[string][]byte{
		"empty":                   {},
		"another version":         version,
		"bytes after the end":     append(append([]byte{}, good...), 0),
		"run before the frames":   oneRun(100, named{Raw: -1, Length: 1}),
		"run past the frames":     oneRun(100, named{Length: 201}),
		"run behind the frames":   oneRun(100, named{Raw: 200, Length: 1}),
		"run across a hole":       oneRun(101, named{Length: 101}),
		"run into a hole":         oneRun(101, named{Length: 101}),
		"run of no bytes":         oneRun(100, named{Length: 0}),
		"zeros of no bytes":       oneRun(100, named{Zero: true}),
		"run whose end overflows": oneRun(100, named{Raw: 1, Length: math.MaxInt64}),
		"more names than bytes":   {sectionVersion, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"a length that is cut":    []byte("\x01\xf7\xf7\xf7\xf7\xf7"),
		"more packs than bytes":   {sectionVersion, 0, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"more parts than bytes":   {sectionVersion, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"more runs than bytes":    {sectionVersion, 0, 0, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"unit 0":                  {sectionVersion, 0, 0, 1, 0, 1, 1, 0},
		"run in no pack":          {sectionVersion, 0, 0, 1, 1, 1, 1, 1, 0},
		"lengths overflow":        append([]byte{sectionVersion, 0, 0, 1, 1, 2}, append(maxZeros(), maxZeros()...)...),
	}
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			if s, err := decodeSection(body); !errors.Is(err, errMalformed) {
				t.Fatalf("got %+v, %v", s, err)
			}
		})
	}
}

// maxZeros is a run of the most zeros.
func maxZeros() []byte {
	var e encoder
	e.size(math.MaxInt64)
	e.uint(0)
	return e.b
}

// A short section must not ask for much memory, whatever numbers are in it.
func TestSectionMemory(t *testing.T) {
	body := make([]byte, 1<<20)
	body[0] = sectionVersion
	// No names, no packs, one part that promises as many runs as it can.
	head := encoder{b: body[:1]}
	head.uint(0)
	head.uint(0)
	head.uint(1)
	head.uint(1)
	head.uint(maxRuns + 1)
	if _, err := decodeSection(body); !errors.Is(err, errMalformed) {
		t.Fatalf("a part of more than %d runs: %v", maxRuns, err)
	}
	got := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			decodeSection(body)
		}
	})
	if n := got.AllocedBytesPerOp(); n > 1<<20 {
		t.Fatalf("%d bytes allocated to refuse it", n)
	}
}

func FuzzDecodeSection(f *testing.F) {
	f.Add(oneRun(100, named{Length: 200}))
	f.Add(oneRun(101, named{Raw: 50, Length: 50}))
	f.Add(oneRun(100, named{Raw: 1, Length: math.MaxInt64}))
	f.Add([]byte{sectionVersion, 0, 0, 1, 1, 1, 1, 1, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := decodeSection(body)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Fatalf("not named malformed: %v", err)
			}
			return
		}
		for _, p := range s.Parts {
			for _, r := range p.Runs {
				if r.Length <= 0 {
					t.Fatalf("accepted %s", r)
				}
				if r.Zero() {
					continue
				}
				// What a restore does with it must stay inside the table.
				left, at := r.Length, r.Raw
				frames := s.PackOf(r).Frames
				for i, _ := FrameAt(frames, r.Raw); left > 0; i++ {
					n := min(left, frames[i].RawOffset+frames[i].RawLen-at)
					if n <= 0 || at < frames[i].RawOffset {
						t.Fatalf("accepted %s in %+v", r, frames)
					}
					at, left = at+n, left-n
				}
			}
		}
	})
}
