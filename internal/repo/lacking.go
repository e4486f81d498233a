package repo

import (
	"context"
	"errors"
	"fmt"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// lacking names what a backup needs and a place has not got: a WAL file, a
// history, or a pack of another backup; "": nothing.
func (r *Repository) lacking(ctx context.Context, p *place, b *Backup, borrowed []Pack) (string, error) {
	pack, err := lacksPack(ctx, p, b.Cluster, borrowed)
	if err != nil || pack != "" {
		return pack, err
	}
	file, err := r.missingAt(ctx, p, b)
	if err != nil || file == "" {
		return "", err
	}
	return "WAL file " + file, nil
}

// missingAt names the first WAL file that the backup needs and that is not at
// the place, or "".
func (r *Repository) missingAt(ctx context.Context, p *place, b *Backup) (string, error) {
	first, err := postgres.ParseSegment(b.StartSegment, b.SegmentSize)
	if err != nil {
		return "", err
	}
	last, err := postgres.ParseSegment(b.StopSegment, b.SegmentSize)
	if err != nil {
		return "", err
	}
	name, err := missingSegment(ctx, p, b.Cluster, first, last, b.SegmentSize)
	if err != nil || name != "" {
		return name, err
	}
	return missingHistory(ctx, p, b.Cluster, b.Timeline)
}

// lacksPack names the first of borrowed packs, which come by lender and number,
// that is not at the place. A lender that exists there has all its packs there,
// so that most often one look for each is enough.
func lacksPack(ctx context.Context, p *place, cluster ClusterID, borrowed []Pack) (string, error) {
	for len(borrowed) > 0 {
		lender, n := borrowed[0].Lender, 0
		for n < len(borrowed) && borrowed[n].Lender == lender {
			n++
		}
		_, err := p.Bucket.Stat(ctx, cluster.backupKey(lender))
		if errors.Is(err, storage.ErrNotExist) {
			var lacks string
			if lacks, err = lacksPackOf(ctx, p, cluster, borrowed[:n]); lacks != "" {
				return lacks, nil
			}
		}
		if err != nil {
			return "", fmt.Errorf("look for the packs of backup %s: %w", lender, err)
		}
		borrowed = borrowed[n:]
	}
	return "", nil
}

// lacksPackOf compares packs of one lender with what is there.
func lacksPackOf(ctx context.Context, p *place, cluster ClusterID, packs []Pack) (string, error) {
	for info, err := range p.Bucket.List(ctx, cluster.packPrefix(packs[0].Lender), "") {
		if err != nil {
			return "", err
		}
		want := cluster.packKey(packs[0].Lender, packs[0].Number)
		if info.Key < want {
			continue
		}
		if info.Key > want || info.Size != packs[0].Size {
			break
		}
		if packs = packs[1:]; len(packs) == 0 {
			return "", nil
		}
	}
	return fmt.Sprintf("pack %08x of backup %s", packs[0].Number, packs[0].Lender), nil
}

// Exists reports whether a backup exists in each required place. It is one small
// request for each.
func (r *Repository) Exists(ctx context.Context, cluster ClusterID, name BackupName) (bool, error) {
	for _, p := range r.required() {
		if err := p.err(); err != nil {
			return false, err
		}
		_, err := p.Bucket.Stat(ctx, cluster.backupKey(name))
		if errors.Is(err, storage.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("look for backup %s: %w", name, err)
		}
	}
	return true, nil
}

// Incomplete names a required place where a backup does not exist although it
// does in another one, or "": there one that borrows from it could not be
// restored. With one place nothing is asked.
func (r *Repository) Incomplete(ctx context.Context, b *Backup) (string, error) {
	if len(r.places) == 1 {
		return "", nil
	}
	for _, p := range r.required() {
		if err := p.err(); err != nil {
			return "", err
		}
		_, err := p.Bucket.Stat(ctx, b.Cluster.backupKey(b.Name))
		if errors.Is(err, storage.ErrNotExist) {
			return p.Name, nil
		}
		if err != nil {
			return "", fmt.Errorf("look for backup %s: %w", b.Name, err)
		}
	}
	return "", nil
}
