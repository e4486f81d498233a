package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

const segmentName = "000000010000000000000009"

func putWAL(t testing.TB, r *Repository, name string, body []byte) (bool, error) {
	t.Helper()
	return r.PutWAL(t.Context(), testCluster, walFile(t, name), bytes.NewReader(body), int64(len(body)), noCheck{}, nil)
}

func getWAL(t testing.TB, r *Repository, name string) ([]byte, error) {
	t.Helper()
	var b []byte
	err := r.ReadWAL(t.Context(), testCluster, walFile(t, name), false, func(raw io.Reader) (err error) {
		b, err = io.ReadAll(raw)
		return err
	})
	return b, err
}

// Whatever the settings were at the first time, the second time says "the
// same" for the same bytes and refuses others, without any identity.
func TestPutWALAgain(t *testing.T) {
	keys, _ := testKeys(t)
	more, _ := testKeys(t)
	settings := map[string]Options{
		"plain zstd":  {Codec: setting(t, "zstd")},
		"plain lz4":   {Codec: setting(t, "lz4")},
		"sealed zstd": {Codec: setting(t, "zstd:9"), Keys: Keys{WAL: keys.WAL}},
		"sealed none": {Codec: setting(t, "none"), Keys: Keys{WAL: keys.WAL}},
		"another key": {Codec: setting(t, "zstd"), Keys: Keys{WAL: more.WAL}},
	}
	raw, other := noise(5, 1<<20), noise(6, 1<<20)
	for _, name := range []string{segmentName, "00000002.history", segmentName + ".00000028.backup"} {
		for first, a := range settings {
			for second, b := range settings {
				t.Run(name+"/"+first+"/"+second, func(t *testing.T) {
					m := newMemory()
					if existed, err := putWAL(t, testRepo(m, a.Keys, a.Codec), name, raw); existed || err != nil {
						t.Fatalf("first: %v, %v", existed, err)
					}
					stored := m.objects[m.keys()[0]].body
					r := testRepo(m, b.Keys, b.Codec)
					if existed, err := putWAL(t, r, name, raw); !existed || err != nil {
						t.Fatalf("the same bytes: %v, %v", existed, err)
					}
					_, err := putWAL(t, r, name, other)
					if errs.KindOf(err) != errs.Conflict || !errors.Is(err, storage.ErrExists) || errs.HintOf(err) == "" {
						t.Fatalf("other bytes: %v", err)
					}
					if len(m.objects) != 1 || !bytes.Equal(m.objects[m.keys()[0]].body, stored) {
						t.Fatal("what was archived has changed")
					}
				})
			}
		}
	}
}

func TestPutWALRefusals(t *testing.T) {
	t.Run("the check refuses", func(t *testing.T) {
		for _, size := range []int{100, walInMemory + 1} {
			m := newMemory()
			_, err := testRepo(m, Keys{}, compress.Setting{}).PutWAL(t.Context(), testCluster, walFile(t, segmentName),
				bytes.NewReader(make([]byte, size)), int64(size), refusing{}, nil)
			if !errors.Is(err, errRefused) || len(m.objects) != 0 {
				t.Fatalf("%d bytes: %v, %d objects", size, err, len(m.objects))
			}
		}
	})
	t.Run("what is there has no hash", func(t *testing.T) {
		m := newMemory()
		key := testCluster.WALKey(walFile(t, segmentName), [32]byte{})
		r := testRepo(m, Keys{}, compress.Setting{})
		for _, body := range []string{"", "something else", "age-encryption.org/v1\n-> X25519 abc\n"} {
			m.set(key, []byte(body))
			if _, err := putWAL(t, r, segmentName, []byte("a")); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) {
				t.Fatalf("%q: %v", body, err)
			}
		}
	})
	t.Run("the store fails", func(t *testing.T) {
		m := newMemory()
		m.hook = func(string, string) error { return storage.ErrUnavailable }
		if _, err := putWAL(t, testRepo(m, Keys{}, compress.Setting{}), segmentName, []byte("a")); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
	})
}

var errRefused = errors.New("refused")

type refusing struct{}

func (refusing) Write(p []byte) (int, error) { return len(p), nil }
func (refusing) Close() error                { return errRefused }

// large is a file of any size that costs no memory; after its first reading
// it may change.
type large struct {
	size, at int64
	reads    int
	changes  bool
}

