package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"

	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Options are what Run needs.
type Options struct {
	Cluster repo.ClusterID
	// SegmentSize is that of WAL, if the caller knows; 0: it is looked up.
	SegmentSize postgres.SegmentSize
	Request     Request
	Rules       Rules // for Expire
	// Confirm deletes; else it is only told what would be.
	Confirm  bool
	Command  string // as others are told
	Host     host.Identity
	StateDir string
	Log      *slog.Logger
	Now      func() time.Time
}

// Result is what was deleted, or would be.
type Result struct {
	*Plan
	Confirmed bool
	Places    []Place
}

// Place is what was deleted in one of the places.
type Place struct {
	Name string
	// Backups are objects of the backups that go, Garbage those of folders of
	// backups that do not exist, WAL those of segments and what belongs to them.
	// Unfinished are uploads that were never finished.
	Backups, Garbage, WAL, Unfinished repo.Swept
	Err                               error // why it was not gone on with
}

// mostSkew is how far the clocks of this host and of a store may be apart where time
// decides.
const mostSkew = time.Hour

// Run plans and, if that is asked for, deletes. The result is complete also with
// an error that says what could not be deleted.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Result, error) {
	s, err := gather(ctx, r, o)
	if err != nil {
		return nil, err
	}
	p, err := s.plan(ctx, r, o)
	if err != nil {
		return nil, err
	}
	if err := p.possible(s); err != nil {
		return nil, err
	}
	if !o.Confirm {
		return p.execute(ctx, r, nil)
	}
	unlock, err := o.lock()
	if err != nil {
		return nil, err
	}
	res, err := o.delete(ctx, r, s, p)
	return res, errors.Join(err, unlock())
}

// possible refuses what cannot be done at all.
func (p *Plan) possible(s *state) error {
	if p.Request.everything() {
		for _, by := range s.live.Named {
			return errs.New(errs.Locked, "Wait until it ends, or, if its host is dead, until its claim expires.", "backup %s is being made", by)
		}
	}
	if !p.Request.only() {
		return nil
	}
	for _, name := range p.Request.Names {
		i := slices.IndexFunc(p.Decisions, func(d *Decision) bool { return d.Name == name })
		switch _, unread := p.Unread[name]; {
		case i >= 0 && p.Decisions[i].Keep():
			return errs.New(errs.Locked, "Run it again when that is over; a claim of a host that is dead expires a quarter of an hour after its last renewal.", "backup %s stays: %s", name, p.Decisions[i].Reasons[0])
		case i < 0 && !unread:
			return unknown(name)
		}
	}
	return nil
}

// lock keeps a second delete from this state directory away.
func (o *Options) lock() (unlock func() error, err error) {
	dir := filepath.Join(o.StateDir, "lock")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.State(err, "make lock directory")
	}
	l := flock.New(filepath.Join(dir, fmt.Sprintf("delete-%d", o.Cluster)))
	got, err := l.TryLock()
	if err != nil {
		return nil, errs.State(err, "lock deletes")
	}
	if !got {
		return nil, errs.New(errs.Locked, "Wait until it ends.", "another delete of cluster %d runs on this host (lock %s)", o.Cluster, l.Path())
	}
	return l.Unlock, nil
}

