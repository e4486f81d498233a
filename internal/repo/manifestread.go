package repo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/errs"
)

// FilePart is a part of a file together with the section that has its frames.
type FilePart struct {
	Part
	Section *Section
	Index   int // of the section's parts; -1: of none that is stored
}

// Manifest is the root of a manifest, brought here and proved to be what was
// stored, or kept here since it was made.
type Manifest struct {
	repo   *Repository
	backup *Backup
	root   io.ReaderAt
	size   int64
	closer io.Closer
	// kept opens what this host has kept of a pack of sections, or says
	// os.ErrNotExist; nil: nothing is kept.
	kept func(PackID) (*os.File, error)
	// sections brings a pack of sections; nil: it comes from the repository.
	sections func(context.Context, PackID) (*Brought, error)
	// limit is how much of the root there is of a backup that was not finished.
	limit *ManifestLimit
}

// ManifestLimit is how far the manifest of a backup goes that was interrupted.
type ManifestLimit struct {
	Entries int64 // of the root, from its beginning
}

// OpenManifest brings the root of the manifest of b.
func (r *Repository) OpenManifest(ctx context.Context, b *Backup) (*Manifest, error) {
	root, err := r.download(ctx, b.Cluster.manifestKey(b.Name), b.Manifest)
	if err != nil {
		return nil, err
	}
	return &Manifest{repo: r, backup: b, root: root.readerAt(), size: root.Size(), closer: root}, nil
}

// KeptManifest is the manifest of b of which this host has kept a copy
// (ManifestCopy): the root's frames in a file, which it closes, and the packs of
// sections that kept opens. Those that are missing are brought from the
// repository. With a limit only so much of it is read.
func (r *Repository) KeptManifest(b *Backup, root *os.File, limit *ManifestLimit, kept func(PackID) (*os.File, error)) (*Manifest, error) {
	info, err := root.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the kept manifest: %w", err), root.Close())
	}
	return &Manifest{repo: r, backup: b, root: root, size: info.Size(), closer: root, limit: limit, kept: kept}, nil
}