func (l *large) Read(p []byte) (int, error) {
	if l.at == l.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), l.size-l.at))
	fill := byte(0)
	if l.changes && l.reads > 0 {
		fill++
	}
	for i := range n {
		at := l.at + int64(i)
		p[i] = fill + byte(at>>20) + byte(at%(1<<20)>>12)
	}
	l.at += int64(n)
	return n, nil
}

func (l *large) Seek(offset int64, _ int) (int64, error) {
	l.at = offset
	l.reads++
	return offset, nil
}

// A segment that is larger than memory may take goes through a spool of which
// nothing remains.
func TestPutWALSpooled(t *testing.T) {
	keys, _ := testKeys(t)
	const size = walInMemory + 3<<20 + 17
	for name, k := range map[string]Keys{"sealed": keys, "plain": {}} {
		t.Run(name, func(t *testing.T) {
			// Stored without compression it must leave memory.
			m, spool := newMemory(), t.TempDir()+"/spool"
			r := testRepo(m, k, setting(t, "none"))
			r.spoolDir = spool
			f := walFile(t, segmentName)
			for n, want := range []bool{false, true} {
				if existed, err := r.PutWAL(t.Context(), testCluster, f, &large{size: size}, size, noCheck{}, nil); existed != want || err != nil {
					t.Fatalf("time %d: %v, %v", n, existed, err)
				}
			}
			if left, err := os.ReadDir(spool); err != nil || len(left) != 0 {
				t.Fatalf("left in the spool: %v, %v", left, err)
			}
			want := &large{size: size}
			err := r.ReadWAL(t.Context(), testCluster, f, false, func(o io.Reader) error {
				return EachChunk(o, func(raw []byte) error {
					again := make([]byte, len(raw))
					if _, err := io.ReadFull(want, again); err != nil || !bytes.Equal(raw, again) {
						t.Fatalf("other bytes before %d: %v", want.at, err)
					}
					return nil
				})
			})
			if err != nil || want.at != size {
				t.Fatalf("%d of %d bytes: %v", want.at, size, err)
			}
			m2 := newMemory()
			r2 := testRepo(m2, k, setting(t, "zstd"))
			r2.spoolDir = spool
			_, err = r2.PutWAL(t.Context(), testCluster, f, &large{size: size, changes: true}, size, noCheck{}, nil)
			if err == nil || !strings.Contains(err.Error(), "changed while it was read") || len(m2.objects) != 0 {
				t.Fatalf("a file that changes: %v, %d objects", err, len(m2.objects))
			}
		})
	}
}

func TestReadWAL(t *testing.T) {
	keys, _ := testKeys(t)
	for name, k := range map[string]Keys{"sealed": keys, "plain": {}} {
		m := newMemory()
		r := testRepo(m, k, compress.Setting{})
		raw := noise(5, 1<<20)
		if _, err := getWAL(t, r, segmentName); !errors.Is(err, storage.ErrNotExist) || errs.KindOf(err) == errs.Damaged {
			t.Fatalf("not there: %v", err)
		}
		if _, err := putWAL(t, r, segmentName, raw); err != nil {
			t.Fatal(err)
		}
		if got, err := getWAL(t, r, segmentName); err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		key := m.keys()[0]
		good := m.objects[key].body
		// The right hash before the frames of another file.
		liar := newMemory()
		if _, err := putWAL(t, testRepo(liar, Keys{}, compress.Setting{}), segmentName, noise(6, 1<<20)); err != nil {
			t.Fatal(err)
		}
		frames := liar.objects[key].body[40:]
		sum := sha(raw)
		for what, body := range map[string][]byte{
			"empty":                 {},
			"no hash":               frames,
			"another file's frames": append(compress.AppendSkippable(nil, sum[:]), frames...),
			"cut after the hash":    compress.AppendSkippable(nil, sum[:]),
			"cut":                   good[:len(good)-1],
			"cut in the header":     good[:30],
			"a bit in the middle":   append(append(slices.Clone(good[:len(good)/2]), good[len(good)/2]^1), good[len(good)/2+1:]...),
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				m.set(key, body)
				if got, err := getWAL(t, r, segmentName); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
			})
		}
	}
}

