package formatcheck

import (
	"math/rand/v2"

	"agent/internal/repo"
)

// sample keeps so many of the objects that come: the first, the last, and of
// the others each with the same chance (reservoir sampling). An older version's
// objects come first where keys rise with time, a newer one's last.
type sample struct {
	most        int // 0: all
	seen        int
	first, last repo.Object
	between     []repo.Object
}

func newSample(most int) *sample { return &sample{most: most} }

func (s *sample) add(o repo.Object) {
	s.seen++
	if s.seen == 1 {
		s.first = o
		return
	}
	if s.seen > 2 {
		s.keep(s.last)
	}
	s.last = o
}

// keep takes an object that is neither the first nor the last.
func (s *sample) keep(o repo.Object) {
	room := s.most - 2
	switch {
	case s.most == 0 || len(s.between) < room:
		s.between = append(s.between, o)
	case room > 0:
		// It is the one with the number seen-2 of those between.
		if i := rand.IntN(s.seen - 2); i < room {
			s.between[i] = o
		}
	}
}

// objects are those that were kept.
func (s *sample) objects() []repo.Object {
	switch {
	case s.seen == 0:
		return nil
	case s.seen == 1 || s.most == 1:
		return []repo.Object{s.first}
	default:
		return append(append([]repo.Object{s.first}, s.between...), s.last)
	}
}
