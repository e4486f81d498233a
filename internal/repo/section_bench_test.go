package repo

import "testing"

// BenchmarkSection reads and writes a section of a gigabyte after many
// incrementals.
func BenchmarkSection(b *testing.B) {
	var s sectionBuilder
	frames := make(map[PackID][]Frame)
	var runs []named
	for n := range 60_000 {
		id := PackID{testName, uint32(n * 2654435761 % 31)}
		all := frames[id]
		// Every other page of a frame of 1 MiB is still of use.
		if at := len(all) - 1; at < 0 || all[at].RawLen == maxRawFrame {
			all = append(all, Frame{Offset: int64(len(all)) * 400_000, Length: 400_000, RawOffset: int64(len(all)) * maxRawFrame})
		}
		last := &all[len(all)-1]
		runs = append(runs, named{Length: blocks, Pack: id, Raw: last.RawOffset + last.RawLen})
		last.RawLen += 2 * blocks
		frames[id] = all
	}
	p := part(runs, frames)
	if err := s.add(p.Part, p.Section.Packs); err != nil {
		b.Fatal(err)
	}
	body := s.encode(blocks)
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if _, err := decodeSection(body); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(runs)), "ns/run")
	})
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			var s sectionBuilder
			if err := s.add(p.Part, p.Section.Packs); err != nil {
				b.Fatal(err)
			}
			s.encode(blocks)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(runs)), "ns/run")
	})
}
