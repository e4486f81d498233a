package repo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// errMalformed is wrapped by every error about the bytes of a section or a
// manifest; the caller names the object.
var errMalformed = errors.New("malformed")

// maxString bounds names and paths in manifests, so that a damaged length
// cannot ask for memory. PATH_MAX is 4096.
const maxString = 8192

// encoder appends the primitives of the format: unsigned and zigzag varints as
// in encoding/binary (LEB128), and strings with their length before them.
type encoder struct{ b []byte }

func (e *encoder) byte(v byte)   { e.b = append(e.b, v) }
func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) size(v int64)  { e.b = binary.AppendUvarint(e.b, uint64(v)) }
func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

// decoder takes the primitives back from bytes in memory or, where there are
// none, from a reader. The first error sticks, so that a record is read without a
// test after each field.
type decoder struct {
	b   []byte
	at  int // so far b was read
	r   io.ByteReader
	err error
}

// left is how many bytes there are in memory.
func (d *decoder) left() int { return len(d.b) - d.at }

func (d *decoder) byte() byte {
	if d.err != nil {
		return 0
	}
	if d.at < len(d.b) {
		d.at++
		return d.b[d.at-1]
	}
	if d.r == nil {
		d.fail(io.EOF)
		return 0
	}
	b, err := d.r.ReadByte()
	d.fail(err)
	return b
}

func (d *decoder) uint() uint64 {
	if d.err == nil {
		if v, at := nextUint(d.b, d.at); at <= len(d.b) {
			d.at = at
			return v
		}
	}
	var v uint64
	for shift := 0; ; shift += 7 {
		b := d.byte()
		if d.err == nil && shift == 63 && b > 1 {
			d.malformed("a varint is longer than 64 bits")
		}
		if d.err != nil {
			return 0
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
}

func (d *decoder) int() int64 { return zigzag(d.uint()) }

// zigzag is the signed number that u stands for.
func zigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// nextUint is the number at a place in b, and where the next one is: behind the
// end of b, if there is none or it is malformed.
func nextUint(b []byte, at int) (v uint64, next int) {
	v, n := binary.Uvarint(b[min(at, len(b)):])
	if n <= 0 {
		return 0, len(b) + 1
	}
	return v, at + n
}

// size is a length or offset; beyond limit it is malformed.
func (d *decoder) size(limit int64) int64 {
	v := d.uint()
	if d.err == nil && v > uint64(limit) {
		d.malformed("size %d is beyond %d", v, limit)
		return 0
	}
	return int64(v)
}

func (d *decoder) string() string {
	n := d.size(maxString)
	if d.err != nil {
		return ""
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = d.byte()
	}
	return string(b)
}

// bytes fills b.
func (d *decoder) bytes(b []byte) {
	for i := range b {
		b[i] = d.byte()
	}
}

func (d *decoder) fail(err error) {
	switch {
	case err == nil:
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		d.err = fmt.Errorf("%w: ends in the middle of a record", errMalformed)
	default:
		// A number of more than 64 bits, or what the layers below say.
		d.err = fmt.Errorf("%w: %w", errMalformed, err)
	}
}

func (d *decoder) malformed(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{errMalformed}, args...)...)
	}
}
