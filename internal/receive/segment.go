package receive

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// segmentFile holds what has come of a segment, in a file of the state
// directory that has lost its name: however the process ends, nothing is left.
// It is not made durable, as nothing is confirmed by it. What was written may
// be read beside further writing.
type segmentFile struct {
	segment postgres.Segment
	size    postgres.SegmentSize
	file    *os.File

	known  []repo.StreamRange // what the repository had of it when it was begun, without a hole
	stored chain              // what was stored of it, or is under way
}

func newSegmentFile(dir string, seg postgres.Segment, size postgres.SegmentSize) (*segmentFile, error) {
	dir = filepath.Join(dir, "receive")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.State(err, "make the receiver's directory")
	}
	f, err := os.CreateTemp(dir, ".segment-*")
	if err != nil {
		return nil, errs.State(err, "make a file for received WAL")
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errs.State(errors.Join(err, f.Close()), "make a file for received WAL")
	}
	return &segmentFile{segment: seg, size: size, file: f, stored: chain{end: seg.Start(size)}}, nil
}

func (f *segmentFile) start() postgres.LSN { return f.segment.Start(f.size) }
func (f *segmentFile) end() postgres.LSN   { return f.segment.End(f.size) }

// write puts bytes to their place.
func (f *segmentFile) write(at postgres.LSN, b []byte) error {
	if _, err := f.file.WriteAt(b, int64(at-f.start())); err != nil {
		return errs.State(err, "keep received WAL")
	}
	return nil
}

// section reads a stretch.
func (f *segmentFile) section(from, to postgres.LSN) *io.SectionReader {
	return io.NewSectionReader(f.file, int64(from-f.start()), int64(to-from))
}

func (f *segmentFile) close() error { return f.file.Close() }

// chain decides what the next range is. Most hold just what is new; but a
// recovery fetches each of them, so that from time to time one begins with the
// segment again and takes the place of all before it. As it is then longer than
// the last such one by a factor, no byte is stored more than a few times.
type chain struct {
	end   postgres.LSN // of what is stored or under way
	base  int64        // bytes of the last range that began with the segment
	since int          // ranges behind it
}

// So many ranges behind the one that began with the segment are many, at which
// the segment must have doubled for another, and too many, at which a quarter
// more is enough.
const (
	manyRanges    = 128
	tooManyRanges = 1024
)

// next is the range up to the LSN to, in a segment that begins at start.
func (c *chain) next(t postgres.Timeline, start, to postgres.LSN) repo.StreamRange {
	g := repo.StreamRange{Timeline: t, Start: c.end, End: to}
	whole := int64(to - start)
	if c.since >= manyRanges && whole >= 2*c.base || c.since >= tooManyRanges && 4*whole >= 5*c.base {
		g.Start = start
	}
	if c.since++; g.Start == start {
		c.base, c.since = whole, 0
	}
	c.end = to
	return g
}
