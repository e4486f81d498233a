package xlog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"agent/internal/postgres"
)

// ErrPieces is wrapped by errors about pieces that are not of one record.
var ErrPieces = errors.New("pieces of a WAL record do not fit together")

// Joiner puts a record together from its pieces in segments that follow each
// other. Its memory is bounded by MaxKept. The zero value is idle.
type Joiner struct {
	rec    assembly
	record Record
}

// Open tells whether there is a record that lacks pieces.
func (j *Joiner) Open() bool { return j.rec.missing() > 0 }

// Start is the LSN of the record at hand.
func (j *Joiner) Start() postgres.LSN { return j.rec.start }

// Drop forgets the record at hand.
func (j *Joiner) Drop() { j.rec.begin(0, 0) }

// Begin takes the first piece, of a record at lsn.
func (j *Joiner) Begin(lsn postgres.LSN, tail Piece) error {
	if len(tail.Bytes) < 4 {
		return fmt.Errorf("begin record at %s: %w: the first has %d bytes", lsn, ErrPieces, len(tail.Bytes))
	}
	total := binary.LittleEndian.Uint32(tail.Bytes)
	if total < recordHeader || total > maxRecord {
		return fmt.Errorf("begin record at %s: %w: it would be %d bytes long", lsn, ErrPieces, total)
	}
	j.rec.begin(lsn, total)
	if err := j.Add(tail); err != nil {
		j.Drop()
		return err
	}
	return nil
}

// Add takes the next piece.
func (j *Joiner) Add(p Piece) error {
	if uint64(p.Length)+uint64(p.Left) != uint64(j.rec.missing()) || uint64(len(p.Bytes)) != uint64(min(p.Length, MaxKept)) || p.Length == 0 {
		return fmt.Errorf("join record at %s: %w: %d bytes are missing, a piece of %d with %d behind it came",
			j.rec.start, ErrPieces, j.rec.missing(), p.Length, p.Left)
	}
	j.rec.add(p.Bytes)
	j.rec.skip(p.Length - uint32(len(p.Bytes)))
	return nil
}

// Record proves and decodes the record when all of its pieces are there. It is
// valid until the next call.
func (j *Joiner) Record(major int) (*Record, error) {
	if j.Open() || len(j.rec.buf) < recordHeader {
		return nil, fmt.Errorf("join record at %s: %w: %d bytes are missing", j.rec.start, ErrPieces, j.rec.missing())
	}
	if !j.rec.valid() {
		return nil, fmt.Errorf("join record at %s: %w: its checksum is wrong", j.rec.start, ErrPieces)
	}
	j.record.header(j.rec.start, j.rec.buf)
	if err := j.record.fragments(j.rec.buf, major); err != nil {
		return nil, fmt.Errorf("record at %s: %w", j.rec.start, err)
	}
	return &j.record, nil
}
