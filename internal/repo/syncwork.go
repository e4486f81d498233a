package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

// Folders of a cluster in the order in which they are brought: what planning a
// recovery needs first, then WAL; after the backups what is said about them.
// Claims and tombs are each place's own. Keys of other kinds are those of a
// later version and are left alone.
func foldersBefore() []string {
	return []string{"cluster.json", "history/", "gap/", "horizon/", "wal/", "summary/", "stream/"}
}

func foldersAfter() []string { return []string{"mark/", "audit/", "drill/", "dump/"} }

// compared compares everything.
func (s *syncRun) compared(ctx context.Context) error {
	owed, err := s.repo.debts.Owed(s.target.ID())
	if err != nil {
		return err
	}
	ids, err := s.clusters(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := s.cluster(ctx, id); err != nil {
			return err
		}
	}
	return s.settleCompared(owed)
}

func (s *syncRun) cluster(ctx context.Context, id ClusterID) error {
	for _, folder := range foldersBefore() {
		if err := s.folder(ctx, id.prefix()+folder); err != nil {
			return err
		}
	}
	if err := s.backups(ctx, id); err != nil {
		return err
	}
	for _, folder := range foldersAfter() {
		if err := s.folder(ctx, id.prefix()+folder); err != nil {
			return err
		}
	}
	return nil
}

// unasked is why a required place could not be read, or nil: until it can, no
// object is known not to exist.
func (s *syncRun) unasked() error {
	for _, p := range s.repo.required() {
		if err := p.err(); err != nil && p != s.target {
			return err
		}
	}
	return nil
}

// askedAll reports whether every required place could be read.
func (s *syncRun) askedAll() bool { return s.unasked() == nil }

// settleCompared settles what was owed when the comparison began: it has
// arrived, or there is no such object. A required place that could not be read
// would have to say that.
func (s *syncRun) settleCompared(owed Debt) error {
	if s.opts.DryRun || len(s.opts.Clusters) > 0 || !s.askedAll() {
		return nil
	}
	var live []string
	for _, key := range owed.Keys {
		id, _, rest := splitKey(key)
		name, _, _ := strings.Cut(rest, "/")
		if s.troubled[key] || slices.Contains(s.result.Live, BackupName(name)) && key == id.backupKey(BackupName(name)) {
			live = append(live, key)
		}
	}
	keys := slices.DeleteFunc(slices.Clone(owed.Keys), func(k string) bool { return slices.Contains(live, k) })
	return s.repo.debts.Settle(s.target.ID(), keys, owed.All && s.result.Lacking == 0)
}

// folder brings the objects of a folder, the oldest first.
func (s *syncRun) folder(ctx context.Context, prefix string) error {
	b := s.batch(ctx)
	_, err := b.wait(b.feed(prefix))
	return err
}

func (b *batch) feed(prefix string) error {
	for r, err := range b.compare(b.ctx, prefix) {
		if err != nil {
			return err
		}
		prove, ok := proofOf(r.key)
		switch {
		case !ok || r.source == nil:
		case r.target == nil:
			b.copy(r.key, r.source.Size, prove, nil)
		case r.target.Size != r.source.Size:
			b.same(r)
		}
	}
	return nil
}

// backups brings the backups of a cluster that the target lacks, wholly or in
// part.
func (s *syncRun) backups(ctx context.Context, id ClusterID) error {
	names, err := s.unlike(ctx, id)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := s.backup(ctx, id, name); err != nil {
			return err
		}
	}
	return nil
}

// unlike names the backups of which the target lacks something. Where it lacks
// objects that belong to no backup, which another backup may have borrowed,
// these are all.
func (s *syncRun) unlike(ctx context.Context, id ClusterID) ([]BackupName, error) {
	var all, some []BackupName
	var name BackupName
	var exists, differs, strays bool
	end := func() {
		if exists {
			all = append(all, name)
		}
		switch {
		case exists && differs:
			some = append(some, name)
		case differs:
			strays = true
		}
		exists, differs = false, false
	}
	for r, err := range s.compare(ctx, id.backupPrefix()) {
		if err != nil {
			return nil, err
		}
		of, err := ParseBackupName(firstComponent(r.key, id.backupPrefix()))
		if err != nil {
			continue
		}
		if of != name {
			end()
			name = of
		}
		exists = exists || r.key == id.backupKey(name)
		differs = differs || r.source != nil && (r.target == nil || r.target.Size != r.source.Size)
	}
	end()
	if strays {
		return all, nil
	}
	return some, nil
}

