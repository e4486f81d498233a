package repo

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
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
	leastFrame = 8
	leastPart  = 2
	leastRun   = 2
)

// PackID names a pack of any backup.
type PackID struct {
	Backup BackupName
	Number uint32
}

// Compare orders packs by backup and number.
func (id PackID) Compare(other PackID) int {
	return cmp.Or(cmp.Compare(id.Backup, other.Backup), cmp.Compare(id.Number, other.Number))
}

// Run says that the next Length bytes of a file are the raw bytes of a pack
// from Raw on, or zeros. There are millions of them: they are small, and have no
// pointers.
type Run struct {
	Length, Raw int64
	// Pack is 1 + the pack's index among those of the run's section, or 0 for
	// zeros.
	Pack int32
}

// Zero reports whether the run is zeros.
func (r Run) Zero() bool { return r.Pack == 0 }

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
type Frame struct {
	Offset, Length, RawOffset, RawLen int64
	// Ending is the last four stored bytes, the checksum of the raw ones. So a
	// frame that is whole and lies where another one must be is noticed also
	// where the pack's hash is not compared.
	Ending [4]byte
}

// Proves reports whether stored can be the frame, by its ending; decoding it
// shows that its raw bytes are those of the ending.
func (f *Frame) Proves(stored []byte) bool {
	return int64(len(stored)) == f.Length && ending(stored) == f.Ending
}

func ending(stored []byte) (e [4]byte) {
	if len(stored) >= len(e) {
		copy(e[:], stored[len(stored)-len(e):])
	}
	return e
}

// PackFrames are frames of one pack, by rising raw offset.
type PackFrames struct {
	PackID
	Frames []Frame
}

// Section is a decoded section.
type Section struct {
	Parts []Part
	Packs []PackFrames // which the runs name by their index
	Ref   SectionRef   // where it is stored; zero for one that is not yet
}

// PackOf is the pack of a run of the section that is not zeros.
func (s *Section) PackOf(r Run) *PackFrames { return &s.Packs[r.Pack-1] }

// SectionRef says where a section is stored: in frames of packs of one backup,
// one after the other.
type SectionRef struct {
	Owner  BackupName
	Frames []FrameRef // without raw offsets
}

// sectionBuilder gathers parts and the frames they use until it is full.
type sectionBuilder struct {
	parts []Part
	// in says for each run of each part which pack of packs it is in, as Run.Pack
	// does.
	in    [][]int32
	packs []builtPack
	index map[PackID]int32 // of packs
	runs  int
	span  int64
	// What the packs of the last part that was added are here, from 1; 0: not
	// known yet.
	from []PackFrames
	here []int32
}

// builtPack is a pack that a section uses.
type builtPack struct {
	id   PackID
	used map[int64]Frame // by raw offset
	// For the part that is being added: the frames that its runs may use, where
	// the last run ended, and the last one that was noted.
	all          []Frame
	part         int
	frame, noted int
}

// add takes a part, and of the packs those that it uses.
func (s *sectionBuilder) add(p Part, packs []PackFrames) error {
	if len(packs) != len(s.from) || len(packs) > 0 && &packs[0] != &s.from[0] {
		s.from, s.here = packs, make([]int32, len(packs))
	}
	s.parts = append(s.parts, p)
	in := make([]int32, len(p.Runs))
	s.in = append(s.in, in)
	s.runs += len(p.Runs)
	for i, r := range p.Runs {
		s.span += r.Length
		if r.Zero() {
			continue
		}
		if int(r.Pack) > len(packs) {
			return fmt.Errorf("add part: %s: its pack is not known", r)
		}
		n := s.here[r.Pack-1]
		if n == 0 {
			n = s.pack(packs[r.Pack-1].PackID)
			s.here[r.Pack-1] = n
		}
		in[i] = n
		t := &s.packs[n-1]
		if t.part != len(s.parts) {
			t.all, t.part, t.frame, t.noted = packs[r.Pack-1].Frames, len(s.parts), 0, -1
		}
		first, many, ok := cover(t.all, t.frame, r.Raw, r.Length)
		for at := first; at < first+many; at++ {
			if at != t.noted {
				t.used[t.all[at].RawOffset], t.noted = t.all[at], at
			}
			t.frame = at
		}
		if !ok {
			return fmt.Errorf("add part: %s of %s/%08x: its frames are not known", r, t.id.Backup, t.id.Number)
		}
	}
	return nil
}

