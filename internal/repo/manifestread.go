package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"agent/internal/compress"
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
	r.records.proving = true
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

// ManifestReader reads a manifest as a stream: memory is a few sections, of which
// the next one is brought while one is decoded and used. It is used by one
// goroutine.
type ManifestReader struct {
	Header ManifestHeader

	records *manifestRecords
	ahead   chan manifestBatch // nil: they are read when they are asked for
	stop    context.CancelFunc
	left    manifestBatch // what was taken from ahead and not yet given

	limit   *ManifestLimit
	totals  ManifestTotals
	section *Section
	next    int // of section.Parts
}

// Read begins to read the manifest. packs is the backup's list of packs, which
// does not change meanwhile; with nil only the root is read, for which no pack is
// needed, and files come without their parts. The Manifest stays open as long as
// the reader.
func (m *Manifest) Read(packs map[PackID]Pack) (*ManifestReader, error) {
	r := &ManifestReader{limit: m.limit, records: &manifestRecords{
		repo: m.repo, backup: m.backup, packs: packs, dec: new(compress.Decoder), rootOnly: packs == nil,
		key: m.backup.Cluster.manifestKey(m.backup.Name), lenders: make(map[BackupName]*sectionPack), kept: m.kept,
		sections: m.sections, spare: make(chan []byte, 2),
	}}
	var err error
	if r.Header, err = r.records.open(io.NewSectionReader(m.root, 0, m.size)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Next returns the next entry and, for a file, its parts in order, which cover
// it exactly. After the last it proves that the manifest and the packs with
// its sections are what was stored, and returns io.EOF.
func (m *ManifestReader) Next(ctx context.Context) (Entry, []FilePart, error) {
	e, end, err := m.entry(ctx)
	var parts []FilePart
	if err == nil && !end && e.Kind == EntryFile && !m.records.rootOnly {
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

// entry takes the next entry; end: there is none.
func (m *ManifestReader) entry(ctx context.Context) (_ Entry, end bool, err error) {
	for {
		if m.limit != nil && m.totals.Entries == m.limit.Entries {
			return Entry{}, true, nil
		}
		r, err := m.record(ctx)
		switch {
		case err != nil:
			return Entry{}, false, err
		case r.section != nil:
			if err := m.take(r.section); err != nil {
				return Entry{}, false, err
			}
		case r.end != nil:
			switch {
			case *r.end != m.totals:
				err = m.malformed("ends with %+v but has %+v", *r.end, m.totals)
			case m.section != nil && m.next != len(m.section.Parts):
				err = m.malformed("parts of the last section belong to no file")
			}
			return Entry{}, true, err
		default:
			m.totals.Entries++
			if r.entry.Kind == EntryFile {
				m.totals.Files++
				m.totals.Bytes += r.entry.Size
			}
			return r.entry, false, nil
		}
	}
}

func (m *ManifestReader) malformed(format string, args ...any) error {
	return m.records.malformed(fmt.Errorf("%w: "+format, append([]any{errMalformed}, args...)...))
}

// take begins with the parts of a section.
func (m *ManifestReader) take(raw *rawSection) (err error) {
	if m.section != nil && m.next != len(m.section.Parts) {
		return m.malformed("%d parts of a section belong to no file", len(m.section.Parts)-m.next)
	}
	m.next = 0
	m.section, err = m.records.decode(raw)
	return err
}

// parts takes the parts of a file from this and the next sections.
func (m *ManifestReader) parts(ctx context.Context, e Entry) ([]FilePart, error) {
	var parts []FilePart
	for left := e.Size; left > 0; {
		if m.section == nil || m.next == len(m.section.Parts) {
			r, err := m.record(ctx)
			if err != nil {
				return nil, err
			}
			if r.section == nil {
				return nil, m.malformed("another record where the section of %q must be", e.Path)
			}
			if err := m.take(r.section); err != nil {
				return nil, err
			}
			continue
		}
		p := m.section.Parts[m.next]
		m.next++
		n := p.Length()
		if n <= 0 || n > left {
			return nil, m.malformed("runs of %q do not cover its %d bytes exactly", e.Path, e.Size)
		}
		left -= n
		parts = append(parts, FilePart{Part: p, Section: m.section, Index: m.next - 1})
	}
	return parts, nil
}

// record takes one entry, section or end. Sections are read ahead by a goroutine
// that ends with Close, unless somebody else brings them, or not all of them are
// to be read.
func (m *ManifestReader) record(ctx context.Context) (manifestRecord, error) {
	if m.records.rootOnly || m.records.sections != nil || m.limit != nil {
		return m.records.next(ctx)
	}
	if m.ahead == nil {
		m.ahead = make(chan manifestBatch)
		ctx, m.stop = context.WithCancel(ctx)
		go m.records.run(ctx, m.ahead)
	}
	for len(m.left.records) == 0 {
		if m.left.err != nil {
			return manifestRecord{}, m.left.err
		}
		select {
		case more, ok := <-m.ahead:
			if !ok {
				// It has ended with its context, or with Close.
				more.err = first(context.Cause(ctx), errClosed)
			}
			m.left = more
		case <-ctx.Done():
			return manifestRecord{}, context.Cause(ctx)
		}
	}
	r := m.left.records[0]
	if r.end == nil { // the end stays
		m.left.records = m.left.records[1:]
	}
	return r, nil
}

var errClosed = errors.New("the manifest is read no more")

// Totals are the sums so far; after io.EOF those of the whole backup.
func (m *ManifestReader) Totals() ManifestTotals { return m.totals }

// Close frees what was brought here.
func (m *ManifestReader) Close() error {
	if m.stop != nil {
		m.stop()
		for range m.ahead {
			continue // until it has ended
		}
	}
	return m.records.close()
}
