package repo

import (
	"context"
	"fmt"
	"iter"

	"agent/internal/storage"
)

// stream is a listing that is read step by step, beside others.
type stream struct {
	next func() (storage.Info, error, bool)
	stop func()
	info storage.Info
	ok   bool // info is the next object
}

func newStream(ctx context.Context, p *place, prefix, after string) (*stream, error) {
	s := new(stream)
	s.next, s.stop = iter.Pull2(p.Bucket.List(ctx, prefix, after))
	if err := s.advance(); err != nil {
		return nil, err
	}
	return s, nil
}

// advance goes to the next object; after an error the stream has ended.
func (s *stream) advance() error {
	info, err, ok := s.next()
	s.info, s.ok = info, ok && err == nil
	if err != nil {
		s.stop()
		return fmt.Errorf("compare listings: %w", err)
	}
	return nil
}

// row is a key of the target or a source, or of both.
type row struct {
	key            string
	target, source *storage.Info // nil: it is not there
}

// compare merges the listings of the target and the sources, by key, in memory
// that does not depend on their length. Of several sources the first counts.
func (s *syncRun) compare(ctx context.Context, prefix string) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		places := append([]*place{s.target}, s.sources...)
		streams := make([]*stream, 0, len(places))
		defer func() {
			for _, l := range streams {
				l.stop()
			}
		}()
		listed := func(i int, err error) error {
			if i == 0 {
				return s.atTarget(err)
			}
			return err
		}
		for i, p := range places {
			l, err := newStream(ctx, p, prefix, "")
			if err != nil {
				yield(row{}, listed(i, err))
				return
			}
			streams = append(streams, l)
		}
		for {
			next := row{}
			for _, l := range streams {
				if l.ok && (next.key == "" || l.info.Key < next.key) {
					next.key = l.info.Key
				}
			}
			if next.key == "" {
				return
			}
			for i, l := range streams {
				if !l.ok || l.info.Key != next.key {
					continue
				}
				info := l.info
				switch {
				case i == 0:
					next.target = &info
				case next.source == nil:
					next.source = &info
				}
				if err := l.advance(); err != nil {
					yield(row{}, listed(i, err))
					return
				}
			}
			if !yield(next, nil) {
				return
			}
		}
	}
}

// cursor finds objects of the target in the order of their keys, by one
// listing as long as the keys rise below one prefix.
type cursor struct {
	run    *syncRun
	prefix string
	asked  string // the last key
	list   *stream
}

func (c *cursor) close() {
	if c.list != nil {
		c.list.stop()
		c.list = nil
	}
}

// find looks for the object key, which begins with prefix.
func (c *cursor) find(ctx context.Context, prefix, key string) (storage.Info, bool, error) {
	if c.list == nil || c.prefix != prefix || key < c.asked {
		c.close()
		// A key's own beginning is a little before the key.
		list, err := newStream(ctx, c.run.target, prefix, key[:len(key)-1])
		if err != nil {
			return storage.Info{}, false, c.run.atTarget(err)
		}
		c.list, c.prefix = list, prefix
	}
	c.asked = key
	for c.list.ok && c.list.info.Key < key {
		if err := c.list.advance(); err != nil {
			c.list = nil
			return storage.Info{}, false, c.run.atTarget(err)
		}
	}
	return c.list.info, c.list.ok && c.list.info.Key == key, nil
}