// delete announces the delete, looks once more at what may have changed, and
// removes what still goes.
func (o *Options) delete(ctx context.Context, r *repo.Repository, s *state, p *Plan) (res *Result, err error) {
	announced := p.touched()
	grave, err := r.Entomb(ctx, o.Cluster, repo.Tomb{
		Command: o.Command, Host: o.Host.Name, StateID: o.Host.State, PID: os.Getpid(), Backups: announced,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := grave.Hold(ctx, cancel)
	defer func() {
		stop()
		out, end := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer end()
		if rerr := grave.Release(out); rerr != nil {
			o.Log.Warn("the announcement of the delete is left to expire", "error", rerr.Error())
		}
	}()
	if skew := grave.Skew(); skew.Abs() > mostSkew {
		return nil, errs.New(errs.Other, "Nothing was deleted. Set this host's clock (date -u), or that of the store, and run it again.",
			"the clock of this host and that of the repository are %s apart", skew.Abs().Round(time.Second))
	}
	if s.live, err = grave.Claims(ctx); err != nil {
		return nil, err
	}
	if err := s.reload(ctx, r, *o); err != nil {
		return nil, err
	}
	s.announced = func(name repo.BackupName) bool { return slices.Contains(announced, name) }
	if p, err = s.plan(ctx, r, *o); err != nil {
		return nil, err
	}
	if err := p.possible(s); err != nil {
		return nil, err
	}
	if err := grave.Decide(ctx, p.touched()); err != nil {
		return nil, err
	}
	if err := p.recordHorizons(ctx, r, o.Host.Name); err != nil {
		return nil, err
	}
	res, err = p.execute(ctx, r, grave)
	if o.Request.Verb == Expire {
		err = errors.Join(err, p.renew(ctx, r, o.Now()))
	}
	return res, err
}

// recordHorizons says what WAL will not be whole any more, before it is not.
func (p *Plan) recordHorizons(ctx context.Context, r *repo.Repository, host string) error {
	if p.wal == nil {
		return nil
	}
	for _, seg := range p.wal.horizons(p.Decisions, p.survey.Scan, p.survey.Size) {
		if seg.Number <= p.survey.Expired[seg.Timeline] {
			continue
		}
		if err := r.StoreHorizon(ctx, p.Cluster, seg, p.survey.Size, host); err != nil {
			return err
		}
	}
	return nil
}

// execute removes what goes; without a grave it only counts that.
func (p *Plan) execute(ctx context.Context, r *repo.Repository, grave *repo.Grave) (*Result, error) {
	res := &Result{Plan: p, Confirmed: grave != nil}
	var failed []error
	for _, name := range r.Names() {
		at := Place{Name: name}
		sw, err := r.NewSweep(name, p.Cluster)
		if err == nil {
			if sw.Dry = grave == nil; !sw.Dry {
				sw.Current = grave.Current
			}
			err = p.sweep(ctx, sw, &at)
		}
		if err != nil {
			at.Err = err
			failed = append(failed, errs.Wrap(err, kindOf(err), "Run the same command again.", "delete from repository %s", name))
		}
		for _, swept := range []repo.Swept{at.Backups, at.Garbage, at.WAL, at.Unfinished} {
			if swept.Failed > 0 {
				failed = append(failed, errs.Wrap(swept.Problems[0].Err, kindOf(swept.Problems[0].Err),
					"Look at the rights of these credentials and at locks of the bucket, then run the same command again.",
					"objects of repository %s that could not be removed: %d, the first is %s", name, swept.Failed, swept.Problems[0].Key))
			}
		}
		res.Places = append(res.Places, at)
	}
	return res, errors.Join(failed...)
}

func kindOf(err error) errs.Kind {
	if k := errs.KindOf(err); k != errs.Other {
		return k
	}
	return errs.Storage
}

// sweep removes from one place, first what makes backups visible, last what they
// are made of.
func (p *Plan) sweep(ctx context.Context, sw *repo.Sweep, at *Place) error {
	gone, err := sw.Hide(ctx, p.Going())
	if err == nil {
		err = p.refused(gone)
	}
	if err == nil {
		for _, name := range gone {
			if err = sw.Clear(ctx, name, p.needed(name)); err != nil {
				break
			}
		}
	}
	at.Backups = sw.Take()
	if err != nil {
		return err
	}
	for _, name := range p.Left {
		stale, err := p.orphaned[name], error(nil)
		if !stale {
			stale, err = sw.Stale(ctx, name, p.staleBefore)
		}
		if err == nil && stale {
			err = sw.Clear(ctx, name, p.needed(name))
		}
		if err != nil {
			at.Garbage = sw.Take()
			return err
		}
	}
	if !p.Request.only() {
		err = errors.Join(sw.DeadClaims(ctx, p.staleBefore), sw.OldMarks(ctx))
	}
	at.Garbage = sw.Take()
	if err != nil {
		return err
	}
	if p.wal != nil {
		err = sw.WAL(ctx, p.wal.timelines(), p.survey.Size, p.wal)
		at.WAL = sw.Take()
	}
	if err == nil && (p.Request.Verb == Expire || p.Request.Verb == Garbage) {
		err = sw.Unfinished(ctx, p.staleBefore)
		at.Unfinished = sw.Take()
	}
	return err
}

// refused keeps what backups need that were to go and that a place did not give
// up, packs of others and their WAL: they exist there still.
func (p *Plan) refused(gone []repo.BackupName) error {
	for _, name := range p.Going() {
		if slices.Contains(gone, name) {
			continue
		}
		i := slices.IndexFunc(p.Decisions, func(d *Decision) bool { return d.Name == name })
		if i < 0 {
			if len(gone) == 0 {
				continue
			}
			return errs.New(errs.Damaged, "Remove its backup.json first, or delete the others without it.",
				"backup %s, which cannot be read, was not removed, and what it borrows from others is not known", name)
		}
		if err := p.needs(p.Decisions[i]); err != nil {
			return err
		}
		if p.wal != nil {
			p.wal.keepOwn(p.Decisions[i], p.survey.Size)
		}
	}
	return nil
}

// renew makes the locks of backups longer that are kept beyond what was promised
// when they were made: by a mark or a calendar rule.
func (p *Plan) renew(ctx context.Context, r *repo.Repository, now time.Time) error {
	var failed []error
	for _, d := range p.Decisions {
		if !d.Keep() || d.Continuous || d.lapsing {
			continue
		}
		n, err := r.ExtendLocks(ctx, d.Backup, func(i repo.Immutable) (least, until time.Time) { return i.Renewed(now) })
		p.Extended += n
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
