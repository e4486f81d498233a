// Package delta decides which parts of a file a backup has to read. A full
// backup reads all of it; that is the only answer there is yet.
package delta

import "iter"

// Stretch is a part of a file, in bytes.
type Stretch struct{ Offset, Length int64 }

// Whole yields all of a file of the given size in stretches of at most step
// bytes, in order. An empty file is one empty stretch: it must be looked at
// like any other.
func Whole(size, step int64) iter.Seq[Stretch] {
	return func(yield func(Stretch) bool) {
		if size == 0 {
			yield(Stretch{})
			return
		}
		for offset := int64(0); offset < size; offset += step {
			if !yield(Stretch{Offset: offset, Length: min(step, size-offset)}) {
				return
			}
		}
	}
}