// pending works off what the target owes.
func (s *syncRun) pending(ctx context.Context) error {
	owed, err := s.repo.debts.Owed(s.target.ID())
	if err != nil {
		return err
	}
	if owed.All {
		return s.compared(ctx)
	}
	var backups, histories, others []string
	for _, key := range owed.Keys {
		switch _, folder, _ := splitKey(key); folder {
		case "backup":
			backups = append(backups, key)
		case "cluster.json", "history":
			histories = append(histories, key)
		default:
			others = append(others, key)
		}
	}
	slices.SortFunc(others, cmp.Compare)
	for _, keys := range [][]string{histories, others} {
		if err := s.objects(ctx, keys); err != nil {
			return err
		}
	}
	slices.SortFunc(backups, cmp.Compare)
	for _, key := range backups {
		if err := s.owedBackup(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// objects brings objects that are owed.
func (s *syncRun) objects(ctx context.Context, keys []string) error {
	b := s.batch(ctx)
	for _, key := range keys {
		prove, ok := proofOf(key)
		if !ok {
			b.leave(key, errs.New(errs.Damaged, "Run agent repo sync without --pending.", "%s is of a kind that this version does not know", key))
			continue
		}
		b.owed(key, prove)
	}
	_, err := b.wait(nil)
	return err
}

// owed is copy for an object that is owed. That no source has it settles the
// debt: it was never confirmed to anybody.
func (b *batch) owed(key string, prove proof) {
	if b.opts.DryRun {
		b.arrived(0)
		return
	}
	b.group.Go(func() error {
		t, err := b.take(b.ctx, b.sources, key, prove)
		if errors.Is(err, storage.ErrNotExist) && errs.KindOf(err) != errs.Damaged {
			if away := b.unasked(); away != nil {
				b.leave(key, away)
				return nil
			}
			b.repo.log.Debug("owed, but in no repository", "key", key)
			return b.settled(key)
		}
		if err == nil {
			err = errors.Join(b.put(b.ctx, key, t), t.spool.Close())
		}
		switch {
		case err == nil:
			b.arrived(t.spool.Size())
			return b.settled(key)
		case own(err):
			b.leave(key, err)
			return nil
		default:
			return err
		}
	})
}

func (s *syncRun) owedBackup(ctx context.Context, key string) error {
	id, _, rest := splitKey(key)
	name, err := ParseBackupName(firstComponent(rest, ""))
	if err != nil {
		s.problem(key, errs.Wrap(err, errs.Damaged, "Run agent repo sync without --pending.", "%s is owed, but belongs to no backup", key))
		return nil
	}
	there, err := s.backup(ctx, id, name)
	if err != nil || !there {
		return err
	}
	if away := s.unasked(); away != nil && !slices.Contains(s.result.Backups, name) {
		s.problem(key, away)
		return nil
	}
	return s.settled(key)
}

// one brings one backup.
func (s *syncRun) one(ctx context.Context) error {
	ids, err := s.clusters(ctx)
	if err != nil {
		return err
	}
	name := s.opts.Backup
	for _, id := range ids {
		key := id.backupKey(name)
		err := s.repo.readFrom(ctx, s.sources, key, expected, func(from source) error {
			_, err := from.place.Bucket.Stat(ctx, key)
			return err
		})
		if errors.Is(err, storage.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, folder := range []string{"cluster.json", "history/"} {
			if err := s.folder(ctx, id.prefix()+folder); err != nil {
				return err
			}
		}
		_, err = s.backup(ctx, id, name)
		return err
	}
	return errs.New(errs.NotFound, "See what there is with: agent backup-list", "there is no backup %s in %s", name, joined(s.sources))
}

// clustersOf lists the system identifiers that have anything stored in the
// places.
func (r *Repository) clustersOf(ctx context.Context, places []*place) ([]ClusterID, error) {
	var ids []ClusterID
	for _, p := range places {
		for name, err := range p.Bucket.Folders(ctx, clusterRoot) {
			if err != nil {
				return nil, fmt.Errorf("list clusters: %w", err)
			}
			id, err := strconv.ParseUint(name, 10, 64)
			if err == nil && ClusterID(id).prefix() == clusterRoot+name+"/" && !slices.Contains(ids, ClusterID(id)) {
				ids = append(ids, ClusterID(id))
			}
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// walKeys yields the keys of the WAL of a backup, in order.
func walKeys(b *Backup, yield func(key string) error) error {
	first, err := postgres.ParseSegment(b.StartSegment, b.SegmentSize)
	if err != nil {
		return err
	}
	last, err := postgres.ParseSegment(b.StopSegment, b.SegmentSize)
	if err != nil {
		return err
	}
	for at := first; at.Number <= last.Number; at = at.Next() {
		f, err := postgres.ParseWALFile(at.Name(b.SegmentSize))
		if err != nil {
			return err
		}
		if err := yield(b.Cluster.WALKey(f, [32]byte{})); err != nil {
			return err
		}
	}
	return nil
}