// pack is 1 + the index of a pack.
func (s *sectionBuilder) pack(id PackID) int32 {
	n, ok := s.index[id]
	if !ok {
		if s.index == nil {
			s.index = make(map[PackID]int32)
		}
		s.packs = append(s.packs, builtPack{id: id, used: make(map[int64]Frame)})
		n = int32(len(s.packs))
		s.index[id] = n
	}
	return n
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

	order := make([]int, len(s.packs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := s.packs[a].id, s.packs[b].id
		return cmp.Or(cmp.Compare(x.Backup, y.Backup), cmp.Compare(x.Number, y.Number))
	})
	var names []BackupName
	for _, n := range order {
		if name := s.packs[n].id.Backup; len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	e.uint(uint64(len(names)))
	for _, n := range names {
		e.string(string(n))
	}
	e.uint(uint64(len(order)))
	place := make([]int32, len(order))
	for i, n := range order {
		place[n] = int32(i)
		e.uint(uint64(slices.Index(names, s.packs[n].id.Backup)))
		e.uint(uint64(s.packs[n].id.Number))
		encodeFrames(&e, s.packs[n].used)
	}
	e.uint(uint64(len(s.parts)))
	ended := make([]int64, len(order))
	for i, p := range s.parts {
		clear(ended)
		encodePart(&e, p, s.in[i], place, ended, unit)
	}
	return e.b
}

// EncodeParts writes parts of a file with the frames that they use, in the form
// of a section; unit is the block size.
func EncodeParts(parts []FilePart, unit int64) ([]byte, error) {
	var s sectionBuilder
	for _, p := range parts {
		if err := s.add(p.Part, p.Section.Packs); err != nil {
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
		e.b = append(e.b, f.Ending[:]...)
		offset, raw = f.Offset+f.Length, f.RawOffset+f.RawLen
	}
}

// encodePart writes the runs of a part. Each run is its length, its pack's
// place plus one (0 for zeros), and the distance of its raw offset from where
// the part's previous run in the same pack ended: mostly 0. Block sizes are powers
// of two.
func encodePart(e *encoder, p Part, in, place []int32, ended []int64, unit int64) {
	all := int64(0)
	for _, r := range p.Runs {
		all |= r.Length | r.Raw
	}
	if all&(unit-1) != 0 || unit&(unit-1) != 0 {
		unit = 1
	}
	shift := bits.TrailingZeros64(uint64(unit))
	e.size(unit)
	e.uint(uint64(len(p.Runs)))
	b := e.b
	for i, r := range p.Runs {
		b = binary.AppendUvarint(b, uint64(r.Length>>shift))
		if r.Zero() {
			b = append(b, 0)
			continue
		}
		n := place[in[i]-1]
		b = binary.AppendUvarint(b, uint64(n)+1)
		b = binary.AppendVarint(b, (r.Raw-ended[n])>>shift)
		ended[n] = r.Raw + r.Length
	}
	e.b = b
}

// decodeSection reads a section and refuses one whose runs are not wholly
// inside the frames that it lists.
func decodeSection(b []byte) (*Section, error) {
	d := &decoder{b: b}
	if v := d.byte(); d.err == nil && v != sectionVersion {
		d.malformed("section version %d is unknown", v)
	}
	names := make([]BackupName, d.size(int64(d.left()/leastName)))
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
	s := &Section{Packs: make([]PackFrames, d.size(int64(d.left()/leastPack)))}
	at := make([]readPlace, len(s.Packs))
	for i := range s.Packs {
		n := d.uint()
		number := d.size(math.MaxUint32)
		if d.err == nil && n >= uint64(len(names)) {
			d.malformed("pack of backup %d of %d", n, len(names))
		}
		if d.err != nil {
			return nil, d.err
		}
		p := &s.Packs[i]
		p.PackID = PackID{names[n], uint32(number)}
		p.Frames = decodeFrames(d, int64(d.left()/leastFrame))
	}
	parts, runs := d.size(int64(d.left()/leastPart)), int64(maxRuns)
	for range parts {
		p := decodePart(d, s.Packs, at, min(runs, int64(d.left()/leastRun)))
		runs -= int64(len(p.Runs))
		s.Parts = append(s.Parts, p)
		if d.err != nil {
			return nil, d.err
		}
	}
	if d.err == nil && d.left() > 0 {
		d.malformed("bytes after the last part")
	}
	return s, d.err
}

// readPlace is where the reading of a part is in one pack: where the last run
// ended, and the raw bytes of its frames, which have no hole. The last one of
// those frames has the index frame.
type readPlace struct {
	ended      int64
	begin, end int64
	frame      int
}

func decodeFrames(d *decoder, limit int64) []Frame {
	frames := make([]Frame, d.size(limit))
	var offset, raw int64
	for i := range frames {
		f := Frame{Offset: offset + d.size(maxPackSpan), RawOffset: raw + d.size(maxPackSpan)}
		f.Length, f.RawLen = d.size(maxStoredFrame), d.size(maxRawFrame)
		d.bytes(f.Ending[:])
		frames[i] = f
		offset, raw = f.Offset+f.Length, f.RawOffset+f.RawLen
		if d.err != nil {
			return nil
		}
	}
	return frames
}

// decodePart reads a part. at has a place for each pack.
func decodePart(d *decoder, packs []PackFrames, at []readPlace, limit int64) Part {
	unit := d.size(1 << 20)
	n := d.size(limit)
	if d.err == nil && unit == 0 {
		d.malformed("unit of a part is 0")
	}
	if d.err != nil {
		return Part{}
	}
	clear(at)
	runs := make([]Run, n)
	total, longest := int64(0), uint64(math.MaxInt64/unit)
	b, pos := d.b, d.at
	for i := range runs {
		var length, pack, place uint64
		// There are millions of them, whose three numbers mostly take one byte each.
		if three := b[min(pos, len(b)):]; len(three) >= 3 && three[0]|three[1]|three[2] < 0x80 && three[1] > 0 {
			length, pack, place = uint64(three[0]), uint64(three[1]), uint64(three[2])
			pos += 3
		} else {
			length, pack, place, pos = nextRun(b, pos)
		}
		if pos > len(b) || length-1 >= longest || pack > uint64(len(at)) {
			d.badRun(length, pack, len(at), pos > len(b))
			return Part{}
		}
		r := Run{Length: int64(length) * unit, Pack: int32(pack)}
		if total += r.Length; total < 0 {
			d.malformed("runs are longer than any file")
			return Part{}
		}
		if pack > 0 {
			p := &at[pack-1]
			r.Raw = p.ended + zigzag(place)*unit
			p.ended = r.Raw + r.Length
			if r.Raw < p.begin || r.Raw > p.end || r.Length > p.end-r.Raw {
				if p.find(d, &packs[pack-1], r); d.err != nil {
					return Part{}
				}
			}
		}
		runs[i] = r
	}
	d.at = pos
	return Part{Runs: runs}
}

// badRun says what is wrong with a run.
func (d *decoder) badRun(length, pack uint64, packs int, ended bool) {
	switch {
	case ended:
		d.fail(io.ErrUnexpectedEOF)
	case pack > uint64(packs):
		d.malformed("run in pack %d of %d", pack, packs)
	default:
		d.malformed("run of length %d", length)
	}
}

// nextRun is the run at a place in b, as nextUint.
func nextRun(b []byte, at int) (length, pack, place uint64, next int) {
	length, at = nextUint(b, at)
	if pack, at = nextUint(b, at); pack > 0 {
		place, at = nextUint(b, at)
	}
	return length, pack, place, at
}

// find looks for the frames that hold a run.
func (p *readPlace) find(d *decoder, pack *PackFrames, r Run) {
	first, n, ok := cover(pack.Frames, p.frame, r.Raw, r.Length)
	if !ok {
		d.malformed("run of %d bytes at %d of pack %08x is not inside its frames", r.Length, r.Raw, pack.Number)
		return
	}
	p.frame = first + n - 1
	last := &pack.Frames[p.frame]
	p.begin, p.end = pack.Frames[first].RawOffset, last.RawOffset+last.RawLen
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

// cover finds the frames that hold [raw, raw+length): n from the first on, which
// is looked for in the frame at hint and the next one before all others. ok is
// false if they do not hold all of it without a hole.
func cover(frames []Frame, hint int, raw, length int64) (first, n int, ok bool) {
	if length <= 0 || raw < 0 || length > math.MaxInt64-raw {
		return 0, 0, false
	}
	switch {
	case hint < len(frames) && frames[hint].holds(raw):
		first = hint
	case hint+1 < len(frames) && frames[hint+1].holds(raw):
		first = hint + 1
	default:
		if first, ok = FrameAt(frames, raw); !ok {
			return 0, 0, false
		}
	}
	at, end := frames[first].RawOffset, raw+length
	for _, f := range frames[first:] {
		if f.RawOffset != at || f.RawLen <= 0 {
			return first, n, false
		}
		n++
		if at += f.RawLen; at >= end {
			return first, n, true
		}
	}
	return first, n, false
}

func (f *Frame) holds(raw int64) bool { return raw >= f.RawOffset && raw < f.RawOffset+f.RawLen }

func (r Run) String() string {
	if r.Zero() {
		return fmt.Sprintf("%d zeros", r.Length)
	}
	return fmt.Sprintf("%d bytes at %d of pack %d", r.Length, r.Raw, r.Pack)
}
