package verify

import (
	"context"
	"slices"

	"agent/internal/repo"
)

// judge says what the findings mean: which backups need what is wrong, which of
// them cannot be restored, and which moments are lost.
func (x *run) judge(ctx context.Context) error {
	if err := x.needers(ctx); err != nil {
		return err
	}
	lost := make(map[repo.BackupName]string)
	for _, f := range x.result.Findings {
		if !f.Everywhere || f.Repaired != "" || f.Kind != Damaged && f.Kind != Missing {
			continue
		}
		if f.wal || f.Key == x.Cluster.ClusterKey() {
			continue // what WAL is missing for follows below
		}
		for _, n := range f.Backups {
			if _, ok := lost[n]; !ok {
				lost[n] = f.Text
			}
		}
	}
	if err := x.moments(lost); err != nil {
		return err
	}
	for _, b := range x.backups {
		if b.selected {
			x.result.Backups = append(x.result.Backups, Backup{Name: b.name, Status: x.status(b, lost)})
		}
	}
	return nil
}

func (x *run) status(b *backup, lost map[repo.BackupName]string) string {
	if b.gone {
		return StatusDeleted
	}
	if _, ok := lost[b.name]; ok {
		return StatusLost
	}
	status := StatusOK
	if b.recent {
		status = StatusRecent
	}
	for _, f := range x.result.Findings {
		switch {
		case f.Kind == Unreachable:
			if x.about(f, b.name) && status == StatusOK {
				status = StatusUnknown
			}
		case x.result.fails(f) && slices.Contains(f.Backups, b.name):
			return StatusDamaged
		}
	}
	return status
}

// needers finds all backups of the cluster whose lists name the packs that are
// damaged. A backup that was deleted meanwhile needs nothing.
func (x *run) needers(ctx context.Context) error {
	about := make(map[repo.PackID][]int) // findings
	for i, f := range x.result.Findings {
		if f.pack != nil {
			about[*f.pack] = append(about[*f.pack], i)
		}
	}
	for _, b := range x.backups {
		if b.of == nil || len(about) == 0 {
			continue
		}
		packs, err := x.repo.LoadPacks(ctx, b.of)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			// It was told, if the backup is one of those to be verified.
			x.Log.Warn("it is not known which packs a backup needs", "backup", string(b.name), "error", line(err))
			continue
		}
		for id, findings := range about {
			if _, ok := packs[id]; !ok {
				continue
			}
			for _, i := range findings {
				x.result.Findings[i].Backups = append(x.result.Findings[i].Backups, b.name)
			}
		}
	}
	return x.withoutDeleted(ctx)
}

// withoutDeleted drops what was found missing of backups that were deleted while
// they were verified.
func (x *run) withoutDeleted(ctx context.Context) error {
	for _, b := range x.backups {
		if !b.selected || b.of == nil || !x.concerned(b.name) {
			continue
		}
		there := false
		for _, p := range x.places {
			if !b.copies[p.index].there {
				continue
			}
			_, err := p.only.LoadBackup(ctx, x.Cluster, b.name)
			if ctx.Err() != nil {
				return err
			}
			there = there || !repo.IsMissing(err)
		}
		doomed, err := x.doomed(ctx, b)
		if err != nil {
			return err
		}
		b.gone = !there || doomed
	}
	x.result.Findings = slices.DeleteFunc(x.result.Findings, func(f Finding) bool {
		if !f.absent() || len(f.Backups) == 0 {
			return false
		}
		return !slices.ContainsFunc(f.Backups, func(n repo.BackupName) bool { return !x.named(n).gone })
	})
	return nil
}

// absent reports whether something is not there that a deletion would have
// removed.
func (f Finding) absent() bool { return f.Kind == Missing || f.Kind == Behind || f.Kind == Gap }

func (x *run) concerned(name repo.BackupName) bool {
	return slices.ContainsFunc(x.result.Findings, func(f Finding) bool {
		return f.absent() && slices.Contains(f.Backups, name)
	})
}

// mark notes what was verified without a finding: on this host and, if that is
// wanted, in the repository.
func (x *run) mark(ctx context.Context) error {
	for _, f := range x.result.Findings {
		if !x.result.fails(f) || f.Kind == Unreachable {
			continue
		}
		for _, n := range f.Backups {
			x.doubt(n)
		}
	}
	if x.Depth == Quick {
		return nil
	}
	for i := range x.result.Backups {
		r := &x.result.Backups[i]
		if r.Status != StatusOK || x.touched(r.Name) {
			continue
		}
		b := x.named(r.Name)
		for _, p := range x.places {
			if p.down() == nil && b.copies[p.index].there && x.result.NotOpened == "" {
				p.seen.add(b.identity(), x.Depth == Deep, x.oldest)
			}
		}
		if !x.Mark {
			continue
		}
		err := x.repo.PutMark(ctx, x.Cluster, repo.Mark{
			Backup: r.Name, Kind: repo.MarkVerified, Host: x.Host,
			Verified: &repo.Verification{
				Deep: x.Depth == Deep, WAL: x.survey != nil, Objects: x.result.Objects, Bytes: x.result.Bytes, BadPages: b.of.BadPages,
			},
		})
		switch {
		case err == nil:
			r.Marked = true
		case ctx.Err() != nil:
			return err
		default:
			x.Log.Info("that a backup was verified is not noted in the repository", "backup", string(r.Name), "error", line(err))
		}
	}
	return nil
}

// doubt forgets that a backup was found good, in all places.
func (x *run) doubt(name repo.BackupName) {
	b := x.named(name)
	if b == nil || b.of == nil {
		return
	}
	for _, p := range x.places {
		p.seen.forget(b.identity())
	}
}

// about reports whether something that could not be read leaves a backup in
// doubt: one of its objects, or a required place.
func (x *run) about(f Finding, name repo.BackupName) bool {
	if f.Key != "" {
		return slices.Contains(f.Backups, name)
	}
	return x.result.required[f.Repository]
}

// touched reports whether any finding, also one that is no failure, is about an
// object of the backup.
func (x *run) touched(name repo.BackupName) bool {
	return slices.ContainsFunc(x.result.Findings, func(f Finding) bool {
		switch f.Kind {
		case BadPages, Dropped, Unfinished:
			return false
		case Unreachable:
			return x.about(f, name)
		default:
			return f.Repaired == "" && slices.Contains(f.Backups, name)
		}
	})
}
