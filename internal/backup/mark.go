package backup

import (
	"context"
	"time"

	"agent/internal/chain"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// A backup sets a mark when it has read so much since the last one, in bytes and
// as a share of what it has read in all, but not at once again; or when so much
// time has passed. What is behind the last mark is lost when it is interrupted. A
// mark costs a pack that is not full and one of sections.
const (
	markBytes = 32 << 20
	markShare = 20
	markPause = 250 * time.Millisecond
	markEvery = 30 * time.Second
)

// marker sets marks while the collector adds files. It is used by one goroutine.
type marker struct {
	set      *repo.PackSet
	data     *repo.Writer
	manifest *repo.ManifestWriter
	kept     *chain.Copy
	backup   *repo.Backup
	meter    *meter
	now      func() time.Time
	lsn      func(ctx context.Context) (postgres.LSN, error)

	read    int64 // when the last mark was set
	at      time.Time
	pending *chain.Mark // whose packs are not all stored yet
	below   uint32      // they are those before this number
	stored  uint32      // and from this one on they are not noted yet
}

// due is called when a file is in the manifest, last, and while a large one is
// read, f, of which the first stretches may be done.
func (m *marker) due(ctx context.Context, last string, f *fileState) error {
	if m.pending != nil {
		if packs, all := m.set.Stored(m.stored, m.below); all {
			m.kept.Mark(*m.pending, packs)
			m.pending, m.stored = nil, m.below
		}
		return nil
	}
	read := m.meter.read.Load()
	if m.at.IsZero() {
		m.at = m.now()
	}
	since := m.now().Sub(m.at)
	if since < markPause || since < markEvery && read-m.read < max(markBytes, m.read/markShare) {
		return nil
	}
	m.read, m.at = read, m.now()
	return m.begin(ctx, last, f)
}

func (m *marker) begin(ctx context.Context, last string, f *fileState) error {
	entries, err := m.manifest.Mark(ctx)
	if err != nil {
		return err
	}
	// The workers go on: a pack that they begin from now on does not count.
	m.below = m.set.Next()
	if err := m.data.Close(); err != nil {
		return err
	}
	facts := *m.backup
	if facts.StopLSN, err = m.lsn(ctx); err != nil {
		return err
	}
	m.pending = &chain.Mark{Backup: facts, Limit: repo.ManifestLimit{Entries: entries}, Last: last}
	if f != nil {
		if m.pending.Part, err = f.begun(m.backup.Name, m.backup.BlockSize); err != nil {
			return err
		}
	}
	return nil
}

// begun is what there is of the beginning of a file that is being read; nil:
// nothing of use.
func (f *fileState) begun(name repo.BackupName, block int64) (*chain.Part, error) {
	n := 0
	for n < len(f.results) && f.seen[n] && !f.results[n].gone {
		n++
	}
	if n == 0 || f.summed() {
		return nil, nil
	}
	part := *f
	part.results = f.results[:n]
	part.Size = f.ends[n-1]
	parts, _ := part.assemble(name)
	encoded, err := repo.EncodeParts(parts, block)
	if err != nil {
		return nil, err
	}
	return &chain.Part{Path: f.Path, Size: part.Size, Parts: encoded}, nil
}
