package repo

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

const streamSize = postgres.MinSegmentSize

func streamSegment() postgres.Segment { return postgres.Segment{Timeline: 1, Number: 9} }

// piece is the range of the test segment from offset a to before b.
func piece(a, b int) StreamRange {
	start := streamSegment().Start(streamSize)
	return StreamRange{Timeline: 1, Start: start + postgres.LSN(a), End: start + postgres.LSN(b)}
}

func putPiece(t testing.TB, r *Repository, raw []byte, a, b int) error {
	t.Helper()
	return r.PutStream(t.Context(), testCluster, piece(a, b), streamSize, bytes.NewReader(raw[a:b]))
}

func readPieces(t testing.TB, r *Repository) (body []byte, err error) {
	t.Helper()
	ranges, err := r.StreamRanges(t.Context(), testCluster, streamSegment(), streamSize)
	if err != nil {
		return nil, err
	}
	err = r.ReadStreamed(t.Context(), testCluster, streamSegment(), streamSize, ranges, func(have io.Reader, reach postgres.LSN) (err error) {
		if body, err = io.ReadAll(have); err == nil && reach != streamSegment().Start(streamSize)+postgres.LSN(len(body)) {
			t.Errorf("%d bytes are said to reach %s", len(body), reach)
		}
		return err
	})
	return body, err
}

// Ranges in any order, overlapping, some of them missing, give the segment as
// far as there is no hole, and nothing but its bytes.
func TestReadStreamed(t *testing.T) {
	keys, _ := testKeys(t)
	raw := noise(7, 1<<20)
	rapid.Check(t, func(rt *rapid.T) {
		r := testRepo(newMemory(), keys, compress.Setting{})
		covered := make([]bool, len(raw)+1)
		for range rapid.IntRange(1, 8).Draw(rt, "ranges") {
			a := rapid.SampledFrom([]int{0, 1, 100, 8192, 300_000, 1 << 19}).Draw(rt, "from")
			b := a + rapid.SampledFrom([]int{1, 99, 8092, 300_000, 1 << 19}).Draw(rt, "bytes")
			if err := putPiece(t, r, raw, a, b); err != nil {
				rt.Fatal(err)
			}
			for i := a; i < b; i++ {
				covered[i] = true
			}
		}
		want := slices.Index(covered, false)
		got, err := readPieces(t, r)
		switch {
		case want == 0 && (!errors.Is(err, storage.ErrNotExist) || errs.KindOf(err) == errs.Damaged):
			rt.Fatalf("nothing begins the segment: %v", err)
		case want > 0 && (err != nil || !bytes.Equal(got, raw[:want])):
			rt.Fatalf("%d bytes instead of %d: %v", len(got), want, err)
		}
	})
}

func TestPutStreamAgain(t *testing.T) {
	keys, _ := testKeys(t)
	m := newMemory()
	raw := noise(8, 1<<20)
	sealed, plain := testRepo(m, keys, compress.Setting{}), testRepo(m, Keys{}, setting(t, "lz4"))
	for _, r := range []*Repository{sealed, sealed, plain} {
		if err := putPiece(t, r, raw, 0, 5000); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{testCluster.prefix() + "stream/00000001/0000000000900000-0000000000901388"}, m.keys()); diff != "" {
		t.Error(diff)
	}
	if err := putPiece(t, plain, noise(9, 1<<20), 0, 5000); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Errorf("other bytes: %v", err)
	}
	for _, bad := range []StreamRange{piece(5, 5), piece(1<<20-1, 1<<20+1), piece(9, 5)} {
		if err := plain.PutStream(t.Context(), testCluster, bad, streamSize, bytes.NewReader(nil)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

// Bytes that contradict stop a recovery, wherever they are; a damaged range does
// only if no other has its bytes.
func TestReadStreamedBad(t *testing.T) {
	raw, other := noise(10, 1<<20), noise(11, 1<<20)
	for name, c := range map[string]struct {
		put    func(t *testing.T, m *memory, r *Repository)
		kind   errs.Kind
		length int
	}{
		"an overlap differs": {func(t *testing.T, _ *memory, r *Repository) {
			if err := errors.Join(putPiece(t, r, raw, 0, 9000), putPiece(t, r, other, 8000, 12000)); err != nil {
				t.Fatal(err)
			}
		}, errs.Conflict, 0},
		"one inside differs": {func(t *testing.T, _ *memory, r *Repository) {
			if err := errors.Join(putPiece(t, r, raw, 0, 9000), putPiece(t, r, other, 100, 200)); err != nil {
				t.Fatal(err)
			}
		}, errs.Conflict, 0},
		"one behind a hole is damaged": {func(t *testing.T, m *memory, r *Repository) {
			if err := putPiece(t, r, raw, 0, 9000); err != nil {
				t.Fatal(err)
			}
			m.set(testCluster.streamKey(piece(9001, 9100)), []byte("nothing"))
		}, errs.Other, 9000},
		"the longest is damaged": {func(t *testing.T, m *memory, r *Repository) {
			if err := errors.Join(putPiece(t, r, raw, 0, 500), putPiece(t, r, raw, 400, 9000)); err != nil {
				t.Fatal(err)
			}
			m.set(testCluster.streamKey(piece(0, 9000)), []byte("nothing"))
		}, errs.Other, 9000},
		"the only one is damaged": {func(_ *testing.T, m *memory, _ *Repository) {
			m.set(testCluster.streamKey(piece(0, 9000)), []byte("nothing"))
		}, errs.Damaged, 0},
		"one is shorter than its name": {func(t *testing.T, m *memory, r *Repository) {
			if err := putPiece(t, r, raw, 0, 500); err != nil {
				t.Fatal(err)
			}
			m.set(testCluster.streamKey(piece(0, 501)), m.objects[m.keys()[0]].body)
		}, errs.Damaged, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			r := testRepo(m, Keys{}, compress.Setting{})
			c.put(t, m, r)
			got, err := readPieces(t, r)
			if errs.KindOf(err) != c.kind || c.kind == errs.Other && err != nil || len(got) != c.length {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// A segment that is missing before a part of a later one must have been there.
func TestGapBeforeStreamed(t *testing.T) {
	const size = postgres.MinSegmentSize
	r := testRepo(newMemory(), Keys{}, compress.Setting{})
	gap := func(name string) string {
		reason, err := r.Gap(t.Context(), testCluster, walFile(t, name), size)
		if err != nil {
			t.Fatal(err)
		}
		return reason
	}
	number := piece(0, 9000).Start.Segment(size)
	at := func(tli postgres.Timeline, n uint64) string {
		return postgres.Segment{Timeline: tli, Number: n}.Name(size)
	}
	if reason := gap(at(1, number-1)); reason != "" {
		t.Errorf("nothing is there: %s", reason)
	}
	if err := putPiece(t, r, noise(10, 1<<20), 0, 9000); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{at(1, number-1): true, at(1, number): false, at(1, number+1): false, at(2, number-1): false} {
		if reason := gap(name); (reason != "") != want {
			t.Errorf("%s: %q", name, reason)
		}
	}
}

func FuzzStreamName(f *testing.F) {
	f.Add("0000000000900000-0000000000901388")
	f.Add("-")
	f.Fuzz(func(t *testing.T, name string) {
		g, ok := parseStreamName(1, name)
		if ok && !strings.HasSuffix(testCluster.streamKey(g), "/"+name) {
			t.Errorf("%q was taken for %s", name, g)
		}
	})
}
