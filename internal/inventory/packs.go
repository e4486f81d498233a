package inventory

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"agent/internal/archive"
	"agent/internal/repo"
)

// Backup is a backup and the packs that its list names.
type Backup struct {
	*repo.Backup
	Own      Count
	Borrowed Count
	Lent     Count // of Own, what other backups need
	// Dead is how much of the opened bytes of its own packs no manifest uses;
	// with Deep alone.
	Dead int64
}

// Cluster is what is known of a cluster, whatever the place.
type Cluster struct {
	ID      repo.ClusterID
	Backups []*Backup // by when they stopped
	// Unread is why some backups or lists could not be read: then what counts as
	// dead may be theirs.
	Unread error
	// Windows are the stretches of time that can be recovered; NoWindows is why
	// they are not known.
	Windows   []archive.Window
	NoWindows error
	// DeadFrames is how many opened bytes of all packs that lists name no manifest
	// uses; with Deep alone.
	DeadFrames int64

	named, meta, lent repo.PackBits
	existing          map[repo.BackupName]*Backup
	lentBy            map[repo.BackupName]Count
	frames            *frames // nil without Deep
}

func takeCluster(ctx context.Context, r *repo.Repository, id repo.ClusterID, o Options) (*Cluster, error) {
	c := &Cluster{
		ID: id, named: make(repo.PackBits), meta: make(repo.PackBits), lent: make(repo.PackBits),
		existing: make(map[repo.BackupName]*Backup), lentBy: make(map[repo.BackupName]Count),
	}
	backups, err := c.survey(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, b := range backups {
		one := &Backup{Backup: b}
		c.Backups = append(c.Backups, one)
		c.existing[b.Name] = one
	}
	slices.SortFunc(c.Backups, func(a, b *Backup) int {
		return cmp.Or(a.Stopped.Compare(b.Stopped), cmp.Compare(a.Name, b.Name))
	})
	if o.Deep {
		c.frames = newFrames()
	}
	if err := c.readLists(ctx, r, o.Concurrency); err != nil {
		return nil, err
	}
	for name, n := range c.lentBy {
		if b := c.existing[name]; b != nil {
			b.Lent = n
		}
	}
	if o.Deep {
		err = c.readManifests(ctx, r)
	}
	return c, err
}

// survey reads the backups, and finds what can be recovered.
func (c *Cluster) survey(ctx context.Context, r *repo.Repository) ([]*repo.Backup, error) {
	s, err := archive.Take(ctx, r, archive.Options{Cluster: c.ID})
	if err == nil {
		c.Unread = s.Unread
		c.Windows, c.NoWindows = s.Windows()
		return s.Backups, nil
	}
	c.NoWindows = err
	backups, err := r.Backups(ctx, c.ID)
	c.Unread = err
	return backups, context.Cause(ctx)
}

// readLists reads the list of packs of every backup.
func (c *Cluster) readLists(ctx context.Context, r *repo.Repository, concurrency int) error {
	var mu sync.Mutex
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(max(concurrency, 1))
	for _, b := range c.Backups {
		work.Go(func() error {
			packs, err := r.LoadPacks(ctx, b.Backup)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				c.Unread = firstError(c.Unread, err)
				return context.Cause(ctx)
			}
			c.addList(b, packs)
			return nil
		})
	}
	return work.Wait()
}

func (c *Cluster) addList(b *Backup, packs map[repo.PackID]repo.Pack) {
	for id, p := range packs {
		c.named.Add(id)
		if p.Kind == repo.PackMeta {
			c.meta.Add(id)
		}
		if id.Backup == b.Name {
			b.Own.add(p.Size)
		} else {
			b.Borrowed.add(p.Size)
			if c.lent.Add(id) {
				n := c.lentBy[id.Backup]
				n.add(p.Size)
				c.lentBy[id.Backup] = n
			}
		}
		if c.frames != nil {
			c.frames.pack(id, p)
		}
	}
}

func firstError(have, next error) error {
	if have != nil {
		return have
	}
	return next
}

// packCount counts the packs of a cluster as one place lists them.
type packCount struct {
	cluster *Cluster // nil: nothing was known of it when the lists were read
	count   Packs
	loose   map[repo.BackupName]Count // not named by any list
	claimed map[repo.BackupName]bool
}

func newPackCount(c *Cluster) *packCount {
	return &packCount{cluster: c, loose: make(map[repo.BackupName]Count), claimed: make(map[repo.BackupName]bool)}
}

// add counts an object and says of which kind it is.
func (p *packCount) add(kind Kind, o repo.Object) Kind {
	if o.Kind == repo.KindClaim || o.Kind == repo.KindBackup && (p.cluster == nil || p.cluster.existing[o.Backup] == nil) {
		// Of a backup that was finished since the lists were read, or whose
		// backup.json is damaged, nothing is called dead either.
		p.claimed[o.Backup] = true
	}
	if o.Kind != repo.KindPack {
		return kind
	}
	id := repo.PackID{Backup: o.Backup, Number: o.Pack}
	if p.cluster == nil || !p.cluster.named.Has(id) {
		n := p.loose[o.Backup]
		n.add(o.Size)
		p.loose[o.Backup] = n
		return kind
	}
	if p.cluster.existing[o.Backup] != nil {
		p.count.Needed.add(o.Size)
	} else {
		p.count.Outlived.add(o.Size)
	}
	if p.cluster.lent.Has(id) {
		p.count.Lent.add(o.Size)
	}
	if p.cluster.meta.Has(id) {
		return KindMetaPack
	}
	return KindDataPack
}

func (p *packCount) packs() Packs {
	for name, n := range p.loose {
		to := &p.count.Dead
		if p.claimed[name] {
			to = &p.count.Unfinished
		}
		to.Objects += n.Objects
		to.Bytes += n.Bytes
	}
	return p.count
}