func TestOpenPartial(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	name := segmentName + ".partial"
	if _, err := getWAL(t, r, name); !errors.Is(err, storage.ErrNotExist) {
		t.Fatalf("none: %v", err)
	}
	for n, body := range []string{"one", "two"} {
		if existed, err := putWAL(t, r, name, []byte(body)); existed || err != nil {
			t.Fatalf("%s: %v, %v", body, existed, err)
		}
		got, err := getWAL(t, r, name)
		if n == 0 && (err != nil || string(got) != body) {
			t.Fatalf("one: %q, %v", got, err)
		}
		if n == 1 && errs.KindOf(err) != errs.Conflict {
			t.Fatalf("two: %q, %v", got, err)
		}
	}
	if existed, err := putWAL(t, r, name, []byte("one")); !existed || err != nil {
		t.Fatalf("again: %v, %v", existed, err)
	}
}

// archive says that WAL files are stored, without content.
func archive(t testing.TB, m *memory, names ...string) {
	t.Helper()
	for n, name := range names {
		m.set(testCluster.WALKey(walFile(t, name), [32]byte{byte(n)}), nil)
	}
}

// MissingWAL finds the first hole for every size of segments, across the
// borders of log ids, whatever else lies between.
func TestMissingWAL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := postgres.SegmentSize(1 << rapid.IntRange(20, 30).Draw(t, "size"))
		per := uint64(size.PerLogID())
		border := rapid.SampledFrom([]uint64{0, per, 2 * per, 0x10 * per, 0xffff * per}).Draw(t, "border")
		start := border - min(border, rapid.Uint64Range(0, 6).Draw(t, "before"))
		m := newMemory()
		present := make(map[uint64]bool)
		for n := start; n < start+12; n++ {
			s := postgres.Segment{Timeline: 3, Number: n}
			name := s.Name(size)
			if rapid.IntRange(0, 9).Draw(t, "there") > 0 {
				present[n] = true
				m.set(testCluster.WALKey(mustWAL(name), [32]byte{}), nil)
			}
			if rapid.Bool().Draw(t, "others") {
				m.set(testCluster.WALKey(mustWAL(name+".partial"), [32]byte{1}), nil)
				m.set(testCluster.WALKey(mustWAL(name+".00000028.backup"), [32]byte{}), nil)
				for _, tli := range []postgres.Timeline{2, 4} {
					s.Timeline = tli
					m.set(testCluster.WALKey(mustWAL(s.Name(size)), [32]byte{}), nil)
				}
			}
		}
		from := start + rapid.Uint64Range(0, 8).Draw(t, "first")
		to := from + rapid.Uint64Range(0, 6).Draw(t, "length")
		want := ""
		for n := from; n <= to; n++ {
			if !present[n] {
				want = postgres.Segment{Timeline: 3, Number: n}.Name(size)
				break
			}
		}
		if history := "00000003.history"; rapid.Bool().Draw(t, "history") {
			m.set(testCluster.WALKey(mustWAL(history), [32]byte{}), nil)
		} else if want == "" {
			want = history
		}
		got, err := testRepo(m, Keys{}, compress.Setting{}).MissingWAL(t.Context(), testCluster,
			postgres.Segment{Timeline: 3, Number: from}, postgres.Segment{Timeline: 3, Number: to}, size)
		if err != nil || got != want {
			t.Fatalf("segments %d to %d of %s: got %q, %v, want %q", from, to, size, got, err, want)
		}
	})
}

func mustWAL(name string) postgres.WALFile {
	f, err := postgres.ParseWALFile(name)
	if err != nil {
		return postgres.WALFile{}
	}
	return f
}

