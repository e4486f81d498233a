package prefetch

import "time"

// The bounds of how many segments are fetched ahead.
const (
	firstDepth = 2
	maxDepth   = 64
)

// pace finds from how fast PostgreSQL consumes segments, and how long one takes
// to fetch, how many have to be ahead so that it never waits.
type pace struct {
	depth    int
	interval time.Duration // between two questions, smoothed
	load     time.Duration // for one segment, smoothed
	last     time.Time     // of the last question
}

// smooth gives the newest value a quarter of the weight.
func smooth(old, value time.Duration) time.Duration {
	if old == 0 {
		return value
	}
	return old + (value-old)/4
}

// loaded is told how long a segment took.
func (p *pace) loaded(d time.Duration) { p.load = smooth(p.load, d) }

// heard is told of a question for what is not there.
func (p *pace) heard(now time.Time) {
	if !p.last.IsZero() {
		p.interval = smooth(p.interval, now.Sub(p.last))
	}
	p.last = now
}

// asked is told of a question, and whether its answer has to wait.
func (p *pace) asked(now time.Time, waits bool) {
	p.heard(now)
	want := p.want()
	switch {
	case p.depth == 0:
		p.depth = firstDepth
	case waits:
		// That it was too low is known; that it was too high is guessed.
		p.depth = max(want, 2*p.depth)
	case want > p.depth:
		p.depth = want
	case want < p.depth:
		p.depth--
	}
	p.depth = min(p.depth, maxDepth)
}

// want is how many segments are consumed while one is fetched, and as many again
// for what does not go evenly.
func (p *pace) want() int {
	if p.interval <= 0 || p.load <= 0 {
		return firstDepth
	}
	return firstDepth + int(min(2*p.load/p.interval, maxDepth))
}

// The bounds of how long nobody may ask before the process ends.
const (
	shortestIdle = 10 * time.Second
	longestIdle  = 2 * time.Minute
)

// idle is how long the next question may take to come. Before there were two of
// them nothing is known of how slow replay is.
func (p *pace) idle() time.Duration {
	if p.interval == 0 {
		return longestIdle
	}
	return max(shortestIdle, min(8*p.interval, longestIdle))
}
