package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const mib = 1 << 20

// checkSegment feeds data in chunks of the given length.
func checkSegment(t testing.TB, name string, data []byte, sysid uint64, chunk int) (*SegmentChecker, error) {
	t.Helper()
	c := NewSegmentChecker(mustWALFile(t, name), int64(len(data)), sysid)
	for part := range slices.Chunk(data, chunk) {
		if n, err := c.Write(part); err != nil {
			if n > len(part) {
				t.Fatalf("Write returned %d of %d bytes", n, len(part))
			}
			if again := c.Close(); !errors.Is(again, err) {
				t.Fatalf("Close returned %v after %v", again, err)
			}
			return c, err
		} else if n != len(part) {
			t.Fatalf("Write returned %d of %d bytes", n, len(part))
		}
	}
	err := c.Close()
	return c, err
}

func TestSegmentCheckerFixtures(t *testing.T) {
	for name, data := range walFixtures(t) {
		first, err := ParsePageHeader(data)
		if err != nil {
			t.Fatal(err)
		}
		for _, chunk := range []int{8192, 131072, mib, 8191, 7} {
			c, err := checkSegment(t, path.Base(name), data, first.SystemID, chunk)
			if err != nil {
				t.Fatalf("%s in chunks of %d: %v", name, chunk, err)
			}
			if c.Header() != first || len(c.Warnings()) != 0 {
				t.Fatalf("%s: header %+v, warnings %v", name, c.Header(), c.Warnings())
			}
		}
		if _, known := MagicMajor(first.Magic); !known || first.SegmentSize != mib || first.BlockSize != WALBlockSize || first.Size() != 40 {
			t.Fatalf("%s: %+v", name, first)
		}
		// The same bytes as the last segment of a timeline that was left.
		if _, err := checkSegment(t, path.Base(name)+".partial", data, first.SystemID, 8192); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMagicMajor(t *testing.T) {
	for _, c := range []struct {
		dir   string
		major int
	}{{"pg13", 13}, {"pg14", 14}, {"pg15", 15}, {"pg16", 16}, {"pg17", 17}, {"pg18", 18}, {"timeline", 15}, {"overwrite", 15}} {
		seen := 0
		for name, data := range walFixtures(t) {
			if path.Dir(name) != c.dir {
				continue
			}
			seen++
			if major, known := MagicMajor(binary.LittleEndian.Uint16(data)); !known || major != c.major {
				t.Errorf("%s: %d, %v", name, major, known)
			}
		}
		if seen == 0 {
			t.Errorf("no fixtures of %s", c.dir)
		}
	}
	if _, known := MagicMajor(0xD121); known {
		t.Error("an unknown magic has a major")
	}
}

// The first segment of timeline 2 begins with pages of timeline 1; the
// continuation that a crash lost is announced by a flag.
func TestSegmentCheckerSpecialPages(t *testing.T) {
	data := load(t, "timeline", "00000002000000000000000A.zst")
	var seen []Timeline
	for page := range slices.Chunk(data, WALBlockSize) {
		h, err := ParsePageHeader(page)
		if err != nil {
			t.Fatal(err)
		}
		if !h.Empty() && !slices.Contains(seen, h.Timeline) {
			seen = append(seen, h.Timeline)
		}
	}
	if !slices.Equal(seen, []Timeline{1, 2}) {
		t.Fatalf("the fixture has pages of timelines %v", seen)
	}
	h, err := ParsePageHeader(load(t, "overwrite", "00000001000000000000000A.zst"))
	if err != nil || h.Flags&PageOverwriteContRecord == 0 {
		t.Fatalf("%+v, %v", h, err)
	}
}

func TestSegmentCheckerRefuses(t *testing.T) {
	const name = "00000001000000000000000B"
	good := load(t, "pg15", name+".zst")
	sysid := binary.LittleEndian.Uint64(good[24:])
	put16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint16(b[at:], v); return b }
	}
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	put64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint64(b[at:], v); return b }
	}
	const page5 = 5 * WALBlockSize
	for _, c := range []struct {
		what   string
		name   string
		change func([]byte) []byte
		want   error
		text   string
	}{
		{"empty file", name, func([]byte) []byte { return nil }, ErrTorn, "0 bytes"},
		{"some bytes", name, func(b []byte) []byte { return b[:30] }, ErrTorn, "30 bytes"},
		{"one page", name, func(b []byte) []byte { return b[:8192] }, ErrTorn, "expected 1048576 bytes as the header says, seen 8192"},
		{"cut", name, func(b []byte) []byte { return b[:mib-8192] }, ErrTorn, "seen 1040384"},
		{"grown", name, func(b []byte) []byte { return append(b, make([]byte, mib)...) }, ErrTorn, "seen 2097152"},
		{"zeros", name, func(b []byte) []byte { clear(b); return b }, ErrNotWAL, "zeros"},
		{"text", name, func(b []byte) []byte { return bytes.Repeat([]byte("PostgreSQL\n"), mib)[:mib] }, ErrNotWAL, "unknown page magic 6F50"},
		{"other cluster", name, put64(24, sysid+1), ErrForeign, "system identifier"},
		{"other segment", "00000001000000000000000C", nil, ErrTorn, "page address: expected 0/C00000, seen 0/B00000"},
		{"newer timeline", name, put32(page5+4, 2), ErrTorn, "page timeline: expected 1 to 1, seen 2"},
		{"newer timeline at once", name, put32(4, 2), ErrTorn, "at offset 0: page timeline"},
		{"older timeline", "00000003" + name[8:], func(b []byte) []byte { return put32(page5+4, 2)(put32(4, 2)(b)) }, ErrTorn, "at offset 8192: page timeline: expected 2 to 3, seen 1"},
		{"no timeline", name, put32(4, 0), ErrTorn, "page timeline"},
		{"impossible name", "00000001000000000000100B", nil, ErrNotWAL, "segments of 1 MiB"},
		{"history name", "00000001.history", nil, ErrNotWAL, "timeline history"},
		{"block size", name, put32(36, 16384), ErrNotWAL, "WAL block size: expected 8192 bytes, the only one supported, seen 16384"},
		{"segment size", name, put32(32, 1000000), ErrNotWAL, "segment size in the header"},
		{"other segment size", name, put32(32, 2<<20), ErrTorn, "file size"},
		{"short first header", name, put16(2, 0), ErrTorn, "the long form"},
		{"flags of the first page", name, put16(2, 0x8002), ErrTorn, "page flags"},
		{"flags", name, put16(page5+2, 0x0010), ErrTorn, "at offset 40960: page flags"},
		{"long header inside", name, put16(page5+2, 2), ErrTorn, "at offset 40960: page flags"},
		{"other magic", name, put16(page5, 0xD113), ErrTorn, "at offset 40960: page magic: expected D110, seen D113"},
		{"big-endian", name, func(b []byte) []byte { return put32(36, 0x00200000)(put16(0, 0x10D1)(b)) }, ErrNotWAL, "big-endian WAL of PostgreSQL 15"},
		{"recycled page", name, put64(page5+8, 0x20A000), ErrTorn, "at offset 40960: page address: expected 0/B0A000, seen 0/20A000"},
		{"last page", name, put64(mib-8192+8, 0x20A000), ErrTorn, "at offset 1040384"},
		{"hole", name, func(b []byte) []byte { clear(b[page5 : page5+8192]); return b }, ErrTorn, "at offset 49152: page header: expected zeros"},
		{"swapped pages", name, func(b []byte) []byte {
			one := bytes.Clone(b[8192:16384])
			copy(b[8192:], b[page5:page5+8192])
			copy(b[page5:], one)
			return b
		}, ErrTorn, "at offset 8192: page address: expected 0/B02000, seen 0/B0A000"},
	} {
		data := bytes.Clone(good)
		if c.change != nil {
			data = c.change(data)
		}
		_, err := checkSegment(t, c.name, data, sysid, 8192)
		var se *SegmentError
		if !errors.Is(err, c.want) || !errors.As(err, &se) || !strings.Contains(err.Error(), c.text) || se.Name != c.name {
			t.Errorf("%s: %v; want %v with %q", c.what, err, c.want, c.text)
		}
	}
}

