package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

// spans are ranges as "first-last" by timeline.
func spans(ranges []WALRange) []string {
	var all []string
	for _, r := range ranges {
		all = append(all, fmt.Sprintf("%d:%d-%d", r.First.Timeline, r.First.Number, r.Last.Number))
	}
	return all
}

func TestScanWAL(t *testing.T) {
	const size = 16 << 20
	s := newSeveral(t, Keys{}, true, true)
	at := func(i int, tli postgres.Timeline, numbers ...uint64) {
		for _, n := range numbers {
			f := walFile(t, postgres.Segment{Timeline: tli, Number: n}.Name(size))
			s.spots[i].clock = testTime.Add(time.Duration(n) * time.Minute)
			s.spots[i].set(testCluster.WALKey(f, [32]byte{}), make([]byte, n))
		}
	}
	at(0, 1, 3, 4, 5, 7, 254, 255, 256)
	at(1, 1, 4, 5, 6)
	at(1, 2, 257)
	for _, key := range []string{
		"wal/0000000100000000/000000010000000000000004.00000028.backup", "wal/0000000100000000/000000010000000000000007.partial.0011223344556677",
		"wal/0000000100000000/nothing", "wal/0000000100000000/0000000100000000000001FF", "history/00000002.history",
		"gap/00000001-000000010000000000000008-000000010000000000000009.json", "gap/00000001-000000010000000000000008-000000020000000000000009.json", "gap/note",
	} {
		s.spots[0].set(testCluster.prefix()+key, []byte("x"))
	}
	scan, err := s.ScanWAL(t.Context(), testCluster, size)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]string{{"1:3-5", "1:7-7", "1:254-256"}, {"1:4-6", "2:257-257"}} {
		if got := spans(scan.Places[i].Ranges); !slices.Equal(got, want) || scan.Places[i].Err != nil {
			t.Errorf("place %d has %v (%v)", i, got, scan.Places[i].Err)
		}
	}
	if got := spans(scan.Ranges); !slices.Equal(got, []string{"1:3-7", "1:254-256", "2:257-257"}) || scan.Odd != 1 {
		t.Errorf("all have %v, odd are %d", got, scan.Odd)
	}
	if r := scan.Ranges[0]; r.Bytes != 3+4+5+6+7 || r.Segments() != 5 || !r.Since.Equal(testTime.Add(3*time.Minute)) || !r.Until.Equal(testTime.Add(7*time.Minute)) {
		t.Errorf("%+v", r)
	}
	if d := scan.Dropped(); len(d) != 1 || !d[0].Holds("000000010000000000000009") || d[0].Holds("00000001000000000000000A") {
		t.Errorf("%+v", d)
	}
	if h := scan.Places[0].Histories; !slices.Equal(h, []postgres.Timeline{2}) {
		t.Errorf("histories %v", h)
	}

	// One that is away is told; the other one is listed all the same.
	s.spots[0].down = true
	scan, err = s.ScanWAL(t.Context(), testCluster, size)
	if err != nil || !errors.Is(scan.Places[0].Err, storage.ErrUnavailable) || scan.Places[1].Err != nil {
		t.Fatalf("%v, %+v", err, scan)
	}
	if got := spans(scan.Ranges); !slices.Equal(got, []string{"1:4-6", "2:257-257"}) {
		t.Errorf("the other one has %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.ScanWAL(ctx, testCluster, size); !errors.Is(err, context.Canceled) {
		t.Fatalf("after the end: %v", err)
	}
}

// Whatever segments there are, the ranges are those and no others.
func TestScanWALProperty(t *testing.T) {
	const size = 1 << 20
	rapid.Check(t, func(rt *rapid.T) {
		numbers := rapid.SliceOfNDistinct(rapid.Uint64Range(4090, 4110), 0, 20, rapid.ID).Draw(rt, "segments")
		slices.Sort(numbers)
		m := newMemory()
		for _, n := range numbers {
			f := walFile(t, postgres.Segment{Timeline: 1, Number: n}.Name(size))
			m.set(testCluster.WALKey(f, [32]byte{}), []byte("x"))
		}
		scan, err := testRepo(m, Keys{}, compress.Setting{}).ScanWAL(t.Context(), testCluster, size)
		if err != nil {
			rt.Fatal(err)
		}
		var got []uint64
		for i, r := range scan.Ranges {
			if i > 0 && scan.Ranges[i-1].Last.Number+1 >= r.First.Number {
				rt.Fatalf("%v touch", spans(scan.Ranges))
			}
			for n := r.First.Number; n <= r.Last.Number; n++ {
				got = append(got, n)
			}
		}
		if !slices.Equal(got, numbers) {
			rt.Fatalf("%v and not %v", got, numbers)
		}
	})
}

// endless is a bucket with a million segments that takes no memory for them.
type endless struct {
	*memory
	peak uint64
}

func (e *endless) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	if !strings.HasSuffix(prefix, "/wal/") {
		return e.memory.List(ctx, prefix, after)
	}
	return func(yield func(storage.Info, error) bool) {
		for n := range uint64(1_000_000) {
			name := postgres.Segment{Timeline: 1, Number: n + 1}.Name(16 << 20)
			if !yield(storage.Info{Key: prefix + name[:16] + "/" + name, Size: 1, ModTime: testTime}, nil) {
				return
			}
			if n%250_000 == 0 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				e.peak = max(e.peak, m.HeapAlloc)
			}
		}
	}
}

func TestScanMillion(t *testing.T) {
	e := &endless{memory: newMemory()}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	scan, err := testRepo(e, Keys{}, compress.Setting{}).ScanWAL(t.Context(), testCluster, 16<<20)
	if err != nil || len(scan.Ranges) != 1 || scan.Ranges[0].Segments() != 1_000_000 {
		t.Fatalf("%v: %v", spans(scan.Ranges), err)
	}
	if more := int64(e.peak) - int64(before.HeapAlloc); more > 8<<20 {
		t.Errorf("a million segments take %d bytes", more)
	}
}

