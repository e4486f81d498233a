package postgres

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// plainChecksum is section 3.2 of our notes word by word: slow, but hard to
// get wrong.
func plainChecksum(page []byte, block uint32) uint16 {
	s := checksumSeeds()
	b := bytes.Clone(page)
	b[8], b[9] = 0, 0
	for row := range len(b)/128 + 2 {
		for j := range s {
			v := uint32(0)
			if row < len(b)/128 {
				v = binary.LittleEndian.Uint32(b[row*128+j*4:])
			}
			x := s[j] ^ v
			s[j] = x*16777619 ^ (x >> 17)
		}
	}
	var r uint32
	for _, v := range s {
		r ^= v
	}
	return uint16((r^block)%65535) + 1
}

func TestPageChecksumVectors(t *testing.T) {
	line := regexp.MustCompile(`(?m)^(\w+)\.bin block=(\d+) pd_lsn=(\S+) pd_checksum=0x(\w+) .* as_block_131072=0x(\w+) as_block_131075=0x(\w+)$`)
	vectors := line.FindAllSubmatch(load(t, "pages", "vectors.txt"), -1)
	if len(vectors) != 4 {
		t.Fatalf("%d vectors", len(vectors))
	}
	for _, v := range vectors {
		name := string(v[1])
		page := load(t, "pages", name+".bin.zst")
		block, err := strconv.ParseUint(string(v[2]), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		for i, block := range []uint32{uint32(block), 131072, 131075} {
			if got, want := fmt.Sprintf("%04X", PageChecksum(page, block)), string(v[4+i]); got != want {
				t.Errorf("%s as block %d: %s, want %s", name, block, got, want)
			}
		}
		lsn, err := ParseLSN(string(v[3]))
		if err != nil || PageLSN(page) != lsn {
			t.Errorf("%s: PageLSN %v, want %v, %v", name, PageLSN(page), lsn, err)
		}
		if got := CheckPage(page, uint32(block), 0, 0); got != PageValid {
			t.Errorf("%s is %v", name, got)
		}
		if got := CheckPage(page, uint32(block)+1, lsn+1, 1<<40); got != PageBad {
			t.Errorf("%s as another block is %v", name, got)
		}
	}
	if got := PageChecksum(make([]byte, 8192), 0); got != 0xC6AA {
		t.Errorf("zeros have %04X", got)
	}
	for _, name := range []string{"16384_vm.before.zst", "16384_vm.after.zst"} {
		if got := CheckPage(load(t, "pages", name), 0, 0, 0); got != PageValid {
			t.Errorf("%s is %v", name, got)
		}
	}
}

func TestPageChecksumEqualsPlain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := 128 * rapid.IntRange(1, 64).Draw(t, "rows")
		page := rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "page")
		block := rapid.Uint32().Draw(t, "block")
		before := bytes.Clone(page)
		if got, want := PageChecksum(page, block), plainChecksum(page, block); got != want {
			t.Fatalf("%04X, want %04X", got, want)
		}
		if !bytes.Equal(before, page) {
			t.Fatal("the page was changed")
		}
	})
	for _, n := range []int{0, 1, 127, 129, 8191} {
		if got := PageChecksum(make([]byte, n), 0); got != 0 {
			t.Errorf("%d bytes: %04X, want 0", n, got)
		}
	}
}