func TestSegmentCheckerLength(t *testing.T) {
	good := load(t, "pg15", "00000001000000000000000B.zst")
	c := NewSegmentChecker(mustWALFile(t, "00000001000000000000000B"), mib, 0)
	if _, err := c.Write(good[:mib/2]); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); !errors.Is(err, ErrTorn) {
		t.Fatalf("half of the segment: %v", err)
	}
	c = NewSegmentChecker(mustWALFile(t, "00000001000000000000000B"), mib, 0)
	if _, err := c.Write(good); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Write([]byte{0}); n != 0 || !errors.Is(err, ErrTorn) {
		t.Fatalf("a byte too many: %d, %v", n, err)
	}
	if n, err := c.Write([]byte{0}); n != 0 || !errors.Is(err, ErrTorn) {
		t.Fatalf("after an error: %d, %v", n, err)
	}
}

func TestSegmentCheckerPartial(t *testing.T) {
	const name = "00000001000000000000000B.partial"
	good := load(t, "pg15", "00000001000000000000000B.zst")
	garbage := bytes.Clone(good)
	for i := 10 * WALBlockSize; i < mib; i++ {
		garbage[i] = byte(rand.N(256))
	}
	recycled := bytes.Clone(good)
	binary.LittleEndian.PutUint64(recycled[3*WALBlockSize+8:], 0x200000)
	afterZeros := bytes.Clone(good)
	clear(afterZeros[8192:16384])
	for what, data := range map[string][]byte{"garbage": garbage, "recycled": recycled, "after zeros": afterZeros} {
		if _, err := checkSegment(t, name, data, 0, 8192); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := checkSegment(t, strings.TrimSuffix(name, ".partial"), data, 0, 8192); !errors.Is(err, ErrTorn) {
			t.Errorf("%s under the whole segment's name: %v", what, err)
		}
	}
	first := bytes.Clone(good)
	binary.LittleEndian.PutUint64(first[8:], 0x200000)
	if _, err := checkSegment(t, name, first, 0, 8192); !errors.Is(err, ErrTorn) {
		t.Errorf("first page of another segment: %v", err)
	}
	if _, err := checkSegment(t, name, good[:mib/2], 0, 8192); !errors.Is(err, ErrTorn) {
		t.Errorf("half a file: %v", err)
	}
}

