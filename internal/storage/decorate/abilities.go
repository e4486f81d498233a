package decorate

import (
	"context"
	"iter"

	"agent/internal/storage"
)

// The operations of the optional abilities, as messages name them.
const (
	opLock    = "lock"
	opDiscard = "discard"
)

// Decorate repeats the operations of an ability; see storage.As.
func (r *retry) Decorate(ability any) {
	switch a := ability.(type) {
	case *storage.Extender:
		*a = retryExtender{*a, r}
	case *storage.Cleaner:
		*a = retryCleaner{*a, r}
	}
}

type retryExtender struct {
	storage.Extender
	r *retry
}

func (e retryExtender) ExtendLock(ctx context.Context, key string, lock storage.Lock) error {
	_, err := try(ctx, e.r.tries(opLock, key), func() (struct{}, error) {
		return struct{}{}, e.Extender.ExtendLock(ctx, key, lock)
	})
	return err
}

type retryCleaner struct {
	storage.Cleaner
	r *retry
}

// Unfinished begins anew when the listing breaks, and remembers what it has
// given: that is little, where somebody cleans.
func (c retryCleaner) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	type name struct{ key, id string }
	return func(yield func(storage.Unfinished, error) bool) {
		given := map[name]bool{}
		relist(ctx, c.r, prefix, func() iter.Seq2[storage.Unfinished, error] { return c.Cleaner.Unfinished(ctx, prefix) },
			func() {},
			func(u storage.Unfinished) bool {
				n := name{u.Key, u.ID}
				fresh := !given[n]
				given[n] = true
				return fresh
			})(yield)
	}
}

func (c retryCleaner) Discard(ctx context.Context, u storage.Unfinished) error {
	_, err := try(ctx, c.r.tries(opDiscard, u.Key), func() (struct{}, error) {
		return struct{}{}, c.Cleaner.Discard(ctx, u)
	})
	return err
}

// Decorate limits the operations of an ability; see storage.As.
func (t *timeout) Decorate(ability any) {
	switch a := ability.(type) {
	case *storage.Extender:
		*a = timeoutExtender{*a, t}
	case *storage.Cleaner:
		*a = timeoutCleaner{*a, t}
	}
}

type timeoutExtender struct {
	storage.Extender
	t *timeout
}

func (e timeoutExtender) ExtendLock(ctx context.Context, key string, lock storage.Lock) error {
	_, err := once(ctx, e.t.answer(opLock, key), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, e.Extender.ExtendLock(ctx, key, lock)
	})
	return err
}

type timeoutCleaner struct {
	storage.Cleaner
	t *timeout
}

// basesPerWalk is how many times Base a step of Unfinished may take: a store of
// files looks through all folders to find one, or none.
const basesPerWalk = 20

func (c timeoutCleaner) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	w := c.t.answer("list", prefix)
	w.limit *= basesPerWalk
	return stepping(ctx, w, func(ctx context.Context) iter.Seq2[storage.Unfinished, error] {
		return c.Cleaner.Unfinished(ctx, prefix)
	})
}

func (c timeoutCleaner) Discard(ctx context.Context, u storage.Unfinished) error {
	_, err := once(ctx, c.t.answer(opDiscard, u.Key), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, c.Cleaner.Discard(ctx, u)
	})
	return err
}

// Decorate counts the operations of an ability: a lock is a put, a list of what
// is unfinished a listing, and a discard a delete; see storage.As.
func (c *Counter) Decorate(ability any) {
	switch a := ability.(type) {
	case *storage.Extender:
		*a = countExtender{*a, c}
	case *storage.Cleaner:
		*a = countCleaner{*a, c}
	}
}

type countExtender struct {
	storage.Extender
	c *Counter
}

func (e countExtender) ExtendLock(ctx context.Context, key string, lock storage.Lock) error {
	err := e.Extender.ExtendLock(ctx, key, lock)
	e.c.put.ended(err)
	return err
}

type countCleaner struct {
	storage.Cleaner
	c *Counter
}

func (c countCleaner) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	return counting(c.c, c.Cleaner.Unfinished(ctx, prefix))
}

func (c countCleaner) Discard(ctx context.Context, u storage.Unfinished) error {
	err := c.Cleaner.Discard(ctx, u)
	c.c.delete.ended(err)
	return err
}
