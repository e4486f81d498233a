package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"agent/internal/errs"
	"agent/internal/repo"
	"agent/internal/storage"
)

// backup is one of the cluster.
type backup struct {
	name   repo.BackupName
	copies []copyOf // of backup.json, by place
	// of is what it says, by the first good copy; nil: there is none.
	of       *repo.Backup
	selected bool
	at       placeSet // where all of it is looked at
	recent   bool     // it was found good a short time ago
	gone     bool     // it was deleted meanwhile, or is being deleted
}

// copyOf is backup.json in one place.
type copyOf struct {
	asked bool // the place answered
	there bool // there is an object, good or bad
	bad   error
}

// catalogue reads every backup.json of the cluster, in each place.
func (x *run) catalogue(ctx context.Context) error {
	found := make(map[repo.BackupName]bool)
	for _, p := range x.up() {
		all, err := p.only.BackupNames(ctx, x.Cluster)
		if err != nil {
			if fatal(ctx, err) {
				return err
			}
			x.lose(p, err)
			continue
		}
		for _, n := range all {
			found[n] = true
		}
	}
	for n := range found {
		x.backups = append(x.backups, &backup{name: n, copies: make([]copyOf, len(x.places))})
	}
	slices.SortFunc(x.backups, func(a, b *backup) int { return cmp.Compare(a.name, b.name) })
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(x.Concurrency, 1))
	for _, b := range x.backups {
		g.Go(func() error { return x.load(gctx, b) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := x.constants(ctx); err != nil {
		return err
	}
	if err := x.choose(ctx); err != nil {
		return err
	}
	if !x.Repair {
		return nil
	}
	return x.undisturbed(ctx)
}

// undisturbed refuses to repair what is being deleted: it would be there again.
func (x *run) undisturbed(ctx context.Context) error {
	var names []repo.BackupName
	for _, b := range x.backups {
		if b.selected {
			names = append(names, b.name)
		}
	}
	doomed, _, err := x.repo.Doomed(ctx, x.Cluster, names)
	if err == nil && doomed != "" {
		err = errs.New(errs.Locked, "Wait for it, or run the delete that was interrupted again, or name other backups.", "backup %s is being deleted, and is not repaired", doomed)
	}
	return err
}

// load reads backup.json in each place.
func (x *run) load(ctx context.Context, b *backup) error {
	for _, p := range x.up() {
		of, err := p.only.LoadBackup(ctx, x.Cluster, b.name)
		c := copyOf{asked: true, there: true}
		switch {
		case err == nil && b.of != nil && of.Self != b.of.Self:
			c.bad = errs.New(errs.Damaged, "", "%s of %s is that of another backup than in the other repositories", x.Cluster.BackupKeys(b.name).JSON, p.URL)
		case err == nil:
			if b.of == nil {
				b.of = of
			}
		case errors.Is(err, storage.ErrNotExist):
			c.there = false
		case ctx.Err() != nil:
			return err
		case repo.IsOutage(err):
			x.lose(p, err)
			c.asked, c.there = false, false
		case errs.KindOf(err) == errs.Damaged, errs.KindOf(err) == errs.Config:
			c.bad = err
		default:
			return err
		}
		b.copies[p.index] = c
	}
	return nil
}

// exists reports whether there is a backup.json, good or bad.
func (b *backup) exists() bool {
	return slices.ContainsFunc(b.copies, func(c copyOf) bool { return c.there })
}

// choose selects the backups that are to be verified.
func (x *run) choose(ctx context.Context) error {
	for _, name := range x.Backups {
		i := slices.IndexFunc(x.backups, func(b *backup) bool { return b.name == name })
		if i >= 0 && x.backups[i].exists() {
			x.backups[i].selected = true
			continue
		}
		for _, p := range x.places {
			if err := p.down(); p.Required && err != nil {
				return err
			}
		}
		return errs.New(errs.NotFound,
			"See what there is with: agent backup-list. A backup without backup.json was interrupted, is still running, or lost that object.",
			"there is no backup %s of cluster %s in %s", name, x.Cluster, x.repo)
	}
	if len(x.Backups) > 0 {
		return nil
	}
	for _, b := range x.backups {
		if b.selected = b.exists(); !b.selected {
			if err := x.unfinished(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// unfinished tells of a folder that has all that comes before backup.json. That
// another backup builds on it proves that there was one.
func (x *run) unfinished(ctx context.Context, b *backup) error {
	whole, live, err := x.repo.Unfinished(ctx, x.Cluster, b.name)
	if err != nil {
		if fatal(ctx, err) {
			return err
		}
		x.Log.Warn("it is not known whether a backup has lost its backup.json", "backup", string(b.name), "error", line(err))
	}
	if !whole || live {
		return nil
	}
	f := Finding{
		Kind: Unfinished, Key: x.Cluster.BackupKeys(b.name).JSON, Everywhere: true, Backups: []repo.BackupName{b.name},
		Text: fmt.Sprintf("backup %s has everything but backup.json: it was interrupted at its end, or has lost that object", b.name),
	}
	for _, child := range x.backups {
		if child.of != nil && slices.Contains([]repo.BackupName{child.of.Parent, child.of.Full, child.of.CompactedFrom}, b.name) {
			f.Kind = Missing
			f.Text = fmt.Sprintf("backup %s has lost its backup.json, or its deletion was cut off: backup %s was made of it", b.name, child.name)
		}
	}
	x.add(f)
	return nil
}

// constants reads cluster.json in each place.
func (x *run) constants(ctx context.Context) error {
	known := false
	type failure struct {
		place *place
		err   error
	}
	var bad []failure
	for _, p := range x.up() {
		c, err := p.only.Cluster(ctx, x.Cluster)
		switch {
		case err == nil:
			x.cluster, known = c, true
		case ctx.Err() != nil:
			return err
		case repo.IsOutage(err):
			x.lose(p, err)
		case repo.IsMissing(err) && !x.used(p):
		default:
			bad = append(bad, failure{p, err})
		}
	}
	for _, f := range bad {
		o := object{key: x.Cluster.ClusterKey()}
		x.fix(ctx, f.place, o, f.err, known || x.repo.OlderCopy(ctx, o.key, nil))
	}
	return nil
}

// used reports whether any backup is in a place.
func (x *run) used(p *place) bool {
	return slices.ContainsFunc(x.backups, func(b *backup) bool { return b.copies[p.index].there })
}

// damagedDocuments tells of each backup.json that is damaged, and repairs it
// before anything else: it says what there must be.
func (x *run) damagedDocuments(ctx context.Context) error {
	for _, b := range x.backups {
		if !b.selected {
			continue
		}
		for _, p := range x.places {
			c := &b.copies[p.index]
			if c.bad == nil {
				continue
			}
			o := object{key: x.Cluster.BackupKeys(b.name).JSON, backups: []repo.BackupName{b.name}}
			if !x.fix(ctx, p, o, c.bad, b.of != nil || x.repo.OlderCopy(ctx, o.key, nil)) {
				continue
			}
			of, err := p.only.LoadBackup(ctx, x.Cluster, b.name)
			switch {
			case err == nil:
				c.bad, b.of = nil, of
			case fatal(ctx, err):
				return err
			case repo.IsOutage(err):
				x.lose(p, err)
			}
		}
	}
	return nil
}

// missingDocuments tells of each backup.json that is missing where it must be, and
// repairs it last of all: in each place a backup appears after all that it needs.
func (x *run) missingDocuments(ctx context.Context) error {
	for _, b := range x.backups {
		if !b.selected {
			continue
		}
		for _, p := range x.places {
			if c := b.copies[p.index]; !c.asked || c.there {
				continue
			}
			doomed, err := x.doomed(ctx, b)
			if err != nil {
				return err
			}
			if doomed {
				continue
			}
			o := object{key: x.Cluster.BackupKeys(b.name).JSON, backups: []repo.BackupName{b.name}}
			o.barred = !b.at.has(p) || x.Depth == Quick || x.troubled(p)
			x.fix(ctx, p, o, missingObject(o.key, p), b.of != nil)
		}
	}
	return nil
}

// doomed reports whether a backup is being deleted.
func (x *run) doomed(ctx context.Context, b *backup) (bool, error) {
	doomed, _, err := x.repo.Doomed(ctx, x.Cluster, []repo.BackupName{b.name})
	if err != nil && fatal(ctx, err) {
		return false, err
	}
	return doomed != "", nil
}

// missingObject is that an object is not in a place.
func missingObject(key string, p *place) error {
	return errs.Wrap(storage.ErrNotExist, errs.Damaged, "", "object %s of %s is missing", key, p.URL)
}
