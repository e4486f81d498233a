package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/storage"
)

// extensions is how many locks are made longer at a time.
const extensions = 16

// ExtendLocks makes all objects without which a backup cannot be restored stay
// locked until a time at least, in each place that is configured to lock: its
// packs and those that it borrows, its lists, the WAL from start to stop, and last
// backup.json, by whose lock it is known that the others are as long. span is
// given the place's settings, and says until when; locks that last until least are
// left as they are. It returns how many objects were asked for.
func (r *Repository) ExtendLocks(ctx context.Context, b *Backup, span func(Immutable) (least, until time.Time)) (objects int64, err error) {
	var failed []error
	for _, p := range r.places {
		if p.Immutable == nil {
			continue
		}
		if err := p.err(); err != nil {
			failed = append(failed, fmt.Errorf("repository %s: %w", p.Name, err))
			continue
		}
		least, until := span(*p.Immutable)
		n, err := r.extendAt(ctx, p, b, least, until)
		objects += n
		if err != nil {
			failed = append(failed, fmt.Errorf("make the locks of backup %s in repository %s longer: %w", b.Name, p.Name, err))
		}
	}
	return objects, errors.Join(failed...)
}

func (r *Repository) extendAt(ctx context.Context, p *place, b *Backup, least, until time.Time) (objects int64, err error) {
	x, ok := storage.As[storage.Extender](p.Bucket)
	if !ok {
		return 0, storage.ErrUnsupported
	}
	last := b.Cluster.backupKey(b.Name)
	info, err := p.Bucket.Stat(ctx, last)
	if err != nil {
		return 0, err
	}
	if info.Lock != nil && !info.Lock.Until.Before(least) {
		return 0, nil
	}
	lock := storage.Lock{Mode: p.Immutable.Mode, Until: until}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(extensions)
	extend := func(key string) error {
		objects++
		g.Go(func() error { return x.ExtendLock(gctx, key, lock) })
		return gctx.Err()
	}
	err = r.EachPack(ctx, b, func(id PackID, _ Pack) {
		if gctx.Err() == nil {
			_ = extend(b.Cluster.packKey(id.Backup, id.Number)) // what fails, Wait tells
		}
	})
	if err == nil {
		err = walKeys(b, extend)
	}
	for _, key := range []string{b.Cluster.packsKey(b.Name), b.Cluster.manifestKey(b.Name)} {
		if err == nil {
			err = extend(key)
		}
	}
	if werr := g.Wait(); werr != nil {
		err = werr
	}
	if err != nil {
		return objects, err
	}
	return objects + 1, x.ExtendLock(ctx, last, lock)
}

// Renewed is how long the locks of a backup last that is kept for longer than
// was promised at first: the promised time from now on, as soon as half of it has
// passed.
func (i Immutable) Renewed(now time.Time) (least, until time.Time) {
	return now.Add(i.For / 2), now.Add(i.For).UTC().Truncate(time.Second)
}
