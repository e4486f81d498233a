package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/storage"
)

// backup brings a backup to the target: its packs with those that it borrows,
// the list of packs, the manifest, its WAL and the histories, and last of all
// backup.json. there says that the target needs nothing more of it, which is
// also so if there is no such backup.
func (s *syncRun) backup(ctx context.Context, id ClusterID, name BackupName) (there bool, err error) {
	key := id.backupKey(name)
	var of *Backup
	doc, err := s.take(ctx, append(slices.Clone(s.sources), s.target), key, func(ctx context.Context, from source, key string, t *taken) (err error) {
		of, err = from.decodeTaken(t, id, name)
		return err
	})
	if err != nil && !own(err) {
		return false, err
	}
	live, lerr := s.live(ctx, id, name)
	switch {
	case lerr != nil:
		return false, errors.Join(lerr, closeTaken(doc))
	case live:
		// It is being made, or was a moment ago.
		s.repo.log.Info("a backup is being made and is left alone", "backup", string(name), "repository", s.target.Name)
		s.result.Live = append(s.result.Live, name)
		return false, closeTaken(doc)
	case err != nil && errs.KindOf(err) != errs.Damaged:
		// It was never finished.
		return true, nil
	case err != nil:
		s.problem(key, err)
		return false, nil
	}
	defer func() { err = errors.Join(err, doc.spool.Close()) }()
	whole, err := s.parts(ctx, of)
	if err != nil || !whole {
		if err == nil {
			s.problem(key, errs.New(errs.Damaged, "Bring what it lacks back, or delete the backup; agent repo sync names the objects.",
				"backup %s is not whole in %s and does not appear there", name, s.target))
		}
		return false, err
	}
	return s.publish(ctx, of, doc)
}

func closeTaken(t *taken) error {
	if t == nil {
		return nil
	}
	return t.spool.Close()
}

func (s source) decodeTaken(t *taken, id ClusterID, name BackupName) (*Backup, error) {
	if t.spool.Size() > maxBackupJSON {
		return nil, s.damaged(fmt.Errorf("it is larger than %d bytes", maxBackupJSON), id.backupKey(name))
	}
	return s.decodeBackup(t.spool.mem.Bytes(), id, name)
}

// publish writes backup.json.
func (s *syncRun) publish(ctx context.Context, of *Backup, doc *taken) (there bool, err error) {
	key := of.Cluster.backupKey(of.Name)
	_, err = s.target.Bucket.Stat(ctx, key)
	if err == nil {
		err = s.put(ctx, key, doc) // compares
		if errs.KindOf(err) == errs.Conflict {
			s.problem(key, err)
			return false, nil
		}
		return err == nil, err
	}
	if !errors.Is(err, storage.ErrNotExist) {
		return false, s.atTarget(err)
	}
	if s.opts.DryRun {
		s.arrived(doc.spool.Size())
		s.result.Backups = append(s.result.Backups, of.Name)
		return false, nil
	}
	// What was just brought is looked at as a backup's own end does.
	lacks, err := s.repo.missingAt(ctx, s.target, of)
	if err != nil {
		return false, s.atTarget(err)
	}
	if lacks != "" {
		s.problem(key, errs.New(errs.Damaged, "Without it the backup cannot be restored: bring it back from another copy, or delete the backup.",
			"backup %s needs the WAL file %s, which no repository has", of.Name, lacks))
		return false, nil
	}
	deleted, err := s.deletedMeanwhile(ctx, of)
	if err != nil {
		return false, s.atTarget(err)
	}
	if deleted != "" {
		s.problem(key, errs.New(errs.Locked, "Run it again when the delete has ended.", "backup %s is not brought: %s", of.Name, deleted))
		return false, nil
	}
	if err := s.put(ctx, key, doc); err != nil {
		return false, err
	}
	s.arrived(doc.spool.Size())
	s.result.Backups = append(s.result.Backups, of.Name)
	s.repo.log.Info("a backup has arrived", "backup", string(of.Name), "repository", s.target.Name)
	return true, nil
}

// deletedMeanwhile says what a delete has taken of the backup while it was brought:
// a sync holds no claim, since it is not the one who may decide that a backup stays.
func (s *syncRun) deletedMeanwhile(ctx context.Context, of *Backup) (string, error) {
	packs := make(map[BackupName][]Pack)
	err := s.repo.EachPack(ctx, of, func(id PackID, p Pack) {
		p.Lender = id.Backup
		packs[id.Backup] = append(packs[id.Backup], p)
	})
	if err != nil {
		return "", err
	}
	names := slices.Sorted(maps.Keys(packs))
	doomed, _, err := s.repo.Doomed(ctx, of.Cluster, append(names, of.Name))
	if err != nil || doomed != "" {
		return fmt.Sprintf("backup %s is being deleted", doomed), err
	}
	for _, name := range names {
		slices.SortFunc(packs[name], func(a, b Pack) int { return cmp.Compare(a.Number, b.Number) })
		if lacks, err := lacksPackOf(ctx, s.target, of.Cluster, packs[name]); err != nil || lacks != "" {
			return lacks + " was deleted", err
		}
	}
	return "", nil
}

