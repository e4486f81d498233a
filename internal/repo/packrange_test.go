package repo

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/storage"
)

// rangePack stores a pack of many small frames.
func rangePack(t testing.TB, r *Repository, name BackupName) (Pack, []FrameRef, [][]byte) {
	t.Helper()
	set := newPacks(t.Context(), r, name, 1)
	w := set.Writer(PackData)
	var refs []FrameRef
	var frames [][]byte
	for n := range 60 {
		frame := noise(uint64(n+1), 90_000+n)
		ref, err := w.Append(t.Context(), frame, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		refs, frames = append(refs, ref), append(frames, frame)
	}
	if err := errorsFirst(w.Close(), set.group.Wait()); err != nil {
		t.Fatal(err)
	}
	list, err := set.Packs()
	if err != nil {
		t.Fatal(err)
	}
	return list[0], refs, frames
}

// readSome reads frames as a restore does, and compares them.
func readSome(t testing.TB, r *Repository, p Pack, refs []FrameRef, frames [][]byte, which []int) error {
	extents := make([]Extent, len(which))
	for i, n := range which {
		extents[i] = Extent{refs[n].Offset, refs[n].Length}
	}
	return r.ReadFrames(t.Context(), testCluster, testName, p, extents, func(s *PackStream) error {
		for _, n := range which {
			got := make([]byte, refs[n].Length)
			if err := s.ReadFrame(refs[n].Offset, got); err != nil {
				return err
			}
			if !bytes.Equal(got, frames[n]) {
				return s.Damaged(errors.New("other bytes"))
			}
		}
		return s.Finish()
	})
}

// Any choice of frames is what was stored, whether it is read by ranges or not.
func TestReadFrames(t *testing.T) {
	keys, _ := testKeys(t)
	for name, k := range map[string]Keys{"sealed": keys, "plain": {}} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			r := testRepo(localMemory{m}, k, compress.Setting{})
			p, refs, frames := rangePack(t, r, testName)
			whole, ranges := 0, 0
			rapid.Check(t, func(rt *rapid.T) {
				which := rapid.SliceOfNDistinct(rapid.IntRange(0, len(refs)-1), 1, rapid.SampledFrom([]int{1, 3, 10, 60}).Draw(rt, "most"), rapid.ID).Draw(rt, "frames")
				if rapid.IntRange(0, 3).Draw(rt, "all but these") == 0 {
					which = slices.DeleteFunc(every(len(refs)), func(n int) bool { return slices.Contains(which, n) })
				}
				slices.Sort(which)
				before := m.gets[testCluster.packKey(testName, 0)]
				if err := readSome(t, r, p, refs, frames, which); err != nil {
					rt.Fatal(err)
				}
				requests := m.gets[testCluster.packKey(testName, 0)] - before
				if requests == 1 {
					whole++
				} else {
					ranges++
				}
				if requests > len(which)+rangeOverhead {
					rt.Fatalf("%d requests for %d frames", requests, len(which))
				}
			})
			if whole == 0 || ranges == 0 {
				t.Errorf("%d reads of the whole, %d by ranges", whole, ranges)
			}
		})
	}
}

// every are the numbers below n.
func every(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// localMemory says that a request costs little, so that small packs are read by
// ranges too.
type localMemory struct{ *memory }

func (localMemory) Capabilities() storage.Capabilities { return storage.Capabilities{Local: true} }

func TestReadFramesDamage(t *testing.T) {
	keys, _ := testKeys(t)
	for name, k := range map[string]Keys{"sealed": keys, "plain": {}} {
		m := newMemory()
		r := testRepo(localMemory{m}, k, compress.Setting{})
		p, refs, frames := rangePack(t, r, testName)
		key := testCluster.packKey(testName, 0)
		good := m.objects[key].body
		which := []int{0, 30}
		flip := func(at int64) []byte {
			b := slices.Clone(good)
			b[at] ^= 1
			return b
		}
		for what, body := range map[string][]byte{
			"truncated":  good[:len(good)-1],
			"half":       good[:len(good)/2],
			"empty":      {},
			"longer":     append(slices.Clone(good), 0),
			"first byte": flip(0),
			"header":     flip(60),
			"a frame":    flip(refs[30].Offset + 1000),
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				m.set(key, body)
				err := readSome(t, r, p, refs, frames, which)
				if errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) || errs.HintOf(err) == "" {
					t.Fatalf("got %v", err)
				}
			})
		}
		t.Run(name+"/deleted", func(t *testing.T) {
			if err := m.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			err := readSome(t, r, p, refs, frames, which)
			if errs.KindOf(err) != errs.Damaged || !errors.Is(err, storage.ErrNotExist) {
				t.Fatalf("got %v", err)
			}
		})
		t.Run(name+"/away", func(t *testing.T) {
			m.set(key, good)
			m.hook = func(op, _ string) error {
				if op == "get" {
					return storage.ErrUnavailable
				}
				return nil
			}
			defer func() { m.hook = nil }()
			err := readSome(t, r, p, refs, frames, which)
			if !errors.Is(err, storage.ErrUnavailable) || errs.KindOf(err) == errs.Damaged {
				t.Fatalf("got %v", err)
			}
		})
		t.Run(name+"/another copy", func(t *testing.T) {
			other := newMemory()
			other.set(key, good)
			m.set(key, flip(refs[30].Offset+1000))
			both := New([]Place{{Name: "main", Bucket: localMemory{m}, Required: true}, {Name: "second", Bucket: localMemory{other}, Required: true}}, Options{Keys: k, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return testTime }, Version: "test"})
			if err := readSome(t, both, p, refs, frames, which); err != nil {
				t.Fatal(err)
			}
			if other.gets[key] < 2 {
				t.Error("the second copy was not read by ranges")
			}
		})
	}
}

func TestChooseRanges(t *testing.T) {
	const mib = 1 << 20
	tests := map[string]struct {
		frames []Extent
		size   int64
		spans  []Extent
		few    bool
	}{
		"one of many":     {[]Extent{{5 * mib, mib}}, 32 * mib, []Extent{{5 * mib, mib}}, true},
		"joined":          {[]Extent{{5 * mib, mib}, {7 * mib, mib}}, 32 * mib, []Extent{{5 * mib, 3 * mib}}, true},
		"too far apart":   {[]Extent{{5 * mib, mib}, {8*mib + 1, mib}}, 32 * mib, []Extent{{5 * mib, mib}, {8*mib + 1, mib}}, true},
		"a small pack":    {[]Extent{{0, 1000}}, 6 * mib, []Extent{{0, 1000}}, false},
		"more than half":  {[]Extent{{0, 14 * mib}}, 32 * mib, []Extent{{0, 14 * mib}}, false},
		"nearly half":     {[]Extent{{0, 12 * mib}}, 32 * mib, []Extent{{0, 12 * mib}}, true},
		"many small ones": {[]Extent{{0, 1}, {3 * mib, 1}, {6 * mib, 1}, {9 * mib, 1}, {12 * mib, 1}}, 12*mib + 1, nil, false},
	}
	for name, test := range tests {
		spans, few := chooseRanges(test.frames, test.size, false)
		if few != test.few || test.spans != nil && !slices.Equal(spans, test.spans) {
			t.Errorf("%s: %v, %v", name, spans, few)
		}
	}
}
