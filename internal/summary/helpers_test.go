package summary

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"agent/internal/postgres"
)

// load reads a packed segment of internal/postgres/testdata.
func load(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"..", "postgres", "testdata"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := d.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// folder loads the segments of a folder of testdata, in order.
func folder(t testing.TB, dir string) [][]byte {
	t.Helper()
	found, err := filepath.Glob(filepath.Join("..", "postgres", "testdata", dir, "0*0*.zst"))
	if err != nil || len(found) == 0 {
		t.Fatalf("segments in %s: %v (%v)", dir, found, err)
	}
	var all [][]byte
	for _, path := range found {
		all = append(all, load(t, dir, filepath.Base(path)))
	}
	return all
}

// summarise makes the summary of a segment.
func summarise(t testing.TB, segment []byte) *Summary {
	t.Helper()
	b := NewBuilder()
	b.Write(segment)
	s, err := b.Finish(sha256.Sum256(segment))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Problem(); err != nil {
		t.Error(err)
	}
	return s
}

// merge joins summaries, each through its bytes.
func merge(t testing.TB, all ...*Summary) *Merger {
	t.Helper()
	m := NewMerger()
	for _, s := range all {
		back, err := Decode(s.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Add(back); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// lines describes a table as summary.txt does.
func lines(t *Table) []string {
	var all []string
	for _, k := range t.Keys() {
		name := fmt.Sprintf("%d/%d/%d %s", k.Tablespace, k.Database, k.Relation, k.Fork)
		if limit := t.Limit(k); limit != NoLimit {
			all = append(all, fmt.Sprintf("%s limit %d", name, limit))
		}
		for block := range t.Blocks(k, 0, math.MaxUint32) {
			all = append(all, fmt.Sprintf("%s block %d", name, block))
		}
	}
	slices.Sort(all)
	return all
}

// known is what a table says: of blocks behind a limit the limit says enough.
func known(t *Table) []string {
	short := NewTable()
	for _, k := range t.Keys() {
		short.Cut(k, t.Limit(k))
		for block := range t.Blocks(k, 0, t.Limit(k)) {
			short.Touch(k, block)
		}
	}
	return lines(short)
}

func readLines(t testing.TB, path ...string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"testdata"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		all = append(all, s.Text())
	}
	slices.Sort(all)
	return all
}

// lsnOf takes an LSN out of range.txt.
func lsnOf(t testing.TB, text, key string) postgres.LSN {
	t.Helper()
	_, rest, _ := strings.Cut(text, key+"=")
	lsn, err := postgres.ParseLSN(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}