func TestSegmentCheckerUnknownMagic(t *testing.T) {
	const name = "00000001000000000000000B"
	data := load(t, "pg15", name+".zst")
	sysid := binary.LittleEndian.Uint64(data[24:])
	for i := 0; i < mib; i += WALBlockSize {
		if binary.LittleEndian.Uint16(data[i:]) != 0 {
			binary.LittleEndian.PutUint16(data[i:], 0xD199)
			// Flags that a new major might have.
			binary.LittleEndian.PutUint16(data[i+2:], binary.LittleEndian.Uint16(data[i+2:])|0x40)
		}
	}
	c, err := checkSegment(t, name, data, sysid, 8192)
	if err != nil || len(c.Warnings()) != 1 || !strings.Contains(c.Warnings()[0], "D199") {
		t.Fatalf("%v, warnings %q", err, c.Warnings())
	}
	if _, err := checkSegment(t, name, data, sysid+1, 8192); !errors.Is(err, ErrNotWAL) {
		t.Errorf("another system identifier: %v", err)
	}
	if _, err := checkSegment(t, "00000001000000000000000C", data, sysid, 8192); !errors.Is(err, ErrNotWAL) {
		t.Errorf("another address: %v", err)
	}
	binary.LittleEndian.PutUint64(data[8192+8:], 0)
	if _, err := checkSegment(t, name, data, sysid, 8192); !errors.Is(err, ErrTorn) {
		t.Errorf("a wrong page: %v", err)
	}
}

