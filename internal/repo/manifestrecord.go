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
)

// manifestRecords reads the records of a manifest's root one after the other,
// and the sections that they name.
type manifestRecords struct {
	repo   *Repository
	backup *Backup
	packs  map[PackID]Pack
	dec    *compress.Decoder
	// rootOnly leaves the sections unread: entries come without parts.
	rootOnly bool
	// proving opens what is kept of the sections all the same.
	proving bool

	key     string
	raw     *compress.Reader
	d       decoder
	last    string
	final   bool
	spare   chan []byte // that held the raw bytes of sections
	frame   []byte      // the stored bytes of a frame of a section
	lenders map[BackupName]*sectionPack
	kept    func(PackID) (*os.File, error)

	sections func(context.Context, PackID) (*Brought, error)
}

// manifestRecord is one of these.
type manifestRecord struct {
	entry   Entry
	section *rawSection
	end     *ManifestTotals // which the manifest says it has
}

// manifestBatch are records in a row, and why there are no more, if there are not.
type manifestBatch struct {
	records []manifestRecord
	err     error
}

// rawSection is a section that is not decoded yet.
type rawSection struct {
	ref   SectionRef
	parts uint64
	body  []byte
}

// decode gives back the memory of the body.
func (m *manifestRecords) decode(raw *rawSection) (*Section, error) {
	s, err := decodeSection(raw.body)
	if err == nil && uint64(len(s.Parts)) != raw.parts {
		err = fmt.Errorf("%w: section has %d parts instead of %d", errMalformed, len(s.Parts), raw.parts)
	}
	if err != nil {
		return nil, m.malformed(err)
	}
	s.Ref = raw.ref
	m.recycle(raw.body)
	return s, nil
}

func (m *manifestRecords) recycle(body []byte) {
	select {
	case m.spare <- body[:0]:
	default: // there is enough
	}
}

// sectionPack is a pack of sections that was brought or kept here.
type sectionPack struct {
	id     PackID
	key    string
	frame  io.ReaderAt // the frames in a row
	kept   bool
	closer io.Closer
}

// recordsAhead is how many records are handed on at a time, but a section at once.
const recordsAhead = 128

// run reads all records and hands them on, until ctx is done.
func (m *manifestRecords) run(ctx context.Context, to chan<- manifestBatch) {
	defer close(to)
	for {
		var b manifestBatch
		var r manifestRecord
		for len(b.records) < recordsAhead && r.section == nil && r.end == nil && b.err == nil {
			if r, b.err = m.next(ctx); b.err == nil {
				b.records = append(b.records, r)
			}
		}
		select {
		case to <- b:
		case <-ctx.Done():
			return
		}
		if r.end != nil || b.err != nil {
			return
		}
	}
}

// next reads the next entry, section or end.
func (m *manifestRecords) next(ctx context.Context) (manifestRecord, error) {
	for {
		t := m.d.byte()
		if m.d.err != nil {
			return manifestRecord{}, m.malformed(m.d.err)
		}
		switch t {
		case recordSection:
			section, err := m.readSection(ctx)
			if section == nil && err == nil {
				continue // only the root is read
			}
			return manifestRecord{section: section}, err
		case recordEnd:
			end, err := m.end()
			return manifestRecord{end: end}, err
		}
		e := m.readEntry(t)
		if m.d.err != nil {
			return manifestRecord{}, m.malformed(m.d.err)
		}
		return manifestRecord{entry: e}, nil
	}
}

// open reads the record with which the root begins.
func (m *manifestRecords) open(root io.Reader) (h ManifestHeader, err error) {
	head, rest, err := peek(root)
	if err != nil {
		return h, m.malformed(err)
	}
	var frames io.Reader = rest
	if crypto.IsSealed(head) {
		if frames, err = m.repo.keys.Identities.Open(rest); err != nil {
			return h, m.malformed(err)
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
	h.Backup = BackupName(m.d.string())
	h.BlockSize = m.d.size(1 << 20)
	h.Mode = uint32(m.d.size(0o7777))
	if m.d.err == nil && h.Backup != m.backup.Name {
		m.d.malformed("is that of backup %s", h.Backup)
	}
	return h, m.malformed(m.d.err)
}

// malformed names the manifest in an error about its bytes, which are those
// that were stored.
func (m *manifestRecords) malformed(err error) error {
	if err == nil {
		return nil
	}
	return m.repo.malformed(err, m.key)
}

func (m *manifestRecords) readEntry(t byte) Entry {
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

// readSection reads the record of a section and then the section itself; nil if
// only the root is read.
func (m *manifestRecords) readSection(ctx context.Context) (*rawSection, error) {
	d := &m.d
	lender, err := ParseBackupName(d.string())
	parts := d.uint()
	frames := d.size(maxSection / compress.MaxFrame)
	if d.err == nil && err != nil {
		d.malformed("%v", err)
	}
	var body []byte
	select {
	case body = <-m.spare:
	default:
	}
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
			return nil, err
		}
		if m.proving {
			body = body[:0]
		}
	}
	if d.err != nil || m.rootOnly {
		m.recycle(body)
		return nil, m.malformed(d.err)
	}
	return &rawSection{ref, parts, body}, nil
}

// readFrame appends the raw bytes of a frame of a section. Sections of one
// lender lie in the order in which they are asked for, so that one pack of each
// lender is held at a time, and each is fetched once.
func (m *manifestRecords) readFrame(ctx context.Context, dst []byte, id PackID, offset, length, raw int64) ([]byte, error) {
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

func (m *manifestRecords) drop(p *sectionPack) error {
	if p == nil {
		return nil
	}
	delete(m.lenders, p.id.Backup)
	return p.closer.Close()
}

func (m *manifestRecords) decodeFrame(dst []byte, p *sectionPack, offset, length, raw int64) ([]byte, error) {
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
func (m *manifestRecords) sectionPack(ctx context.Context, id PackID, kept func(PackID) (*os.File, error)) (*sectionPack, error) {
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

func (m *manifestRecords) bring(ctx context.Context, p *sectionPack, want Pack) (*spool, error) {
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
func (m *manifestRecords) end() (*ManifestTotals, error) {
	d := &m.d
	totals := &ManifestTotals{Entries: d.size(math.MaxInt64), Files: d.size(math.MaxInt64), Bytes: d.size(math.MaxInt64)}
	if d.err == nil {
		if _, err := d.r.ReadByte(); err == nil {
			d.malformed("bytes after its end")
		} else if !errors.Is(err, io.EOF) {
			d.err = err
		}
	}
	return totals, m.malformed(d.err)
}

// close frees what was brought here.
func (m *manifestRecords) close() error {
	var all []error
	if m.raw != nil {
		all = append(all, m.raw.Close())
	}
	for _, p := range m.lenders {
		all = append(all, p.closer.Close())
	}
	return errors.Join(all...)
}