// Prove reads all of a manifest of which this host has kept a copy, so that
// what is missing or damaged shows before a backup relies on it: there may be no
// identity with which to bring it from the repository.
func (m *Manifest) Prove(ctx context.Context) error {
	r, err := m.Read(nil)
	if err != nil {
		return err
	}
	defer r.Close()
	r.proving = true
	for {
		if _, _, err := r.Next(ctx); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// Close frees the root.
func (m *Manifest) Close() error { return m.closer.Close() }

// ManifestReader reads a manifest as a stream: memory is one section. It is
// used by one goroutine.
type ManifestReader struct {
	repo   *Repository
	backup *Backup
	packs  map[PackID]Pack
	dec    *compress.Decoder
	// rootOnly leaves the sections unread: entries come without parts.
	rootOnly bool
	// proving opens what is kept of the sections all the same.
	proving bool

	Header ManifestHeader

	key     string
	raw     *compress.Reader
	d       decoder
	last    string
	final   bool
	totals  ManifestTotals
	section *Section
	next    int    // of section.Parts
	body    []byte // of the section that is read, while it is decoded
	frame   []byte // the stored bytes of one of its frames
	lenders map[BackupName]*sectionPack
	kept    func(PackID) (*os.File, error)
	limit   *ManifestLimit

	sections func(context.Context, PackID) (*Brought, error)
}

// sectionPack is a pack of sections that was brought or kept here.
type sectionPack struct {
	id     PackID
	key    string
	frame  io.ReaderAt // the frames in a row
	kept   bool
	closer io.Closer
}

// Read begins to read the manifest. packs is the backup's list of packs; with
// nil only the root is read, for which no pack is needed, and files come
// without their parts. The Manifest stays open as long as the reader.
func (m *Manifest) Read(packs map[PackID]Pack) (*ManifestReader, error) {
	r := &ManifestReader{
		repo: m.repo, backup: m.backup, packs: packs, dec: new(compress.Decoder), rootOnly: packs == nil,
		key: m.backup.Cluster.manifestKey(m.backup.Name), lenders: make(map[BackupName]*sectionPack), kept: m.kept, limit: m.limit,
		sections: m.sections,
	}
	if err := r.open(io.NewSectionReader(m.root, 0, m.size)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (m *ManifestReader) open(root io.Reader) error {
	head, rest, err := peek(root)
	if err != nil {
		return m.malformed(err)
	}
	var frames io.Reader = rest
	if crypto.IsSealed(head) {
		if frames, err = m.repo.keys.Identities.Open(rest); err != nil {
			return m.malformed(err)
		}
	}
	m.raw = compress.NewReader(frames)
	m.d.r = bufio.NewReaderSize(m.raw, 64<<10)
	if t := m.d.byte(); m.d.err == nil && t != recordHeader {
		m.d.malformed("begins with record %q", t)
	}
	if v := m.d.uint(); m.d.err == nil && v != manifestVersion {
		m.d.malformed("version %d is unknown", v)
	}
	m.Header.Backup = BackupName(m.d.string())
	m.Header.BlockSize = m.d.size(1 << 20)
	m.Header.Mode = uint32(m.d.size(0o7777))
	if m.d.err == nil && m.Header.Backup != m.backup.Name {
		m.d.malformed("is that of backup %s", m.Header.Backup)
	}
	return m.malformed(m.d.err)
}

// malformed names the manifest in an error about its bytes, which are those
// that were stored.
func (m *ManifestReader) malformed(err error) error {
	if err == nil {
		return nil
	}
	return m.repo.malformed(err, m.key)
}

// Next returns the next entry and, for a file, its parts in order, which cover
// it exactly. After the last it proves that the manifest and the packs with
// its sections are what was stored, and returns io.EOF.
func (m *ManifestReader) Next(ctx context.Context) (Entry, []FilePart, error) {
	e, end, err := m.entry(ctx)
	var parts []FilePart
	if err == nil && !end && e.Kind == EntryFile && !m.rootOnly {
		parts, err = m.parts(ctx, e)
	}
	switch {
	case err == nil && end:
		return Entry{}, nil, io.EOF
	case errors.Is(err, io.EOF):
		// What a store or a file says at its end is not the end of the manifest.
		err = errs.Wrap(io.ErrUnexpectedEOF, errs.KindOf(err), errs.HintOf(err), "%s", err)
	}
	return e, parts, err
}

// entry reads the next entry; end: there is none.
func (m *ManifestReader) entry(ctx context.Context) (_ Entry, end bool, err error) {
	for {
		if m.limit != nil && m.totals.Entries == m.limit.Entries {
			return Entry{}, true, nil
		}
		t := m.d.byte()
		if m.d.err != nil {
			return Entry{}, false, m.malformed(m.d.err)
		}
		switch t {
		case recordSection:
			if err := m.readSection(ctx); err != nil {
				return Entry{}, false, err
			}
			continue
		case recordEnd:
			return Entry{}, true, m.end()
		}
		e := m.readEntry(t)
		if m.d.err != nil {
			return Entry{}, false, m.malformed(m.d.err)
		}
		m.totals.Entries++
		if e.Kind == EntryFile {
			m.totals.Files++
			m.totals.Bytes += e.Size
		}
		return e, false, nil
	}
}

func (m *ManifestReader) readEntry(t byte) Entry {
	d := &m.d
	var e Entry
	shared := d.size(int64(len(m.last)))
	e.Path = m.last[:shared] + d.string()
	e.Mode = uint32(d.size(0o7777))
	switch t {
	case recordTablespace:
		e.Kind = EntryTablespace
		e.OID = uint32(d.size(math.MaxUint32))
		e.Location = d.string()
	case recordDir:
		e.Kind = EntryDir
	case recordFile:
		e.Kind = EntryFile
		e.ModTime = time.UnixMicro(d.int()).UTC()
		e.Size = d.size(math.MaxInt64)
		flags := d.byte()
		if flags >= fileFlags {
			d.malformed("flags %#x of a file are unknown", flags)
		}
		e.Final, e.HasSum = flags&fileFinal != 0, flags&fileSum != 0
		if e.HasSum {
			d.bytes(e.Sum[:])
		}
	default:
		d.malformed("record %q is unknown", t)
	}
	if d.err != nil {
		return e
	}
	if !validPath(e.Path) {
		d.malformed("path %q is not below the data directory", e.Path)
	}
	if e.Kind == EntryTablespace && e.Path != fmt.Sprintf("pg_tblspc/%d", e.OID) {
		d.malformed("tablespace %d at %q", e.OID, e.Path)
	}
	if !e.Final && (m.final || m.last != "" && ComparePaths(m.last, e.Path) >= 0) {
		d.malformed("%q is not in order behind %q", e.Path, m.last)
	}
	m.last, m.final = e.Path, e.Final
	return e
}

// parts takes the parts of a file from this and the next sections.
func (m *ManifestReader) parts(ctx context.Context, e Entry) ([]FilePart, error) {
	var parts []FilePart
	for left := e.Size; left > 0; {
		if m.section == nil || m.next == len(m.section.Parts) {
			if t := m.d.byte(); m.d.err == nil && t != recordSection {
				m.d.malformed("record %q where the section of %q must be", t, e.Path)
			}
			if m.d.err != nil {
				return nil, m.malformed(m.d.err)
			}
			if err := m.readSection(ctx); err != nil {
				return nil, err
			}
		}
		p := m.section.Parts[m.next]
		m.next++
		n := p.Length()
		if n <= 0 || n > left {
			return nil, m.malformed(fmt.Errorf("%w: runs of %q do not cover its %d bytes exactly", errMalformed, e.Path, e.Size))
		}
		left -= n
		parts = append(parts, FilePart{Part: p, Section: m.section, Index: m.next - 1})
	}
	return parts, nil
}

// readSection reads the record of a section and then the section itself.
func (m *ManifestReader) readSection(ctx context.Context) error {
	if m.section != nil && m.next != len(m.section.Parts) {
		return m.malformed(fmt.Errorf("%w: %d parts of a section belong to no file", errMalformed, len(m.section.Parts)-m.next))
	}
	d := &m.d
	lender, err := ParseBackupName(d.string())
	parts := d.uint()
	frames := d.size(maxSection / compress.MaxFrame)
	if d.err == nil && err != nil {
		d.malformed("%v", err)
	}
	body := m.body[:0]
	ref := SectionRef{Owner: lender}
	for range frames {
		number := uint32(d.size(math.MaxUint32))
		offset, length, raw := d.size(maxPackSpan), d.size(maxStoredFrame), d.size(maxRawFrame)
		if d.err != nil {
			break
		}
		if m.rootOnly && !m.proving {
			continue
		}
		ref.Frames = append(ref.Frames, FrameRef{Pack: number, Offset: offset, Length: length, RawLen: raw})
		if body, err = m.readFrame(ctx, body, PackID{lender, number}, offset, length, raw); err != nil {
			return err
		}
		if m.proving {
			body = body[:0]
		}
	}
	m.body = body
	if d.err != nil || m.rootOnly {
		return m.malformed(d.err)
	}
	if m.section, err = decodeSection(body); err == nil && uint64(len(m.section.Parts)) != parts {
		err = fmt.Errorf("%w: section has %d parts instead of %d", errMalformed, len(m.section.Parts), parts)
	}
	if m.next = 0; err != nil {
		return m.malformed(err)
	}
	m.section.Ref = ref
	return nil
}

// readFrame appends the raw bytes of a frame of a section. Sections of one
// lender lie in the order in which they are asked for, so that one pack of each
// lender is held at a time, and each is fetched once.
func (m *ManifestReader) readFrame(ctx context.Context, dst []byte, id PackID, offset, length, raw int64) ([]byte, error) {
	p := m.lenders[id.Backup]
	if p == nil || p.id != id {
		if err := m.drop(p); err != nil {
			return nil, err
		}
		var err error
		if p, err = m.sectionPack(ctx, id, m.kept); err != nil {
			return nil, err
		}
		m.lenders[id.Backup] = p
	}
	body, err := m.decodeFrame(dst, p, offset, length, raw)
	if err == nil || !p.kept || m.proving {
		return body, err
	}
	// What was kept is damaged: as if it were not there.
	m.repo.log.Warn("the kept copy of a manifest is damaged", "backup", string(id.Backup), "error", err.Error())
	if err := m.drop(p); err != nil {
		return nil, err
	}
	if p, err = m.sectionPack(ctx, id, nil); err != nil {
		return nil, err
	}
	m.lenders[id.Backup] = p
	return m.decodeFrame(dst, p, offset, length, raw)
}

func (m *ManifestReader) drop(p *sectionPack) error {
	if p == nil {
		return nil
	}
	delete(m.lenders, p.id.Backup)
	return p.closer.Close()
}

func (m *ManifestReader) decodeFrame(dst []byte, p *sectionPack, offset, length, raw int64) ([]byte, error) {
	m.frame = slices.Grow(m.frame[:0], int(length))[:length]
	if _, err := p.frame.ReadAt(m.frame, offset); err != nil {
		return nil, m.repo.malformed(err, p.key)
	}
	before := len(dst)
	dst, err := m.dec.AppendRaw(dst, m.frame)
	if err == nil && int64(len(dst)-before) != raw {
		err = fmt.Errorf("frame at %d has %d raw bytes instead of %d", offset, len(dst)-before, raw)
	}
	if err != nil {
		return nil, m.repo.malformed(err, p.key)
	}
	return dst, nil
}

// sectionPack opens a pack of sections that is kept, or brings it here.
func (m *ManifestReader) sectionPack(ctx context.Context, id PackID, kept func(PackID) (*os.File, error)) (*sectionPack, error) {
	p := &sectionPack{id: id, key: m.backup.Cluster.packKey(id.Backup, id.Number)}
	if kept != nil {
		f, err := kept(id)
		if err == nil {
			p.frame, p.closer, p.kept = f, f, true
			return p, nil
		}
		if m.proving {
			return nil, fmt.Errorf("open the kept pack %s/%08x: %w", id.Backup, id.Number, err)
		}
		if !errors.Is(err, os.ErrNotExist) {
			m.repo.log.Warn("the kept copy of a manifest cannot be read", "backup", string(id.Backup), "error", err.Error())
		}
	}
	want, ok := m.packs[id]
	if !ok {
		return nil, m.malformed(fmt.Errorf("%w: pack %s/%08x is not in the list of packs", errMalformed, id.Backup, id.Number))
	}
	stored, err := m.bring(ctx, p, want)
	if err != nil {
		return nil, err
	}
	p.frame = stored.readerAt()
	head, _, err := peek(io.NewSectionReader(p.frame, 0, stored.Size()))
	if err == nil && crypto.IsSealed(head) {
		p.frame, _, err = m.repo.keys.Identities.OpenAt(p.frame, stored.Size())
	}
	if err != nil {
		return nil, errors.Join(m.repo.malformed(err, p.key), p.closer.Close())
	}
	return p, nil
}

func (m *ManifestReader) bring(ctx context.Context, p *sectionPack, want Pack) (*spool, error) {
	if m.sections != nil {
		b, err := m.sections(ctx, p.id)
		if err != nil {
			return nil, err
		}
		p.closer = b
		return b.spool, nil
	}
	stored, err := m.repo.download(ctx, p.key, want.Digest())
	if err != nil {
		return nil, err
	}
	p.closer = stored
	return stored, nil
}

// end reads the last record.
func (m *ManifestReader) end() error {
	d := &m.d
	want := ManifestTotals{Entries: d.size(math.MaxInt64), Files: d.size(math.MaxInt64), Bytes: d.size(math.MaxInt64)}
	if d.err == nil && want != m.totals {
		d.malformed("ends with %+v but has %+v", want, m.totals)
	}
	if d.err == nil && m.section != nil && m.next != len(m.section.Parts) {
		d.malformed("parts of the last section belong to no file")
	}
	if d.err == nil {
		if _, err := d.r.ReadByte(); err == nil {
			d.malformed("bytes after its end")
		} else if !errors.Is(err, io.EOF) {
			d.err = err
		}
	}
	return m.malformed(d.err)
}

// Totals are the sums so far; after io.EOF those of the whole backup.
func (m *ManifestReader) Totals() ManifestTotals { return m.totals }

// Close frees what was brought here.
func (m *ManifestReader) Close() error {
	var all []error
	if m.raw != nil {
		all = append(all, m.raw.Close())
	}
	for _, p := range m.lenders {
		all = append(all, p.closer.Close())
	}
	return errors.Join(all...)
}
