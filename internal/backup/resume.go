package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"agent/internal/delta"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// chooseInterrupted finds a backup of this host that was not finished, whose work
// this one can use as far as it is current. That it cannot costs work, and no
// more.
func (b *run) chooseInterrupted(ctx context.Context) error {
	left, err := b.chain.Interrupted()
	if err != nil {
		b.Log.Warn("an interrupted backup cannot be continued", "error", err.Error())
		return nil
	}
	if left == nil {
		return nil
	}
	if b.running(left.Backup.Name) { // beside this one, with --allow-concurrent
		return left.Manifest.Close()
	}
	reason, err := b.unusable(ctx, left.Backup, left.Packs)
	if err == nil && reason == "" {
		// What is damaged here costs the work of that backup, and no more.
		if err := left.Manifest.Prove(ctx); err != nil {
			reason = fmt.Sprintf("what is kept of its manifest is damaged: %v", err)
		}
	}
	if err != nil || reason != "" {
		err = errors.Join(err, left.Manifest.Close())
	}
	if err != nil {
		return err
	}
	if reason != "" {
		b.Log.Info("an interrupted backup is not continued", "backup", string(left.Backup.Name), "reason", reason)
		return nil
	}
	b.resumed = left
	return nil
}

// unusable says why the work of an interrupted backup is of no use.
func (b *run) unusable(ctx context.Context, left repo.Backup, packs map[repo.PackID]repo.Pack) (string, error) {
	state := b.state(0)
	state.History = postgres.History{{Timeline: b.info.Timeline}}
	if reason := delta.Unfit(&left, state); reason != "" {
		return reason, nil
	}
	switch {
	case left.Parent == "" || b.base != nil && b.base.Name == left.Parent:
	case b.base == nil:
		return "it was incremental, and this backup is full", nil
	default:
		return "it built on backup " + string(left.Parent), nil
	}
	if b.base != nil && left.StartLSN < b.base.StartLSN {
		return "the parent is newer", nil
	}
	if pack := b.repo.Outlived(packs); pack != "" {
		return pack + " is not locked for as long as is promised for this backup", nil
	}
	missing, err := b.repo.MissingPacks(ctx, b.cluster(), packs)
	if err != nil {
		return "", err
	}
	if missing != "" {
		return missing + " is not in the repository any more", nil
	}
	return "", nil
}

// resumedLayer begins to read the manifest of the interrupted backup beside the
// walk, if it can be told what has changed since.
func (b *run) resumedLayer(ctx context.Context, start postgres.LSN) ([]*layer, error) {
	if b.resumed == nil {
		return nil, nil
	}
	left := b.resumed
	changes, _, err := b.detect(ctx, &left.Backup, left.Manifest, start)
	if err == nil && left.Backup.Parent != "" && b.base == nil {
		err = errors.New("it was incremental, and this backup is full")
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		b.Log.Info("an interrupted backup is not continued", "backup", string(left.Backup.Name), "reason", err.Error())
		left.Manifest.Close()
		b.resumed = nil
		return nil, nil
	}
	// Its manifest takes sections of its own and of the backups it builds on.
	reader, err := left.Manifest.Read(b.lent())
	if err != nil {
		return nil, err
	}
	b.backup.Resumed = left.Backup.Name
	b.Log.Info("going on with an interrupted backup", "backup", string(left.Backup.Name), "until", left.Last)
	l := &layer{manifest: reader, changes: changes, until: left.Last}
	if p := left.Part; p != nil {
		parts, err := repo.DecodeParts(p.Parts)
		if err != nil {
			return nil, errors.Join(err, reader.Close())
		}
		l.part = &former{Entry: repo.Entry{Kind: repo.EntryFile, Path: p.Path, Size: p.Size}, parts: parts}
		l.until = p.Path
	}
	return []*layer{l}, nil
}

// lenders are the backups from which this one may borrow. What the base borrows
// is safe as long as the base is; an interrupted backup is none that others know.
func (b *run) lenders() []repo.BackupName {
	names := make(map[repo.BackupName]bool)
	if b.base != nil {
		names[b.base.Name] = true
	}
	if b.resumed != nil {
		names[b.resumed.Backup.Name] = true
		for id := range b.resumed.Packs {
			names[id.Backup] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// spareDoomed gives up what a delete has announced to take away, or has taken since
// the parent was chosen. It comes after the claim: a delete that is announced later
// finds that.
func (b *run) spareDoomed(ctx context.Context) error {
	doomed, _, err := b.repo.Doomed(ctx, b.cluster(), b.lenders())
	if err == nil && doomed == "" {
		doomed, err = b.deleted(ctx)
	}
	if err != nil || doomed == "" {
		return err
	}
	b.note(fmt.Sprintf("backup %s is being deleted: nothing is borrowed from it", doomed))
	if b.Incremental.Parent != "" {
		return errs.New(errs.Locked, "Choose another parent (agent backup-list), or leave --parent out to have it chosen.", "backup %s is being deleted", doomed)
	}
	b.closeBase()
	b.base, b.resumed = nil, nil
	return nil
}

// deleted names the backup to borrow from that is not there any more, if there is
// one.
func (b *run) deleted(ctx context.Context) (repo.BackupName, error) {
	if b.base != nil {
		there, err := b.repo.Exists(ctx, b.cluster(), b.base.Name)
		if err != nil || !there {
			return b.base.Name, err
		}
	}
	if b.resumed != nil {
		missing, err := b.repo.MissingPacks(ctx, b.cluster(), b.resumed.Packs)
		if err != nil || missing != "" {
			return b.resumed.Backup.Name, err
		}
	}
	return "", nil
}