// A record of dropped segments is a gap, also where no later segment is.
func TestDropped(t *testing.T) {
	const size = 16 << 20
	seg := func(n uint64) postgres.Segment { return postgres.Segment{Timeline: 1, Number: n} }
	s := newSeveral(t, Keys{}, true, false)
	record := Dropped{Cluster: testCluster, SegmentSize: size, Host: "db", Reason: "max_backlog", Backlog: 100, Limit: 50}
	if err := errorsFirst(s.Check(t.Context()), s.StoreDropped(t.Context(), record, seg(5), seg(7)), s.StoreDropped(t.Context(), record, seg(5), seg(7))); err != nil {
		t.Fatal(err)
	}
	key := testCluster.prefix() + "gap/00000001-000000010000000000000005-000000010000000000000007.json"
	for _, spot := range s.spots {
		body := string(spot.objects[key].body)
		for _, want := range []string{
			`"first": "000000010000000000000005"`, `"segments": 3`, `"start_lsn": "0/5000000"`, `"end_lsn": "0/8000000"`, `"system_identifier": "7321654987321654987"`,
			`"reason": "max_backlog"`, `"host": "db"`, `"agent": "test"`, `"backlog_bytes": 100`, `"max_backlog": 50`,
		} {
			if !strings.Contains(body, want) {
				t.Errorf("no %s in %s", want, body)
			}
		}
	}
	gap := func(n uint64) string {
		t.Helper()
		reason, err := s.Gap(t.Context(), testCluster, walFile(t, seg(n).Name(size)), size)
		if err != nil {
			t.Fatal(err)
		}
		return reason
	}
	for n, want := range map[uint64]bool{4: false, 5: true, 6: true, 7: true, 8: false} {
		if got := gap(n); strings.Contains(got, "dropped with the segments 000000010000000000000005 to 000000010000000000000007") != want {
			t.Errorf("segment %d: %q", n, got)
		}
	}
	// A best-effort place that is away owes the record.
	s.spots[1].down = true
	if err := s.StoreDropped(t.Context(), record, seg(9), seg(9)); err != nil {
		t.Fatal(err)
	}
	if d, err := s.debts.Owed(s.places[1].ID()); err != nil || len(d.Keys) != 1 || !strings.Contains(d.Keys[0], "/gap/") {
		t.Errorf("owed: %+v", d)
	}
	if d, err := s.DroppedWAL(t.Context(), testCluster); err != nil || len(d) != 2 {
		t.Errorf("%+v, %v", d, err)
	}
	// A required one that is away keeps anything from being dropped, and "no
	// gap" from being believed.
	s.again()
	s.spots[0].down, s.spots[1].down = true, false
	if err := s.StoreDropped(t.Context(), record, seg(20), seg(21)); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Gap(t.Context(), testCluster, walFile(t, seg(30).Name(size)), size); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if got := gap(6); got == "" {
		t.Error("what one place has recorded is enough to say that there is a gap")
	}
}

// Each place's own copy is read, whatever the others have.
func TestReadWALObject(t *testing.T) {
	s := newSeveral(t, Keys{}, true, true)
	s.wal(t, segment(3), segment(4))
	var keys []string
	for o, err := range s.WALObjects(t.Context(), "b", testCluster) {
		if err != nil || o.Size == 0 || o.File.Kind != postgres.WALSegment {
			t.Fatalf("%+v, %v", o, err)
		}
		keys = append(keys, o.Key)
	}
	if len(keys) != 2 {
		t.Fatalf("listed are %v", keys)
	}
	read := func(place, key string) error {
		return s.ReadWALObject(t.Context(), place, key, func(r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
	}
	s.spots[1].set(keys[0], flipped(string(s.spots[1].objects[keys[0]].body)))
	delete(s.spots[1].objects, keys[1])
	if err := read("a", keys[0]); err != nil {
		t.Error(err)
	}
	for _, key := range keys {
		if err := read("b", key); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) {
			t.Errorf("got %v", err)
		}
	}
	if err := read("c", keys[0]); err == nil {
		t.Error("there is no such place")
	}
	s.spots[0].down = true
	if err := read("a", keys[0]); !errors.Is(err, storage.ErrUnavailable) || errs.KindOf(err) == errs.Damaged {
		t.Errorf("got %v", err)
	}
}

func FuzzParseDropped(f *testing.F) {
	f.Add("00000001-000000010000000000000005-000000010000000000000007.json")
	f.Add("x-y-z.json")
	f.Fuzz(func(t *testing.T, name string) {
		d, ok := parseDropped(name)
		if !ok {
			return
		}
		if d.First > d.Last || !d.Holds(d.First) || !d.Holds(d.Last) || name != d.First[:8]+"-"+d.First+"-"+d.Last+".json" {
			t.Fatalf("%q is %+v", name, d)
		}
	})
}

// A place that is away is found out once, whatever the lease says.
func TestCheckNow(t *testing.T) {
	s := newSeveral(t, Keys{}, true, true)
	s.spots[0].down = true
	if err := s.CheckNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	scan, err := s.ScanWAL(t.Context(), testCluster, 16<<20)
	if err != nil || !errors.Is(scan.Places[0].Err, storage.ErrUnavailable) || scan.Places[1].Err != nil || len(s.spots[0].lists) != 0 {
		t.Errorf("%+v, %v", scan, err)
	}
	s.again()
	s.spots[1].down = true
	if err := s.CheckNow(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	one := newSeveral(t, Keys{}, true)
	one.spots[0].down = true
	if err := one.CheckNow(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
