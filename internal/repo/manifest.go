package repo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"agent/internal/compress"
)

// The root of a manifest is a stream of records in the order of a depth-first
// walk (ComparePaths). A file's runs are not in the root but in sections; a
// section record says where the next section lies, and the files behind it
// take their parts from it in order. docs/format.md has the bytes.

const manifestVersion = 1

// maxPending bounds the records that wait for their section, in bytes.
const maxPending = 1 << 20

// The record types of the root.
const (
	recordHeader     = 'H'
	recordTablespace = 'T'
	recordDir        = 'D'
	recordFile       = 'F'
	recordSection    = 'S'
	recordEnd        = 'E'
)

// The flags of a file's record.
const (
	fileFinal = 1 << iota
	fileSum   // 16 bytes of the content's SHA-256 follow
	fileFlags // all others are unknown
)

// EntryKind tells directories from files.
type EntryKind uint8

// The kinds of entries.
const (
	EntryDir EntryKind = iota
	EntryFile
	EntryTablespace
)

// Entry is a directory, a file or a tablespace of a backup.
type Entry struct {
	Kind    EntryKind
	Path    string // relative to the data directory, with slashes
	Mode    uint32 // permission bits
	ModTime time.Time
	Size    int64
	// Final marks the files that are restored after all others, in order:
	// backup_label, tablespace_map and, last of all, global/pg_control.
	Final bool
	// Sum is the first half of the SHA-256 of a file's content, where HasSum is
	// set: of files of which an incremental backup asks whether they have
	// changed at all.
	Sum    [16]byte
	HasSum bool
	// Tablespaces only: the OID and where the link pointed to. An empty
	// location is a tablespace that lies in the data directory itself.
	OID      uint32
	Location string
}

// ComparePaths orders paths as a depth-first walk with sorted names does: a
// directory comes before what is in it, and everything in it before the next
// name beside it.
func ComparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		default:
			return 1
		}
	}
	return len(a) - len(b)
}

// ManifestHeader begins a manifest.
type ManifestHeader struct {
	Backup    BackupName
	BlockSize int64
	Mode      uint32 // permission bits of the data directory itself
}

// ManifestTotals ends a manifest; a manifest without them was cut off.
type ManifestTotals struct {
	Entries int64
	Files   int64
	Bytes   int64 // sum of the files' sizes
}

// ManifestWriter writes a manifest as a stream: memory is one section. It is
// used by one goroutine.
type ManifestWriter struct {
	repo    *Repository
	cluster ClusterID
	header  ManifestHeader
	packs   *Writer
	enc     *compress.Encoder

	section  sectionBuilder
	pending  encoder // records that stand behind the section being built
	loan     loan
	borrowed PackBits // packs of other backups that are needed
	root     rootWriter
	copy     ManifestCopy
	last     string // path before, for prefix compression
	final    bool
	totals   ManifestTotals
}

// ManifestCopy is given what a manifest consists of while it is written, as it
// is before it is sealed.
type ManifestCopy interface {
	// Root is the next frame of the root.
	Root(frame []byte) error
	// Section is a frame of the backup's own packs of sections, which comes at
	// ref.Offset of the pack's opened content.
	Section(ref FrameRef, frame []byte) error
}

// NewManifestWriter begins a manifest whose sections go into the set's packs.
// keep, if not nil, gets a copy.
func (r *Repository) NewManifestWriter(set *PackSet, h ManifestHeader, keep ManifestCopy) (*ManifestWriter, error) {
	enc, err := compress.NewEncoder(r.codec)
	if err != nil {
		return nil, fmt.Errorf("make encoder: %w", err)
	}
	m := &ManifestWriter{repo: r, cluster: set.cluster, header: h, packs: set.Writer(PackMeta), enc: enc, copy: keep, borrowed: make(PackBits)}
	m.root = rootWriter{enc: enc, spool: spool{dir: r.spoolDir}, copy: keep}
	if m.root.seal, err = sealWriter(&m.root.spool, r.keys.Meta); err != nil {
		return nil, fmt.Errorf("begin manifest: %w", err)
	}
	var e encoder
	e.byte(recordHeader)
	e.uint(manifestVersion)
	e.string(string(h.Backup))
	e.size(h.BlockSize)
	e.uint(uint64(h.Mode))
	return m, m.root.write(e.b)
}

// Add writes an entry; entries come in the order of ComparePaths, then the
// final ones. A file's parts cover its size exactly. A part is one that a
// ManifestReader gave, unchanged: sections whose parts all come again in their
// order are not written again but borrowed. Or it is new, with an Index of -1:
// its section has the frames of all packs that the runs use, and may have more.
func (m *ManifestWriter) Add(ctx context.Context, e Entry, parts []FilePart) error {
	if err := m.checkOrder(e); err != nil {
		return err
	}
	if e.Kind == EntryFile {
		var n int64
		for _, p := range parts {
			n += p.Length()
		}
		if n != e.Size {
			return fmt.Errorf("add %s: runs cover %d of %d bytes", e.Path, n, e.Size)
		}
		m.totals.Files++
		m.totals.Bytes += e.Size
	}
	m.totals.Entries++
	if err := m.record(ctx, m.encodeEntry(e)); err != nil {
		return err
	}
	for _, p := range parts {
		if err := m.part(ctx, p); err != nil {
			return fmt.Errorf("add %s: %w", e.Path, err)
		}
	}
	return nil
}

