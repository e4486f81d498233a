package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"

	"agent/internal/errs"
	"agent/internal/storage"
)

// What is here looks at one place at a time, for a verification: reading is
// content with the first good copy, wherever that is.

// Strict is Only, and no older version stands in either for what the place lacks.
func (r *Repository) Strict(name string) (*Repository, error) {
	only, err := r.Only(name)
	if only != nil {
		only.strict = true
	}
	return only, err
}

// BackupKeys are the keys of the objects of a backup beside its packs.
type BackupKeys struct{ JSON, Packs, Manifest string }

// BackupKeys names the objects of a backup.
func (c ClusterID) BackupKeys(name BackupName) BackupKeys {
	return BackupKeys{JSON: c.backupKey(name), Packs: c.packsKey(name), Manifest: c.manifestKey(name)}
}

// ClusterKey names cluster.json.
func (c ClusterID) ClusterKey() string { return c.clusterKey() }

// PackKey names the object of a pack.
func (c ClusterID) PackKey(id PackID) string { return c.packKey(id.Backup, id.Number) }

// Digest pins the pack's object.
func (p Pack) Digest() ObjectDigest { return ObjectDigest{Size: p.Size, SHA256: p.SHA256} }

// BackupNames lists the folders of backups, by name: of those that exist, that
// are being made, and that were interrupted.
func (r *Repository) BackupNames(ctx context.Context, cluster ClusterID) ([]BackupName, error) {
	return backupNames(ctx, cluster, r.anywhere)
}

func backupNames(ctx context.Context, cluster ClusterID, ask func(func(*place) error) error) ([]BackupName, error) {
	seen := make(map[BackupName]bool)
	err := ask(func(p *place) error {
		for dir, err := range p.Bucket.Folders(ctx, cluster.backupPrefix()) {
			if err != nil {
				return fmt.Errorf("list backups: %w", err)
			}
			if name, err := ParseBackupName(dir); err == nil {
				seen[name] = true
			}
		}
		return nil
	})
	return slices.Sorted(maps.Keys(seen)), err
}

// Unfinished looks at a backup without backup.json. whole says that the objects
// which come right before that are there, live that it is being made.
func (r *Repository) Unfinished(ctx context.Context, cluster ClusterID, name BackupName) (whole, live bool, err error) {
	err = r.anywhere(func(p *place) error {
		n := 0
		for _, key := range []string{cluster.packsKey(name), cluster.manifestKey(name)} {
			_, err := p.Bucket.Stat(ctx, key)
			if errors.Is(err, storage.ErrNotExist) {
				break
			}
			if err != nil {
				return fmt.Errorf("look for the objects of backup %s: %w", name, err)
			}
			n++
		}
		whole = whole || n == 2
		claims, err := claimsIn(ctx, p, cluster)
		if c := claims[name]; c != nil && c.live(r.now()) {
			live = true
		}
		return err
	})
	return whole, live, err
}

// PackSizes lists the packs that lie in the folder of a backup, with their
// stored sizes.
func (r *Repository) PackSizes(ctx context.Context, cluster ClusterID, name BackupName) (map[string]int64, error) {
	sizes := make(map[string]int64)
	err := r.anywhere(func(p *place) error {
		for info, err := range p.Bucket.List(ctx, cluster.packPrefix(name), "") {
			if err != nil {
				return fmt.Errorf("list packs: %w", err)
			}
			sizes[info.Key] = info.Size
		}
		return nil
	})
	return sizes, err
}

// ReadStored reads an object whose size and hash are known to its end, without
// opening it. A damaged or missing one is Damaged.
func (r *Repository) ReadStored(ctx context.Context, key string, want ObjectDigest) error {
	err := r.read(ctx, key, expected, func(s source) error {
		body, info, err := s.get(ctx, key)
		if err != nil {
			return err
		}
		defer body.Close()
		if info.Size != want.Size {
			return s.otherSize(info.Size, want.Size, key)
		}
		sum := sha256.New()
		src := &storeReader{r: body}
		if _, err := io.Copy(sum, src); err != nil {
			return src.orDamaged(s, err, key)
		}
		if Digest(sum.Sum(nil)) != want.SHA256 {
			return s.damaged(errors.New("its SHA-256 is not that of what was stored"), key)
		}
		return nil
	})
	return missing(err, key, r.String())
}

// ReadOpened is ReadStored of a pack, of which use gets the opened content, and
// need not read all. What use finds wrong with it must be kept by use itself: the
// error is that the object is not what was stored, or could not be read.
func (r *Repository) ReadOpened(ctx context.Context, cluster ClusterID, backup BackupName, want Pack, use func(io.Reader)) error {
	key := cluster.packKey(backup, want.Number)
	err := r.read(ctx, key, expected, func(s source) error {
		p, err := s.openWhole(ctx, key, want)
		if err != nil {
			return err
		}
		use(p.r)
		return errors.Join(p.finish(), p.Close())
	})
	return missing(err, key, r.String())
}

// Brought is an object as it is stored, brought to this host and proved. It may
// be held by several.
type Brought struct {
	spool   *spool
	holders atomic.Int32 // beside the first
}

// Share is the same object for one more holder, who closes it, too.
func (b *Brought) Share() *Brought {
	b.holders.Add(1)
	return b
}

// Close frees it, if nobody else holds it.
func (b *Brought) Close() error {
	if b.holders.Add(-1) >= 0 {
		return nil
	}
	return b.spool.Close()
}

// Size is the number of stored bytes.
func (b *Brought) Size() int64 { return b.spool.Size() }

// Bring reads an object whose size and hash are known and keeps it: in memory up
// to 1 MiB, otherwise in a nameless file of the state directory.
func (r *Repository) Bring(ctx context.Context, key string, want ObjectDigest) (*Brought, error) {
	s, err := r.download(ctx, key, want)
	if err != nil {
		return nil, err
	}
	return &Brought{spool: s}, nil
}

// BroughtPacks reads a list of packs that was brought.
func (r *Repository) BroughtPacks(b *Backup, list *Brought) (map[PackID]Pack, error) {
	return r.decodePacks(b, io.NewSectionReader(list.spool.readerAt(), 0, list.Size()))
}

// BroughtManifest is OpenManifest of a root that was brought, which is closed by
// its owner. Packs of sections come from sections, and are closed when they have
// been read.
func (r *Repository) BroughtManifest(b *Backup, root *Brought, sections func(context.Context, PackID) (*Brought, error)) *Manifest {
	return &Manifest{repo: r, backup: b, root: root.spool.readerAt(), size: root.Size(), closer: notClosed{}, sections: sections}
}

// notClosed is the closer of what somebody else closes.
type notClosed struct{}

func (notClosed) Close() error { return nil }

// IsMissing reports whether an error says that an object is not there at all.
func IsMissing(err error) bool {
	return errors.Is(err, storage.ErrNotExist)
}

// IsOutage reports whether an error says that a store could not be asked, rather
// than anything about an object.
func IsOutage(err error) bool {
	return isOutage(err) && errs.KindOf(err) != errs.Damaged
}
