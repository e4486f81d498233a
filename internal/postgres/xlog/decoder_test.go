package xlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"agent/internal/postgres"
	"agent/internal/postgres/xlog/xlogtest"
)

// decodeAll decodes segments that follow each other and joins the records
// between them.
func decodeAll(t testing.TB, dir string, files ...string) (lines []string, results []*Result) {
	t.Helper()
	var j Joiner
	for _, name := range files {
		inside, res := decode(t, load(t, dir, name))
		if res.Undecoded != nil {
			t.Errorf("%s/%s: %v", dir, name, res.Undecoded)
		}
		if j.Open() && !res.Overwrite {
			if err := j.Add(res.Head); err != nil {
				t.Fatal(err)
			}
			r, err := j.Record(res.Major)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, line(r))
		}
		lines = append(lines, inside...)
		j.Drop()
		if res.Tail.Length > 0 {
			if err := j.Begin(res.TailStart, res.Tail); err != nil {
				t.Fatal(err)
			}
		}
		results = append(results, res)
	}
	return lines, results
}

// TestRecords compares every record of all majors with pg_waldump.
func TestRecords(t *testing.T) {
	for major := postgres.MinMajor; major <= postgres.MaxMajor; major++ {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			dir := fmt.Sprintf("pg%d", major)
			got, results := decodeAll(t, dir, segments(t, dir)...)
			want := strings.Split(strings.TrimSpace(string(load(t, dir, "blockrefs.txt.zst"))), "\n")
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if results[0].Ending != Full || results[1].Ending != AfterSwitch {
				t.Errorf("endings: %v (%s), %v (%s)", results[0].Ending, results[0].Reason, results[1].Ending, results[1].Reason)
			}
			if results[0].Major != major {
				t.Errorf("major %d", results[0].Major)
			}
		})
	}
}

