package formatcheck

import (
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"agent/internal/repo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSample: as many as asked for, each once, with the first and the last.
func TestSample(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most, objects := rapid.IntRange(0, 10).Draw(t, "most"), rapid.IntRange(0, 40).Draw(t, "objects")
		s := newSample(most)
		for n := range objects {
			s.add(repo.Object{Pack: uint32(n)})
		}
		seen := make(map[uint32]bool)
		for _, o := range s.objects() {
			if seen[o.Pack] {
				t.Fatalf("%d twice", o.Pack)
			}
			seen[o.Pack] = true
		}
		want := objects
		if most > 0 {
			want = min(most, objects)
		}
		if len(seen) != want || want > 0 && !seen[0] || want > 1 && !seen[uint32(objects-1)] {
			t.Fatalf("of %d objects, at most %d: %v", objects, most, seen)
		}
	})
}

// TestSampleIsFair: each of those between has a chance.
func TestSampleIsFair(t *testing.T) {
	seen := make(map[uint32]int)
	for range 2000 {
		s := newSample(4)
		for n := range 12 {
			s.add(repo.Object{Pack: uint32(n)})
		}
		for _, o := range s.objects() {
			seen[o.Pack]++
		}
	}
	for n := range uint32(10) {
		// Two of ten: 400 of 2000, with a standard deviation below 18.
		if got := seen[n+1]; got < 250 || got > 550 {
			t.Errorf("object %d was taken %d times", n+1, got)
		}
	}
}
