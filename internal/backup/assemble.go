package backup

import (
	"cmp"
	"math"
	"slices"

	"agent/internal/repo"
)

// assemble makes the parts of a file of what was read and of what an earlier
// backup has; inherited is how many bytes are the latter's.
func (f *fileState) assemble(name repo.BackupName) (parts []repo.FilePart, inherited int64) {
	a := assembler{at: make(map[uint32]int32)}
	for _, r := range f.results {
		a.runs = append(a.runs, r.runs...)
		for _, ref := range r.frames {
			n, known := a.at[ref.Pack]
			if !known {
				a.own = append(a.own, repo.PackFrames{PackID: repo.PackID{Backup: name, Number: ref.Pack}})
				n = int32(len(a.own))
				a.at[ref.Pack] = n
			}
			a.own[n-1].Frames = append(a.own[n-1].Frames, ref.Frame())
		}
	}
	for i := range a.own {
		p := &a.own[i]
		slices.SortFunc(p.Frames, func(x, y repo.Frame) int { return cmp.Compare(x.RawOffset, y.RawOffset) })
		p.Frames = slices.Compact(p.Frames)
	}
	switch {
	case f.former == nil || f.plan.Whole && !f.summed() || f.summed() && !f.results[0].same:
		a.rest()
	default:
		a.inherit(f.former.parts, f.Size)
		a.rest()
	}
	return a.parts, a.inherited
}

// assembler joins new runs with those of an earlier backup, part by part of the
// latter, so that parts which have not changed stay what they are.
type assembler struct {
	runs      []placed // not yet placed, ascending
	pos       int64    // up to where the parts go
	own       []repo.PackFrames
	at        map[uint32]int32 // 1 + the index in own of a pack's number
	parts     []repo.FilePart
	inherited int64
}

// inherit goes through the earlier parts, as far as the file still goes.
func (a *assembler) inherit(parts []repo.FilePart, size int64) {
	begin := int64(0)
	for _, part := range parts {
		if begin >= size {
			return
		}
		end := begin + part.Length()
		if end <= size && (len(a.runs) == 0 || a.runs[0].offset >= end) {
			a.parts = append(a.parts, part)
			a.inherited += end - begin
			a.pos = end
		} else {
			a.mix(part, begin, min(end, size))
		}
		begin = end
	}
}

// mix makes a new part of [begin, end) of the file, which part had.
func (a *assembler) mix(part repo.FilePart, begin, end int64) {
	var runs []repo.Run
	lent := part.Section.Packs
	for _, old := range part.Runs {
		stop := min(begin+old.Length, end)
		for a.pos < stop {
			if len(a.runs) > 0 && a.runs[0].offset <= a.pos {
				runs = appendRun(runs, a.take(end, len(lent)))
				continue
			}
			next := stop
			if len(a.runs) > 0 {
				next = min(next, a.runs[0].offset)
			}
			runs = appendRun(runs, between(old, a.pos-begin, next-a.pos))
			a.inherited += next - a.pos
			a.pos = next
		}
		begin += old.Length
	}
	section := &repo.Section{Packs: slices.Concat(lent, a.own)}
	a.parts = append(a.parts, repo.FilePart{Part: repo.Part{Runs: runs}, Section: section, Index: -1})
}

// take is the new run at the position, as far as limit; what is left of it
// stays. Its section has this backup's packs behind so many others.
func (a *assembler) take(limit int64, others int) repo.Run {
	r := a.runs[0]
	skip := a.pos - r.offset
	n := min(r.length-skip, limit-a.pos)
	if a.pos += n; skip+n == r.length {
		a.runs = a.runs[1:]
	}
	if r.zero {
		return repo.Run{Length: n}
	}
	return repo.Run{Length: n, Raw: r.raw + skip, Pack: int32(others) + a.at[r.pack]}
}

// between is a piece of a run.
func between(r repo.Run, skip, length int64) repo.Run {
	if !r.Zero() {
		r.Raw += skip
	}
	r.Length = length
	return r
}

// rest makes a part of the new runs that are left, if there are any: behind what
// the earlier backup had, or all of the file.
func (a *assembler) rest() {
	var runs []repo.Run
	for len(a.runs) > 0 {
		// A hole stays one, and the manifest refuses the file.
		a.pos = max(a.pos, a.runs[0].offset)
		runs = appendRun(runs, a.take(math.MaxInt64, 0))
	}
	if len(runs) > 0 {
		a.parts = append(a.parts, repo.FilePart{Part: repo.Part{Runs: runs}, Section: &repo.Section{Packs: a.own}, Index: -1})
	}
}

// appendRun joins a run to the one before it where they continue each other.
func appendRun(runs []repo.Run, r repo.Run) []repo.Run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		if last.Pack == r.Pack && (r.Zero() || last.Raw+last.Length == r.Raw) {
			last.Length += r.Length
			return runs
		}
	}
	return append(runs, r)
}
