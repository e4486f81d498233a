package verify

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"agent/internal/compress"
	"agent/internal/repo"
)

// content is what is expected of the opened bytes of one pack.
type content struct {
	page   int64                // bytes of a page
	frames map[int64]repo.Frame // by offset
	// pages are those whose checksum is to be looked at, by raw offset / page:
	// two of them never begin in the same stretch.
	pages map[int64]expectedPage
	sums  map[int64]expectedSum // by raw offset
	order []int64               // of sums, those that are still to come
	named func(path int64) string
	// conflict is that two manifests say different things of it.
	conflict error

	// judge says whether a page is good; bad is called for each that is not.
	judge func(page []byte, block uint32) bool
	bad   func(path int64, block uint32)

	rest []byte       // of a page that goes on in the next frame
	of   expectedPage // which that is
}

type expectedPage struct {
	shift int64 // of its beginning behind the multiple of the page's size
	block uint32
	path  int64
}

type expectedSum struct {
	length int64
	sum    [16]byte
	path   int64
}

func newContent(page int64) *content {
	return &content{
		page: page, frames: make(map[int64]repo.Frame), pages: make(map[int64]expectedPage), sums: make(map[int64]expectedSum),
	}
}

// expect takes what plans wrote down.
func (c *content) expect(b []byte) error {
	for len(b) > 0 {
		kind := b[0]
		n := 4
		if kind == expectSum {
			n = 3
		}
		v, rest, err := numbers(b[1:], n)
		if err != nil {
			return err
		}
		b = rest
		switch kind {
		case expectFrame:
			f := repo.Frame{Offset: v[0], Length: v[1], RawOffset: v[2], RawLen: v[3]}
			b = b[copy(f.Ending[:], b):]
			if have, ok := c.frames[f.Offset]; ok && have != f {
				c.conflict = fmt.Errorf("manifests say different things of the frame at %d", f.Offset)
			}
			c.frames[f.Offset] = f
		case expectPages:
			for at := int64(0); at < v[1]; at += c.page {
				raw := v[0] + at
				c.pages[raw/c.page] = expectedPage{shift: raw % c.page, block: uint32(v[2] + at/c.page), path: v[3]}
			}
		case expectSum:
			s := expectedSum{length: v[1], path: v[2]}
			b = b[copy(s.sum[:], b):]
			c.sums[v[0]] = s
		default:
			return errPlan
		}
	}
	return nil
}

// check reads all frames of the pack. Its error is that the manifests do not fit
// to it, that it cannot be decoded, or that it could not be read to its end.
func (c *content) check(opened io.Reader) error {
	if c.conflict != nil {
		return c.conflict
	}
	c.order = slices.Sorted(maps.Keys(c.sums))
	split := compress.NewSplitter(opened)
	var dec compress.Decoder
	var raw []byte
	var offset, at int64
	met := 0
	for {
		frame, err := split.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("frame at %d: %w", offset, err)
		}
		if raw, err = dec.AppendRaw(raw[:0], frame); err != nil {
			return fmt.Errorf("frame at %d: %w", offset, err)
		}
		if want, ok := c.frames[offset]; ok {
			met++
			if !want.Proves(frame) || want.RawOffset != at || want.RawLen != int64(len(raw)) {
				return fmt.Errorf("the frame at %d is not the one that the manifest names", offset)
			}
		}
		c.look(at, raw)
		if err := c.whole(at, raw); err != nil {
			return err
		}
		offset, at = offset+int64(len(frame)), at+int64(len(raw))
	}
	if met != len(c.frames) {
		return fmt.Errorf("%d frames that the manifest names are not where it says", len(c.frames)-met)
	}
	return nil
}

// look judges the pages in the raw bytes of a frame, which begin at a raw offset.
func (c *content) look(at int64, raw []byte) {
	if len(c.rest) > 0 {
		n := min(int(c.page)-len(c.rest), len(raw))
		if c.rest = append(c.rest, raw[:n]...); int64(len(c.rest)) == c.page {
			c.judged(c.rest, c.of)
			c.rest = c.rest[:0]
		}
	}
	end := at + int64(len(raw))
	for slot := at / c.page; slot*c.page < end; slot++ {
		p, ok := c.pages[slot]
		begin := slot*c.page + p.shift
		switch {
		case !ok || begin < at || begin >= end:
		case begin+c.page <= end:
			c.judged(raw[begin-at:begin-at+c.page], p)
		default:
			c.rest, c.of = append(c.rest[:0], raw[begin-at:]...), p
		}
	}
}

func (c *content) judged(page []byte, p expectedPage) {
	if c.judge != nil && !c.judge(page, p.block) {
		c.bad(p.path, p.block)
	}
}

// whole compares the hashes of the files that lie in the raw bytes of a frame as
// a whole. Others would have to be put together, and have the checksums of their
// frames.
func (c *content) whole(at int64, raw []byte) error {
	end := at + int64(len(raw))
	for ; len(c.order) > 0 && c.order[0] < end; c.order = c.order[1:] {
		begin := c.order[0]
		s := c.sums[begin]
		if begin < at || begin+s.length > end {
			continue
		}
		if sum := sha256.Sum256(raw[begin-at : begin-at+s.length]); [16]byte(sum[:16]) != s.sum {
			return fmt.Errorf("what the manifest says is %s is another file", c.named(s.path))
		}
	}
	return nil
}