// Any change of any page header's address, magic or timeline is found, and
// where a file is cut makes no difference.
func TestSegmentCheckerFlips(t *testing.T) {
	const name = "00000001000000000000000B"
	good := load(t, "pg15", name+".zst")
	rapid.Check(t, func(rt *rapid.T) {
		page := rapid.IntRange(0, mib/WALBlockSize-1).Draw(rt, "page")
		at := page*WALBlockSize + rapid.SampledFrom([]int{0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}).Draw(rt, "byte")
		chunk := rapid.IntRange(1000, 100000).Draw(rt, "chunk")
		data := bytes.Clone(good)
		data[at] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		_, err := checkSegment(t, name, data, 0, chunk)
		var se *SegmentError
		where := int64(page) * WALBlockSize
		if page == 0 && at < 2 {
			where = WALBlockSize // it could be a new major, but for the next page
		}
		if !errors.As(err, &se) || se.Offset != where {
			rt.Fatalf("byte %d changed: %v", at, err)
		}
		if _, err := checkSegment(t, name, good[:rapid.IntRange(0, mib-1).Draw(rt, "length")], 0, chunk); !errors.Is(err, ErrTorn) {
			rt.Fatalf("cut: %v", err)
		}
	})
}

func TestParsePageHeaderShort(t *testing.T) {
	long := load(t, "pg15", "00000001000000000000000B.zst")[:40]
	for n := range long {
		if h, err := ParsePageHeader(long[:n]); err == nil {
			t.Fatalf("%d bytes: %+v", n, h)
		}
	}
	if h, err := ParsePageHeader(make([]byte, 24)); err != nil || !h.Empty() || h.Size() != 24 {
		t.Fatalf("%+v, %v", h, err)
	}
}

func FuzzParsePageHeader(f *testing.F) {
	good := load(f, "pg15", "00000001000000000000000B.zst")
	f.Add(good[:40])
	f.Add(good[8192 : 8192+24])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParsePageHeader(b)
		if err != nil {
			if h != (PageHeader{}) || len(b) >= 40 {
				t.Fatalf("%+v, %v", h, err)
			}
			return
		}
		if h.Size() > len(b) || binary.LittleEndian.Uint16(b) != h.Magic || LSN(binary.LittleEndian.Uint64(b[8:])) != h.Addr {
			t.Fatalf("%+v", h)
		}
	})
}

func FuzzSegmentChecker(f *testing.F) {
	good := load(f, "pg15", "00000001000000000000000B.zst")
	f.Add(good[:40], uint32(0), false)
	f.Add(good[8192:8192+24], uint32(8192), false)
	f.Add(good[:4096], uint32(8192), true)
	f.Fuzz(func(t *testing.T, patch []byte, at uint32, partial bool) {
		data := bytes.Clone(good)
		if int64(at) < int64(len(data)) {
			copy(data[at:], patch)
		}
		name := "00000001000000000000000B"
		if partial {
			name += ".partial"
		}
		c, err := checkSegment(t, name, data, 0, 8192)
		if err == nil {
			if h := c.Header(); h.Addr != 0xB00000 || h.SegmentSize != mib {
				t.Fatalf("accepted with %+v", h)
			}
			return
		}
		var se *SegmentError
		if !errors.As(err, &se) || se.Offset < 0 || se.Offset > mib {
			t.Fatal(err)
		}
	})
}

func BenchmarkSegmentChecker(b *testing.B) {
	data := load(b, "pg15", "00000001000000000000000B.zst")
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := checkSegment(b, "00000001000000000000000B", data, 0, 131072); err != nil {
			b.Fatal(err)
		}
	}
}
