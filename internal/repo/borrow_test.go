package repo

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"pgregory.net/rapid"
)

// chainFile is what the model knows of a file: where each of its blocks lies.
type chainFile struct {
	path string
	runs []named
}

func expand(runs []named) []named {
	var all []named
	for _, r := range runs {
		for at := int64(0); at < r.Length; at += blocks {
			one := r
			one.Length = blocks
			if !r.Zero {
				one.Raw += at
			}
			all = append(all, one)
		}
	}
	return all
}

// Of any chain of manifests, each of which takes what it likes of the one
// before, in any pieces, each gives back what was put in, needs the packs that
// it says and no others, and writes nothing of what has not changed.
func TestManifestChain(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := testRepo(newMemory(), Keys{}, setting(t, "zstd"))
		known := make(map[PackID]Pack)
		var files []chainFile
		var before *Backup
		fill := func(f *chainFile, pack PackID) {
			f.runs = nil
			for range rapid.IntRange(0, 6).Draw(rt, "runs") {
				f.runs = append(f.runs, named{Length: int64(rapid.IntRange(1, 4).Draw(rt, "length")) * blocks, Zero: rapid.IntRange(0, 4).Draw(rt, "zero") == 0})
				if last := &f.runs[len(f.runs)-1]; !last.Zero {
					last.Pack, last.Raw = pack, int64(rapid.IntRange(0, 50).Draw(rt, "raw"))*blocks
				}
			}
		}
		for round := range rapid.IntRange(2, 5).Draw(rt, "rounds") {
			name := BackupName(fmt.Sprintf("20261120T10153%dZ-k3v7qa", round))
			set := newPacks(t.Context(), r, name, 2)
			m, err := r.NewManifestWriter(set.PackSet, ManifestHeader{Backup: name, BlockSize: blocks, Mode: 0o700}, nil)
			if err != nil {
				rt.Fatal(err)
			}
			pack := PackID{name, 900}
			known[pack] = Pack{Number: 900, Kind: PackData, Size: 1}
			frames := map[PackID][]Frame{pack: {{Length: 10, RawLen: 100 * blocks}}}
			var old *ManifestReader
			if before != nil {
				root, err := r.OpenManifest(t.Context(), before)
				if err != nil {
					rt.Fatal(err)
				}
				rt.Cleanup(func() { root.Close() })
				if old, err = root.Read(known); err != nil {
					rt.Fatal(err)
				}
				rt.Cleanup(func() { old.Close() })
			}
			var now []chainFile
			add := func(f chainFile, parts []FilePart) {
				size := int64(0)
				for _, run := range f.runs {
					size += run.Length
				}
				now = append(now, f)
				if err := m.Add(t.Context(), Entry{Kind: EntryFile, Path: f.path, Mode: 0o600, ModTime: testTime, Size: size}, parts); err != nil {
					rt.Fatal(err)
				}
			}
			fresh := func(path string) {
				f := chainFile{path: path}
				fill(&f, pack)
				add(f, newParts(f.runs, frames))
			}
			unchanged := old != nil && rapid.IntRange(0, 3).Draw(rt, "nothing changes") == 0
			if old == nil {
				for n := range rapid.SampledFrom([]int{1, 3, 40, sectionParts + 20}).Draw(rt, "files") {
					fresh(fmt.Sprintf("f%05d", n))
				}
			} else {
				for {
					e, parts, err := old.Next(t.Context())
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						rt.Fatal(err)
					}
					f := files[0]
					files = files[1:]
					what := 0
					if !unchanged {
						what = rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, 1, 2, 3, 4}).Draw(rt, "what")
					}
					switch {
					case what == 1: // dropped
					case what == 2:
						fresh(e.Path)
					case what == 3 && len(parts) > 0: // the first part is new, at the front
						var runs []named
						for n, block := range expand(nameRuns(parts[0].Runs, parts[0].Section.Packs)) {
							if n == 0 {
								block = named{Length: blocks, Pack: pack, Raw: 7 * blocks}
							}
							runs = append(runs, block)
						}
						all := map[PackID][]Frame{pack: frames[pack]}
						for _, p := range parts[0].Section.Packs {
							all[p.PackID] = p.Frames
						}
						mixed := append(newParts(runs, all), parts[1:]...)
						f.runs = nil
						for _, p := range mixed {
							f.runs = append(f.runs, nameRuns(p.Runs, p.Section.Packs)...)
						}
						add(f, mixed)
					case what == 4:
						add(f, parts)
						fresh(e.Path + string(rune('z'-round))) // before those of earlier rounds
						if rapid.Bool().Draw(rt, "mark") {
							if err := m.Flush(t.Context()); err != nil {
								rt.Fatal(err)
							}
						}
					default:
						add(f, parts)
					}
				}
			}
			files = now
			if _, err = m.Finish(t.Context()); err == nil {
				err = set.group.Wait()
			}
			if err != nil {
				rt.Fatal(err)
			}
			own, err := set.Packs()
			if err != nil {
				rt.Fatal(err)
			}
			borrowed, err := m.Borrowed(known)
			if err != nil {
				rt.Fatal(err)
			}
			if unchanged && len(own) != 0 {
				rt.Fatalf("nothing has changed, and %d packs were written", len(own))
			}
			for _, p := range own {
				known[PackID{name, p.Number}] = p
			}
			before = &Backup{Name: name, Cluster: testCluster}
			if before.Manifest, err = m.Store(t.Context()); err != nil {
				rt.Fatal(err)
			}
			list := map[PackID]Pack{pack: known[pack]}
			for id, p := range byID(name, append(own, borrowed...)) {
				list[id] = p
			}
			got, _, err := load(t.Context(), r, before, list)
			if err != nil {
				rt.Fatal(err)
			}
			if len(got) != len(files) {
				rt.Fatalf("%d files of %d", len(got), len(files))
			}
			used := make(map[BackupName]bool)
			for i, f := range files {
				want, have := expand(f.runs), expand(got[i].Runs)
				if got[i].Path != f.path || len(want) != len(have) {
					rt.Fatalf("%s with %d blocks is %s with %d", f.path, len(want), got[i].Path, len(have))
				}
				for n := range want {
					if want[n] != have[n] {
						rt.Fatalf("block %d of %s is %v, not %v", n, f.path, have[n], want[n])
					}
					used[want[n].Pack.Backup] = true
					if id := want[n].Pack; !want[n].Zero && id.Backup != name {
						if _, ok := list[id]; !ok {
							rt.Fatalf("pack %v is used and not in the list", id)
						}
					}
				}
			}
			for _, p := range borrowed {
				if p.Kind == PackData && !used[p.Lender] {
					rt.Fatalf("pack %v is borrowed for nothing", p)
				}
			}
			if err := m.Close(); err != nil {
				rt.Fatal(err)
			}
		}
	})
}
