package sftp

import (
	"context"
	"errors"
	"sync"

	"agent/internal/storage"
)

// pool is a few connections, made when they are needed.
type pool struct {
	dial func(context.Context) (*conn, error)

	mu    sync.Mutex
	slots []*slot
}

// slot is the place of one connection.
type slot struct {
	turn chan struct{} // holds a token while nobody dials
	// The pool's mutex guards what follows.
	c    *conn // nil if there was none yet; it may be broken
	load int   // operations under way
}

func newPool(n int, dial func(context.Context) (*conn, error)) *pool {
	p := &pool{dial: dial}
	for range n {
		s := &slot{turn: make(chan struct{}, 1)}
		s.turn <- struct{}{}
		p.slots = append(p.slots, s)
	}
	return p
}

// acquire returns a connection that has the least to do, and what to call when
// the operation has ended.
func (p *pool) acquire(ctx context.Context) (*conn, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	s := p.choose()
	release := sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.load--
		// An operation that was cut since no answer came: nothing will answer here.
		if s.c != nil && errors.Is(context.Cause(ctx), storage.ErrUnavailable) {
			s.c.kill()
		}
	})
	c, err := p.connected(ctx, s)
	if err != nil {
		release()
		return nil, nil, err
	}
	return c, release, nil
}

// choose takes an idle connection before a new one, and a new one before one
// that is busy.
func (p *pool) choose() *slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := p.slots[0]
	for _, s := range p.slots[1:] {
		if s.load < best.load || s.load == best.load && s.c.alive() && !best.c.alive() {
			best = s
		}
	}
	best.load++
	return best
}

// connected returns the connection of a slot. Of several that find none, one
// dials; when it fails, the next one tries for itself.
func (p *pool) connected(ctx context.Context, s *slot) (*conn, error) {
	if c := p.current(s); c.alive() {
		return c, nil
	}
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c := p.current(s); c.alive() {
		return c, nil
	}
	c, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.c = c
	return c, nil
}

func (p *pool) current(s *slot) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return s.c
}

// close closes all connections and waits for their ends.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.slots {
		if s.c != nil {
			s.c.kill()
			s.c.background.Wait()
		}
	}
}
