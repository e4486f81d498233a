package repo

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"time"

	"walagent/internal/compress"
	"walagent/internal/crypto"
)

// FilePart is a part of a file together with the section that has its frames.
type FilePart struct {
	Part
	Section *Section
}

// ManifestReader reads a manifest as a stream: memory is one section. It is
// used by one goroutine.
type ManifestReader struct {
	repo   *Repository
	backup *Backup
	packs  map[PackID]Pack
	dec    *compress.Decoder
	// rootOnly leaves the sections unread: entries come without parts.
	rootOnly bool

	Header ManifestHeader

	key     string
	src     *storeReader
	body    io.Closer
	raw     *compress.Reader
	hash    hash.Hash
	d       decoder
	last    string
	final   bool
	totals  ManifestTotals
	section *Section
	next    int // of section.Parts
	streams map[BackupName]*openStream
}

type openStream struct {
	id PackID
	s  *PackStream
}

// OpenManifest begins to read the manifest of b. packs is its list of packs;
// with nil only the root is read, for which no pack is needed, and files come
// without their parts.
func (r *Repository) OpenManifest(ctx context.Context, b *Backup, packs map[PackID]Pack) (*ManifestReader, error) {
	m := &ManifestReader{
		repo: r, backup: b, packs: packs, dec: new(compress.Decoder), rootOnly: packs == nil,
		key: b.Cluster.manifestKey(b.Name), hash: sha256.New(),
		streams: make(map[BackupName]*openStream),
	}
	body, info, err := r.bucket.Get(ctx, m.key)
	if err != nil {
		return nil, r.missing(err, m.key)
	}
	m.body, m.src = body, &storeReader{r: io.TeeReader(body, m.hash)}
	if err := m.open(info.Size); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *ManifestReader) open(size int64) error {
	if size != m.backup.Manifest.Size {
		return m.damaged(fmt.Errorf("it has %d bytes instead of %d", size, m.backup.Manifest.Size))
	}
	head, rest, err := peek(m.src)
	if err != nil {
		return m.damaged(err)
	}
	var frames io.Reader = rest
	if crypto.IsSealed(head) {
		if frames, err = m.repo.keys.Identities.Open(rest); err != nil {
			return m.damaged(err)
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
	return m.damaged(m.d.err)
}

// damaged names the manifest in an error about its bytes.
func (m *ManifestReader) damaged(err error) error {
	if err == nil {
		return nil
	}
	return m.src.orDamaged(m.repo, err, m.key)
}

// Next returns the next entry and, for a file, its parts in order, which cover
// it exactly. After the last it proves that the manifest and the packs with
// its sections are what was stored, and returns io.EOF.
func (m *ManifestReader) Next(ctx context.Context) (Entry, []FilePart, error) {
	for {
		t := m.d.byte()
		if m.d.err != nil {
			return Entry{}, nil, m.damaged(m.d.err)
		}
		switch t {
		case recordSection:
			if err := m.readSection(ctx); err != nil {
				return Entry{}, nil, err
			}
			continue
		case recordEnd:
			return Entry{}, nil, m.end()
		}
		e := m.readEntry(t)
		if m.d.err != nil {
			return Entry{}, nil, m.damaged(m.d.err)
		}
		m.totals.Entries++
		if e.Kind != EntryFile {
			return e, nil, nil
		}
		m.totals.Files++
		m.totals.Bytes += e.Size
		if m.rootOnly {
			return e, nil, nil
		}
		parts, err := m.parts(ctx, e)
		return e, parts, err
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
		e.Final = d.byte() == 1
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
				return nil, m.damaged(m.d.err)
			}
			if err := m.readSection(ctx); err != nil {
				return nil, err
			}
		}
		p := m.section.Parts[m.next]
		m.next++
		n := p.Length()
		if n <= 0 || n > left {
			return nil, m.damaged(fmt.Errorf("%w: runs of %q do not cover its %d bytes exactly", errMalformed, e.Path, e.Size))
		}
		left -= n
		parts = append(parts, FilePart{Part: p, Section: m.section})
	}
	return parts, nil
}

