package repo

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"

	"agent/internal/compress"
)

// A section holds the runs of a bounded set of file parts together with the
// frame tables of the packs that these runs use. It names packs by backup and
// number, not by place in anything else, so that a later backup can borrow it
// unchanged. docs/format.md has its bytes.

const (
	sectionVersion = 1
	// sectionRuns, sectionParts and sectionSpan close a section: they bound
	// the memory that reading one takes, and how much of a manifest an
	// incremental writes again when one file changes.
	sectionRuns  = 64 << 10
	sectionParts = 1024
	sectionSpan  = 1 << 30
	// maxRuns is the most that a section can have: one file's share of
	// sectionRuns is added to one that is not yet full.
	maxRuns = 2 * sectionRuns
	// maxSection, maxRawFrame, maxStoredFrame and maxPackSpan refuse a
	// damaged length before memory is asked for.
	maxSection     = 16 << 20
	maxRawFrame    = compress.MaxFrame
	maxStoredFrame = compress.MaxFrame + 64<<10
	maxPackSpan    = 1 << 40
)

// The least bytes that an item of a section takes: a list cannot have more of
// them than what is left of the section can hold.
const (
	leastName  = 1 + len("20261120T101530Z-k3v7qa")
	leastPack  = 3
	leastFrame = 4
	leastPart  = 2
	leastRun   = 2
)

// PackID names a pack of any backup.
type PackID struct {
	Backup BackupName
	Number uint32
}

// Run says that the next Length bytes of a file are the raw bytes of a pack
// from Raw on, or zeros where Zero is set.
type Run struct {
	Length int64
	Zero   bool
	Pack   PackID
	Raw    int64
}

// Part is a stretch of one file: its runs in order, which cover it exactly.
type Part struct{ Runs []Run }

// Length is the sum of the runs in bytes.
func (p Part) Length() int64 {
	var n int64
	for _, r := range p.Runs {
		n += r.Length
	}
	return n
}

// Frame is an entry of a pack's frame table: FrameRef without the pack.
type Frame struct{ Offset, Length, RawOffset, RawLen int64 }

// Section is a decoded section.
type Section struct {
	Parts  []Part
	Frames map[PackID][]Frame // by rising raw offset
	Ref    SectionRef         // where it is stored; zero for one that is not yet
}

// SectionRef says where a section is stored: in frames of packs of one backup,
// one after the other.
type SectionRef struct {
	Owner  BackupName
	Frames []FrameRef // without raw offsets
}

// sectionBuilder gathers parts and the frames they use until it is full.
type sectionBuilder struct {
	parts  []Part
	frames map[PackID]map[int64]Frame // by raw offset
	runs   int
	span   int64
}

// add takes a part, and of the frames those that it uses.
func (s *sectionBuilder) add(p Part, frames map[PackID][]Frame) error {
	if s.frames == nil {
		s.frames = make(map[PackID]map[int64]Frame)
	}
	s.parts = append(s.parts, p)
	s.runs += len(p.Runs)
	for _, r := range p.Runs {
		s.span += r.Length
		if r.Zero {
			continue
		}
		table := s.frames[r.Pack]
		if table == nil {
			table = make(map[int64]Frame)
			s.frames[r.Pack] = table
		}
		all := frames[r.Pack]
		i, ok := FrameAt(all, r.Raw)
		for end := r.Raw + r.Length; ok && i < len(all) && all[i].RawOffset < end; i++ {
			table[all[i].RawOffset] = all[i]
		}
		if !covered(all, r.Raw, r.Length) {
			return fmt.Errorf("add part: %s: its frames are not known", r)
		}
	}
	return nil
}

func (s *sectionBuilder) empty() bool { return len(s.parts) == 0 }

func (s *sectionBuilder) full() bool {
	return s.runs >= sectionRuns || len(s.parts) >= sectionParts || s.span >= sectionSpan
}

