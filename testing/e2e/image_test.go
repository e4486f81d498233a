package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"agent/internal/postgres"
)

// pageSize is PostgreSQL's usual block size in bytes; no server here has another.
const pageSize = 8192

// mainFork matches the main fork's files of a permanent relation.
var mainFork = regexp.MustCompile(`^([1-9][0-9]*)(\.[0-9]+)?$`)

// image compares the relations of a restored directory, in which no server ran,
// with those of the primary's, of which a checkpoint was made after the backup.
//
// A page whose LSN is before the start of the backup has not changed since, so
// the backup must hold it as it is, but for hints, which are in no WAL. Any other
// page is replayed. Hence what is compared is right also if the primary went on,
// except for what is gone or is made anew without LSNs of its own: quiet says
// that it did not go on, so that also files, lengths and empty pages are equal.
type image struct {
	start postgres.LSN // of the backup
	since postgres.LSN // start of its parent
	quiet bool
	// unlogged: neither checksums nor wal_log_hints. Then a vacuum marks a page as
	// all visible by a record that leaves the page's LSN as it is.
	unlogged bool
	// database is the OID of the only one that is looked at, with what all share;
	// empty: all. Others may be made while the primary goes on, by copies of files.
	database string
}

// gistBuildLSN is that of pages of a GiST index that is being built or was built by
// sorting (GistBuildLSN in src/include/access/gist.h).
const gistBuildLSN = 1

// seen is how much an image comparison has looked at.
type seen struct {
	pages   int // all that were compared
	changed int // those of them that had changed since the parent
	empty   int // never initialized
}

// compare fails the test for each relation that is not as it should be.
func (i image) compare(t testing.TB, restored, live string) (all seen) {
	t.Helper()
	for _, rel := range relationNames(t, live) {
		if db := filepath.Base(filepath.Dir(rel)); unlogged(t, live, rel) || i.database != "" && db != i.database && db != "global" {
			continue
		}
		body, err := os.ReadFile(filepath.Join(live, rel))
		if errors.Is(err, fs.ErrNotExist) {
			continue // dropped, and removed by the last checkpoint
		}
		if err != nil {
			t.Fatal(err)
		}
		copied, err := os.ReadFile(filepath.Join(restored, rel))
		if errors.Is(err, fs.ErrNotExist) && !i.quiet {
			continue // made since
		}
		if err != nil {
			t.Errorf("read %s of the restored directory: %v", rel, err)
			continue
		}
		if i.quiet && len(body) != len(copied) && !i.written(body) {
			t.Errorf("%s has %d bytes, not %d", rel, len(copied), len(body))
		}
		if wrong := i.file(rel, copied, body, &all); wrong != "" {
			t.Errorf("%s: %s", rel, wrong)
		}
	}
	return all
}

// written tells whether a page was changed after the backup's start, so that the
// file may have become longer or shorter, too.
func (i image) written(body []byte) bool {
	for n := 0; n+pageSize <= len(body); n += pageSize {
		if postgres.PageLSN(body[n:n+pageSize]) >= i.start {
			return true
		}
	}
	return false
}

// file compares the pages of one file, and says which are wrong.
func (i image) file(rel string, copied, live []byte, all *seen) string {
	var wrong []string
	if strings.HasSuffix(filepath.Base(rel), "_vm") {
		return i.visibilityMap(copied, live)
	}
	for n := 0; (n+1)*pageSize <= len(live); n++ {
		want := live[n*pageSize : (n+1)*pageSize]
		at := postgres.PageLSN(want)
		empty := postgres.IsNewPage(want)
		if at >= i.start || !i.quiet && at <= gistBuildLSN {
			continue
		}
		if (n+1)*pageSize > len(copied) {
			if !empty {
				wrong = append(wrong, fmt.Sprintf("block %d of %s is missing", n, at))
			}
			continue
		}
		got := copied[n*pageSize : (n+1)*pageSize]
		all.pages++
		if at >= i.since {
			all.changed++
		}
		if empty {
			all.empty++
		}
		if sharedCache(want, n) {
			continue
		}
		if !i.quiet && i.unlogged { // such a record may have come since, and is replayed
			got, want = unmarked(got), unmarked(want)
		}
		if masked(got) != masked(want) {
			wrong = append(wrong, fmt.Sprintf("block %d is of %s, not of %s%s", n, postgres.PageLSN(got), at, difference(got, want)))
		}
	}
	if len(wrong) > 5 {
		wrong = append(wrong[:5], fmt.Sprintf("and %d more", len(wrong)-5))
	}
	return strings.Join(wrong, "; ")
}

// visibilityMap compares a visibility map, without its LSNs: its bits change
// without them.
func (i image) visibilityMap(copied, live []byte) string {
	if !i.quiet {
		return ""
	}
	for n := 0; (n+1)*pageSize <= min(len(live), len(copied)); n++ {
		got, want := copied[n*pageSize+24:(n+1)*pageSize], live[n*pageSize+24:(n+1)*pageSize]
		if string(got) != string(want) && postgres.PageLSN(live[n*pageSize:]) < i.start {
			return fmt.Sprintf("page %d of the visibility map differs", n)
		}
	}
	return ""
}

// relationNames lists the files of all main forks and visibility maps, below a
// data directory.
func relationNames(t testing.TB, dir string) []string {
	t.Helper()
	var names []string
	for _, path := range relationFiles(t, dir) {
		base := filepath.Base(path)
		if !mainFork.MatchString(base) && !strings.Contains(base, "_vm") {
			continue
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, rel)
	}
	return names
}

