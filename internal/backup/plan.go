package backup

import (
	"context"
	"errors"
	"io"

	"agent/internal/delta"
	"agent/internal/repo"
)

const (
	// stretchSize is how much of a large file one worker reads at a time.
	stretchSize = 16 << 20
	// sparseBytes and sparseRanges bound what one worker reads of a file of
	// which parts have changed.
	sparseBytes  = 4 << 20
	sparseRanges = 1024
)

// layer is an earlier backup whose content is used as far as it is current: its
// manifest is read beside the walk.
type layer struct {
	manifest *repo.ManifestReader
	changes  *delta.Changes
	// until is the last path that it has; empty: it has all there are.
	until string
	// part is what it has of the file at until, of which it was reading.
	part *former

	entry repo.Entry
	parts []repo.FilePart
	have  bool // entry is one that was not yet passed
	ended bool
}

// former is what an earlier backup has of a file.
type former struct {
	repo.Entry
	parts []repo.FilePart
}

// find is what the layer has of a file, or nil. Paths are asked for in order.
func (l *layer) find(ctx context.Context, path string) (*former, error) {
	if l.part != nil && l.part.Path == path {
		return l.part, nil
	}
	for !l.ended {
		if !l.have {
			var err error
			l.entry, l.parts, err = l.manifest.Next(ctx)
			// Behind the first final entry there is no order any more.
			if errors.Is(err, io.EOF) || err == nil && l.entry.Final {
				l.ended = true
				break
			}
			if err != nil {
				return nil, err
			}
			l.have = true
		}
		switch n := repo.ComparePaths(l.entry.Path, path); {
		case n > 0:
			return nil, nil
		case n == 0 && l.entry.Kind == repo.EntryFile:
			return &former{Entry: l.entry, parts: l.parts}, nil
		}
		l.have = false
	}
	return nil, nil
}

// planner decides what is read of each file. It is used by one goroutine.
type planner struct {
	layers []*layer
	last   *repo.Section // the last section that was counted
}

// file makes the plan of a file, cut into stretches.
func (p *planner) file(ctx context.Context, s source) (*fileState, []stretch, error) {
	for len(p.layers) > 0 && p.layers[0].until != "" && repo.ComparePaths(p.layers[0].until, s.Path) < 0 {
		p.layers = p.layers[1:]
	}
	f := &fileState{source: s, plan: delta.Plan{Whole: true}, weight: 1}
	if len(p.layers) > 0 {
		l := p.layers[0]
		var err error
		if f.former, err = l.find(ctx, s.Path); err != nil {
			return nil, nil, err
		}
		if f.former != nil {
			f.plan = l.changes.File(s.class, f.former.Size, true, s.Size)
			p.weigh(f)
		}
	}
	stretches := cut(f)
	f.results, f.left = make([]stretchResult, len(stretches)), len(stretches)
	f.seen = make([]bool, len(stretches))
	for _, s := range stretches {
		last := s.ranges[len(s.ranges)-1]
		f.ends = append(f.ends, last.Offset+last.Length)
	}
	return f, stretches, nil
}

// weigh counts what the file holds in memory while it is on its way: its runs,
// and the whole section of which they are a part.
func (p *planner) weigh(f *fileState) {
	for _, part := range f.former.parts {
		f.weight += int64(len(part.Runs))
		if part.Section != p.last {
			p.last = part.Section
			for _, one := range part.Section.Parts {
				f.weight += int64(len(one.Runs))
			}
		}
	}
	f.weight = min(f.weight+int64(len(f.plan.Stretches)), runsUnderWay)
}

// cut says which stretches of a file are read.
func cut(f *fileState) []stretch {
	switch {
	case f.summed():
		return []stretch{{file: f, ranges: []delta.Stretch{{Length: f.Size}}}}
	case f.plan.Whole || f.plan.Scan:
		var stretches []stretch
		for part := range delta.Whole(f.Size, stretchSize) {
			stretches = append(stretches, stretch{file: f, slot: len(stretches), ranges: []delta.Stretch{part}})
		}
		return stretches
	}
	var stretches []stretch
	var now []delta.Stretch
	size := int64(0)
	flush := func() {
		if len(now) > 0 {
			stretches = append(stretches, stretch{file: f, slot: len(stretches), ranges: now})
		}
		now, size = nil, 0
	}
	for _, r := range f.plan.Stretches {
		for r.Length > 0 {
			part := delta.Stretch{Offset: r.Offset, Length: min(r.Length, sparseBytes-size)}
			now = append(now, part)
			size += part.Length
			r.Offset, r.Length = r.Offset+part.Length, r.Length-part.Length
			if size >= sparseBytes || len(now) >= sparseRanges {
				flush()
			}
		}
	}
	flush()
	return stretches
}

func closeLayers(layers []*layer) {
	for _, l := range layers {
		l.manifest.Close()
	}
}
