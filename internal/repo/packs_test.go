package repo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/storage"
)

// Many writers fill packs while others are uploaded; every frame must be found
// again where its reference says.
func TestPackWriterConcurrent(t *testing.T) {
	keys, _ := testKeys(t)
	for name, k := range map[string]Keys{"sealed": keys, "plain": {}} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			r := testRepo(m, k, compress.Setting{})
			set := newPacks(t.Context(), r, testName, 2)
			w := set.Writer(PackData)
			type mark struct {
				ref  FrameRef
				seed uint64
			}
			var mu sync.Mutex
			var marks []mark
			var writers sync.WaitGroup
			for n := range 4 {
				writers.Go(func() {
					for i := range 50 {
						seed := uint64(n*1000 + i + 1)
						frame := noise(seed, 600_000+i)
						ref, err := w.Append(set.ctx, frame, 1<<20)
						if err != nil {
							t.Error(err)
							return
						}
						clear(frame) // it may be reused at once
						mu.Lock()
						marks = append(marks, mark{ref, seed})
						mu.Unlock()
					}
				})
			}
			writers.Wait()
			if err := errorsFirst(w.Close(), set.group.Wait()); err != nil {
				t.Fatal(err)
			}
			list, err := set.Packs()
			if err != nil {
				t.Fatal(err)
			}
			if len(list) < 3 || len(m.keys()) != len(list) {
				t.Fatalf("%d packs, %d objects", len(list), len(m.keys()))
			}
			var size int64
			for n, p := range list {
				size += p.Size
				if p.Number != uint32(n) || p.Kind != PackData || p.Size > packTarget+packRoom {
					t.Fatalf("pack %d is %+v", n, p)
				}
			}
			if size != set.StoredSize() {
				t.Fatalf("stored size is %d, not %d", set.StoredSize(), size)
			}
			slices.SortFunc(marks, func(a, b mark) int { return int(a.ref.Offset - b.ref.Offset) })
			for _, p := range list {
				err := r.ReadPack(t.Context(), testCluster, testName, p, func(s *PackStream) error {
					raw := int64(0)
					for _, k := range marks {
						if k.ref.Pack != p.Number {
							continue
						}
						got := make([]byte, k.ref.Length)
						if err := s.ReadFrame(k.ref.Offset, got); err != nil {
							return err
						}
						if !bytes.Equal(got, noise(k.seed, len(got))) || k.ref.RawOffset != raw {
							t.Fatalf("frame %+v has other bytes, or is not at raw offset %d", k.ref, raw)
						}
						raw += k.ref.RawLen
					}
					return s.Finish()
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A failed upload ends all writers with its error, also those that wait for a
// buffer.
func TestPackUploadFails(t *testing.T) {
	m := newMemory()
	m.hook = func(op, key string) error {
		if op == "put" && strings.HasSuffix(key, "00000002") {
			return storage.ErrNoSpace
		}
		return nil
	}
	r := testRepo(m, Keys{}, compress.Setting{})
	set := newPacks(t.Context(), r, testName, 1)
	w := set.Writer(PackData)
	frame := noise(1, 1<<20)
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for {
				if _, err := w.Append(set.ctx, frame, 1<<20); err != nil {
					return
				}
			}
		})
	}
	writers.Wait()
	if err := set.group.Wait(); !errors.Is(err, storage.ErrNoSpace) || !strings.Contains(err.Error(), "00000002") {
		t.Fatalf("got %v", err)
	}
	if _, err := set.Packs(); err == nil {
		t.Fatal("a list of packs is given although one was not stored")
	}
}

// onePack stores a pack of three frames and returns its entry.
func onePack(t testing.TB, r *Repository, name BackupName, seed uint64) (Pack, []FrameRef) {
	t.Helper()
	set := newPacks(t.Context(), r, name, 1)
	w := set.Writer(PackData)
	var refs []FrameRef
	for n := range 3 {
		ref, err := w.Append(t.Context(), noise(seed+uint64(n), 100_000), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if err := errorsFirst(w.Close(), set.group.Wait()); err != nil {
		t.Fatal(err)
	}
	list, err := set.Packs()
	if err != nil {
		t.Fatal(err)
	}
	return list[0], refs
}

// readPack reads a pack as a restore does.
func readPack(t testing.TB, r *Repository, p Pack, refs []FrameRef) error {
	return r.ReadPack(t.Context(), testCluster, testName, p, func(s *PackStream) error {
		for _, ref := range refs {
			if err := s.ReadFrame(ref.Offset, make([]byte, ref.Length)); err != nil {
				return err
			}
		}
		return s.Finish()
	})
}

func TestPackStreamDamage(t *testing.T) {
	keys, _ := testKeys(t)
	strangers, _ := testKeys(t)
	for name, k := range map[string]Keys{"sealed": keys, "plain": {}} {
		m := newMemory()
		r := testRepo(m, k, compress.Setting{})
		p, refs := onePack(t, r, testName, 1)
		onePack(t, r, otherName, 50)
		key, other := testCluster.packKey(testName, 0), testCluster.packKey(otherName, 0)
		good, swapped := m.objects[key].body, m.objects[other].body
		if err := readPack(t, r, p, refs); err != nil {
			t.Fatal(err)
		}
		if err := readPack(t, r, p, refs[2:]); err != nil {
			t.Fatalf("skipping frames: %v", err)
		}
		flip := func(at int) []byte {
			b := slices.Clone(good)
			b[at] ^= 1
			return b
		}
		tests := map[string][]byte{
			"truncated":          good[:len(good)-1],
			"empty":              {},
			"longer":             append(slices.Clone(good), 0),
			"first byte":         flip(0),
			"header":             flip(60),
			"middle":             flip(len(good) / 2),
			"last byte":          flip(len(good) - 1),
			"zeros":              make([]byte, len(good)),
			"another whole pack": swapped,
		}
		for what, body := range tests {
			t.Run(name+"/"+what, func(t *testing.T) {
				m.set(key, body)
				err := readPack(t, r, p, refs)
				if errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) || errs.HintOf(err) == "" {
					t.Fatalf("got %v", err)
				}
			})
		}
		t.Run(name+"/deleted", func(t *testing.T) {
			if err := m.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			err := readPack(t, r, p, refs)
			if errs.KindOf(err) != errs.Damaged || !errors.Is(err, storage.ErrNotExist) || !strings.Contains(err.Error(), key+" of memory:/// is missing") {
				t.Fatalf("got %v", err)
			}
		})
		t.Run(name+"/read backwards", func(t *testing.T) {
			m.set(key, good)
			err := r.ReadPack(t.Context(), testCluster, testName, p, func(s *PackStream) error {
				if err := s.ReadFrame(refs[1].Offset, make([]byte, refs[1].Length)); err != nil {
					t.Fatal(err)
				}
				return s.ReadFrame(refs[0].Offset, make([]byte, 1))
			})
			if err == nil {
				t.Fatal("a frame behind the position was read")
			}
		})
		t.Run(name+"/without identity", func(t *testing.T) {
			for what, k := range map[string]Keys{"none": {}, "another": strangers} {
				err := readPack(t, testRepo(m, k, compress.Setting{}), p, refs)
				if want := name == "sealed"; (errs.KindOf(err) == errs.Identity) != want || (err != nil) != want {
					t.Fatalf("identity %s: %v", what, err)
				}
			}
		})
	}
}

// A cut connection is not damage.
func TestPackStreamCut(t *testing.T) {
	m := newMemory()
	r := testRepo(cut{m}, Keys{}, compress.Setting{})
	p, refs := onePack(t, r, testName, 1)
	if err := readPack(t, r, p, refs); !errors.Is(err, storage.ErrUnavailable) || errs.KindOf(err) == errs.Damaged {
		t.Fatalf("got %v", err)
	}
}

// cut is a bucket whose transfers break off.
type cut struct{ *memory }

func (c cut) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	body, info, err := c.memory.Get(ctx, key)
	if err != nil {
		return nil, info, err
	}
	return io.NopCloser(io.MultiReader(io.LimitReader(body, info.Size/2), broken{})), info, nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, storage.ErrUnavailable }