func TestGap(t *testing.T) {
	history := func(tli int, lines string) func(t *testing.T, r *Repository) {
		return func(t *testing.T, r *Repository) {
			if _, err := putWAL(t, r, fmt.Sprintf("%08X.history", tli), []byte(lines)); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		there   []string
		history func(t *testing.T, r *Repository)
		want    string // part of the reason
	}{
		"nothing":                        {nil, nil, ""},
		"the segment before":             {[]string{"000000010000000000000008"}, nil, ""},
		"the next segment":               {[]string{"00000001000000000000000A"}, nil, "00000001000000000000000A"},
		"a segment of the next log id":   {[]string{"000000010000000100000000"}, nil, "000000010000000100000000"},
		"other kinds of the segment":     {[]string{segmentName + ".partial", segmentName + ".00000028.backup"}, nil, ""},
		"a later partial":                {[]string{"00000001000000000000000A.partial"}, nil, ""},
		"a segment behind later others":  {[]string{"00000001000000000000000A.partial", "00000001000000000000000B"}, nil, "00000001000000000000000B"},
		"another timeline's":             {[]string{"00000002000000000000000A"}, nil, ""},
		"descendant that left behind it": {nil, history(2, "1\t0/A000000\tno reason\n"), "timeline 2 left timeline 1"},
		"descendant that left in it":     {nil, history(2, "1\t0/9000028\tno reason\n"), ""},
		"descendant that left before it": {nil, history(2, "1\t0/8000028\tno reason\n"), ""},
		"grandchild":                     {nil, history(3, "1\t0/A000000\tno\n2\t0/B000000\tno\n"), "timeline 3 left timeline 1"},
		"history without the timeline":   {nil, history(3, "2\t0/B000000\tno\n"), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			r := testRepo(m, Keys{}, compress.Setting{})
			archive(t, m, test.there...)
			if test.history != nil {
				test.history(t, r)
			}
			got, err := r.Gap(t.Context(), testCluster, walFile(t, segmentName), 16<<20)
			if err != nil || (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Fatalf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
	t.Run("a listing that fails is no answer", func(t *testing.T) {
		m := newMemory()
		r := testRepo(m, Keys{}, compress.Setting{})
		m.hook = func(op, _ string) error {
			if op == "list" {
				return storage.ErrPermission
			}
			return nil
		}
		if _, err := r.Gap(t.Context(), testCluster, walFile(t, segmentName), 16<<20); !errors.Is(err, storage.ErrPermission) {
			t.Fatalf("got %v", err)
		}
		if _, err := r.MissingWAL(t.Context(), testCluster, postgres.Segment{Timeline: 1}, postgres.Segment{Timeline: 1}, 16<<20); !errors.Is(err, storage.ErrPermission) {
			t.Fatalf("got %v", err)
		}
	})
}

// What was compressed and sealed is kept while the store cannot be reached, and
// sent as it is by the next call; other bytes, or other keys, are sealed anew.
func TestPutWALKept(t *testing.T) {
	keys, _ := testKeys(t)
	for name, size := range map[string]int{"in memory": 300_000, "spooled": walInMemory + 1<<20} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			r := testRepo(m, keys, setting(t, "lz4"))
			r.spoolDir = t.TempDir()
			body := noise(1, size)
			key := testCluster.WALKey(walFile(t, segmentName), [32]byte{})
			kept := func() []string {
				t.Helper()
				names, err := filepath.Glob(filepath.Join(r.spoolDir, keptPrefix+"*"))
				if err != nil {
					t.Fatal(err)
				}
				return names
			}
			away := func(op, _ string) error {
				if op == "put" {
					return storage.ErrUnavailable
				}
				return nil
			}
			fail := func(body []byte) []byte {
				t.Helper()
				m.hook = away
				if _, err := putWAL(t, r, segmentName, body); !errors.Is(err, storage.ErrUnavailable) {
					t.Fatalf("got %v", err)
				}
				names := kept()
				if len(names) != 1 {
					t.Fatalf("kept: %q", names)
				}
				sealed, err := os.ReadFile(names[0])
				if err != nil {
					t.Fatal(err)
				}
				m.hook = nil
				return sealed
			}
			sealed := fail(body)
			if again := fail(body); !bytes.Equal(sealed, again) {
				t.Fatal("it was sealed again") // with another random key
			}
			if _, err := putWAL(t, r, segmentName, body); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.objects[key].body, sealed) || len(kept()) != 0 {
				t.Fatalf("what was stored is not what was kept; kept now: %q", kept())
			}
			// Other bytes of that name.
			delete(m.objects, key)
			fail(body)
			other := noise(2, size)
			if _, err := putWAL(t, r, segmentName, other); err != nil {
				t.Fatal(err)
			}
			if got, err := getWAL(t, r, segmentName); err != nil || !bytes.Equal(got, other) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			// A torn file is found out by the store, and forgotten.
			delete(m.objects, key)
			fail(body)
			if err := os.Truncate(kept()[0], 100); err != nil {
				t.Fatal(err)
			}
			if _, err := putWAL(t, r, segmentName, body); err == nil {
				t.Fatal("a torn file was stored")
			}
			if _, err := putWAL(t, r, segmentName, body); err != nil {
				t.Fatal(err)
			}
			if got, err := getWAL(t, r, segmentName); err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		})
	}
}
