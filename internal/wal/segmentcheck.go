package wal

import (
	"errors"
	"fmt"
	"io"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
	"agent/internal/repo"
	"agent/internal/summary"
)

// segmentCheck turns the verdict on a segment into advice, and summarises it on
// the way.
type segmentCheck struct {
	*postgres.SegmentChecker
	name    postgres.WALFile
	file    io.ReaderAt
	dir     string           // the pg_wal that it lies in; "": none
	builder *summary.Builder // nil: of a partial segment
	sum     [32]byte
	damage  string // a record that recovery will stop at
	fault   string // why there is no builder any more
}

func newSegmentCheck(name postgres.WALFile, size int64, cluster repo.ClusterID, file io.ReaderAt, dir string) *segmentCheck {
	c := &segmentCheck{SegmentChecker: postgres.NewSegmentChecker(name, size, uint64(cluster)), name: name, file: file, dir: dir}
	if name.Kind == postgres.WALSegment {
		c.builder = summary.NewBuilder()
	}
	return c
}

// Write takes the next bytes of the file.
func (c *segmentCheck) Write(b []byte) (int, error) {
	n, err := c.SegmentChecker.Write(b)
	if err == nil {
		c.guarded(func() { _, _ = c.builder.Write(b) }) // it never fails
	}
	return n, c.explain(err)
}

// Close says what the file is worth.
func (c *segmentCheck) Close() error {
	err := c.SegmentChecker.Close()
	if err == nil {
		c.guarded(func() { err = c.ending() })
	}
	return c.explain(err)
}

// guarded does something with the records, if they are looked at. Nothing that is
// in a segment may keep it from being archived, not even a fault of the decoder.
func (c *segmentCheck) guarded(do func()) {
	if c.builder == nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			c.builder, c.fault = nil, fmt.Sprint(r)
		}
	}()
	do()
}

// Hashed is told the hash that a summary carries.
func (c *segmentCheck) Hashed(sum [32]byte) { c.sum = sum }

// Warnings are what is odd about a file that is archived nevertheless.
func (c *segmentCheck) Warnings() []string {
	all := c.SegmentChecker.Warnings()
	if c.damage != "" {
		all = append(all, "a record in it is damaged, and recovery will stop there: look for disk errors, and take a new backup ("+c.damage+")")
	}
	if c.fault != "" {
		all = append(all, "its records could not be looked at, so that there is no summary of it: please report this ("+c.fault+")")
	}
	return all
}

// ending refuses a segment whose end was never written: such as one that
// recovery has put together from a stream, and that a standby archives again, or
// the last one of a timeline that was left. A server ends a segment when it is
// full or by a switch. What is behind a record that is damaged was written, and
// is kept from nobody.
func (c *segmentCheck) ending() error {
	end := c.builder.Segment()
	if end.Ending != xlog.NotOwn {
		return nil
	}
	offset, size := int64(end.End-end.Header.Addr), int64(end.Header.SegmentSize)
	refused := &postgres.SegmentError{
		Name: c.name.Name, Offset: offset, Field: "its WAL ends before the segment does", Err: postgres.ErrTorn,
		Expected: "a switch to the next segment", Seen: "none",
	}
	empty, err := onlyZeros(io.NewSectionReader(c.file, offset, size-offset))
	if err != nil {
		return err
	}
	if empty {
		return refused
	}
	all, err := leavings(c.name, c.dir, size)
	if err != nil {
		return err
	}
	if _, ok := leftBefore(all, offset, size); ok {
		return refused
	}
	c.damage = end.Reason
	return nil
}

// onlyZeros reports whether all that r yields is zero.
func onlyZeros(r io.Reader) (bool, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return false, nil
			}
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("read segment again: %w", err)
		}
	}
}

func (c *segmentCheck) explain(err error) error {
	if err == nil {
		return nil
	}
	kind := errs.Damaged
	if errors.Is(err, postgres.ErrForeign) {
		kind = errs.Foreign
	}
	return errs.Wrap(err, kind, segmentHint, "%s was refused", c.name.Name)
}
