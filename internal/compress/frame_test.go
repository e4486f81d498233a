package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

func TestXXH32Vectors(t *testing.T) {
	// Known values of XXH32 with seed 0.
	for text, want := range map[string]uint32{
		"":  0x02CC5D05,
		"a": 0x550D7456,
		"Nobody inspects the spammish repetition": 0xE2293B2F,
	} {
		if got := xxh32([]byte(text)); got != want {
			t.Errorf("xxh32(%q) = %08x, not %08x", text, got, want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	all := samples()
	few := map[string][]byte{}
	for _, name := range []string{"empty", "pages 1", "noise 1025", "zeros 65536", "pages 131073"} {
		few[name] = all[name]
	}
	for _, s := range settings() {
		t.Run(s.String(), func(t *testing.T) { roundTrip(t, s, all) })
	}
	for _, s := range highest() {
		t.Run(s.String(), func(t *testing.T) { roundTrip(t, s, few) })
	}
}

// roundTrip encodes all contents with one encoder, and decodes them with one
// decoder and with the libraries' own readers.
func roundTrip(t *testing.T, s Setting, contents map[string][]byte) {
	t.Helper()
	e := newEncoder(t, s)
	var d Decoder
	for name, raw := range contents {
		frame, err := e.AppendFrame([]byte("before"), raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		frame, ok := bytes.CutPrefix(frame, []byte("before"))
		if !ok {
			t.Fatalf("%s: what was in dst before is lost", name)
		}
		if limit := len(raw) + len(raw)/1000 + 64; len(frame) > limit {
			t.Errorf("%s: frame of %d bytes for %d", name, len(frame), len(raw))
		}
		h, err := parseFrameHeader(frame)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !h.checksum || !h.hasContent || h.content != uint64(len(raw)) || h.window > MaxFrame {
			t.Errorf("%s: header %+v", name, h)
		}
		got, err := d.AppendRaw([]byte("before"), frame)
		if err != nil || !bytes.Equal(got, append([]byte("before"), raw...)) {
			t.Fatalf("%s: decoded differently: %v", name, err)
		}
		got, err = io.ReadAll(libraryReader(t, h.method, frame))
		if err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("%s: the library reads it differently: %v", name, err)
		}
	}
}

func libraryReader(t testing.TB, m Method, frame []byte) io.Reader {
	t.Helper()
	if m == LZ4 {
		return lz4.NewReader(bytes.NewReader(frame))
	}
	r, err := zstd.NewReader(bytes.NewReader(frame), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEncoderUsesGivenCapacity(t *testing.T) {
	raw := pageLike(MaxFrame)
	for _, s := range settings() {
		e := newEncoder(t, s)
		pack := make([]byte, 7, 3*MaxFrame)
		frame, err := e.AppendFrame(pack, raw)
		if err != nil {
			t.Fatal(err)
		}
		if &frame[0] != &pack[0] {
			t.Errorf("%v: moved although there was room", s)
		}
		// Short of room for the worst case, the result is the same.
		tight, err := e.AppendFrame(make([]byte, 7, len(frame)), raw)
		if err != nil || !bytes.Equal(tight, frame) {
			t.Errorf("%v: other frame without room: %v", s, err)
		}
	}
}

func TestEncoderRefusesTooMuch(t *testing.T) {
	for _, s := range settings() {
		dst, err := newEncoder(t, s).AppendFrame([]byte("x"), make([]byte, MaxFrame+1))
		if err == nil || string(dst) != "x" {
			t.Errorf("%v: %q, %v", s, dst, err)
		}
	}
}

func TestNoneUsesRLEButNotFirst(t *testing.T) {
	frame := appendFrame(t, Setting{Method: None}, nil, make([]byte, MaxFrame))
	if len(frame) > zstdMaxBlock+100 || len(frame) < zstdMaxBlock {
		t.Fatalf("1 MiB of zeros took %d bytes", len(frame))
	}
}

// Levels must do something: a higher one that is not smaller is a wrong map.
func TestHigherLevelsShrink(t *testing.T) {
	raw := pageLike(MaxFrame)
	for _, levels := range [][]Setting{
		{{Method: None}, {Method: Zstd}, {Zstd, 9}},
		{{Method: None}, {Method: LZ4}, {LZ4, 2}, {LZ4, 3}, {LZ4, 6}},
	} {
		last := 2 * MaxFrame
		for _, s := range levels {
			n := len(appendFrame(t, s, nil, raw))
			if n >= last {
				t.Errorf("%v gives %d bytes, the level below %d", s, n, last)
			}
			last = n
		}
	}
}

func TestDecoderStaysInsideCapacity(t *testing.T) {
	raw := pageLike(200000)
	for _, s := range settings() {
		frame := appendFrame(t, s, nil, raw)
		memory := bytes.Repeat([]byte{0xEE}, len(raw)+100)
		var d Decoder
		got, err := d.AppendRaw(memory[:0:len(raw)], frame)
		if err != nil || !bytes.Equal(got, raw) || &got[0] != &memory[0] {
			t.Fatalf("%v: %v", s, err)
		}
		if !bytes.Equal(memory[len(raw):], bytes.Repeat([]byte{0xEE}, 100)) {
			t.Errorf("%v: wrote beyond the capacity given", s)
		}
	}
}

func TestDecoderRefuses(t *testing.T) {
	raw := pageLike(5000)
	z, l := appendFrame(t, Setting{}, nil, raw), appendFrame(t, Setting{Method: LZ4}, nil, raw)
	withFlags := func(frame []byte, at int, set, unset byte) []byte {
		c := bytes.Clone(frame)
		c[at] = c[at]&^unset | set
		if h, err := parseFrameHeader(c); h.method == LZ4 && err != nil && h.size > 0 {
			c[h.size-1] = byte(xxh32(c[4:h.size-1]) >> 8) // right again for these flags
		}
		return c
	}
	big := binary.LittleEndian.AppendUint32(nil, zstdMagic)
	big = append(big, 3<<6|zstdFlagSingle|zstdFlagChecksum)
	big = binary.LittleEndian.AppendUint64(big, 1<<60)
	wide := binary.LittleEndian.AppendUint32(nil, zstdMagic)
	wide = append(wide, 2<<6|zstdFlagChecksum, 0xF8, 1, 0, 0, 0)
	for name, c := range map[string]struct {
		frame []byte
		want  string
	}{
		"nothing":            {nil, "cut off"},
		"three bytes":        {z[:3], "cut off"},
		"other magic":        {[]byte("PGDMP and so on"), "no zstd or lz4 frame"},
		"skippable":          {AppendSkippable(nil, raw), "no zstd or lz4 frame"},
		"zstd cut":           {z[:len(z)-1], "cut off"},
		"lz4 cut":            {l[:len(l)-1], "cut off"},
		"zstd and more":      {append(bytes.Clone(z), 0), "1 bytes behind"},
		"lz4 and more":       {append(bytes.Clone(l), 0), "1 bytes behind"},
		"two zstd frames":    {append(bytes.Clone(z), z...), "behind the end"},
		"two lz4 frames":     {append(bytes.Clone(l), l...), "behind the end"},
		"zstd too big":       {big, "raw bytes, more than"},
		"zstd window":        {wide, "window of"},
		"zstd no checksum":   {withFlags(z, 4, 0, zstdFlagChecksum), "without checksum"},
		"zstd reserved":      {withFlags(z, 4, zstdFlagReserved, 0), "reserved"},
		"zstd wrong sum":     {withFlags(z, len(z)-1, z[len(z)-1]^1, 0xFF), "zstd frame"},
		"lz4 no checksum":    {withFlags(l, 4, 0, lz4FlagChecksum), "without checksum"},
		"lz4 no size":        {withFlags(l, 4, 0, lz4FlagSize), "without content size"},
		"lz4 dictionary":     {withFlags(l, 4, lz4FlagDictionary, 0), "dictionary"},
		"lz4 reserved":       {withFlags(l, 4, lz4FlagReserved, 0), "reserved"},
		"lz4 wrong header":   {withHeaderSum(l), "header"},
		"lz4 wrong sum":      {withFlags(l, len(l)-1, l[len(l)-1]^1, 0xFF), "checksum"},
		"lz4 smaller":        {withFlags(l, 6, 1, 0xFF), "lz4"},
		"lz4 too big":        {withFlags(l, 13, 1, 0), "raw bytes, more than"},
		"zstd other content": {withFlags(z, 5, z[5]^1, 0xFF), "zstd frame"},
	} {
		var d Decoder
		dst, err := d.AppendRaw([]byte("x"), c.frame)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, wanted %q", name, err, c.want)
		}
		if string(dst) != "x" {
			t.Errorf("%s: dst became %q", name, dst)
		}
	}
}

func withHeaderSum(frame []byte) []byte {
	c := bytes.Clone(frame)
	c[lz4HeaderSize-1] ^= 1
	return c
}

// Any flipped bit is found, or the raw bytes are the same all the same (bits
// without meaning, a match with an equal one elsewhere).
func TestDecoderFindsEveryFlippedBit(t *testing.T) {
	raw := pageLike(1500)
	for _, s := range settings() {
		frame := appendFrame(t, s, nil, raw)
		var d Decoder
		for bit := range len(frame) * 8 {
			frame[bit/8] ^= 1 << (bit % 8)
			got, err := d.AppendRaw(nil, frame)
			frame[bit/8] ^= 1 << (bit % 8)
			switch {
			case err == nil && !bytes.Equal(got, raw):
				t.Fatalf("%v: bit %d gives other bytes", s, bit)
			case err != nil && (!errors.Is(err, ErrCorrupt) || errors.Is(err, io.EOF)):
				t.Fatalf("%v: bit %d: %v", s, bit, err)
			}
		}
	}
}

// Of our own code; the zstd library now and then makes its buffers bigger.
func TestSteadyStateDoesNotAllocate(t *testing.T) {
	raw := pageLike(100000)
	for _, s := range []Setting{{Method: LZ4}, {LZ4, 2}, {LZ4, 3}, {Method: None}} {
		e := newEncoder(t, s)
		frame := make([]byte, 0, 2*len(raw))
		out := make([]byte, 0, len(raw)+zstdSlack)
		var d Decoder
		allocs := testing.AllocsPerRun(20, func() {
			f, err := e.AppendFrame(frame, raw)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.AppendRaw(out, f); err != nil {
				t.Fatal(err)
			}
		})
		if allocs > 0 {
			t.Errorf("%v: %v allocations per frame", s, allocs)
		}
	}
}
