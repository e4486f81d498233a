package repo

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"slices"
)

// maxLoan bounds the records that wait for a loan, in bytes: more than those
// behind any section, which are at most maxPending and one record.
const maxLoan = 2 * maxPending

// loan is a section of an earlier manifest whose parts have come in their order
// until now. If they all do it is borrowed as it lies; until then what has come
// is kept, at most the entries of one section.
type loan struct {
	section *Section
	next    int     // the part that must come next
	events  []event // what has come since the first part
	bytes   int     // of their records
}

// event is the record of an entry, or a part of the last entry.
type event struct {
	record []byte
	part   FilePart
}

// record takes the record of an entry.
func (m *ManifestWriter) record(ctx context.Context, b []byte) error {
	if m.loan.section != nil {
		if m.loan.bytes += len(b); m.loan.bytes < maxLoan {
			m.loan.events = append(m.loan.events, event{record: b})
			return nil
		}
		if err := m.decline(ctx); err != nil {
			return err
		}
	}
	m.pending.b = append(m.pending.b, b...)
	if len(m.pending.b) >= maxPending {
		return m.flush(ctx)
	}
	return nil
}

// part takes a part of the last entry.
func (m *ManifestWriter) part(ctx context.Context, p FilePart) error {
	l := &m.loan
	if l.section != nil && (p.Section != l.section || p.Index != l.next) {
		if err := m.decline(ctx); err != nil {
			return err
		}
	}
	switch {
	case p.Section == nil:
		p.Section = &Section{} // zeros alone
	case l.section == nil && p.Index == 0 && p.Section.Ref.Owner != "":
		l.section = p.Section
	}
	if l.section == nil {
		return m.own(ctx, p)
	}
	l.events = append(l.events, event{part: p})
	if l.next++; l.next < len(l.section.Parts) {
		return nil
	}
	return m.accept(ctx)
}

// own writes a part into the section that is being built.
func (m *ManifestWriter) own(ctx context.Context, p FilePart) error {
	for runs := p.Runs; len(runs) > 0; {
		n := min(len(runs), sectionRuns)
		if err := m.section.add(Part{Runs: runs[:n]}, p.Section.Packs); err != nil {
			return err
		}
		runs = runs[n:]
		if m.section.full() || len(m.pending.b) >= maxPending {
			if err := m.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// decline gives a loan up: what has come is written anew.
func (m *ManifestWriter) decline(ctx context.Context) error {
	events := m.loan.events
	m.loan = loan{}
	for _, e := range events {
		if e.record != nil {
			if err := m.record(ctx, e.record); err != nil {
				return err
			}
			continue
		}
		if err := m.own(ctx, e.part); err != nil {
			return err
		}
	}
	return nil
}

// accept borrows a section. Its record comes behind that of the entry which has
// its first part, where a reader asks for the next section.
func (m *ManifestWriter) accept(ctx context.Context) error {
	if err := m.flush(ctx); err != nil {
		return err
	}
	l := m.loan
	m.loan = loan{}
	ref := l.section.Ref
	for _, f := range ref.Frames {
		m.need(PackID{ref.Owner, f.Pack})
	}
	for _, p := range l.section.Packs {
		m.need(p.PackID)
	}
	if err := m.root.write(sectionRecord(ref, len(l.section.Parts))); err != nil {
		return err
	}
	for _, e := range l.events {
		if err := m.root.write(e.record); err != nil {
			return err
		}
	}
	return nil
}

// Flush stores what has been added in sections of their own, so that the copy
// of the manifest is whole up to here.
func (m *ManifestWriter) Flush(ctx context.Context) error {
	if err := m.decline(ctx); err != nil {
		return err
	}
	if err := m.flush(ctx); err != nil {
		return err
	}
	return m.root.cut()
}

// Mark is Flush, and closes the pack of sections. entries is how many the
// manifest has: so far the copy can be read (ManifestLimit) once that pack, and
// those of the data, are stored.
func (m *ManifestWriter) Mark(ctx context.Context) (entries int64, err error) {
	if err := m.Flush(ctx); err != nil {
		return 0, err
	}
	return m.totals.Entries, m.packs.Close()
}

// need notes that a pack of another backup is needed.
func (m *ManifestWriter) need(id PackID) {
	if id.Backup != m.header.Backup {
		m.borrowed.Add(id)
	}
}

// Borrowed are the packs of other backups that the manifest needs, by lender and
// number. from has them all, by what earlier backups say of them.
func (m *ManifestWriter) Borrowed(from map[PackID]Pack) ([]Pack, error) {
	var packs []Pack
	for id := range m.borrowed.all() {
		p, ok := from[id]
		if !ok {
			return nil, fmt.Errorf("list packs: pack %s/%08x is borrowed and in no list", id.Backup, id.Number)
		}
		p.Lender = id.Backup
		packs = append(packs, p)
	}
	slices.SortFunc(packs, func(a, b Pack) int {
		return cmp.Or(cmp.Compare(a.Lender, b.Lender), cmp.Compare(a.Number, b.Number))
	})
	return packs, nil
}

// PackBits is a set of packs: a bit for each. It is used by one goroutine.
type PackBits map[BackupName][]uint64

// Add puts a pack into the set, and says whether it is new there.
func (s PackBits) Add(id PackID) bool {
	words := s[id.Backup]
	at := int(id.Number / 64)
	if at >= len(words) {
		words = append(words, make([]uint64, at+1-len(words))...)
		s[id.Backup] = words
	}
	bit := uint64(1) << (id.Number % 64)
	added := words[at]&bit == 0
	words[at] |= bit
	return added
}

// AddOf puts the packs of one backup that are in another set into this one.
func (s PackBits) AddOf(from PackBits, name BackupName) {
	words := s[name]
	for at, w := range from[name] {
		if at >= len(words) {
			words = append(words, 0)
		}
		words[at] |= w
	}
	if len(words) > 0 {
		s[name] = words
	}
}

// Has reports whether a pack is in the set.
func (s PackBits) Has(id PackID) bool {
	words, at := s[id.Backup], int(id.Number/64)
	return at < len(words) && words[at]&(1<<(id.Number%64)) != 0
}

func (s PackBits) all() func(func(PackID) bool) {
	return func(yield func(PackID) bool) {
		for name, words := range s {
			for at, w := range words {
				for ; w != 0; w &= w - 1 {
					if !yield(PackID{name, uint32(at*64 + bits.TrailingZeros64(w))}) {
						return
					}
				}
			}
		}
	}
}
