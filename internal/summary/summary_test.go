package summary

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
)

// ranged collects the records of segments that begin in [from, to): the range
// that an expected table is of does not end with a segment.
func ranged(t *testing.T, segments [][]byte, from, to postgres.LSN) *Table {
	t.Helper()
	c := collector{table: NewTable()}
	take := func(r *xlog.Record, major int) {
		if r.LSN >= from && r.LSN < to {
			c.apply(r, major)
		}
	}
	var j xlog.Joiner
	for _, segment := range segments {
		edges := xlog.NewDecoder(func(*xlog.Record) {})
		edges.Write(segment)
		res := edges.Result()
		if j.Open() {
			take(join(t, &j, res), res.Major)
		}
		d := xlog.NewDecoder(func(r *xlog.Record) { take(r, res.Major) })
		d.Write(segment)
		j.Drop()
		if res.Tail.Length > 0 {
			if err := j.Begin(res.TailStart, res.Tail); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c.problem != nil {
		t.Error(c.problem)
	}
	return c.table
}

func join(t *testing.T, j *xlog.Joiner, res *xlog.Result) *xlog.Record {
	t.Helper()
	if err := j.Add(res.Head); err != nil {
		t.Fatal(err)
	}
	r, err := j.Record(res.Major)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTable compares the table of each major's range with what is expected,
// which for 17 and 18 is what the server itself has summarised.
func TestTable(t *testing.T) {
	for major := postgres.MinMajor; major <= postgres.MaxMajor; major++ {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			dir := fmt.Sprintf("pg%d", major)
			text := strings.Join(readLines(t, dir, "range.txt"), " ")
			from, to := lsnOf(t, text, "start_redo"), lsnOf(t, text, "end_redo")
			segments := folder(t, dir)
			table := ranged(t, segments, from, to)
			if d := cmp.Diff(readLines(t, dir, "summary.txt"), lines(table)); d != "" {
				t.Error(d)
			}
			// Merged summaries of the whole segments say the same as all their
			// records, and no record is missing up to their end.
			m := merge(t, summarise(t, segments[0]), summarise(t, segments[1]))
			whole := ranged(t, segments, 0, math.MaxUint64)
			if d := cmp.Diff(known(m.Table()), known(whole)); d != "" {
				t.Error(d)
			}
			if want := postgres.LSN(len(segments[0])) * (postgres.LSN(2) + from/(1<<20)); m.End() != want {
				t.Errorf("merged up to %s, not %s", m.End(), want)
			}
			if p := m.RestorePoints(); len(p) != 1 || p[0].Name == "" {
				t.Errorf("restore points %v", p)
			}
			if n := m.Newest(); n.LSN < from || n.Micros < 1_700_000_000_000_000 {
				t.Errorf("newest commit %v", n)
			}
		})
	}
}

// TestServerSummaries reads the files of the servers that summarise themselves.
func TestServerSummaries(t *testing.T) {
	for _, dir := range []string{"pg17", "pg18"} {
		t.Run(dir, func(t *testing.T) {
			files, err := filepath.Glob(filepath.Join("testdata", dir, "*.summary"))
			if err != nil || len(files) < 5 {
				t.Fatalf("%v: %v", files, err)
			}
			theirs := NewTable()
			for _, file := range files {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				theirs.Join(readServer(t, b))
			}
			segments := folder(t, dir)
			text := strings.Join(readLines(t, dir, "range.txt"), " ")
			ours := ranged(t, segments, lsnOf(t, text, "start_redo"), lsnOf(t, text, "end_redo"))
			if d := cmp.Diff(lines(theirs), lines(ours)); d != "" {
				t.Error(d)
			}
		})
	}
}

// readServer reads a file of pg_wal/summaries (src/common/blkreftable.c).
func readServer(t *testing.T, b []byte) *Table {
	t.Helper()
	next := func(n int) []byte {
		if n > len(b) {
			t.Fatal("the file ends too early")
		}
		v := b[:n]
		b = b[n:]
		return v
	}
	u32 := func() uint32 { return binary.LittleEndian.Uint32(next(4)) }
	u16 := func() uint16 { return binary.LittleEndian.Uint16(next(2)) }
	if magic := u32(); magic != 0x652B137B {
		t.Fatalf("magic %08X", magic)
	}
	table := NewTable()
	for {
		k := Key{Locator: xlog.Locator{Tablespace: u32(), Database: u32(), Relation: u32()}, Fork: postgres.Fork(u32())}
		limit, chunks := u32(), u32()
		if k == (Key{}) {
			return table
		}
		if limit != NoLimit {
			table.Cut(k, limit)
		}
		usage := make([]uint16, chunks)
		for i := range usage {
			usage[i] = u16()
		}
		for i, n := range usage {
			base := uint32(i) * 65536
			for at := range uint32(n) {
				word := u16()
				if n < 4096 {
					table.Touch(k, base+uint32(word))
					continue
				}
				for bit := range uint32(16) {
					if word&(1<<bit) != 0 {
						table.Touch(k, base+at*16+bit)
					}
				}
			}
		}
	}
}

func TestMergeTimelines(t *testing.T) {
	old, oldNext := load(t, "timeline", "000000010000000000000009.zst"), load(t, "timeline", "00000001000000000000000A.zst")
	next, last := load(t, "timeline", "00000002000000000000000A.zst"), load(t, "timeline", "00000002000000000000000B.zst")
	m := merge(t, summarise(t, old), summarise(t, next), summarise(t, last))
	if p := m.RestorePoints(); len(p) != 1 || p[0].Name != "rp1" || p[0].LSN >= 0xA019D0 {
		t.Errorf("restore points %v", p)
	}
	if m.End() != 0xC00000 {
		t.Errorf("end %s", m.End())
	}
	// The parent's own continuation is not what the child follows.
	m = merge(t, summarise(t, old), summarise(t, oldNext))
	var broken *ChainError
	if err := m.Add(summarise(t, last)); !errors.As(err, &broken) || broken.At != 0xB00000 || !strings.Contains(err.Error(), "follows") {
		t.Errorf("%v", err)
	}
	if again := m.Add(summarise(t, last)); !errors.Is(again, broken) {
		t.Errorf("%v", again)
	}
}

func TestMergeOverwrite(t *testing.T) {
	segments := folder(t, "overwrite")
	m := merge(t, summarise(t, segments[0]))
	if m.End() != 0x9000F8 {
		t.Errorf("end %s, where the record begins that goes on behind the segment", m.End())
	}
	m = merge(t, summarise(t, segments[0]), summarise(t, segments[1]))
	if got := lines(m.Table()); !slices.Contains(got, "1663/5/1249 main block 17") {
		t.Error(got)
	}
}

// TestMergeBreaks: whatever is missing or wrong between segments is told.
func TestMergeBreaks(t *testing.T) {
	segments := folder(t, "pg16")
	first, second := summarise(t, segments[0]), summarise(t, segments[1])
	change := func(s *Summary, f func(*Summary)) *Summary {
		c := *s
		f(&c)
		return &c
	}
	for _, c := range []struct {
		name   string
		a, b   *Summary
		reason string
	}{
		{"gap", first, change(second, func(s *Summary) { s.Start += postgres.LSN(s.Size) }), "comes after"},
		{"the same again", first, first, "comes after"},
		{"back", second, first, "comes after"},
		{"another cluster", first, change(second, func(s *Summary) { s.SystemID++ }), "cluster"},
		{"another major", first, change(second, func(s *Summary) { s.Major = 17 }), "PostgreSQL 17"},
		{"older timeline", change(first, func(s *Summary) { s.Until = 7 }), second, "timeline 7"},
		{"minimal", change(first, func(s *Summary) { s.Doubts = Minimal }), second, "wal_level=minimal"},
		{"special", first, change(second, func(s *Summary) { s.Doubts = Special }), "resource manager"},
		{"not understood", first, change(second, func(s *Summary) { s.Doubts = NotUnderstood }), "not understood"},
		{"no tail", change(first, func(s *Summary) { s.Ending = xlog.NotOwn }), second, "no WAL from"},
		{"record does not go on", first, change(second, func(s *Summary) { s.Head = xlog.Piece{} }), "go on as it began"},
		{"record did not begin", change(first, func(s *Summary) { s.Tail = xlog.Piece{} }), second, "did not begin"},
		{"other bytes", first, change(second, func(s *Summary) {
			s.Head.Bytes = slices.Clone(s.Head.Bytes)
			s.Head.Bytes[0] ^= 1
		}), "unsound"},
		{"no length", change(first, func(s *Summary) { s.Tail.Bytes = s.Tail.Bytes[:2] }), second, "damaged"},
		{"another record before", first, change(second, func(s *Summary) { s.FirstPrev -= 8 }), "follows one at"},
		{"another record before the joined one", change(first, func(s *Summary) { s.Last -= 8 }), second, "follows one at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := NewMerger()
			err := m.Add(c.a)
			if err == nil {
				err = m.Add(c.b)
			}
			var broken *ChainError
			if !errors.As(err, &broken) || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestNone(t *testing.T) {
	segment := folder(t, "pg16")[0]
	newer := slices.Clone(segment)
	newer[0] ^= 1
	for name, in := range map[string][]byte{"empty": nil, "short": segment[:500_000], "newer page format": newer} {
		b := NewBuilder()
		b.Write(in)
		if s, err := b.Finish([32]byte{}); !errors.Is(err, ErrNone) || s != nil || b.Segment().Ending != xlog.Unknown {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

// TestSize: a summary is small.
func TestSize(t *testing.T) {
	for major := postgres.MinMajor; major <= postgres.MaxMajor; major++ {
		for i, segment := range folder(t, fmt.Sprintf("pg%d", major)) {
			if n := len(summarise(t, segment).Encode()); n > 8192 {
				t.Errorf("%d, segment %d: %d bytes", major, i, n)
			}
		}
	}
}
