package summary

import (
	"encoding/binary"
	"math"
	"math/bits"

	"agent/internal/postgres/xlog"
)

// format is the version of the encoding, its first byte.
const format = 1

// maxName is the longest name of a restore point in bytes (MAXFNAMELEN in
// src/include/access/xlog_internal.h).
const maxName = 64

// encoder appends the primitives of docs/format.md.
type encoder struct{ b []byte }

func (e *encoder) byte(v byte)   { e.b = append(e.b, v) }
func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }

// Encode gives the bytes of the summary, as docs/format.md describes them. The
// same summary has the same bytes.
func (s *Summary) Encode() []byte {
	e := &encoder{}
	e.byte(format)
	e.uint(uint64(s.Version))
	e.uint(s.SystemID)
	e.uint(uint64(s.Major))
	e.byte(byte(bits.TrailingZeros32(uint32(s.Size))))
	e.uint(s.number())
	e.uint(uint64(s.Timeline))
	e.uint(uint64(s.Until - s.Timeline))
	e.b = append(e.b, s.SHA256[:]...)
	e.byte(byte(s.Ending))
	e.byte(byte(s.Doubts))
	e.uint(s.Records)
	if s.Records > 0 {
		e.uint(uint64(s.First - s.Start))
		e.uint(uint64(s.First - s.FirstPrev))
		e.uint(uint64(s.Last - s.First))
	}
	e.uint(uint64(s.End - s.Start))
	if s.Overwrite {
		e.byte(1)
	} else {
		e.byte(0)
	}
	e.piece(s.Head)
	e.piece(s.Tail)
	if s.Tail.Length > 0 {
		e.uint(uint64(s.TailStart - s.Start))
	}
	e.commits(s)
	e.table(s.Table)
	return e.b
}

func (e *encoder) piece(p xlog.Piece) {
	e.uint(uint64(p.Length))
	if p.Length > 0 {
		e.uint(uint64(p.Left))
		e.b = append(e.b, p.Bytes...)
	}
}

func (e *encoder) commits(s *Summary) {
	if s.Newest.LSN == 0 {
		e.byte(0)
	} else {
		e.byte(1)
		e.uint(uint64(s.Newest.LSN - s.Start))
		e.int(s.Newest.Micros)
	}
	e.uint(uint64(len(s.RestorePoints)))
	for _, p := range s.RestorePoints {
		e.uint(uint64(p.LSN - s.Start))
		e.int(p.Micros)
		e.uint(uint64(len(p.Name)))
		e.b = append(e.b, p.Name...)
	}
}

func (e *encoder) table(t *Table) {
	keys := t.Keys()
	e.uint(uint64(len(keys)))
	var before Key
	for _, k := range keys {
		e.int(int64(k.Tablespace) - int64(before.Tablespace))
		e.int(int64(k.Database) - int64(before.Database))
		e.int(int64(k.Relation) - int64(before.Relation))
		e.byte(byte(k.Fork))
		before = k
		f := t.forks[k]
		e.uint(uint64(f.limit + 1)) // NoLimit is 0
		e.runs(&f.blocks)
	}
}

// runs writes the set as runs of blocks in a row: the length of each, and its
// distance from the end of the one before. Length 0 ends them.
func (e *encoder) runs(s *blockSet) {
	var first, next, end uint32 // of the run at hand, behind it, behind the one before
	for block := range s.all(0, math.MaxUint32) {
		if block != next || next == first {
			e.run(first, next, end)
			first, end = block, next
		}
		next = block + 1
	}
	e.run(first, next, end)
	e.byte(0)
}

// run writes the run [first, next), unless it is empty.
func (e *encoder) run(first, next, end uint32) {
	if next > first {
		e.uint(uint64(next - first))
		e.uint(uint64(first - end))
	}
}
