package retention

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/repo"
)

// listsRead is how many lists of packs are read at a time.
const listsRead = 16

// list is what counts of a backup's list of packs.
type list struct {
	packs  repo.PackBits // own and borrowed
	locked time.Time     // until when own packs are; zero: they are not
	err    error         // why it could not be read
}

// lists are those that were read: a backup never changes, so that a second plan
// needs none of them again. Memory is a bit for each pack.
type lists map[repo.BackupName]*list

// read reads the lists of the backups that were not read yet. What is wrong with one
// of them is told by the list.
func (l lists) read(ctx context.Context, r *repo.Repository, backups []*Decision) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listsRead)
	for _, d := range backups {
		if have := l[d.Name]; have != nil && have.err == nil {
			continue
		}
		one := &list{packs: make(repo.PackBits)}
		l[d.Name] = one
		g.Go(func() error {
			one.err = r.EachPack(gctx, d.Backup, func(id repo.PackID, p repo.Pack) {
				one.packs.Add(id)
				if id.Backup == d.Name && p.LockedUntil.After(one.locked) {
					one.locked = p.LockedUntil
				}
			})
			return context.Cause(gctx)
		})
	}
	return g.Wait()
}
