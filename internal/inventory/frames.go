package inventory

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"agent/internal/crypto"
	"agent/internal/repo"
)

// frames is which frames of which packs are used by any manifest. A pack's are
// kept as the distances between their offsets, about three bytes for a frame.
type frames struct {
	packs map[repo.PackID]*usedPack
	// seen are the sections that were counted: most are borrowed by many
	// manifests.
	seen map[sectionID]bool
}

type usedPack struct {
	kind repo.PackKind
	size int64 // stored
	used []byte
	sum  int64 // bytes of the frames in used
}

// sectionID is where the first frame of a section lies.
type sectionID struct {
	pack   repo.PackID
	offset int64
}

func newFrames() *frames {
	return &frames{packs: make(map[repo.PackID]*usedPack), seen: make(map[sectionID]bool)}
}

func (f *frames) pack(id repo.PackID, p repo.Pack) {
	if f.packs[id] == nil {
		f.packs[id] = &usedPack{kind: p.Kind, size: p.Size}
	}
}

// use notes frames, by rising offset, that are used.
func (p *usedPack) use(extents []repo.Extent) {
	old := p.used
	p.used = make([]byte, 0, len(old)+4*len(extents))
	var last, have int64
	var ok bool
	next := func() {
		d, n := binary.Uvarint(old)
		if ok = n > 0; ok {
			old, have = old[n:], have+int64(d)
		}
	}
	put := func(offset int64) {
		p.used = binary.AppendUvarint(p.used, uint64(offset-last))
		last = offset
	}
	next()
	for _, e := range extents {
		for ok && have < e.Offset {
			put(have)
			next()
		}
		if ok && have == e.Offset {
			put(have)
			next()
			continue
		}
		put(e.Offset)
		p.sum += e.Length
	}
	for ok {
		put(have)
		next()
	}
	p.used = slices.Clip(p.used)
}

// section counts what a section uses, and the frames in which it lies itself.
func (f *frames) section(s *repo.Section) error {
	if len(s.Ref.Frames) == 0 {
		return errors.New("count frames: a section lies nowhere")
	}
	first := s.Ref.Frames[0]
	id := sectionID{repo.PackID{Backup: s.Ref.Owner, Number: first.Pack}, first.Offset}
	if f.seen[id] {
		return nil
	}
	f.seen[id] = true
	own := make(map[repo.PackID][]repo.Extent)
	for _, r := range s.Ref.Frames {
		in := repo.PackID{Backup: s.Ref.Owner, Number: r.Pack}
		own[in] = append(own[in], repo.Extent{Offset: r.Offset, Length: r.Length})
	}
	for in, extents := range own {
		if err := f.use(in, extents); err != nil {
			return err
		}
	}
	var extents []repo.Extent
	for _, pack := range s.Packs {
		extents = extents[:0]
		for _, r := range pack.Frames {
			extents = append(extents, repo.Extent{Offset: r.Offset, Length: r.Length})
		}
		if err := f.use(pack.PackID, extents); err != nil {
			return err
		}
	}
	return nil
}

func (f *frames) use(id repo.PackID, extents []repo.Extent) error {
	p := f.packs[id]
	if p == nil {
		return fmt.Errorf("count frames: pack %s/%08x is in no list", id.Backup, id.Number)
	}
	p.use(extents)
	return nil
}

// readManifests reads the manifests of all backups, and tells of each how much
// of its packs nothing uses.
func (c *Cluster) readManifests(ctx context.Context, r *repo.Repository) error {
	for _, b := range c.Backups {
		if err := c.readManifest(ctx, r, b.Backup); err != nil {
			return err
		}
	}
	headers := make(map[repo.BackupName]map[repo.PackKind]int64)
	for _, id := range slices.SortedFunc(maps.Keys(c.frames.packs), repo.PackID.Compare) {
		p := c.frames.packs[id]
		if headers[id.Backup] == nil {
			headers[id.Backup] = make(map[repo.PackKind]int64)
		}
		header, known := headers[id.Backup][p.kind]
		if !known {
			var err error
			if header, err = r.PackHeader(ctx, c.ID, id); err != nil {
				return err
			}
			headers[id.Backup][p.kind] = header
		}
		opened := p.size
		if header > 0 {
			opened = crypto.PlainSize(p.size, header)
		}
		if b := c.existing[id.Backup]; b != nil {
			b.Dead += opened - p.sum
		}
		c.DeadFrames += opened - p.sum
	}
	c.frames = nil
	return nil
}

func (c *Cluster) readManifest(ctx context.Context, r *repo.Repository, b *repo.Backup) (err error) {
	packs, err := r.LoadPacks(ctx, b)
	if err != nil {
		return err
	}
	root, err := r.OpenManifest(ctx, b)
	if err != nil {
		return err
	}
	defer root.Close()
	m, err := root.Read(packs)
	if err != nil {
		return err
	}
	defer m.Close()
	var last *repo.Section
	for {
		_, parts, err := m.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range parts {
			if p.Section == last {
				continue
			}
			last = p.Section
			if err := c.frames.section(last); err != nil {
				return err
			}
		}
	}
}
