package compress

import (
	"bytes"
	"io"
	"testing"
)

func benchmarkData() map[string][]byte {
	return map[string][]byte{"pages": pageLike(MaxFrame), "noise": noise(MaxFrame), "zeros": make([]byte, MaxFrame)}
}

func BenchmarkAppendFrame(b *testing.B) {
	for name, raw := range benchmarkData() {
		for _, s := range append(settings(), highest()...) {
			b.Run(s.String()+"/"+name, func(b *testing.B) {
				e := newEncoder(b, s)
				dst := make([]byte, 0, 2*MaxFrame)
				b.SetBytes(MaxFrame)
				b.ReportAllocs()
				for b.Loop() {
					frame, err := e.AppendFrame(dst, raw)
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(len(raw))/float64(len(frame)), "ratio")
				}
			})
		}
	}
}

func BenchmarkAppendRaw(b *testing.B) {
	for name, raw := range benchmarkData() {
		for _, s := range []Setting{{Method: Zstd}, {Method: LZ4}, {Method: None}} {
			b.Run(s.String()+"/"+name, func(b *testing.B) {
				frame := appendFrame(b, s, nil, raw)
				dst := make([]byte, 0, MaxFrame+zstdSlack)
				var d Decoder
				b.SetBytes(MaxFrame)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := d.AppendRaw(dst, frame); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkReader(b *testing.B) {
	raw := pageLike(16 * MaxFrame)
	for _, s := range []Setting{{Method: Zstd}, {Method: LZ4}, {Method: None}} {
		b.Run(s.String(), func(b *testing.B) {
			stored := object(b, s, raw, MaxFrame)
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.Copy(io.Discard, NewReader(bytes.NewReader(stored))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