// encode writes the section; unit is the block size, by which lengths and
// offsets of page files are counted.
func (s *sectionBuilder) encode(unit int64) []byte {
	var e encoder
	e.byte(sectionVersion)

	ids := make([]PackID, 0, len(s.frames))
	for id := range s.frames {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b PackID) int {
		return cmp.Or(cmp.Compare(a.Backup, b.Backup), cmp.Compare(a.Number, b.Number))
	})
	var names []BackupName
	for _, id := range ids {
		if len(names) == 0 || names[len(names)-1] != id.Backup {
			names = append(names, id.Backup)
		}
	}
	e.uint(uint64(len(names)))
	for _, n := range names {
		e.string(string(n))
	}
	e.uint(uint64(len(ids)))
	index := make(map[PackID]uint64, len(ids))
	for i, id := range ids {
		index[id] = uint64(i)
		e.uint(uint64(slices.Index(names, id.Backup)))
		e.uint(uint64(id.Number))
		encodeFrames(&e, s.frames[id])
	}
	e.uint(uint64(len(s.parts)))
	for _, p := range s.parts {
		encodePart(&e, p, index, unit)
	}
	return e.b
}

// EncodeParts writes parts of a file with the frames that they use, in the form
// of a section; unit is the block size.
func EncodeParts(parts []FilePart, unit int64) ([]byte, error) {
	var s sectionBuilder
	for _, p := range parts {
		if err := s.add(p.Part, p.Section.Frames); err != nil {
			return nil, err
		}
	}
	return s.encode(unit), nil
}

// DecodeParts reads what EncodeParts wrote.
func DecodeParts(b []byte) ([]FilePart, error) {
	s, err := decodeSection(b)
	if err != nil {
		return nil, err
	}
	parts := make([]FilePart, len(s.Parts))
	for i, p := range s.Parts {
		parts[i] = FilePart{Part: p, Section: s, Index: -1}
	}
	return parts, nil
}

func encodeFrames(e *encoder, table map[int64]Frame) {
	frames := make([]Frame, 0, len(table))
	for _, f := range table {
		frames = append(frames, f)
	}
	slices.SortFunc(frames, func(a, b Frame) int { return cmp.Compare(a.RawOffset, b.RawOffset) })
	e.uint(uint64(len(frames)))
	var offset, raw int64
	for _, f := range frames {
		e.size(f.Offset - offset)
		e.size(f.RawOffset - raw)
		e.size(f.Length)
		e.size(f.RawLen)
		offset, raw = f.Offset+f.Length, f.RawOffset+f.RawLen
	}
}

// encodePart writes the runs of a part. Each run is its length, its pack's
// index plus one (0 for zeros), and the distance of its raw offset from where
// the part's previous run in the same pack ended: mostly 0.
func encodePart(e *encoder, p Part, index map[PackID]uint64, unit int64) {
	for _, r := range p.Runs {
		if r.Length%unit != 0 || (!r.Zero && r.Raw%unit != 0) {
			unit = 1
			break
		}
	}
	e.uint(uint64(unit))
	e.uint(uint64(len(p.Runs)))
	at := make(map[uint64]int64)
	for _, r := range p.Runs {
		e.size(r.Length / unit)
		if r.Zero {
			e.uint(0)
			continue
		}
		i := index[r.Pack]
		e.uint(i + 1)
		e.int((r.Raw - at[i]) / unit)
		at[i] = r.Raw + r.Length
	}
}

// decodeSection reads a section and refuses one whose runs are not wholly
// inside the frames that it lists.
func decodeSection(b []byte) (*Section, error) {
	r := bytes.NewReader(b)
	d := &decoder{r: r}
	if v := d.byte(); d.err == nil && v != sectionVersion {
		d.malformed("section version %d is unknown", v)
	}
	names := make([]BackupName, d.size(int64(r.Len()/leastName)))
	for i := range names {
		name, err := ParseBackupName(d.string())
		if d.err == nil && err != nil {
			d.malformed("%v", err)
		}
		if d.err != nil {
			return nil, d.err
		}
		names[i] = name
	}
	ids := make([]PackID, d.size(int64(r.Len()/leastPack)))
	s := &Section{Frames: make(map[PackID][]Frame, len(ids))}
	for i := range ids {
		n := d.uint()
		number := d.size(math.MaxUint32)
		if d.err == nil && n >= uint64(len(names)) {
			d.malformed("pack of backup %d of %d", n, len(names))
		}
		if d.err != nil {
			return nil, d.err
		}
		ids[i] = PackID{names[n], uint32(number)}
		s.Frames[ids[i]] = decodeFrames(d, int64(r.Len()/leastFrame))
	}
	parts, runs := d.size(int64(r.Len()/leastPart)), int64(maxRuns)
	for range parts {
		p := decodePart(d, ids, s.Frames, min(runs, int64(r.Len()/leastRun)))
		runs -= int64(len(p.Runs))
		s.Parts = append(s.Parts, p)
		if d.err != nil {
			return nil, d.err
		}
	}
	if _, err := d.r.ReadByte(); d.err == nil && err == nil {
		d.malformed("bytes after the last part")
	}
	return s, d.err
}