// TestOverwrite: the rest of a record was lost in a crash, and another record
// stands in its place.
func TestOverwrite(t *testing.T) {
	got, results := decodeAll(t, "overwrite", segments(t, "overwrite")...)
	want, err := os.ReadFile(filepath.Join("..", "testdata", "overwrite", "blockrefs.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(strings.TrimSpace(string(want)), "\n"), got); d != "" {
		t.Error(d)
	}
	first, second := results[0], results[1]
	if first.Ending != Full || first.TailStart != 0x9000F8 || first.Tail.Left == 0 {
		t.Errorf("the first ends %v (%s) with a piece at %s", first.Ending, first.Reason, first.TailStart)
	}
	if !second.Overwrite || second.Head.Length != 0 || second.FirstPrev != first.Last {
		t.Errorf("the second: %+v", second)
	}
}

// TestOverwriteInside: the same in the middle of a segment.
func TestOverwriteInside(t *testing.T) {
	w := xlogtest.NewWriter(1 << 20)
	w.Record(0, 0x20, xlogtest.Main(make([]byte, 100)))
	whole := w.Prev
	w.Overwrite(w.Record(0, 0x20, xlogtest.Main(make([]byte, 20_000))), whole)
	w.Record(0, 0xD0, xlogtest.Main(make([]byte, 16)))
	w.FillTo(0)
	_, res := decode(t, w.Segments()[0])
	if res.Ending != Full || res.Overwrite || res.Records < 3 {
		t.Errorf("%v (%s), %d records, overwrite %v", res.Ending, res.Reason, res.Records, res.Overwrite)
	}
}

func TestTimelineSwitch(t *testing.T) {
	parent, parentResult := decode(t, load(t, "timeline", "00000001000000000000000A.zst"))
	child, results := decodeAll(t, "timeline", "000000010000000000000009.zst", "00000002000000000000000A.zst", "00000002000000000000000B.zst")
	for i, want := range []Ending{AfterSwitch, AfterSwitch, AfterSwitch} {
		if results[i].Ending != want {
			t.Errorf("segment %d ends %v (%s)", i, results[i].Ending, results[i].Reason)
		}
		if i > 0 && results[i].FirstPrev != results[i-1].Last {
			t.Errorf("segment %d begins behind %s, not %s", i, results[i].FirstPrev, results[i-1].Last)
		}
	}
	common := 0
	for _, l := range child {
		if common < len(parent) && parent[common] == l {
			common++
		}
	}
	if common < 10 {
		t.Errorf("the child repeats %d records of its parent", common)
	}
	t.Logf("parent: %v (%s) at %s", parentResult.Ending, parentResult.Reason, parentResult.End)
}

// TestVMClear: a DELETE that clears a bit of the visibility map names the heap
// page alone.
func TestVMClear(t *testing.T) {
	lines, _ := decode(t, load(t, "vm_clear", "000000010000000000000009.zst"))
	if all := strings.Join(lines, "\n"); !strings.Contains(all, " 0/009000D8 ") || strings.Contains(all, "fork vm") {
		t.Error(all)
	}
}

// TestChunks: however the bytes come, the outcome is the same.
func TestChunks(t *testing.T) {
	segment := load(t, "pg15", segments(t, "pg15")[0])
	want, wantResult := decode(t, segment)
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{1, 7, 100, 8191, 8192, 8193, 100_000, 1 << 20}).Draw(t, "most")
		seed := rapid.Uint32().Draw(t, "seed")
		var got []string
		d := NewDecoder(func(r *Record) { got = append(got, line(r)) })
		for rest := segment; len(rest) > 0; {
			seed = seed*1664525 + 1013904223
			n := min(1+int(seed>>8)%most, len(rest))
			d.Write(rest[:n])
			rest = rest[n:]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(wantResult, d.Result(), cmp.AllowUnexported(Result{}), cmp.Comparer(bytes.Equal)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestEndings says of segments, whole and broken, how they end.
func TestEndings(t *testing.T) {
	full := load(t, "pg16", segments(t, "pg16")[0])
	switched := load(t, "pg16", segments(t, "pg16")[1])
	edit := func(b []byte, change func([]byte)) []byte {
		b = append([]byte(nil), b...)
		change(b)
		return b
	}
	for _, c := range []struct {
		name    string
		segment []byte
		want    Ending
		reason  string
	}{
		{"full", full, Full, ""},
		{"switch", switched, AfterSwitch, ""},
		{"zero tail", edit(full, func(b []byte) { clear(b[100*8192:]) }), NotOwn, "empty"},
		{"zeros in a page", edit(full, func(b []byte) { clear(b[50*8192+4000 : 51*8192]) }), NotOwn, ""},
		{"pages of another segment", edit(full, func(b []byte) { copy(b[64*8192:], switched[8192:2*8192]) }), NotOwn, "another one"},
		{"one bit", edit(full, func(b []byte) { b[700_000] ^= 4 }), NotOwn, ""},
		{"older timeline", edit(full, func(b []byte) { b[90*8192+4] = 0 }), NotOwn, "timeline"},
		{"behind a switch", edit(switched, func(b []byte) { copy(b[len(b)-8192:], full) }), AfterSwitch, ""},
		{"newer page format", edit(full, func(b []byte) { b[0], b[1] = 0x21, 0xD1 }), Unknown, "page format"},
		{"short", full[:len(full)-8192], Unknown, "instead of"},
		{"long", append(append([]byte(nil), full...), 0), Unknown, "instead of"},
		{"one page short of a byte", full[:8191], Unknown, "no whole page"},
		{"nothing", nil, Unknown, "no whole page"},
		{"no segment size", edit(full, func(b []byte) { b[32] = 1 }), Unknown, "header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, res := decode(t, c.segment)
			if res.Ending != c.want || !strings.Contains(res.Reason, c.reason) {
				t.Errorf("%v, %q", res.Ending, res.Reason)
			}
		})
	}
}

// TestEndingsOfRecords: what server-made records can leave at a segment's end.
func TestEndingsOfRecords(t *testing.T) {
	t.Run("one record covers it", func(t *testing.T) {
		w := xlogtest.NewWriter(1 << 20)
		w.Record(21, 0, xlogtest.Main(make([]byte, 3<<20)))
		parts := w.Segments()
		var j Joiner
		for i, part := range parts[:3] {
			lines, res := decode(t, part)
			want := []Ending{Full, Unknown, Unknown}[i]
			if res.Ending != want || len(lines) != 0 {
				t.Fatalf("part %d ends %v (%s), %d records", i, res.Ending, res.Reason, len(lines))
			}
			if i == 0 {
				if err := j.Begin(res.TailStart, res.Tail); err != nil {
					t.Fatal(err)
				}
			} else if err := j.Add(res.Head); err != nil {
				t.Fatal(err)
			}
		}
		_, last := decode(t, parts[3])
		if err := j.Add(last.Head); err != nil {
			t.Fatal(err)
		}
		if r, err := j.Record(last.Major); err != nil || r.Length != 3<<20+24+5 || len(r.Main) != 3<<20 {
			t.Fatalf("%+v, %v", r, err)
		}
	})
	t.Run("switch over the edge", func(t *testing.T) {
		for _, left := range []int{8, 16} {
			w := xlogtest.NewWriter(1 << 20)
			w.FillTo(left)
			w.Record(0, opSwitch, nil)
			parts := w.Segments()
			if _, res := decode(t, parts[0]); res.Ending != Full || int(res.Tail.Length) != left {
				t.Errorf("%d bytes left: %v (%s), %d", left, res.Ending, res.Reason, res.Tail.Length)
			}
			if _, res := decode(t, parts[1]); res.Ending != AfterSwitch || int(res.Head.Length) != 24-left {
				t.Errorf("%d bytes left: the next ends %v (%s)", left, res.Ending, res.Reason)
			}
		}
	})
	t.Run("another record over the edge, and zeros", func(t *testing.T) {
		w := xlogtest.NewWriter(1 << 20)
		w.FillTo(8)
		w.Record(0, 0x20, nil)
		if _, res := decode(t, w.Segments()[1]); res.Ending != NotOwn {
			t.Errorf("%v (%s)", res.Ending, res.Reason)
		}
	})
	t.Run("a switch at the very end", func(t *testing.T) {
		w := xlogtest.NewWriter(1 << 20)
		w.FillTo(24)
		w.Record(0, opSwitch, nil)
		if _, res := decode(t, w.Segments()[0]); res.Ending != AfterSwitch {
			t.Errorf("%v (%s)", res.Ending, res.Reason)
		}
	})
	t.Run("content is not understood", func(t *testing.T) {
		w := xlogtest.NewWriter(1 << 20)
		w.Record(0, 0x20, []byte{200, 1, 2, 3})
		w.FillTo(0)
		if _, res := decode(t, w.Segments()[0]); res.Ending != Full || res.Undecoded == nil {
			t.Errorf("%v (%s), %v", res.Ending, res.Reason, res.Undecoded)
		}
	})
	t.Run("a record without a header", func(t *testing.T) {
		w := xlogtest.NewWriter(1 << 20)
		w.Record(0, 0x20, xlogtest.Main(make([]byte, 50)))
		segment := w.Segments()[0]
		binary.LittleEndian.PutUint32(segment[w.Offset():], 23)
		if _, res := decode(t, segment); res.Ending != NotOwn || !strings.Contains(res.Reason, "23 bytes") {
			t.Errorf("%v (%s)", res.Ending, res.Reason)
		}
	})
}

// TestLongRecord: of a record longer than what is kept only the headers are
// read, but its checksum is still compared.
func TestLongRecord(t *testing.T) {
	w := xlogtest.NewWriter(64 << 20)
	long := make([]byte, MaxKept+1000)
	for i := range long {
		long[i] = byte(i >> 3)
	}
	w.Record(21, 0, xlogtest.Main(long))
	w.Record(1, 0, xlogtest.Main(long))
	w.FillTo(0)
	var cut []*Record
	d := NewDecoder(func(r *Record) {
		if r.Cut {
			cut = append(cut, &Record{LSN: r.LSN, RM: r.RM, Length: r.Length, Main: r.Main})
			if err := Visit(r, 15, nil); (err == nil) != (r.RM == 21) {
				t.Errorf("%d: %v", r.RM, err)
			}
		}
	})
	d.Write(w.Segments()[0])
	if res := d.Result(); res.Ending != Full || len(cut) != 2 || cut[0].Main != nil || int(cut[0].Length) != len(long)+29 {
		t.Errorf("%v (%s): %d records were cut", res.Ending, res.Reason, len(cut))
	}
	w.Segments()[0][20<<20] ^= 1
	if _, res := decode(t, w.Segments()[0]); res.Ending != NotOwn {
		t.Errorf("%v: the checksum of a long record is not compared", res.Ending)
	}
}

func FuzzDecoder(f *testing.F) {
	for _, dir := range []string{"pg13", "pg18", "overwrite", "timeline"} {
		segment := load(f, dir, segments(f, dir)[0])
		f.Add(segment[:3*8192], uint16(5000), byte(0))
		f.Add(segment[len(segment)-2*8192:], uint16(0), byte(1))
	}
	template := load(f, "pg15", segments(f, "pg15")[0])[:6*8192]
	f.Fuzz(func(t *testing.T, b []byte, at uint16, chunk byte) {
		// The bytes alone, and in the middle of good ones.
		segment := append([]byte(nil), template...)
		copy(segment[int(at)%len(segment):], b)
		for _, in := range [][]byte{b, segment} {
			whole, res := decode(t, in)
			var pieces []string
			d := NewDecoder(func(r *Record) { pieces = append(pieces, line(r)) })
			step := 1 + int(chunk)*97
			for rest := in; len(rest) > 0; rest = rest[min(step, len(rest)):] {
				d.Write(rest[:min(step, len(rest))])
			}
			if diff := cmp.Diff(res, d.Result(), cmp.AllowUnexported(Result{}), cmp.Comparer(bytes.Equal), cmp.Comparer(func(a, b error) bool { return (a == nil) == (b == nil) })); diff != "" {
				t.Fatal(diff)
			}
			if len(whole) != len(pieces) {
				t.Fatalf("%d and %d records", len(whole), len(pieces))
			}
		}
	})
}

// FuzzFragments reads the content of records that have a right checksum.
func FuzzFragments(f *testing.F) {
	f.Add([]byte{0, 0x20, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0, 99}, byte(10), byte(0), byte(15))
	f.Add([]byte{255, 4, 1, 2, 3, 4}, byte(0), byte(0xE0), byte(17))
	f.Add([]byte{255, 12, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0}, byte(2), byte(0x10), byte(18))
	f.Fuzz(func(t *testing.T, body []byte, rm, info, major byte) {
		var r Record
		rec := make([]byte, recordHeader, recordHeader+len(body))
		binary.LittleEndian.PutUint32(rec, uint32(recordHeader+len(body)))
		rec[16], rec[17] = info, rm
		rec = append(rec, body...)
		r.header(8, rec)
		if r.fragments(rec, int(major)) != nil {
			return
		}
		if len(r.Main) > len(body) {
			t.Fatal("more main data than there is")
		}
		_ = Visit(&r, int(major), ignore{}) // no panic; an error is fine
	})
}

// ignore is a visitor that is not interested.
type ignore struct{}

func (ignore) Limit(Locator, postgres.Fork, uint32)     {}
func (ignore) Database(uint32, uint32)                  {}
func (ignore) Minimal()                                 {}
func (ignore) Commit(postgres.LSN, int64)               {}
func (ignore) RestorePoint(postgres.LSN, string, int64) {}
