package retention

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"agent/internal/archive"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Plan is what a delete does, and why.
type Plan struct {
	Cluster   repo.ClusterID
	Request   Request
	Decisions []*Decision // the oldest first
	// Unread are backups that exist but cannot be read; Request may name one.
	Unread map[repo.BackupName]error
	// Left are folders of backups that do not exist, or not any more.
	Left []repo.BackupName
	// Extended counts objects whose locks were made longer.
	Extended int64
	// WALStays says why no WAL goes; empty: some may.
	WALStays string

	// staleBefore is until when all of what is left of a backup must have been
	// stored to be garbage.
	staleBefore time.Time

	// orphaned are folders of which packs were lent to a backup that goes: they
	// need not be old.
	orphaned map[repo.BackupName]bool

	wal    *walPlan
	survey *archive.Survey
	live   repo.LiveClaims
	lists  lists
	refs   repo.PackBits // packs of what is touched that others need
}

// Going names the backups that are removed, the oldest first.
func (p *Plan) Going() []repo.BackupName {
	var names []repo.BackupName
	for _, d := range p.Decisions {
		if !d.Keep() {
			names = append(names, d.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Unread)) {
		if p.Request.names(name) {
			names = append(names, name)
		}
	}
	return names
}

// touched are all whose packs may be removed.
func (p *Plan) touched() []repo.BackupName { return append(p.Going(), p.Left...) }

// state is what a plan is made from.
type state struct {
	survey *archive.Survey
	held   *repo.HeldBackups
	marks  map[repo.BackupName]repo.Marks
	live   repo.LiveClaims
	lists  lists
	now    time.Time
	// announced says what others know that it may be touched; nil: nothing was
	// announced yet, and all may be planned.
	announced func(repo.BackupName) bool
}

// gather reads everything. What a required place does not tell is an error: a
// mark, a backup or a claim that is only there may forbid what is planned.
func gather(ctx context.Context, r *repo.Repository, o Options) (*state, error) {
	s := &state{now: o.Now(), lists: make(lists)}
	var err error
	if s.survey, err = archive.Take(ctx, r, archive.Options{Cluster: o.Cluster, Size: o.SegmentSize, NoBackups: true, Sure: true}); err != nil {
		return nil, err
	}
	for _, p := range s.survey.Scan.Places {
		if p.Err != nil && p.Required {
			return nil, errs.Wrap(p.Err, errs.Storage, "Nothing was deleted. Run it again when the repository can be reached.", "list the WAL of repository %s", p.Name)
		}
	}
	if s.live, err = r.ClaimsNow(ctx, o.Cluster); err != nil {
		return nil, err
	}
	err = s.reload(ctx, r, o)
	return s, err
}

// reload reads what may have changed since: it comes after the claims, since one
// that is gone has made its backup visible before.
func (s *state) reload(ctx context.Context, r *repo.Repository, o Options) (err error) {
	if s.held, err = r.HeldBackups(ctx, o.Cluster); err != nil {
		return err
	}
	s.marks, err = r.Marks(ctx, o.Cluster)
	return err
}

// plan decides what goes.
func (s *state) plan(ctx context.Context, r *repo.Repository, o Options) (p *Plan, err error) {
	p = &Plan{
		Cluster: o.Cluster, Request: o.Request, Unread: s.held.Unread, survey: s.survey, live: s.live, lists: s.lists,
	}
	if err := p.unread(); err != nil {
		return nil, err
	}
	h := s.history()
	p.Decisions, p.staleBefore = h.all, h.now.Add(-repo.GarbageAge)
	if err := o.Request.apply(h, o.Rules); err != nil {
		return nil, err
	}
	h.claimed(s.live)
	if p.orphaned, err = s.packs(ctx, r, h); err != nil {
		return nil, err
	}
	for _, name := range s.held.Without {
		if s.announced != nil && !s.announced(name) {
			continue
		}
		if s.live.Named[name] == "" && (!o.Request.only() || p.orphaned[name]) {
			p.Left = append(p.Left, name)
		}
	}
	if err := p.readRefs(ctx, r); err != nil {
		return nil, err
	}
	window := time.Duration(0)
	if o.Request.Verb == Expire {
		window = o.Rules.Window
	}
	p.planWAL(h, s, window)
	return p, nil
}

// unread refuses to go on while it is not known what a backup borrows.
func (p *Plan) unread() error {
	for _, name := range slices.Sorted(maps.Keys(p.Unread)) {
		if !p.Request.names(name) {
			return notKnown(p.Unread[name], name, "backup %s cannot be read", name)
		}
	}
	return nil
}

// notKnown is that nothing can be deleted since it is not known what a backup
// borrows. Only of one that is damaged is the advice to give it up: another error
// passes, or has its own.
func notKnown(err error, name repo.BackupName, format string, args ...any) error {
	hint := "Nothing was deleted. Run it again when the repository can be read."
	switch errs.KindOf(err) {
	case errs.Damaged:
		hint = fmt.Sprintf("Nothing was deleted: what that backup borrows from others is not known. Bring back a good copy (agent repo sync), or give it up: agent delete target %s --confirm", name)
	case errs.Config:
		hint = "Nothing was deleted. Use the version of the agent that wrote the backup, or a newer one."
	}
	return errs.Wrap(err, kindOf(err), hint, format, args...)
}

// stillness is how much later than the last thing that was stored a policy's time
// can be: in a repository to which nothing is added any more time stands still,
// and so it does for a clock that has jumped ahead.
const stillness = 24 * time.Hour

// history is what there is, ready to be judged.
func (s *state) history() *history {
	h := &history{lines: linesOf(s.survey.Histories), active: make(map[postgres.Timeline]time.Time)}
	var last time.Time
	for _, r := range s.survey.Scan.Ranges {
		if t := r.First.Timeline; r.Until.After(h.active[t]) {
			h.active[t] = r.Until
		}
		if r.Until.After(last) {
			last = r.Until
		}
	}
	for _, b := range s.held.Backups {
		if b.Created.After(last) {
			last = b.Created
		}
	}
	h.clock, h.now = s.now, s.now
	if latest := last.Add(stillness); !last.IsZero() && latest.Before(h.now) {
		h.now = latest
	}
	for _, item := range h.lines.ordered(s.held.Backups, h.now) {
		item.Marks = s.marks[item.Name]
		first, last := item.StartLSN.Segment(item.SegmentSize), item.StopLSN.LastSegment(item.SegmentSize)
		item.Whole = len(archive.Missing(s.survey.Scan.Ranges, archive.Span{
			First: postgres.Segment{Timeline: item.Timeline, Number: first}, Last: postgres.Segment{Timeline: item.Timeline, Number: last},
		})) == 0
		h.all = append(h.all, &Decision{Item: item})
	}
	return h
}

// packs reads the lists of what goes: they say until when it is locked, which
// keeps it, and from whom it has borrowed.
func (s *state) packs(ctx context.Context, r *repo.Repository, h *history) (lenders map[repo.BackupName]bool, err error) {
	going := h.going()
	if err := s.lists.read(ctx, r, going); err != nil {
		return nil, err
	}
	until := make(map[repo.BackupName]time.Time)
	for _, d := range going {
		l := s.lists[d.Name]
		if l.err != nil && errs.KindOf(l.err) != errs.Damaged {
			return nil, notKnown(l.err, d.Name, "the list of packs of backup %s cannot be read", d.Name)
		}
		if until[d.Name] = r.LockedSince(d.Created); l.locked.After(until[d.Name]) {
			until[d.Name] = l.locked
		}
	}
	h.locked(until)
	// What stays is known before it is asked what that borrows, and which WAL it
	// needs.
	if s.announced != nil {
		h.spare(s.announced)
	}
	lenders = make(map[repo.BackupName]bool)
	for _, d := range h.going() {
		for name := range s.lists[d.Name].packs {
			lenders[name] = true
		}
	}
	return lenders, nil
}

// readRefs finds out which packs of the backups that are touched others need.
func (p *Plan) readRefs(ctx context.Context, r *repo.Repository) error {
	p.refs = make(repo.PackBits)
	if len(p.touched()) == 0 {
		return nil
	}
	var staying []*Decision
	for _, d := range p.Decisions {
		if d.Keep() {
			staying = append(staying, d)
		}
	}
	if err := p.lists.read(ctx, r, staying); err != nil {
		return err
	}
	for _, d := range staying {
		if err := p.needs(d); err != nil {
			return err
		}
	}
	return nil
}

// needs notes which packs of the backups that are touched a backup has in its list.
func (p *Plan) needs(d *Decision) error {
	l := p.lists[d.Name]
	if l.err != nil {
		return notKnown(l.err, d.Name, "the list of packs of backup %s cannot be read", d.Name)
	}
	for _, name := range p.touched() {
		p.refs.AddOf(l.packs, name)
	}
	return nil
}

// needed says which packs of a backup stay.
func (p *Plan) needed(name repo.BackupName) func(uint32) bool {
	return func(n uint32) bool { return p.refs.Has(repo.PackID{Backup: name, Number: n}) }
}

// planWAL decides what becomes of WAL; window is that of the policy, if there is
// one.
func (p *Plan) planWAL(h *history, s *state, window time.Duration) {
	switch {
	case p.Request.only():
		p.WALStays = "only a backup was asked for"
		return
	case len(s.survey.Damaged) > 0 && !p.Request.everything():
		p.WALStays = fmt.Sprintf("timeline histories cannot be read: %v", errors.Join(slices.Collect(maps.Values(s.survey.Damaged))...))
		return
	}
	var stay []*Decision
	continuous := false
	oldest := h.now
	for _, d := range h.all {
		if d.Keep() {
			stay = append(stay, d)
		}
		if d.Keep() && d.Continuous {
			continuous = true
			if d.At.Before(oldest) {
				oldest = d.At
			}
		}
	}
	if !continuous && !p.Request.everything() {
		p.WALStays = "no backup is kept from which WAL could be counted"
		return
	}
	p.wal = planWAL(stay, h.lines, s.survey.Size)
	p.wal.since = s.live.Since
	if p.Request.everything() {
		for t := range h.timelines() {
			p.wal.dead[t] = true
		}
		return
	}
	horizon := h.now.Add(-repo.GarbageAge)
	if at := h.now.Add(-window); window > 0 && at.Before(horizon) {
		horizon = at
	}
	if oldest.Before(horizon) {
		horizon = oldest
	}
	p.wal.bury(s.survey.Scan.Ranges, h.lines, horizon)
}