func decodeFrames(d *decoder, limit int64) []Frame {
	frames := make([]Frame, d.size(limit))
	var offset, raw int64
	for i := range frames {
		f := Frame{Offset: offset + d.size(maxPackSpan), RawOffset: raw + d.size(maxPackSpan)}
		f.Length, f.RawLen = d.size(maxStoredFrame), d.size(maxRawFrame)
		frames[i] = f
		offset, raw = f.Offset+f.Length, f.RawOffset+f.RawLen
		if d.err != nil {
			return nil
		}
	}
	return frames
}

func decodePart(d *decoder, ids []PackID, frames map[PackID][]Frame, limit int64) Part {
	unit := d.size(1 << 20)
	n := d.size(limit)
	if d.err == nil && unit == 0 {
		d.malformed("unit of a part is 0")
	}
	if d.err != nil {
		return Part{}
	}
	p := Part{Runs: make([]Run, 0, n)}
	at := make(map[uint64]int64)
	total := int64(0)
	for range n {
		r := Run{Length: d.size(math.MaxInt64/unit) * unit}
		i := d.uint()
		if i == 0 {
			r.Zero = true
		} else {
			if d.err == nil && i > uint64(len(ids)) {
				d.malformed("run in pack %d of %d", i, len(ids))
			}
			delta := d.int()
			if d.err != nil {
				return p
			}
			r.Pack, r.Raw = ids[i-1], at[i-1]+delta*unit
			at[i-1] = r.Raw + r.Length
			if !covered(frames[r.Pack], r.Raw, r.Length) {
				d.malformed("run of %d bytes at %d of pack %08x is not inside its frames", r.Length, r.Raw, r.Pack.Number)
			}
		}
		if total += r.Length; d.err == nil && (r.Length <= 0 || total < 0) {
			d.malformed("run of length %d", r.Length)
		}
		if d.err != nil {
			return p
		}
		p.Runs = append(p.Runs, r)
	}
	return p
}

// FrameAt returns the index of the frame that holds the raw offset.
func FrameAt(frames []Frame, raw int64) (int, bool) {
	i, found := slices.BinarySearchFunc(frames, raw, func(f Frame, raw int64) int {
		return cmp.Compare(f.RawOffset, raw)
	})
	if !found {
		i--
	}
	if i < 0 || raw >= frames[i].RawOffset+frames[i].RawLen {
		return 0, false
	}
	return i, true
}

// covered reports whether [raw, raw+length) lies in frames without a hole.
func covered(frames []Frame, raw, length int64) bool {
	if length <= 0 || raw < 0 || length > math.MaxInt64-raw {
		return false
	}
	i, ok := FrameAt(frames, raw)
	if !ok {
		return false
	}
	end := raw + length
	for at := frames[i].RawOffset; i < len(frames); i++ {
		if frames[i].RawOffset != at || frames[i].RawLen <= 0 {
			return false
		}
		if at += frames[i].RawLen; at >= end {
			return true
		}
	}
	return false
}

func (r Run) String() string {
	if r.Zero {
		return fmt.Sprintf("%d zeros", r.Length)
	}
	return fmt.Sprintf("%d bytes at %d of %s/%08x", r.Length, r.Raw, r.Pack.Backup, r.Pack.Number)
}
