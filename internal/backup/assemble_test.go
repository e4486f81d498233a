package backup

import (
	"testing"

	"pgregory.net/rapid"

	"agent/internal/delta"
	"agent/internal/postgres"
	"agent/internal/repo"
)

const earlier repo.BackupName = "20261119T101530Z-aaaaaa"

// origin says where a byte of a file comes from.
type origin struct {
	pack repo.PackID
	raw  int64
	zero bool
}

func origins(part repo.FilePart) []origin {
	var all []origin
	for _, r := range part.Runs {
		for i := range r.Length {
			if r.Zero() {
				all = append(all, origin{zero: true})
			} else {
				all = append(all, origin{pack: part.Section.PackOf(r).PackID, raw: r.Raw + i})
			}
		}
	}
	return all
}

// read are the origins of what was read.
func read(runs []placed) []origin {
	var all []origin
	for _, r := range runs {
		for i := range r.length {
			if r.zero {
				all = append(all, origin{zero: true})
			} else {
				all = append(all, origin{pack: repo.PackID{Backup: name, Number: r.pack}, raw: r.raw + i})
			}
		}
	}
	return all
}

// drawRuns draws runs in three packs, at a place in a file of some length.
func drawRuns(rt *rapid.T, offset, length int64, label string) []placed {
	var runs []placed
	for end := offset + length; offset < end; {
		r := placed{offset: offset, length: min(rapid.Int64Range(1, 8).Draw(rt, label), end-offset), zero: rapid.Bool().Draw(rt, "zero")}
		if !r.zero {
			r.pack = uint32(rapid.IntRange(0, 2).Draw(rt, "pack"))
			r.raw = rapid.Int64Range(0, 100).Draw(rt, "raw")
		}
		runs = append(runs, r)
		offset += r.length
	}
	return runs
}

// lentPart is a part that an earlier backup has.
func lentPart(runs []placed) repo.FilePart {
	section := new(repo.Section)
	for n := range 3 {
		section.Packs = append(section.Packs, repo.PackFrames{PackID: repo.PackID{Backup: earlier, Number: uint32(2 - n)}})
	}
	part := repo.FilePart{Section: section}
	for _, r := range runs {
		one := repo.Run{Length: r.length}
		if !r.zero {
			one.Raw, one.Pack = r.raw, int32(3-r.pack)
		}
		part.Runs = append(part.Runs, one)
	}
	return part
}

// Whatever an earlier backup has and whatever was read, each byte of the file
// comes from the newest reading, else from the earlier backup; and parts in
// which nothing was read stay the ones they are.
func TestAssemble(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var before []origin
		old := &former{}
		for range rapid.IntRange(0, 4).Draw(rt, "parts") {
			part := lentPart(drawRuns(rt, 0, rapid.Int64Range(1, 30).Draw(rt, "length"), "old run"))
			old.parts = append(old.parts, part)
			before = append(before, origins(part)...)
		}
		old.Size = int64(len(before))
		f := &fileState{former: old, source: source{class: postgres.FileClass{Relation: true}}}
		f.Size = rapid.Int64Range(0, old.Size+20).Draw(rt, "size")
		want := append([]origin{}, before[:min(old.Size, f.Size)]...)
		want = append(want, make([]origin, f.Size-int64(len(want)))...)
		var out stretchResult
		for at := int64(0); at < f.Size; {
			gap := rapid.Int64Range(0, 20).Draw(rt, "gap")
			if at+gap > old.Size {
				gap = max(old.Size-at, 0) // behind what was there all is read
			}
			if at += gap; at >= f.Size {
				break
			}
			length := rapid.Int64Range(1, f.Size-at).Draw(rt, "read")
			runs := drawRuns(rt, at, length, "new run")
			copy(want[at:], read(runs))
			for _, r := range runs {
				if !r.zero {
					out.frames = append(out.frames, repo.FrameRef{Pack: r.pack})
				}
			}
			out.runs = append(out.runs, runs...)
			at += length
		}
		taken := int64(0)
		for _, r := range out.runs {
			taken += r.length
			f.plan.Stretches = append(f.plan.Stretches, delta.Stretch{Offset: r.offset, Length: r.length})
		}
		f.results = []stretchResult{out}
		parts, inherited := f.assemble(name)
		var got []origin
		for i, p := range parts {
			begin := int64(len(got))
			got = append(got, origins(p)...)
			if p.Index == -1 {
				continue
			}
			if &p.Runs[0] != &old.parts[i].Runs[0] || p.Section != old.parts[i].Section {
				rt.Fatalf("part %d is not the earlier one", i)
			}
			for _, r := range out.runs {
				if r.offset < int64(len(got)) && r.offset+r.length > begin {
					rt.Fatalf("part %d stayed although it was read", i)
				}
			}
		}
		if int64(len(got)) != f.Size || inherited != f.Size-taken {
			rt.Fatalf("%d bytes, %d inherited, of %d with %d read", len(got), inherited, f.Size, taken)
		}
		for i := range got {
			if got[i] != want[i] {
				rt.Fatalf("byte %d comes from %+v, not %+v", i, got[i], want[i])
			}
		}
	})
}
