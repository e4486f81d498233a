package summary

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
)

var (
	// ErrMalformed is wrapped by errors about bytes that are no summary.
	ErrMalformed = errors.New("malformed WAL summary")
	// ErrNewer says that the summary was encoded by a newer version of the agent.
	ErrNewer = errors.New("WAL summary of a newer version of the agent")
)

// blockRefBytes is the least that a record spends on a block that it names:
// id, flags, length and number. It bounds how many blocks a summary can have.
const blockRefBytes = 8

// Decode reads what Encode wrote. Its memory is bounded by len(b) and by what
// a segment of that size can touch.
func Decode(b []byte) (*Summary, error) {
	d := &decoder{b: b}
	if v := d.byte(); d.err == nil && v != format {
		return nil, fmt.Errorf("decode: %w: format %d", ErrNewer, v)
	}
	s := d.summary()
	if d.err == nil && len(d.b) > 0 {
		d.bad("%d bytes behind its end", len(d.b))
	}
	if d.err != nil {
		return nil, d.err
	}
	return s, nil
}

// decoder takes the primitives back. The first error stays, and all that is
// read after it is zero.
type decoder struct {
	b    []byte
	left uint64 // blocks that may still come
	err  error
}

func (d *decoder) bad(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
		d.b = nil
	}
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad("it ends too early")
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// upTo is a byte that must not be larger than most.
func (d *decoder) upTo(most byte, what string) byte {
	v := d.byte()
	if v > most {
		d.bad("%s is %d", what, v)
		return 0
	}
	return v
}

// uint is a number that must not be larger than most.
func (d *decoder) uint(most uint64, what string) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad("%s is no number", what)
		return 0
	}
	d.b = d.b[n:]
	if v > most {
		d.bad("%s is %d, beyond %d", what, v, most)
		return 0
	}
	return v
}

func (d *decoder) int(what string) int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad("%s is no number", what)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes is a copy of the next n bytes.
func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad("it ends too early")
		return nil
	}
	v := append([]byte(nil), d.b[:n]...)
	d.b = d.b[n:]
	return v
}

func (d *decoder) summary() *Summary {
	s := &Summary{
		Version:  int(d.uint(math.MaxInt32, "version of the decoder")),
		SystemID: d.uint(math.MaxUint64, "system identifier"),
		Major:    int(d.uint(math.MaxInt32, "major")),
	}
	s.Size = 1 << d.upTo(30, "logarithm of the segment size")
	if !s.Size.Valid() {
		d.bad("a segment of %d bytes", uint32(s.Size))
	}
	size := uint64(s.Size)
	s.Start = postgres.LSN(d.uint(math.MaxUint64/size-1, "number of the segment") * size)
	s.Timeline = postgres.Timeline(d.uint(math.MaxUint32, "timeline"))
	s.Until = s.Timeline + postgres.Timeline(d.uint(math.MaxUint32-uint64(s.Timeline), "last timeline"))
	copy(s.SHA256[:], d.bytes(uint64(len(s.SHA256))))
	s.Ending = xlog.Ending(d.upTo(byte(xlog.NotOwn), "ending"))
	s.Doubts = Doubts(d.upTo(byte(doubts-1), "set of doubts"))
	if s.Records = d.uint(size, "number of records"); s.Records > 0 {
		s.First = s.Start + d.offset(size)
		s.FirstPrev = s.First - postgres.LSN(d.uint(uint64(s.First), "distance of the record before"))
		s.Last = s.First + d.offset(size)
	}
	s.End = s.Start + d.offset(size)
	s.Overwrite = d.upTo(1, "overwrite") == 1
	s.Head = d.piece(size)
	if s.Tail = d.piece(size); s.Tail.Length > 0 {
		s.TailStart = s.Start + d.offset(size)
	}
	d.commits(s)
	d.left = size / blockRefBytes
	s.Table = d.table()
	return s
}

// offset is a position in the segment or its end.
func (d *decoder) offset(size uint64) postgres.LSN {
	return postgres.LSN(d.uint(size, "position in the segment"))
}

func (d *decoder) piece(size uint64) (p xlog.Piece) {
	if p.Length = uint32(d.uint(size, "length of a piece")); p.Length > 0 {
		p.Left = uint32(d.uint(math.MaxUint32, "rest behind a piece"))
		p.Bytes = d.bytes(min(uint64(p.Length), xlog.MaxKept))
	}
	return p
}

func (d *decoder) commits(s *Summary) {
	size := uint64(s.Size)
	if d.upTo(1, "number of newest commits") == 1 {
		s.Newest = Commit{LSN: s.Start + d.offset(size), Micros: d.int("time")}
	}
	for n := d.uint(size, "number of restore points"); n > 0 && d.err == nil; n-- {
		p := Commit{LSN: s.Start + d.offset(size), Micros: d.int("time")}
		p.Name = string(d.bytes(d.uint(maxName, "length of a name")))
		s.RestorePoints = append(s.RestorePoints, p)
	}
}

func (d *decoder) table() *Table {
	t := NewTable()
	var before Key
	for n := d.uint(math.MaxUint32, "number of forks"); n > 0 && d.err == nil; n-- {
		var k Key
		k.Tablespace = d.after(before.Tablespace)
		k.Database = d.after(before.Database)
		k.Relation = d.after(before.Relation)
		k.Fork = postgres.Fork(d.upTo(byte(postgres.InitFork), "fork"))
		if k.Fork == postgres.FSMFork || len(t.forks) > 0 && before.Compare(k) >= 0 {
			d.bad("forks are not in order")
		}
		limit := uint32(d.uint(math.MaxUint32, "limit")) - 1
		if d.err != nil {
			break
		}
		f := t.fork(k)
		f.limit = limit
		d.runs(&f.blocks)
		before = k
	}
	return t
}

// after is a number by its distance from the one before.
func (d *decoder) after(before uint32) uint32 {
	v := d.int("distance of a number")
	if v < -int64(before) || v > math.MaxUint32-int64(before) {
		d.bad("a number is out of range")
		return 0
	}
	return uint32(int64(before) + v)
}

func (d *decoder) runs(s *blockSet) {
	var end uint64
	for first := true; ; first = false {
		length := d.uint(math.MaxUint32, "length of a run")
		if length == 0 {
			return // also after an error
		}
		gap := d.uint(math.MaxUint32, "distance of a run")
		switch {
		case gap == 0 && !first:
			d.bad("two runs are one")
		case length > d.left:
			d.bad("more blocks than a segment can touch")
		case end+gap+length > math.MaxUint32:
			d.bad("a block beyond the last")
		}
		if d.err != nil {
			return
		}
		for i := range length {
			s.add(uint32(end + gap + i))
		}
		end += gap + length
		d.left -= length
	}
}
