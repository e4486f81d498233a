package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// pack is one that the backups need.
type pack struct {
	repo.Pack
	at   placeSet // where it must be
	done placeSet // where it was looked at
	of   *repo.Backup
}

// placeSet has a bit for each place; more than 64 are more than anybody has.
type placeSet uint64

func (s placeSet) has(p *place) bool { return s&(1<<p.index) != 0 }

// lists reads the list of packs and the manifest of each backup.
func (x *run) lists(ctx context.Context) error {
	for _, b := range x.backups {
		if !b.selected || b.of == nil {
			continue
		}
		if err := x.list(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// where are the places in which all of a backup must be: those that have it, and
// required ones that have lost its backup.json.
func (x *run) where(ctx context.Context, b *backup) ([]*place, error) {
	var at []*place
	for _, p := range x.up() {
		c := b.copies[p.index]
		if c.asked && !c.there && p.Required {
			whole, _, err := p.only.Unfinished(ctx, x.Cluster, b.name)
			if err != nil && fatal(ctx, err) {
				return nil, err
			}
			c.there = whole
		}
		if c.there {
			at = append(at, p)
		}
	}
	return at, nil
}

func (x *run) list(ctx context.Context, b *backup) (err error) {
	at, err := x.where(ctx, b)
	if err != nil {
		return err
	}
	for _, p := range at {
		b.at |= 1 << p.index
	}
	if b.recent = len(at) > 0 && x.recent(b, at); b.recent {
		return nil
	}
	keys, self := x.Cluster.BackupKeys(b.name), []repo.BackupName{b.name}
	list, err := x.bring(ctx, object{key: keys.Packs, want: &b.of.Packs, backups: self}, at)
	if err != nil {
		return err
	}
	var packs map[repo.PackID]repo.Pack
	if list != nil {
		packs, err = x.repo.BroughtPacks(b.of, list)
		if err = errors.Join(err, list.Close()); err != nil {
			if fatal(ctx, err) {
				return err
			}
			x.malformed(keys.Packs, nil, self, err)
		}
		x.need(b, packs, at)
	}
	root, err := x.bring(ctx, object{key: keys.Manifest, want: &b.of.Manifest, backups: self}, at)
	if err != nil || root == nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if x.Depth == Quick || packs == nil {
		return nil
	}
	err = x.manifest(ctx, b, packs, root)
	switch {
	case err == nil, errors.Is(err, errNoSection):
		return nil
	case errs.KindOf(err) == errs.Identity && x.Depth != Deep && ctx.Err() == nil:
		x.result.NotOpened = line(err)
		return nil
	case fatal(ctx, err) || repo.IsOutage(err):
		return err
	default:
		x.malformed(keys.Manifest, nil, self, err)
		return nil
	}
}

// recent reports whether all of a backup was found good a short time ago.
func (x *run) recent(b *backup, at []*place) bool {
	if !x.SinceLast {
		return false
	}
	for _, p := range at {
		if b.copies[p.index].bad != nil || !b.copies[p.index].there {
			return false
		}
		if _, ok := p.seen.fresh(b.identity(), x.Depth == Deep); !ok {
			return false
		}
	}
	for _, p := range at {
		x.fresh(p, b.identity())
	}
	return true
}

// identity is what is remembered of a backup that was found good as a whole.
func (b *backup) identity() uint64 { return identity(string(b.name), "whole", b.of.Self) }

// need notes the packs of a backup.
func (x *run) need(b *backup, packs map[repo.PackID]repo.Pack, at []*place) {
	for id, want := range packs {
		p := x.packs[id]
		if p == nil {
			p = &pack{Pack: want, of: b.of}
			x.packs[id] = p
		}
		if p.SHA256 != want.SHA256 || p.Size != want.Size {
			x.malformed(x.Cluster.BackupKeys(b.name).Packs, nil, []repo.BackupName{b.name},
				fmt.Errorf("it has another size or hash for pack %08x of %s than other lists", id.Number, id.Backup))
			continue
		}
		for _, place := range at {
			if !p.at.has(place) {
				p.at |= 1 << place.index
				x.meter.total.Add(want.Size)
			}
		}
	}
}

// left are the places in which a pack was not looked at yet, and will be now.
func (x *run) left(p *pack) []*place {
	open := p.at &^ p.done
	p.done = p.at
	return slices.DeleteFunc(slices.Clone(x.places), func(place *place) bool { return !open.has(place) })
}

// sectionID names a section by its first frame.
type sectionID struct {
	owner  repo.BackupName
	pack   uint32
	offset int64
}

// manifest reads a manifest with its sections. That the runs cover each file
// exactly once, inside frames that are known, is what reading it proves.
func (x *run) manifest(ctx context.Context, b *backup, packs map[repo.PackID]repo.Pack, root *repo.Brought) error {
	m := x.repo.BroughtManifest(b.of, root, x.section)
	r, err := m.Read(packs)
	if err != nil {
		return err
	}
	defer r.Close()
	w := &walk{run: x, backup: b.of, packs: packs}
	for {
		e, parts, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := w.file(e, parts); err != nil {
			return err
		}
	}
	if t := r.Totals(); t.Files != b.of.Files || t.Bytes != b.of.DataBytes {
		return errs.New(errs.Damaged, "", "it has %d files of %d bytes, and backup.json says %d of %d", t.Files, t.Bytes, b.of.Files, b.of.DataBytes)
	}
	return nil
}

// errNoSection is that a pack of sections has no good copy, which was told.
var errNoSection = errors.New("a part of the manifest is damaged")

// section brings a pack of sections, which is examined on the way.
func (x *run) section(ctx context.Context, id repo.PackID) (*repo.Brought, error) {
	if b := x.sections.kept[id]; b != nil {
		return b.Share(), nil
	}
	p := x.packs[id]
	if p == nil {
		return nil, errs.New(errs.Damaged, "", "pack %08x of %s is not in the list of packs", id.Number, id.Backup)
	}
	digest := p.Digest()
	o := object{key: x.Cluster.PackKey(id), want: &digest, pack: &id}
	at := x.left(p)
	var b *repo.Brought
	var err error
	if len(at) > 0 {
		b, err = x.bring(ctx, o, at)
	} else if b, err = x.repo.Bring(ctx, o.key, digest); err != nil && !fatal(ctx, err) {
		b, err = nil, nil // it was told when it was examined
	}
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, errNoSection
	}
	return b.Share(), x.sections.keep(id, b)
}

// sections are packs of sections that were brought here: several manifests use
// the same ones.
type sections struct {
	kept  map[repo.PackID]*repo.Brought
	order []repo.PackID
	size  int64
}

// maxSections bounds the packs of sections that are kept, in bytes on disk.
const maxSections = 1 << 30

func newSections() *sections { return &sections{kept: make(map[repo.PackID]*repo.Brought)} }

// keep keeps a pack, and gives up the oldest ones for it.
func (s *sections) keep(id repo.PackID, b *repo.Brought) error {
	s.kept[id], s.order, s.size = b, append(s.order, id), s.size+b.Size()
	var err error
	for s.size > maxSections && len(s.order) > 1 {
		old := s.kept[s.order[0]]
		delete(s.kept, s.order[0])
		s.order, s.size = s.order[1:], s.size-old.Size()
		err = errors.Join(err, old.Close())
	}
	return err
}

func (s *sections) close() error {
	var all []error
	for _, b := range s.kept {
		all = append(all, b.Close())
	}
	return errors.Join(all...)
}

// walk takes what a manifest says of the packs.
type walk struct {
	*run
	backup *repo.Backup
	packs  map[repo.PackID]repo.Pack
	last   *repo.Section
	known  bool // what the section says was noted before
}

func (w *walk) file(e repo.Entry, parts []repo.FilePart) error {
	offset := int64(0)
	path := int64(-1)
	for _, part := range parts {
		if err := w.table(part.Section); err != nil {
			return err
		}
		for _, r := range part.Runs {
			if !r.Zero() && w.Depth == Deep && !w.known {
				if path < 0 {
					var err error
					if path, err = w.plans.path(e.Path); err != nil {
						return err
					}
				}
				if err := w.bytes(e, r, part.Section, offset, path); err != nil {
					return err
				}
			}
			offset += r.Length
		}
	}
	return nil
}

// table looks at the frame tables of a section.
func (w *walk) table(s *repo.Section) error {
	if s == w.last {
		return nil
	}
	w.last, w.known = s, false
	if len(s.Ref.Frames) > 0 {
		id := sectionID{s.Ref.Owner, s.Ref.Frames[0].Pack, s.Ref.Frames[0].Offset}
		if w.known = w.noted[id]; !w.known {
			w.noted[id] = true
		}
	}
	for _, pack := range s.Packs {
		id := pack.PackID
		p, ok := w.packs[id]
		if !ok {
			return errs.New(errs.Damaged, "", "it needs pack %08x of %s, which is not in the list of packs", id.Number, id.Backup)
		}
		for _, f := range pack.Frames {
			if f.Offset+f.Length > p.Size {
				return errs.New(errs.Damaged, "", "it has a frame at %d of pack %08x of %s, which has %d bytes", f.Offset, id.Number, id.Backup, p.Size)
			}
			if w.Depth == Deep && !w.known {
				if err := w.plans.addFrame(id, f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// bytes notes what the bytes of a run must be.
func (w *walk) bytes(e repo.Entry, r repo.Run, s *repo.Section, offset, path int64) error {
	if e.HasSum && r.Length == e.Size {
		if err := w.plans.addSum(s.PackOf(r).PackID, r.Raw, r.Length, e.Sum, path); err != nil {
			return err
		}
	}
	page := w.backup.BlockSize
	class := postgres.ClassifyPath(e.Path)
	if !w.backup.Checksums || !class.PageChecksums || offset%page != 0 || r.Length < page ||
		class.Rel.Fork != postgres.MainFork && class.Rel.Fork != postgres.InitFork {
		return nil
	}
	first := class.Rel.FirstBlock(w.cluster.RelSegBlocks) + uint32(offset/page)
	return w.plans.addPages(s.PackOf(r).PackID, r.Raw, r.Length-r.Length%page, first, path)
}
