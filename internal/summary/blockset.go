package summary

import (
	"iter"
	"math/bits"
	"slices"
	"sort"
)

// chunkBlocks is how many blocks one chunk of a set describes.
const chunkBlocks = 1 << 16

// sparse is how many blocks a chunk lists before it becomes a bitmap: 32 bytes
// for each of them then.
const sparse = 256

// blockSet is a set of block numbers. Its memory is bounded by 32 bytes for
// each block and 8 KiB for each 512 MiB of a relation, whichever is less, and
// a few words for each chunk.
type blockSet struct {
	chunks []chunk // by their numbers
	recent int     // the chunk that was used last
	last   uint32  // the block that was added last
}

type chunk struct {
	no   uint32   // block / chunkBlocks
	list []uint16 // the blocks, ascending, until there are too many
	bits *[chunkBlocks / 64]uint64
}

// add puts a block into the set.
func (s *blockSet) add(block uint32) {
	if len(s.chunks) > 0 && block == s.last {
		return // it is in there: see limit
	}
	s.last = block
	s.chunk(block / chunkBlocks).add(uint16(block % chunkBlocks))
}

// chunk finds or makes a chunk.
func (s *blockSet) chunk(no uint32) *chunk {
	if s.recent < len(s.chunks) && s.chunks[s.recent].no == no {
		return &s.chunks[s.recent]
	}
	i := sort.Search(len(s.chunks), func(i int) bool { return s.chunks[i].no >= no })
	if i == len(s.chunks) || s.chunks[i].no != no {
		s.chunks = slices.Insert(s.chunks, i, chunk{no: no})
	}
	s.recent = i
	return &s.chunks[i]
}

func (c *chunk) add(at uint16) {
	if c.bits != nil {
		c.bits[at/64] |= 1 << (at % 64)
		return
	}
	i, found := len(c.list), false
	if i > 0 && at <= c.list[i-1] {
		i, found = slices.BinarySearch(c.list, at)
	}
	switch {
	case found:
	case len(c.list) < sparse:
		c.list = slices.Insert(c.list, i, at)
	default:
		c.bits = new([chunkBlocks / 64]uint64)
		for _, at := range c.list {
			c.bits[at/64] |= 1 << (at % 64)
		}
		c.list = nil
		c.bits[at/64] |= 1 << (at % 64)
	}
}

// limit removes the blocks from n on.
func (s *blockSet) limit(n uint32) {
	no, at := n/chunkBlocks, uint16(n%chunkBlocks)
	i := sort.Search(len(s.chunks), func(i int) bool { return s.chunks[i].no >= no })
	if i < len(s.chunks) && s.chunks[i].no == no && at > 0 {
		s.chunks[i].limit(at)
		i++
	}
	s.chunks = s.chunks[:i]
	if s.last >= n {
		// What was added last is no longer in there. Any block that is will do.
		for s.last = range s.all(0, n) {
			return
		}
		s.chunks = nil
	}
}

func (c *chunk) limit(at uint16) {
	if c.bits == nil {
		i, _ := slices.BinarySearch(c.list, at)
		c.list = c.list[:i]
		return
	}
	c.bits[at/64] &= 1<<(at%64) - 1
	clear(c.bits[at/64+1:])
}

// all gives the blocks in [from, to), ascending.
func (s *blockSet) all(from, to uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		i := sort.Search(len(s.chunks), func(i int) bool { return s.chunks[i].no >= from/chunkBlocks })
		for ; i < len(s.chunks) && s.chunks[i].no <= to/chunkBlocks; i++ {
			for block := range s.chunks[i].all() {
				if block >= to {
					return
				}
				if block >= from && !yield(block) {
					return
				}
			}
		}
	}
}

func (c *chunk) all() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		base := c.no * chunkBlocks
		for _, at := range c.list {
			if !yield(base + uint32(at)) {
				return
			}
		}
		if c.bits == nil {
			return
		}
		for i, word := range c.bits {
			for ; word != 0; word &= word - 1 {
				if !yield(base + uint32(i*64+bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}
