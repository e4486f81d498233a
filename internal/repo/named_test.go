package repo

import "slices"

// named is a run with the name of its pack, as it is the same in every section.
type named struct {
	Length int64
	Zero   bool
	Pack   PackID
	Raw    int64
}

// nameRuns are the runs of a part of a section.
func nameRuns(runs []Run, packs []PackFrames) []named {
	all := make([]named, len(runs))
	for i, r := range runs {
		all[i] = named{Length: r.Length, Zero: r.Zero(), Raw: r.Raw}
		if !r.Zero() {
			all[i].Pack = packs[r.Pack-1].PackID
		}
	}
	return all
}

// part is a part of a section of its own.
func part(runs []named, frames map[PackID][]Frame) FilePart {
	s := new(Section)
	p := Part{Runs: make([]Run, len(runs))}
	for i, r := range runs {
		p.Runs[i] = Run{Length: r.Length, Raw: r.Raw}
		if r.Zero {
			continue
		}
		at := slices.IndexFunc(s.Packs, func(p PackFrames) bool { return p.PackID == r.Pack })
		if at < 0 {
			at = len(s.Packs)
			s.Packs = append(s.Packs, PackFrames{r.Pack, frames[r.Pack]})
		}
		p.Runs[i].Pack = int32(at) + 1
	}
	return FilePart{Part: p, Section: s, Index: -1}
}
