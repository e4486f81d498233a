package verify

import (
	"context"
	"fmt"
	"slices"

	"agent/internal/errs"
	"agent/internal/repo"
)

// object is one that must be in some of the places.
type object struct {
	key     string
	want    *repo.ObjectDigest // nil: it proves itself
	pack    *repo.PackID       // nil: it is none
	backups []repo.BackupName  // that need it; of a pack they are found later
	// barred is that it must not be repaired: what it makes exist is not there.
	barred bool
}

func (o object) identity() uint64 { return identity(o.key, o.want.Size, o.want.SHA256) }

// failure is a place whose copy is bad.
type failure struct {
	place *place
	err   error
}

// examine reads an object in each of the places and compares its hash, and
// repairs what can be. first is how the first of them is read; nil: as the
// others. have says that some place has a good copy. The error is that no
// identity fits, or that ctx is over.
func (x *run) examine(ctx context.Context, o object, at []*place, first func(*repo.Repository) error) (have bool, err error) {
	stored := func(only *repo.Repository) error { return only.ReadStored(ctx, o.key, *o.want) }
	var bad []failure
	unread := false
	look := func(p *place) error {
		read := stored
		if first != nil {
			read = first
		}
		err := read(p.only)
		if err == nil {
			first, have = nil, true
			p.seen.add(o.identity(), x.Depth == Deep, x.began)
			x.read(o.want.Size)
		}
		return err
	}
	for _, p := range at {
		if p.down() != nil {
			continue
		}
		if x.fresh(p, o.identity()) {
			have = true
			x.meter.done.Add(o.want.Size)
			continue
		}
		switch err := look(p); {
		case err == nil:
		case fatal(ctx, err):
			return have, err
		case repo.IsOutage(err):
			if err := x.unread(ctx, p, o, err); err != nil {
				return have, err
			}
			unread = true
		default:
			p.seen.forget(o.identity())
			bad = append(bad, failure{p, err})
		}
	}
	if len(bad) == 0 {
		return have, nil
	}
	if !have {
		have = x.elsewhere(ctx, o, at) || x.repo.OlderCopy(ctx, o.key, o.want)
	}
	for _, f := range bad {
		if !x.fix(ctx, f.place, o, f.err, have || unread) {
			continue
		}
		if err := look(f.place); err != nil && fatal(ctx, err) {
			return have, err
		}
	}
	return have, nil
}

// elsewhere reports whether a place has a good copy in which the object need not
// be: of a pack, say, whose backup has not arrived there.
func (x *run) elsewhere(ctx context.Context, o object, at []*place) bool {
	for _, p := range x.up() {
		if !slices.Contains(at, p) && p.only.ReadStored(ctx, o.key, *o.want) == nil {
			x.read(o.want.Size)
			return true
		}
	}
	return false
}

// maxUnread is how many objects of a place that answers may be unreadable, with
// all the time that each took, before it counts as away.
const maxUnread = 16

// unread tells of an object that could not be read: a bad block of a disk, an
// archive tier. If the place does not answer at all it is left alone from now on.
func (x *run) unread(ctx context.Context, p *place, o object, err error) error {
	if !x.answers(ctx, p) {
		x.lose(p, err)
		return context.Cause(ctx)
	}
	x.add(Finding{Kind: Unreachable, Repository: p.Name, Key: o.key, Text: line(err), Backups: o.backups, pack: o.pack})
	return nil
}

// answers reports whether a place can be asked for other objects.
func (x *run) answers(ctx context.Context, p *place) bool {
	p.mu.Lock()
	p.unread++
	many := p.unread > maxUnread
	p.mu.Unlock()
	_, err := p.only.ReadMarker(ctx)
	return err == nil && !many
}

// fix tells that a place's copy is bad, and repairs it if that is wanted. have
// says that there is a good one; a place that cannot be asked may have one, too.
func (x *run) fix(ctx context.Context, p *place, o object, err error, have bool) (repaired bool) {
	hope := have || len(x.up()) < len(x.places)
	f := Finding{
		Kind: Damaged, Repository: p.Name, Key: o.key, Text: line(err), Everywhere: !hope,
		Backups: o.backups, pack: o.pack,
	}
	if repo.IsMissing(err) {
		if f.Kind = Missing; !p.Required {
			f.Kind = Behind
		}
	}
	if x.Repair && hope {
		repaired = x.repair(ctx, p, o, &f)
	}
	x.add(f)
	return repaired
}

// repair puts a good copy into the place.
func (x *run) repair(ctx context.Context, p *place, o object, f *Finding) bool {
	if o.barred {
		f.NotRepaired = errs.New(errs.Damaged, "", "the backup appears there only with all that it needs: agent repo sync brings it")
		return false
	}
	fix, err := x.repo.Repair(ctx, p.Name, o.key, o.want)
	switch {
	case err != nil:
		f.NotRepaired = err
		x.Log.Warn("an object was not repaired", "key", o.key, "repository", p.Name, "error", line(err))
		return false
	case fix.From == "":
		f.Repaired = "a second look"
		x.Log.Warn("an object that seemed damaged is good now", "key", o.key, "repository", p.Name)
	default:
		f.Repaired = fix.From
		x.Log.Info("an object was repaired", "key", o.key, "repository", p.Name, "from", fix.From)
	}
	return true
}

// troubled reports whether anything of a place is known to be wrong that was not
// repaired.
func (x *run) troubled(p *place) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.result.Findings {
		if f.Repository == p.Name && f.Repaired == "" && f.Kind != BadPages && f.Kind != Dropped {
			return true
		}
	}
	return false
}

// bring examines an object and keeps a good copy here; nil: there is none.
func (x *run) bring(ctx context.Context, o object, at []*place) (*repo.Brought, error) {
	var kept *repo.Brought
	have, err := x.examine(ctx, o, at, func(only *repo.Repository) (err error) {
		kept, err = only.Bring(ctx, o.key, *o.want)
		return err
	})
	if err != nil || kept != nil || !have {
		return kept, err
	}
	// All copies were found good a short time ago, or it is an older version.
	if kept, err = x.repo.Bring(ctx, o.key, *o.want); err == nil {
		x.read(o.want.Size)
		return kept, nil
	}
	if fatal(ctx, err) {
		return nil, err
	}
	x.add(Finding{Kind: Damaged, Key: o.key, Text: line(err), Backups: o.backups, pack: o.pack})
	return nil, nil
}

// malformed tells of an object that is what was stored and cannot be understood.
func (x *run) malformed(key string, id *repo.PackID, backups []repo.BackupName, err error) {
	x.add(Finding{
		Kind: Damaged, Key: key, Everywhere: true, Backups: backups, pack: id,
		Text: fmt.Sprintf("object %s is as it was stored, and is wrong: %s", key, line(err)),
	})
}