// parts brings everything of a backup but backup.json.
func (s *syncRun) parts(ctx context.Context, of *Backup) (whole bool, err error) {
	steps := []func(*batch, *cursor) error{
		func(b *batch, at *cursor) error { return b.packs(at, of) },
		// After all packs: what lists an object comes after it.
		func(b *batch, at *cursor) error {
			return errors.Join(
				b.known(at, of.Cluster.manifestKey(of.Name), of.Manifest),
				b.known(at, of.Cluster.packsKey(of.Name), of.Packs),
			)
		},
	}
	// For DryRun these are counted on their own.
	if !s.opts.DryRun || s.opts.Backup != "" {
		steps = append(steps, func(b *batch, at *cursor) error { return b.wal(at, of) })
	}
	whole = true
	for _, step := range steps {
		b, at := s.batch(ctx), &cursor{run: s}
		ok, err := b.wait(step(b, at))
		at.close()
		if err != nil {
			return false, err
		}
		whole = whole && ok
	}
	if s.opts.DryRun {
		return whole, nil
	}
	// The histories are few, and small; a recovery may want any of them.
	return whole, s.folder(ctx, of.Cluster.historyPrefix())
}

// wal brings the WAL from start to stop.
func (b *batch) wal(at *cursor, of *Backup) error {
	return walKeys(of, func(key string) error {
		_, ok, err := at.find(b.ctx, of.Cluster.timelinePrefix(of.Timeline), key)
		if err == nil && !ok {
			b.copy(key, 0, carried(true), nil)
		}
		return err
	})
}

// packs brings the packs of a backup.
func (b *batch) packs(at *cursor, of *Backup) (err error) {
	key := of.Cluster.packsKey(of.Name)
	list, err := b.take(b.ctx, append(slices.Clone(b.sources), b.target), key, exactly(of.Packs))
	if err != nil {
		if own(err) {
			b.leave(key, err)
			return nil
		}
		return err
	}
	defer func() { err = errors.Join(err, list.spool.Close()) }()
	raw := compress.NewReader(io.NewSectionReader(list.spool.readerAt(), 0, list.spool.Size()))
	defer raw.Close()
	d := json.NewDecoder(raw)
	for {
		var p Pack
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			b.leave(key, b.repo.malformed(err, key))
			return nil
		}
		owner := of.Name
		if p.Lender != "" {
			owner = p.Lender
		}
		if err := b.known(at, of.Cluster.packKey(owner, p.Number), ObjectDigest{p.Size, p.SHA256}); err != nil {
			return err
		}
	}
}

// known brings an object whose size and hash are known, unless it is there.
func (b *batch) known(at *cursor, key string, want ObjectDigest) error {
	info, ok, err := at.find(b.ctx, key[:strings.LastIndexByte(key, '/')+1], key)
	switch {
	case err != nil:
		return err
	case !ok:
		b.copy(key, want.Size, exactly(want), nil)
	case info.Size != want.Size:
		b.leave(key, b.conflict(key))
	}
	return nil
}

// live reports whether a backup is being made, by its claim in the places that
// say so: what a place that was down has left of a claim does not count.
func (s *syncRun) live(ctx context.Context, id ClusterID, name BackupName) (bool, error) {
	places := slices.DeleteFunc(slices.Clone(s.sources), func(p *place) bool { return !p.Required })
	if len(places) == 0 {
		places = s.sources
	}
	for _, p := range places {
		var newest storage.Info
		ended := false
		for info, err := range p.Bucket.List(ctx, id.claimPrefix()+string(name)+"/", "") {
			if err != nil {
				return false, fmt.Errorf("list claims: %w", err)
			}
			ended = ended || info.Key == id.claimEnd(name)
			if info.ModTime.After(newest.ModTime) {
				newest = info
			}
		}
		// By this host's clock: a wrong answer costs time alone, since nothing
		// is replaced or deleted here.
		if newest.Key != "" && !ended && s.repo.now().Sub(newest.ModTime) < claimTTL {
			return true, nil
		}
	}
	return false, nil
}
