// Package inventory counts what is in a repository: objects and bytes by kind,
// how it grows, which packs backups share, and what nothing needs any more. It
// reads listings and the lists of packs; with Deep the manifests, too. It
// changes nothing.
package inventory

import (
	"context"
	"time"

	"agent/internal/repo"
)

// Kind is a kind of objects. It is that of their keys, but for packs whose
// content is known.
type Kind string

// The kinds of packs. A pack that no backup's list names stays "pack".
const (
	KindDataPack Kind = "data_pack"
	KindMetaPack Kind = "meta_pack"
)

// Count is a number of objects and their stored bytes.
type Count struct{ Objects, Bytes int64 }

func (c *Count) add(size int64) {
	c.Objects++
	c.Bytes += size
}

// Spans are the days over which growth is told.
func Spans() [3]int { return [3]int{1, 7, 30} }

const day = 24 * time.Hour

// Holding is what lies in one place, or what of it belongs to one cluster.
type Holding struct {
	Total  Count
	Kinds  map[Kind]Count
	Recent [3]Count // what is not older than each of Spans
	// Oldest and Newest are when the first and the last object that is there was
	// stored, by the store's clock; zero if there is none.
	Oldest, Newest time.Time
}

// Growth is how a Holding has grown over some days: objects that are not there
// any more do not count.
type Growth struct {
	Days        int
	Stored      Count
	BytesPerDay float64
	PutsPerDay  float64 // each object was one request to create it
}

// Growth is told for each of Spans. A repository that is younger is measured
// over its age, but over no less than a day.
func (h *Holding) Growth(now time.Time) []Growth {
	all := make([]Growth, 0, len(h.Recent))
	for i, days := range Spans() {
		span := float64(days)
		if age := now.Sub(h.Oldest).Hours() / 24; age < span {
			span = max(age, 1)
		}
		c := h.Recent[i]
		all = append(all, Growth{Days: days, Stored: c, BytesPerDay: float64(c.Bytes) / span, PutsPerDay: float64(c.Objects) / span})
	}
	return all
}

// Packs says of the packs in one place for what they are needed. None counts
// twice but in Lent.
type Packs struct {
	Needed   Count // by the backup in whose folder they lie
	Lent     Count // of those, and of Outlived, what other backups need
	Outlived Count // of backups that are gone, still needed by others
	// Unfinished are packs that no list names, of backups with a claim, which
	// run or were cut off, and of those that were finished meanwhile.
	Unfinished Count
	Dead       Count // that no list names and no claim holds
}

// ClusterHolding is what a place has of one cluster.
type ClusterHolding struct {
	Holding
	Packs Packs
}

// Place is what one place has.
type Place struct {
	repo.PlaceInfo
	// Err is why it could not be listed, or not to its end: the rest is then
	// not all.
	Err      error
	Marker   repo.Marker
	Holding  // all of it
	Clusters map[repo.ClusterID]*ClusterHolding
}

// Inventory is what all places have.
type Inventory struct {
	At       time.Time
	Deep     bool
	Places   []*Place
	Clusters []*Cluster // by identifier
}

// Options say what Take reads.
type Options struct {
	Now  time.Time
	Deep bool // reads the manifests, too
	// Concurrency is how many lists of packs are read at a time.
	Concurrency int
}

// Take counts. Memory grows with the backups and their packs, a bit and a half
// for each pack, not with the objects or the WAL; Deep takes some 5 MB for each
// TB. What cannot be read of one cluster or place is told there; the error is of
// what ends everything.
func Take(ctx context.Context, r *repo.Repository, o Options) (*Inventory, error) {
	inv := &Inventory{At: o.Now, Deep: o.Deep}
	ids, err := r.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	known := make(map[repo.ClusterID]*Cluster)
	for _, id := range ids {
		c, err := takeCluster(ctx, r, id, o)
		if err != nil {
			return nil, err
		}
		inv.Clusters = append(inv.Clusters, c)
		known[id] = c
	}
	for _, info := range r.Places() {
		p := &Place{PlaceInfo: info, Err: info.Err, Holding: newHolding(), Clusters: make(map[repo.ClusterID]*ClusterHolding)}
		inv.Places = append(inv.Places, p)
		if p.Err == nil {
			p.Err = p.take(ctx, r, known, o.Now)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return inv, nil
}

func newHolding() Holding { return Holding{Kinds: make(map[Kind]Count)} }

func (h *Holding) add(kind Kind, o repo.Object, now time.Time) {
	h.Total.add(o.Size)
	c := h.Kinds[kind]
	c.add(o.Size)
	h.Kinds[kind] = c
	for i, days := range Spans() {
		if now.Sub(o.Stored) <= time.Duration(days)*day {
			h.Recent[i].add(o.Size)
		}
	}
	if h.Oldest.IsZero() || o.Stored.Before(h.Oldest) {
		h.Oldest = o.Stored
	}
	if o.Stored.After(h.Newest) {
		h.Newest = o.Stored
	}
}

// take lists one place.
func (p *Place) take(ctx context.Context, r *repo.Repository, known map[repo.ClusterID]*Cluster, now time.Time) error {
	only, err := r.Only(p.Name)
	if err != nil {
		return err
	}
	if p.Marker, err = only.ReadMarker(ctx); err != nil {
		return err
	}
	listed := make(map[repo.ClusterID]*packCount)
	for o, err := range r.Objects(ctx, p.Name) {
		if err != nil {
			return err
		}
		kind := Kind(o.Kind)
		if o.Cluster != 0 {
			if p.Clusters[o.Cluster] == nil {
				p.Clusters[o.Cluster] = &ClusterHolding{Holding: newHolding()}
				listed[o.Cluster] = newPackCount(known[o.Cluster])
			}
			kind = listed[o.Cluster].add(kind, o)
			p.Clusters[o.Cluster].add(kind, o, now)
		}
		p.add(kind, o, now)
	}
	for id, c := range listed {
		p.Clusters[id].Packs = c.packs()
	}
	return nil
}
