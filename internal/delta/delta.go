// Package delta tells which blocks of a cluster's relations may have changed
// since an earlier backup, its parent, began: by WAL summaries, our own or the
// server's, or by the LSNs of pages. docs/changes.md argues why each is right.
//
// A block too many costs a read; one too few is a wrong backup. Whatever is not
// certain is an error here, and the caller takes another way.
package delta

import (
	"iter"
	"math"

	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/summary"
)

// Stretch is a part of a file, in bytes.
type Stretch struct{ Offset, Length int64 }

// Whole yields all of a file of the given size in stretches of at most step
// bytes, in order. An empty file is one empty stretch: it must be looked at
// like any other.
func Whole(size, step int64) iter.Seq[Stretch] {
	return func(yield func(Stretch) bool) {
		if size == 0 {
			yield(Stretch{})
			return
		}
		for offset := int64(0); offset < size; offset += step {
			if !yield(Stretch{Offset: offset, Length: min(step, size-offset)}) {
				return
			}
		}
	}
}

// Range is the WAL between the starts of two backups.
type Range struct {
	Cluster     repo.ClusterID
	Major       int
	SegmentSize postgres.SegmentSize
	From, To    postgres.LSN
	ParentStop  postgres.LSN     // where the backup that began at From ended
	History     postgres.History // of the timeline that the server is on
}

// segments are the WAL segments from the one with from to the one with to. Of a
// timeline that was left inside a segment the child's counts: it begins with what
// the parent had.
func (r Range) segments(from, to postgres.LSN) []postgres.Segment {
	var all []postgres.Segment
	for n, last := from.Segment(r.SegmentSize), to.Segment(r.SegmentSize); n <= last; n++ {
		all = append(all, postgres.Segment{Timeline: r.timeline(n), Number: n})
	}
	return all
}

// timeline is the one whose segment of a number counts.
func (r Range) timeline(number uint64) postgres.Timeline {
	for i := len(r.History) - 1; i > 0; i-- {
		if r.History[i-1].Switch.Segment(r.SegmentSize) <= number {
			return r.History[i].Timeline
		}
	}
	return r.History[0].Timeline
}

// firstRecord is where the first record of a segment begins at the earliest:
// behind the long header of its first page (SizeOfXLogLongPHD).
const firstRecord = 40

// needed is how far the changes must be known, so that they are known up to To:
// behind the header of a segment nothing has happened in it.
func (r Range) needed() postgres.LSN {
	if r.To.Offset(r.SegmentSize) <= firstRecord {
		return postgres.LSN(r.To.Segment(r.SegmentSize) * uint64(r.SegmentSize))
	}
	return r.To
}

// Geometry is how a cluster's files are cut.
type Geometry struct {
	BlockSize    int64  // bytes
	RelSegBlocks uint32 // blocks in each file of a relation
}

// Changes decides what is read of each file of a relation. It is not changed
// once it was made; any number of goroutines may use it.
type Changes struct {
	method Method
	geo    Geometry
	table  *summary.Table // nil: by page LSN
	from   postgres.LSN
	whole  map[database]bool // databases made or moved since
}

// database is a folder of relations.
type database struct{ tablespace, database uint32 }

// Method is what tells the changes.
type Method string

// The methods, as backup.json names them.
const (
	BySummaries       Method = "summaries"
	ByServerSummaries Method = "server-summaries"
	ByPageLSN         Method = "page-lsn"
)

// Method is what the changes were told by.
func (c *Changes) Method() Method { return c.method }

// Plan says what of a file is read and kept. What it does not name is as the
// parent has it.
type Plan struct {
	Whole     bool
	Scan      bool      // all is read, and those pages kept that Keep says
	Stretches []Stretch // whole blocks, ascending, that do not touch each other
	from      postgres.LSN
}

// Keep tells of a page that was read whether it may differ from what the parent
// has: changed since the parent began, never written, or not a page at all. The
// caller keeps those whose checksum is wrong, too.
func (p Plan) Keep(page []byte) bool {
	lsn := postgres.PageLSN(page)
	return lsn >= p.from || lsn == 0 || postgres.IsNewPage(page)
}

// File plans the reading of a main fork's file of now bytes, of which the parent
// has parent bytes; known tells whether it has the file at all. The rules are
// those of GetFileBackupMethod (src/backend/backup/basebackup_incremental.c),
// and, beyond them, that nothing from the limit on is taken from the parent.
func (c *Changes) File(class postgres.FileClass, parent int64, known bool, now int64) Plan {
	rel := class.Rel
	block := c.geo.BlockSize
	if !known || now%block != 0 || parent%block != 0 || now > int64(c.geo.RelSegBlocks)*block || c.wholeDatabase(rel) {
		return Plan{Whole: true}
	}
	if c.table == nil {
		return Plan{Scan: true, from: c.from}
	}
	key := summary.Key{Fork: rel.Fork}
	key.Tablespace, key.Database, key.Relation = rel.Tablespace, rel.Database, rel.Filenode
	first := uint64(rel.FirstBlock(c.geo.RelSegBlocks))
	limit := uint64(c.table.Limit(key))
	if limit <= first && limit != uint64(summary.NoLimit) {
		return Plan{Whole: true}
	}
	// From here on everything is read.
	end := first + uint64(now/block)
	rest := min(end, first+uint64(parent/block), limit)
	p := Plan{}
	for b := range c.table.Blocks(key, uint32(first), uint32(min(rest, math.MaxUint32))) {
		p.add(int64(uint64(b)-first)*block, block)
	}
	if rest < end {
		p.add(int64(rest-first)*block, int64(end-rest)*block)
	}
	return p
}

func (p *Plan) add(offset, length int64) {
	if n := len(p.Stretches); n > 0 {
		if last := &p.Stretches[n-1]; last.Offset+last.Length == offset {
			last.Length += length
			return
		}
	}
	p.Stretches = append(p.Stretches, Stretch{offset, length})
}

func (c *Changes) wholeDatabase(rel postgres.RelFile) bool {
	return c.whole[database{rel.Tablespace, rel.Database}] || c.table != nil && c.table.WholeDatabase(rel.Tablespace, rel.Database)
}
