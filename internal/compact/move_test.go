package compact

import (
	"slices"
	"testing"

	"agent/internal/repo"
)

func TestLive(t *testing.T) {
	for name, test := range map[string]struct {
		pieces [][2]int64 // from, length
		want   bool
	}{
		"whole":            {[][2]int64{{0, 100}}, true},
		"two, backwards":   {[][2]int64{{60, 40}, {0, 60}}, true},
		"overlapping":      {[][2]int64{{0, 70}, {10, 20}, {50, 50}}, true},
		"the same twice":   {[][2]int64{{0, 50}, {0, 50}}, false},
		"a hole":           {[][2]int64{{0, 49}, {50, 50}}, false},
		"not the front":    {[][2]int64{{1, 99}}, false},
		"not the end":      {[][2]int64{{0, 99}}, false},
		"the long one 1st": {[][2]int64{{0, 90}, {0, 10}, {90, 10}}, true},
	} {
		f := &frame{Frame: repo.Frame{RawLen: 100}}
		for _, p := range test.pieces {
			f.pieces = append(f.pieces, &piece{inFrame: p[0], length: p[1]})
		}
		if got := f.live(); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A run is cut where frames end, and put together again where the new places
// follow each other.
func TestBatch(t *testing.T) {
	pack := repo.PackID{Backup: "20261120T101530Z-k3v7qa", Number: 4}
	frames := []repo.Frame{{Offset: 0, Length: 5, RawOffset: 0, RawLen: 100}, {Offset: 5, Length: 5, RawOffset: 100, RawLen: 100}}
	section := &repo.Section{Packs: []repo.PackFrames{{PackID: pack, Frames: frames}}}
	b := newBatch()
	b.add(repo.Entry{Kind: repo.EntryFile, Path: "f", Size: 200}, []repo.FilePart{
		{Part: repo.Part{Runs: []repo.Run{{Length: 10, Pack: 1, Raw: 20}, {Length: 30}}}, Section: section},
		{Part: repo.Part{Runs: []repo.Run{{Length: 20}, {Length: 120, Pack: 1, Raw: 30}, {Length: 20, Pack: 1, Raw: 180}}}, Section: section},
	})
	var lengths []int64
	for _, p := range b.files[0].pieces {
		lengths = append(lengths, p.length)
	}
	if want := []int64{10, 30, 20, 70, 50, 20}; !slices.Equal(lengths, want) {
		t.Fatalf("the pieces are %v, not %v", lengths, want)
	}
	if len(b.packs[pack][0].pieces) != 2 || len(b.packs[pack][5].pieces) != 2 {
		t.Fatalf("the frames have %d and %d pieces", len(b.packs[pack][0].pieces), len(b.packs[pack][5].pieces))
	}
	at := int64(1000)
	for n, p := range b.files[0].pieces {
		if p.zero {
			continue
		}
		if n == 5 {
			at += 7 // the last one lies elsewhere
		}
		p.pack, p.raw = 9, at
		at += p.length
	}
	name := repo.BackupName("20261121T101530Z-aaaaaa")
	made := []repo.PackFrames{{PackID: repo.PackID{Backup: name, Number: 3}}, {PackID: repo.PackID{Backup: name, Number: 9}}}
	parts := b.files[0].parts(made)
	want := []repo.Run{{Length: 10, Pack: 2, Raw: 1000}, {Length: 50}, {Length: 120, Pack: 2, Raw: 1010}, {Length: 20, Pack: 2, Raw: 1137}}
	if len(parts) != 1 || parts[0].Index != -1 || !slices.Equal(parts[0].Runs, want) {
		t.Fatalf("the parts are %+v", parts)
	}
	b.add(repo.Entry{Kind: repo.EntryFile, Path: "g"}, nil)
	if parts := b.files[1].parts(made); parts != nil {
		t.Fatalf("an empty file has parts: %+v", parts)
	}
}
