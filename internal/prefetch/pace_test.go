package prefetch

import (
	"testing"
	"time"
)

// TestPace lets a recovery consume evenly and looks at what is fetched ahead.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		name           string
		interval, load time.Duration
		low, high      int // of the depth that is reached
	}{
		{"replay is slow", time.Second, 20 * time.Millisecond, firstDepth, firstDepth},
		{"the store is far", 30 * time.Millisecond, 200 * time.Millisecond, 10, 24},
		{"the store is very far", 10 * time.Millisecond, 5 * time.Second, maxDepth, maxDepth},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p pace
			now := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
			for range 50 {
				p.loaded(c.load)
				p.asked(now, false)
				now = now.Add(c.interval)
			}
			if p.depth < c.low || p.depth > c.high {
				t.Errorf("depth %d, expected %d to %d", p.depth, c.low, c.high)
			}
		})
	}
}

func TestPaceGrowsAtOnce(t *testing.T) {
	var p pace
	now := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	for i, want := range []int{firstDepth, 2 * firstDepth, 4 * firstDepth, 8 * firstDepth} {
		p.asked(now.Add(time.Duration(i)*time.Second), true)
		if p.depth != want {
			t.Errorf("depth %d after %d questions that waited, expected %d", p.depth, i+1, want)
		}
	}
	for i := range 100 {
		p.asked(now.Add(time.Duration(i)*time.Second), true)
	}
	if p.depth != maxDepth {
		t.Errorf("depth %d is not bounded by %d", p.depth, maxDepth)
	}
	p.loaded(time.Millisecond)
	for i := range 200 {
		p.asked(now.Add(time.Duration(100+i)*time.Minute), false)
	}
	if p.depth != firstDepth {
		t.Errorf("depth %d does not go down again", p.depth)
	}
}

func TestIdle(t *testing.T) {
	for interval, want := range map[time.Duration]time.Duration{
		0: longestIdle, 20 * time.Millisecond: shortestIdle, 10 * time.Second: 80 * time.Second, time.Hour: longestIdle,
	} {
		if got := (&pace{interval: interval}).idle(); got != want {
			t.Errorf("with %s between two questions %s, expected %s", interval, got, want)
		}
	}
}