// readSection reads the record of a section and then the section itself.
func (m *ManifestReader) readSection(ctx context.Context) error {
	if m.section != nil && m.next != len(m.section.Parts) {
		return m.damaged(fmt.Errorf("%w: %d parts of a section belong to no file", errMalformed, len(m.section.Parts)-m.next))
	}
	d := &m.d
	lender, err := ParseBackupName(d.string())
	parts := d.uint()
	frames := d.size(maxSection / compress.MaxFrame)
	if d.err == nil && err != nil {
		d.malformed("%v", err)
	}
	var body []byte
	for range frames {
		number := uint32(d.size(math.MaxUint32))
		offset, length, raw := d.size(maxPackSpan), d.size(maxStoredFrame), d.size(maxRawFrame)
		if d.err != nil {
			break
		}
		if m.rootOnly {
			continue
		}
		if body, err = m.readFrame(ctx, body, PackID{lender, number}, offset, length, raw); err != nil {
			return err
		}
	}
	if d.err != nil || m.rootOnly {
		return m.damaged(d.err)
	}
	if m.section, err = decodeSection(body); err == nil && uint64(len(m.section.Parts)) != parts {
		err = fmt.Errorf("%w: section has %d parts instead of %d", errMalformed, len(m.section.Parts), parts)
	}
	m.next = 0
	return m.damaged(err)
}

// readFrame appends the raw bytes of a frame of a section. Sections of one
// lender lie in the order in which they are asked for, so one stream for each
// lender is enough and each pack is fetched once.
func (m *ManifestReader) readFrame(ctx context.Context, dst []byte, id PackID, offset, length, raw int64) ([]byte, error) {
	o := m.streams[id.Backup]
	if o == nil || o.id != id || offset < o.s.pos {
		if o != nil {
			delete(m.streams, id.Backup)
			if err := errors.Join(o.s.Finish(), o.s.Close()); err != nil {
				return nil, err
			}
		}
		want, ok := m.packs[id]
		if !ok {
			return nil, m.damaged(fmt.Errorf("%w: pack %s/%08x is not in the list of packs", errMalformed, id.Backup, id.Number))
		}
		s, err := m.repo.OpenPack(ctx, m.backup.Cluster, id.Backup, want)
		if err != nil {
			return nil, err
		}
		o = &openStream{id: id, s: s}
		m.streams[id.Backup] = o
	}
	frame := make([]byte, length)
	if err := o.s.ReadFrame(offset, frame); err != nil {
		return nil, err
	}
	before := len(dst)
	dst, err := m.dec.AppendRaw(dst, frame)
	if err == nil && int64(len(dst)-before) != raw {
		err = fmt.Errorf("frame at %d has %d raw bytes instead of %d", offset, len(dst)-before, raw)
	}
	if err != nil {
		return nil, o.s.Damaged(err)
	}
	return dst, nil
}

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
	if d.err != nil {
		return m.damaged(d.err)
	}
	if Digest(m.hash.Sum(nil)) != m.backup.Manifest.SHA256 {
		return m.damaged(errors.New("its SHA-256 is not the one in backup.json"))
	}
	for _, o := range m.streams {
		if err := o.s.Finish(); err != nil {
			return err
		}
	}
	return io.EOF
}

// Totals are the sums so far; after io.EOF those of the whole backup.
func (m *ManifestReader) Totals() ManifestTotals { return m.totals }

// Close gives up the transfers.
func (m *ManifestReader) Close() error {
	var all []error
	if m.raw != nil {
		all = append(all, m.raw.Close())
	}
	for _, o := range m.streams {
		all = append(all, o.s.Close())
	}
	return errors.Join(append(all, m.body.Close())...)
}