func TestCheckPage(t *testing.T) {
	heap := load(t, "pages", "heap.bin.zst") // block 3, LSN 0/69B3C0
	const lsn LSN = 0x69B3C0
	torn := bytes.Clone(heap)
	clear(torn[4096:])
	half := bytes.Clone(heap)
	clear(half[:4096])
	empty := make([]byte, 8192)
	stray := bytes.Clone(empty)
	stray[8000] = 1
	// A new page with bytes in it is damaged, whatever its checksum says.
	summed := bytes.Clone(stray)
	binary.LittleEndian.PutUint16(summed[8:], PageChecksum(summed, 0))
	for _, c := range []struct {
		what           string
		page           []byte
		block          uint32
		start, current LSN
		want           PageVerdict
	}{
		{"right", heap, 3, 0, 0, PageValid},
		{"zero", empty, 9, 1, 0, PageZero},
		{"torn before the backup", torn, 3, lsn + 1, 1 << 40, PageBad},
		{"torn at its start", torn, 3, lsn, lsn, PageInFlight},
		{"torn since", torn, 3, lsn - 100, lsn + 100, PageInFlight},
		{"LSN from the future", torn, 3, lsn - 100, lsn - 1, PageBad},
		{"only the second half", half, 3, 1, 1 << 40, PageBad},
		{"stray byte", stray, 0, 1, 1 << 40, PageBad},
		{"stray byte with checksum", summed, 0, 1, 1 << 40, PageBad},
		{"other block", heap, 4, lsn + 1, 1 << 40, PageBad},
		{"short", heap[:100], 3, 0, 1 << 40, PageBad},
		{"nothing", nil, 0, 0, 0, PageBad},
	} {
		got := CheckPage(c.page, c.block, c.start, c.current)
		if got != c.want || got.OK() != (c.want != PageBad) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	for v, want := range map[PageVerdict]string{PageBad: "bad", PageValid: "valid", PageZero: "zero", PageInFlight: "in flight"} {
		if v.String() != want {
			t.Errorf("%d is %q", v, v)
		}
	}
}

func TestIsNewPage(t *testing.T) {
	if !IsNewPage(make([]byte, 8192)) || IsNewPage(load(t, "pages", "heap.bin.zst")) || IsNewPage(nil) {
		t.Fatal("IsNewPage")
	}
	if PageLSN(make([]byte, 23)) != 0 {
		t.Fatal("PageLSN of a short page")
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 2, 7, 8, 63, 64, 65, 8192} {
		b := make([]byte, n)
		if !IsZero(b) {
			t.Errorf("%d zeros are not zero", n)
		}
		for i := range b {
			b[i] = 1
			if IsZero(b) {
				t.Errorf("byte %d of %d was not seen", i, n)
			}
			b[i] = 0
		}
		for i := range b {
			b[i] = 5
		}
		if n > 0 && IsZero(b) {
			t.Errorf("%d fives are zero", n)
		}
	}
}

func FuzzCheckPage(f *testing.F) {
	// Short pages follow the same rules and are tried faster.
	short := load(f, "pages", "heap.bin.zst")[:256]
	binary.LittleEndian.PutUint16(short[8:], PageChecksum(short, 3))
	f.Add(short, uint32(3), uint64(0), uint64(1<<40))
	f.Add(make([]byte, 128), uint32(0), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, page []byte, block uint32, start, current uint64) {
		v := CheckPage(page, block, LSN(start), LSN(current))
		if v == PageValid && PageChecksum(page, block) != binary.LittleEndian.Uint16(page[8:]) ||
			v == PageZero && !bytes.Equal(page, make([]byte, len(page))) ||
			v == PageInFlight && (PageLSN(page) < LSN(start) || PageLSN(page) > LSN(current)) {
			t.Fatalf("%v", v)
		}
	})
}

// FuzzPageChecksum compares the two ways of taking a checksum, the processor's
// and Go's, with the plain one, wherever the page lies in memory.
func FuzzPageChecksum(f *testing.F) {
	f.Add(load(f, "pages", "heap.bin.zst"), uint8(0), uint32(3))
	f.Add(make([]byte, 256), uint8(1), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, shift uint8, block uint32) {
		page := b[min(len(b), int(shift)):]
		page = page[:len(page)/checksumRow*checksumRow]
		before := bytes.Clone(page)
		here, plain := checksumSeeds(), checksumSeeds()
		foldRows(page, &here)
		foldRowsGo(page, &plain)
		if here != plain {
			t.Fatalf("columns are %08x, in Go %08x", here, plain)
		}
		if !bytes.Equal(before, page) {
			t.Fatal("the page was changed")
		}
		if len(page) == 0 {
			return
		}
		if got, want := PageChecksum(page, block), plainChecksum(page, block); got != want {
			t.Fatalf("%04X, want %04X", got, want)
		}
	})
}

func BenchmarkFoldRowsGo(b *testing.B) {
	page := load(b, "pages", "heap.bin.zst")
	b.SetBytes(int64(len(page)))
	columns := checksumSeeds()
	for b.Loop() {
		foldRowsGo(page, &columns)
	}
}

func BenchmarkPageChecksum(b *testing.B) {
	page := load(b, "pages", "heap.bin.zst")
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		if PageChecksum(page, 3) != 0xE9D9 {
			b.Fatal("wrong checksum")
		}
	}
}

func BenchmarkIsZero(b *testing.B) {
	page := make([]byte, 8192)
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		if !IsZero(page) {
			b.Fatal("not zero")
		}
	}
}
