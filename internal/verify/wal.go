package verify

import (
	"context"
	"path"
	"slices"

	"agent/internal/archive"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// wal looks for the WAL of the backups and, if deep, reads it.
func (x *run) wal(ctx context.Context) error {
	if len(x.up()) == 0 {
		return nil
	}
	if err := x.take(ctx); err != nil || x.survey == nil {
		return err
	}
	s := x.survey
	var wanted []*repo.Backup
	for _, b := range x.backups {
		if b.selected && b.of != nil {
			wanted = append(wanted, b.of)
		}
	}
	var err error
	var v *archive.Verdict
	if x.Depth == Deep {
		v, err = s.Deep(ctx, x.repo, wanted, archive.DeepOptions{
			Reach: x.reach, Concurrency: x.Concurrency, Fresh: x.freshWAL, Good: x.goodWAL,
		})
	} else {
		v, err = s.VerifyReach(wanted, x.reach)
	}
	if err != nil {
		return err
	}
	x.result.Objects += v.Objects
	x.result.Bytes += v.Bytes
	for _, f := range v.Findings {
		if f.Kind == archive.Damaged && f.Key != "" {
			x.damagedWAL[f.Repository+" "+f.Key] = true
		}
	}
	for _, f := range v.Findings {
		if err := x.walFinding(ctx, f); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(x.result.Findings, func(f Finding) bool { return f.wal && f.Repaired != "" }) {
		return x.take(ctx)
	}
	return nil
}

// take lists the WAL. x.survey stays nil if that cannot be done.
func (x *run) take(ctx context.Context) error {
	s, err := archive.Take(ctx, x.repo, archive.Options{Cluster: x.Cluster, Size: x.SegmentSize, NoBackups: true})
	if err != nil {
		if fatal(ctx, err) {
			return err
		}
		x.add(Finding{Kind: Damaged, Text: line(err), wal: true})
		return nil
	}
	s.NoBackups = false
	for _, b := range x.backups {
		if b.of != nil {
			s.Backups = append(s.Backups, b.of)
		}
	}
	x.survey = s
	return nil
}

func walIdentity(o repo.WALObject) uint64 { return identity(o.Key, o.Size) }

func (x *run) at(name string) *place {
	i := slices.IndexFunc(x.places, func(p *place) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return x.places[i]
}

func (x *run) freshWAL(name string, o repo.WALObject) bool {
	p := x.at(name)
	return p != nil && x.fresh(p, walIdentity(o))
}

func (x *run) goodWAL(name string, o repo.WALObject) {
	if p := x.at(name); p != nil {
		p.seen.add(walIdentity(o), true, x.began)
	}
	if err := x.checkpoint(); err != nil {
		x.Log.Warn("what was verified is not remembered", "error", line(err))
	}
}

// walFinding takes what the archive's verification has found, and repairs it.
func (x *run) walFinding(ctx context.Context, f archive.Finding) error {
	p := x.at(f.Repository)
	if f.Kind == archive.Unreachable {
		if p != nil && p.down() == nil {
			x.lose(p, f.Err)
		}
		return nil
	}
	found := Finding{wal: true, Repository: f.Repository, Key: f.Key, Text: f.Text(x.survey.Size), Backups: f.Backups}
	switch f.Kind {
	case archive.Damaged:
		found.Kind = Damaged
	case archive.Gap:
		found.Kind = Gap
	case archive.Behind:
		found.Kind = Behind
	default:
		found.Kind = Dropped
	}
	span, file := f.Missing, f.File
	if f.Key != "" {
		file = path.Base(f.Key)
		if seg, err := postgres.ParseSegment(file, x.survey.Size); err == nil {
			span = &archive.Span{First: seg, Last: seg}
		}
	}
	if span != nil {
		var err error
		if found.Backups, err = x.survey.Needing(x.survey.Backups, *span, x.reach); err != nil {
			return err
		}
		found.Everywhere = x.everywhere(ctx, f, *span)
		if f.Missing != nil {
			found.First, found.Last, found.Segments = span.First.Name(x.survey.Size), span.Last.Name(x.survey.Size), span.Segments()
		}
	}
	if x.Repair && p != nil && p.down() == nil && found.Kind != Dropped {
		if err := x.repairWAL(ctx, p, f, file, &found); err != nil {
			return err
		}
	}
	if found.Everywhere && found.Repaired == "" && span != nil && f.Key != "" {
		x.holes = append(x.holes, *span)
	}
	x.add(found)
	return nil
}

// everywhere reports whether no place has some of the segments, or a good copy of
// the one that is damaged.
func (x *run) everywhere(ctx context.Context, f archive.Finding, span archive.Span) bool {
	for _, p := range x.survey.Scan.Places {
		if p.Err != nil {
			return false // it is not known
		}
		if f.Key != "" && holds(p, span) && !x.damagedWAL[p.Name+" "+f.Key] {
			return false
		}
	}
	if f.Key != "" {
		return !x.repo.OlderCopy(ctx, f.Key, nil)
	}
	return len(archive.Missing(x.survey.Scan.Ranges, span)) > 0
}

func holds(p repo.WALHeld, span archive.Span) bool { return len(archive.Missing(p.Ranges, span)) == 0 }

// repairWAL brings what another place has. found.Repaired is set if that is all.
func (x *run) repairWAL(ctx context.Context, p *place, f archive.Finding, file string, found *Finding) error {
	if f.Missing == nil {
		key := f.Key
		if key == "" {
			wal, err := postgres.ParseWALFile(file)
			if err != nil {
				return err
			}
			key = x.Cluster.WALKey(wal, [32]byte{})
		}
		_, err := x.repairFile(ctx, p, key, found)
		return err
	}
	whole := true
	for at := f.Missing.First; at.Number <= f.Missing.Last.Number; at = at.Next() {
		one := archive.Span{First: at, Last: at}
		if !x.repo.KeepsVersions(p.Name) && !slices.ContainsFunc(x.survey.Scan.Places, func(h repo.WALHeld) bool { return holds(h, one) }) {
			whole = false
			continue
		}
		wal, err := postgres.ParseWALFile(at.Name(x.survey.Size))
		if err != nil {
			return err
		}
		ok, err := x.repairFile(ctx, p, x.Cluster.WALKey(wal, [32]byte{}), found)
		if err != nil {
			return err
		}
		whole = whole && ok
	}
	if !whole {
		found.Repaired = ""
	}
	return nil
}

// repairFile repairs one object. The error is that ctx is over.
func (x *run) repairFile(ctx context.Context, p *place, key string, found *Finding) (ok bool, err error) {
	fix, err := x.repo.Repair(ctx, p.Name, key, nil)
	switch {
	case ctx.Err() != nil:
		return false, err
	case err == nil && fix.From == "":
		err = errs.New(errs.Damaged, "", "%s is what was stored there: there is nothing to put in its place", key)
	}
	if err != nil {
		found.NotRepaired = err
		x.Log.Warn("WAL was not repaired", "key", key, "repository", p.Name, "error", line(err))
		return false, nil
	}
	found.Repaired = fix.From
	x.Log.Info("WAL was repaired", "key", key, "repository", p.Name, "from", fix.From)
	return true, nil
}
