package summary

import (
	"testing"

	"agent/internal/postgres/xlog/xlogtest"
)

// BenchmarkBuilder summarises segments of 16 MiB, written in chunks of 1 MiB
// as a push does.
func BenchmarkBuilder(b *testing.B) {
	const size = 16 << 20
	run := func(name string, segment []byte) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(segment)))
			var encoded []byte
			records := uint64(0)
			for b.Loop() {
				build := NewBuilder()
				for at := 0; at < len(segment); at += 1 << 20 {
					build.Write(segment[at : at+1<<20])
				}
				s, err := build.Finish([32]byte{})
				if err != nil {
					b.Fatal(err)
				}
				records = s.Records
				encoded = s.Encode()
			}
			b.ReportMetric(float64(records), "records")
			b.ReportMetric(float64(len(encoded)), "encoded-bytes")
		})
	}
	// Some hundred forks, blocks in no order.
	small := xlogtest.NewWriter(size)
	random := uint32(1)
	for small.Left() > 200 {
		random = random*1664525 + 1013904223
		small.Record(10, 0, xlogtest.Block(1663, 5, 16384+random>>28, random>>8%100_000, 64))
	}
	small.FillTo(0)
	run("small", small.Segments()[0])
	images := xlogtest.NewWriter(size)
	for images.Left() > 9000 {
		images.Record(0, 0xB0, xlogtest.Block(1663, 5, 16384, uint32(images.At>>13), 8000))
	}
	for images.Left() > 1000 {
		images.FillTo(0)
	}
	run("images", images.Segments()[0])
}