// unlogged tells whether a file belongs to an unlogged relation, whose init fork
// alone is in a backup.
func unlogged(t testing.TB, dir, rel string) bool {
	t.Helper()
	number, _, _ := strings.Cut(filepath.Base(rel), ".")
	number, _, _ = strings.Cut(number, "_")
	if _, err := strconv.ParseUint(number, 10, 32); err != nil {
		t.Fatalf("%s is no relation", rel)
	}
	return exists(filepath.Join(dir, filepath.Dir(rel), number+"_init"))
}

// Places in a page and in its parts, from src/include/storage/bufpage.h,
// itemid.h and access/htup_details.h.
const (
	pdFlags      = 10
	pdLower      = 12
	pdUpper      = 14
	pdSpecial    = 16
	pdPruneXID   = 20
	pageHeader   = 24
	pdAllVisible = 0x0004

	tupleInfomask = 20
	tupleHeader   = 23
	xminFrozen    = 0x0300
	xminHints     = 0x0300
	xmaxHints     = 0x0C00
	lpNormal      = 1
	lpDead        = 3

	indexSpecial  = 16 // length of the special area of B-trees, hash and GiST
	spgistSpecial = 8
	gistPageID    = 0xFF81
	hashPageID    = 0xFF80
	spgistPageID  = 0xFF82
	btreeGarbage  = 0x0040 // BTP_HAS_GARBAGE
	hashGarbage   = 0x0080 // LH_PAGE_HAS_DEAD_TUPLES
	gistGarbage   = 0x0010 // F_HAS_GARBAGE
)

// masked is a page without what changes without WAL: its checksum, hints, marks
// of dead index entries, and what is between its items. That a page is all
// visible is no hint: a server that changes such a page clears the bit of the
// visibility map only if the page says so.
//
// The LSN stays out, too: it moves with a hint where those are logged. The rules
// are those of src/backend/access/common/bufmask.c and of heap_mask, btree_mask,
// hash_mask and gist_mask.
func masked(page []byte) string {
	if postgres.IsNewPage(page) {
		return ""
	}
	p := append([]byte(nil), page...)
	clear(p[:pdFlags])
	flags := binary.LittleEndian.Uint16(p[pdFlags:])
	binary.LittleEndian.PutUint16(p[pdFlags:], flags&pdAllVisible)
	clear(p[pdPruneXID:pageHeader])
	lower, upper := int(binary.LittleEndian.Uint16(p[pdLower:])), int(binary.LittleEndian.Uint16(p[pdUpper:]))
	special := int(binary.LittleEndian.Uint16(p[pdSpecial:]))
	if lower < pageHeader || lower > upper || upper > special || special > pageSize {
		return string(p)
	}
	clear(p[lower:upper])
	if special == pageSize {
		maskHeap(p, lower)
	} else if pageSize-special == indexSpecial {
		maskIndex(p, lower)
	}
	return string(p)
}

// unmarked is a page that does not say whether it is all visible.
func unmarked(page []byte) []byte {
	p := append([]byte(nil), page...)
	p[pdFlags] &^= pdAllVisible
	return p
}

// maskHeap takes the hints from the tuples of a table's page.
func maskHeap(p []byte, lower int) {
	for at := pageHeader; at+4 <= lower; at += 4 {
		item := binary.LittleEndian.Uint32(p[at:])
		offset, flags, length := int(item&0x7FFF), item>>15&3, int(item>>17)
		if flags != lpNormal || length < tupleHeader || offset+length > pageSize {
			continue
		}
		mask := uint16(xmaxHints)
		infomask := binary.LittleEndian.Uint16(p[offset+tupleInfomask:])
		if infomask&xminFrozen != xminFrozen {
			mask |= xminHints
		}
		binary.LittleEndian.PutUint16(p[offset+tupleInfomask:], infomask&^mask)
	}
}

// maskIndex takes the marks of dead entries from an index page, and the flag
// that tells of them. It stands before the cycle of a vacuum in a B-tree, and
// before the id of their kind in the others.
func maskIndex(p []byte, lower int) {
	garbage := uint16(btreeGarbage)
	switch binary.LittleEndian.Uint16(p[pageSize-2:]) {
	case gistPageID:
		garbage = gistGarbage
	case hashPageID:
		garbage = hashGarbage
	}
	flags := binary.LittleEndian.Uint16(p[pageSize-4:])
	binary.LittleEndian.PutUint16(p[pageSize-4:], flags&^garbage)
	for at := pageHeader; at+4 <= lower; at += 4 {
		item := binary.LittleEndian.Uint32(p[at:])
		if item>>15&3 == lpDead && item>>17 != 0 {
			binary.LittleEndian.PutUint32(p[at:], item&^(3<<15)|lpNormal<<15)
		}
	}
}

// sharedCache tells whether a page is the first of an SP-GiST index, in which
// backends note the pages they used last, in no WAL (SpGistUpdateMetaPage).
func sharedCache(page []byte, block int) bool {
	return block == 0 && binary.LittleEndian.Uint16(page[pdSpecial:]) == pageSize-spgistSpecial &&
		binary.LittleEndian.Uint16(page[pageSize-2:]) == spgistPageID
}

// difference describes where two pages differ, for a message.
func difference(got, want []byte) string {
	if postgres.IsNewPage(got) {
		return " (empty in the backup)"
	}
	if postgres.IsNewPage(want) {
		return " (to be empty)"
	}
	a, b := masked(got), masked(want)
	first, n := -1, 0
	for i := range b {
		if a[i] != b[i] {
			if n++; first < 0 {
				first = i
			}
		}
	}
	return fmt.Sprintf(" (%d bytes from %d on: %x, not %x)", n, first, a[first:min(first+8, pageSize)], b[first:min(first+8, pageSize)])
}
