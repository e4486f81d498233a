package verify

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/repo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// packed is a pack of some frames, what a manifest says of them, and where they
// are.
type packed struct {
	body   []byte
	frames []repo.Frame
	raw    []byte
}

func newPacked(t testing.TB, parts ...[]byte) packed {
	t.Helper()
	enc, err := compress.NewEncoder(compress.Setting{})
	if err != nil {
		t.Fatal(err)
	}
	var p packed
	for _, part := range parts {
		frame, err := enc.AppendFrame(nil, part)
		if err != nil {
			t.Fatal(err)
		}
		p.frames = append(p.frames, repo.Frame{
			Offset: int64(len(p.body)), Length: int64(len(frame)), RawOffset: int64(len(p.raw)), RawLen: int64(len(part)),
			Ending: [4]byte(frame[len(frame)-4:]),
		})
		p.body, p.raw = append(p.body, frame...), append(p.raw, part...)
	}
	return p
}

const testPage = 512

// page is one whose bytes say which block it is.
func page(block uint32) []byte {
	return bytes.Repeat([]byte{byte(block), byte(block >> 8)}, testPage/2)
}

func testJudge(page []byte, block uint32) bool {
	return page[0] == byte(block) && page[len(page)-1] == byte(block>>8)
}

var testPack = repo.PackID{Backup: "20261120T101530Z-k3v7qa", Number: 3}

// What manifests say of a pack is compared with it: its frames, its pages, the
// files in it.
func TestContent(t *testing.T) {
	file := []byte("some settings")
	p := newPacked(t, bytes.Join([][]byte{page(7), page(8), file, make([]byte, 100)}, nil), page(300), page(9)[:200], page(9)[200:])
	sum := sha256.Sum256(file)
	fileAt := int64(2 * testPage)
	for what, c := range map[string]struct {
		change func(t *testing.T, plans *plans)
		body   []byte
		err    string
		bad    string
	}{
		"as it is": {},
		"another frame": {change: func(t *testing.T, plans *plans) {
			f := p.frames[1]
			f.Ending[0] ^= 1
			add(t, plans.addFrame(testPack, f))
		}, err: "different things"},
		"a frame elsewhere": {change: func(t *testing.T, plans *plans) {
			f := p.frames[1]
			f.Offset++
			add(t, plans.addFrame(testPack, f))
		}, err: "1 frames"},
		"behind the end": {change: func(t *testing.T, plans *plans) {
			add(t, plans.addFrame(testPack, repo.Frame{Offset: 1 << 20, Length: 10, RawOffset: 1 << 21, RawLen: 5}))
		}, err: "1 frames"},
		"frames missing":   {body: p.body[:p.frames[2].Offset], err: "2 frames"},
		"cut off":          {body: p.body[:len(p.body)-1], err: "frame at"},
		"flipped":          {body: flipped(p.body, int(p.frames[1].Offset)+20), err: "frame at"},
		"frames exchanged": {body: bytes.Join([][]byte{p.body[:p.frames[2].Offset], p.body[p.frames[3].Offset:], p.body[p.frames[2].Offset:p.frames[3].Offset]}, nil), err: "not the one"},
		"another block":    {change: func(t *testing.T, plans *plans) { add(t, plans.addPages(testPack, testPage, testPage, 80, 0)) }, bad: "base/1/2 block 80"},
		"another page": {change: func(t *testing.T, plans *plans) {
			add(t, plans.addPages(testPack, p.frames[1].RawOffset, testPage, 3, 0))
		}, bad: "base/1/2 block 3"},
		"one over the edge": {change: func(t *testing.T, plans *plans) {
			add(t, plans.addPages(testPack, p.frames[2].RawOffset, testPage, 10, 0))
		}, bad: "base/1/2 block 10"},
		"another file": {change: func(t *testing.T, plans *plans) {
			add(t, plans.addSum(testPack, fileAt, int64(len(file)), [16]byte{1}, 0))
		}, err: "base/1/2 is another file"},
	} {
		t.Run(what, func(t *testing.T) {
			plans := newPlans(t.TempDir())
			defer plans.close()
			path, err := plans.path("base/1/2")
			if err != nil || path != 0 {
				t.Fatalf("%d, %v", path, err)
			}
			for range 2 { // two manifests say the same
				for _, f := range p.frames {
					add(t, plans.addFrame(testPack, f))
				}
				add(t, plans.addPages(testPack, 0, 2*testPage, 7, path))
				add(t, plans.addPages(testPack, p.frames[1].RawOffset, testPage, 300, path))
				add(t, plans.addPages(testPack, p.frames[2].RawOffset, testPage, 9, path))
				add(t, plans.addSum(testPack, fileAt, int64(len(file)), [16]byte(sum[:16]), path))
			}
			if c.change != nil {
				c.change(t, plans)
			}
			content, err := plans.load(testPack, testPage)
			if err != nil {
				t.Fatal(err)
			}
			content.judge = testJudge
			found := content.collect()
			body := p.body
			if c.body != nil {
				body = c.body
			}
			err = content.check(bytes.NewReader(body))
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v instead of %q", err, c.err)
			}
			var bad []string
			for _, b := range *found {
				bad = append(bad, fmt.Sprintf("%s block %d", plans.named(b.path), b.block))
			}
			if got := strings.Join(bad, " "); got != c.bad {
				t.Errorf("bad pages %q instead of %q", got, c.bad)
			}
		})
	}
}

func add(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x40
	return b
}

// Whatever is written down of many packs comes back for each of them, also what
// did not stay in memory.
func TestPlans(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		plans := newPlans(dir)
		defer plans.close()
		want := make(map[uint32]map[int64]expectedPage)
		n := rapid.IntRange(0, 400).Draw(t, "runs")
		for i := range n {
			pack := rapid.Uint32Range(0, 3).Draw(t, "pack")
			path, err := plans.path(strings.Repeat("x", i%7))
			if err != nil {
				t.Fatal(err)
			}
			raw, block := int64(i)*10*testPage+int64(i%testPage), rapid.Uint32().Draw(t, "block")
			pages := rapid.Int64Range(1, 9).Draw(t, "pages")
			if err := plans.addPages(repo.PackID{Number: pack}, raw, pages*testPage, block, path); err != nil {
				t.Fatal(err)
			}
			if want[pack] == nil {
				want[pack] = make(map[int64]expectedPage)
			}
			for p := range pages {
				want[pack][(raw+p*testPage)/testPage] = expectedPage{shift: raw % testPage, block: uint32(int64(block) + p), path: path}
			}
		}
		for pack := range uint32(4) {
			c, err := plans.load(repo.PackID{Number: pack}, testPage)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.pages) != len(want[pack]) {
				t.Fatalf("of pack %d are %d pages known and not %d", pack, len(c.pages), len(want[pack]))
			}
			for slot, p := range want[pack] {
				if c.pages[slot] != p {
					t.Fatalf("of pack %d: %+v instead of %+v", pack, c.pages[slot], p)
				}
			}
		}
	})
}
