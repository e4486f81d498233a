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

func origins(runs []repo.Run) []origin {
	var all []origin
	for _, r := range runs {
		for i := range r.Length {
			if r.Zero {
				all = append(all, origin{zero: true})
			} else {
				all = append(all, origin{pack: r.Pack, raw: r.Raw + i})
			}
		}
	}
	return all
}

// drawRuns draws runs of some length in a pack of a backup.
func drawRuns(rt *rapid.T, name repo.BackupName, length int64, label string) []repo.Run {
	var runs []repo.Run
	for at := int64(0); at < length; {
		r := repo.Run{Length: min(rapid.Int64Range(1, 8).Draw(rt, label), length-at), Zero: rapid.Bool().Draw(rt, "zero")}
		if !r.Zero {
			r.Pack = repo.PackID{Backup: name, Number: uint32(rapid.IntRange(0, 2).Draw(rt, "pack"))}
			r.Raw = rapid.Int64Range(0, 100).Draw(rt, "raw")
		}
		runs = append(runs, r)
		at += r.Length
	}
	return runs
}

// Whatever an earlier backup has and whatever was read, each byte of the file
// comes from the newest reading, else from the earlier backup; and parts in
// which nothing was read stay the ones they are.
func TestAssemble(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var before []origin
		old := &former{}
		for range rapid.IntRange(0, 4).Draw(rt, "parts") {
			runs := drawRuns(rt, earlier, rapid.Int64Range(1, 30).Draw(rt, "length"), "old run")
			section := &repo.Section{Frames: map[repo.PackID][]repo.Frame{}}
			old.parts = append(old.parts, repo.FilePart{Part: repo.Part{Runs: runs}, Section: section})
			before = append(before, origins(runs)...)
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
			runs := drawRuns(rt, name, length, "new run")
			copy(want[at:], origins(runs))
			for _, r := range runs {
				out.runs = append(out.runs, placed{at, r})
				at += r.Length
			}
		}
		read := int64(0)
		for _, r := range out.runs {
			read += r.Length
			f.plan.Stretches = append(f.plan.Stretches, delta.Stretch{Offset: r.offset, Length: r.Length})
		}
		f.results = []stretchResult{out}
		parts, inherited := f.assemble(name)
		var got []origin
		for i, p := range parts {
			begin := int64(len(got))
			got = append(got, origins(p.Runs)...)
			if p.Index == -1 {
				continue
			}
			if &p.Runs[0] != &old.parts[i].Runs[0] || p.Section != old.parts[i].Section {
				rt.Fatalf("part %d is not the earlier one", i)
			}
			for _, r := range out.runs {
				if r.offset < int64(len(got)) && r.offset+r.Length > begin {
					rt.Fatalf("part %d stayed although it was read", i)
				}
			}
		}
		if int64(len(got)) != f.Size || inherited != f.Size-read {
			rt.Fatalf("%d bytes, %d inherited, of %d with %d read", len(got), inherited, f.Size, read)
		}
		for i := range got {
			if got[i] != want[i] {
				rt.Fatalf("byte %d comes from %+v, not %+v", i, got[i], want[i])
			}
		}
	})
}