func (m *ManifestWriter) checkOrder(e Entry) error {
	ordered := m.last == "" || ComparePaths(m.last, e.Path) < 0
	if !e.Final && (m.final || !ordered) {
		return fmt.Errorf("add %s: not in order behind %s", e.Path, m.last)
	}
	m.final = e.Final
	return nil
}

func (m *ManifestWriter) encodeEntry(e Entry) []byte {
	var p encoder
	switch e.Kind {
	case EntryTablespace:
		p.byte(recordTablespace)
	case EntryDir:
		p.byte(recordDir)
	case EntryFile:
		p.byte(recordFile)
	}
	shared := sharedPrefix(m.last, e.Path)
	p.uint(uint64(shared))
	p.string(e.Path[shared:])
	m.last = e.Path
	p.uint(uint64(e.Mode))
	switch e.Kind {
	case EntryTablespace:
		p.uint(uint64(e.OID))
		p.string(e.Location)
	case EntryFile:
		p.int(e.ModTime.UnixMicro())
		p.size(e.Size)
		var flags byte
		if e.Final {
			flags |= fileFinal
		}
		if e.HasSum {
			flags |= fileSum
		}
		p.byte(flags)
		if e.HasSum {
			p.b = append(p.b, e.Sum[:]...)
		}
	case EntryDir:
	}
	return p.b
}

func sharedPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// flush stores the section that was being built and writes its place, then
// the records behind it, into the root.
func (m *ManifestWriter) flush(ctx context.Context) error {
	if !m.section.empty() {
		ref := SectionRef{Owner: m.header.Backup}
		for _, p := range m.section.packs {
			m.need(p.id)
		}
		body := m.section.encode(m.header.BlockSize)
		for len(body) > 0 {
			raw := body[:min(len(body), compress.MaxFrame)]
			body = body[len(raw):]
			frame, err := m.enc.AppendFrame(nil, raw)
			if err != nil {
				return fmt.Errorf("compress section: %w", err)
			}
			at, err := m.packs.Append(ctx, frame, int64(len(raw)))
			if err != nil {
				return fmt.Errorf("store section: %w", err)
			}
			if m.copy != nil {
				if err := m.copy.Section(at, frame); err != nil {
					return err
				}
			}
			ref.Frames = append(ref.Frames, at)
		}
		if err := m.root.write(sectionRecord(ref, len(m.section.parts))); err != nil {
			return err
		}
	}
	m.section = sectionBuilder{}
	err := m.root.write(m.pending.b)
	m.pending.b = m.pending.b[:0]
	return err
}

// sectionRecord says in the root where a section lies.
func sectionRecord(ref SectionRef, parts int) []byte {
	var e encoder
	e.byte(recordSection)
	e.string(string(ref.Owner))
	e.uint(uint64(parts))
	e.uint(uint64(len(ref.Frames)))
	for _, f := range ref.Frames {
		e.uint(uint64(f.Pack))
		e.size(f.Offset)
		e.size(f.Length)
		e.size(f.RawLen)
	}
	return e.b
}

// Finish stores the last section; after it the packs can be closed and waited
// for, and then the root stored with Store.
func (m *ManifestWriter) Finish(ctx context.Context) (ManifestTotals, error) {
	if err := m.Flush(ctx); err != nil {
		return m.totals, err
	}
	if err := m.packs.Close(); err != nil {
		return m.totals, err
	}
	var e encoder
	e.byte(recordEnd)
	e.size(m.totals.Entries)
	e.size(m.totals.Files)
	e.size(m.totals.Bytes)
	if err := m.root.write(e.b); err != nil {
		return m.totals, err
	}
	return m.totals, m.root.close()
}

// Store creates the manifest's object.
func (m *ManifestWriter) Store(ctx context.Context) (ObjectDigest, error) {
	info, err := m.repo.putOwned(ctx, m.cluster.manifestKey(m.header.Backup), m.cluster.backupKey(m.header.Backup), &m.root.spool)
	if err != nil {
		return ObjectDigest{}, fmt.Errorf("store manifest: %w", err)
	}
	return ObjectDigest{Size: info.Size, SHA256: info.SHA256}, nil
}

// Close frees what the manifest holds on disk.
func (m *ManifestWriter) Close() error { return m.root.spool.Close() }

// validPath refuses what could lead out of the directory that is restored.
func validPath(p string) bool {
	if p == "" || p[0] == '/' || strings.ContainsRune(p, 0) {
		return false
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == "" || c == "." || c == ".." {
			return false
		}
	}
	return true
}
