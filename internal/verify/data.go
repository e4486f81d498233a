package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// data looks at every pack, once in each place, several at a time.
func (x *run) data(ctx context.Context) error {
	ids := slices.SortedFunc(maps.Keys(x.packs), repo.PackID.Compare)
	if x.Depth == Quick {
		return x.sizes(ctx, ids)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(x.Concurrency, 1))
	for _, id := range ids {
		if gctx.Err() != nil {
			break
		}
		at := x.left(x.packs[id])
		if len(at) == 0 {
			continue
		}
		g.Go(func() error { return x.pack(gctx, id, at) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	x.badPages()
	return nil
}

// pack looks at one pack.
func (x *run) pack(ctx context.Context, id repo.PackID, at []*place) error {
	p := x.packs[id]
	digest := p.Digest()
	o := object{key: x.Cluster.PackKey(id), want: &digest, pack: &id}
	if x.Depth != Deep {
		_, err := x.examine(ctx, o, at, nil)
		return errors.Join(err, x.checkpoint())
	}
	var wrong error
	pages := 0
	_, err := x.examine(ctx, o, at, func(only *repo.Repository) error {
		c, err := x.expected(id, p)
		if err != nil {
			return err
		}
		found := c.collect()
		var odd error
		err = only.ReadOpened(ctx, x.Cluster, id.Backup, p.Pack, func(opened io.Reader) { odd = c.check(opened) })
		if err == nil {
			// What is odd about a copy that is damaged says nothing.
			wrong, pages = odd, len(*found)
			x.bad.add(id.Backup, *found, x.plans.named)
		}
		return err
	})
	if err == nil && wrong != nil {
		x.malformed(o.key, &id, nil, wrong)
	}
	if wrong != nil || pages > 0 {
		// It is to be told the next time, too.
		for _, place := range at {
			place.seen.forget(o.identity())
		}
	}
	return errors.Join(err, x.checkpoint())
}

// expected is what a pack must hold. A page that was torn while it was read is
// put right by WAL of the backup that read it (postgres.CheckPage).
func (x *run) expected(id repo.PackID, p *pack) (*content, error) {
	c, err := x.plans.load(id, p.of.BlockSize)
	if err != nil {
		return nil, err
	}
	start, stop := ^postgres.LSN(0), postgres.LSN(0)
	if owner := x.named(id.Backup); owner != nil && owner.of != nil {
		start, stop = owner.of.StartLSN, owner.of.StopLSN
	}
	c.judge = func(page []byte, block uint32) bool { return postgres.CheckPage(page, block, start, stop).OK() }
	return c, nil
}

func (x *run) named(name repo.BackupName) *backup {
	i, ok := slices.BinarySearchFunc(x.backups, name, func(b *backup, n repo.BackupName) int { return cmp.Compare(b.name, n) })
	if !ok {
		return nil
	}
	return x.backups[i]
}

// badPage is a page whose checksum is wrong.
type badPage struct {
	path  int64
	block uint32
}

// collect gathers the bad pages of one reading.
func (c *content) collect() *[]badPage {
	all := new([]badPage)
	c.bad = func(path int64, block uint32) { *all = append(*all, badPage{path, block}) }
	return all
}

// badPages counts those of each backup that has read them from disk, and names the
// first.
type badPages struct {
	mu     sync.Mutex
	counts map[repo.BackupName]int64
	sample map[repo.BackupName][]string
}

// badSample is how many pages are named of each backup.
const badSample = 10

func newBadPages() *badPages {
	return &badPages{counts: make(map[repo.BackupName]int64), sample: make(map[repo.BackupName][]string)}
}

func (b *badPages) add(owner repo.BackupName, pages []badPage, named func(int64) string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts[owner] += int64(len(pages))
	for _, p := range pages {
		if len(b.sample[owner]) < badSample {
			b.sample[owner] = append(b.sample[owner], fmt.Sprintf("%s block %d", named(p.path), p.block))
		}
	}
}

// badPages tells of pages with wrong checksums. Their frames are what was stored,
// so that they were as bad when they were read. More of them than the backup
// counted are a failure, unless its packs hold what other runs have read.
func (x *run) badPages() {
	for _, name := range slices.Sorted(maps.Keys(x.bad.counts)) {
		n := x.bad.counts[name]
		if n == 0 {
			continue
		}
		f := Finding{
			Kind: BadPages, Everywhere: true,
			Text: fmt.Sprintf("backup %s was made with %d pages whose checksums are wrong, the first: %s", name, n, x.bad.sample[name][0]),
		}
		if b := x.named(name); b != nil && b.of != nil {
			f.Backups = []repo.BackupName{name}
			if n > b.of.BadPages && b.of.CompactedFrom == "" {
				f.Kind, f.Key = Damaged, x.Cluster.BackupKeys(name).JSON
				f.Text = fmt.Sprintf("backup %s has %d pages whose checksums are wrong, and counted %d when it was made, the first: %s", name, n, b.of.BadPages, x.bad.sample[name][0])
			}
		}
		x.add(f)
	}
}

// sizes compares the sizes of packs with a listing.
func (x *run) sizes(ctx context.Context, ids []repo.PackID) error {
	for len(ids) > 0 {
		n := 1
		for n < len(ids) && ids[n].Backup == ids[0].Backup {
			n++
		}
		if err := x.sizesOf(ctx, ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// sizesOf does it for the packs of one backup.
func (x *run) sizesOf(ctx context.Context, ids []repo.PackID) error {
	held := make([]map[string]int64, len(x.places))
	for _, p := range x.up() {
		sizes, err := p.only.PackSizes(ctx, x.Cluster, ids[0].Backup)
		if err != nil {
			if fatal(ctx, err) {
				return err
			}
			x.lose(p, err)
			continue
		}
		held[p.index] = sizes
	}
	for _, id := range ids {
		want := x.packs[id]
		key, digest := x.Cluster.PackKey(id), want.Digest()
		have := slices.ContainsFunc(held, func(sizes map[string]int64) bool { return sizes[key] == want.Size })
		for _, p := range x.up() {
			if size, there := held[p.index][key]; want.at.has(p) && size != want.Size {
				err := missingObject(key, p)
				if there {
					err = errs.New(errs.Damaged, "", "object %s of %s has %d bytes instead of %d", key, p.URL, size, want.Size)
				}
				x.fix(ctx, p, object{key: key, want: &digest, pack: &id}, err, have || x.repo.OlderCopy(ctx, key, &digest))
			}
		}
	}
	return nil
}
