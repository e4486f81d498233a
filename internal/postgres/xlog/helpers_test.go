package xlog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"agent/internal/postgres"
)

// load reads a packed file of the parent's testdata.
func load(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"..", "testdata"}, path...)...))
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

// segments are the packed segments of a folder of testdata, in order.
func segments(t testing.TB, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join("..", "testdata", dir, "0*0*.zst"))
	if err != nil || len(found) == 0 {
		t.Fatalf("segments in %s: %v (%v)", dir, found, err)
	}
	for i, path := range found {
		found[i] = filepath.Base(path)
	}
	return found
}

// names are those that pg_waldump gives to resource managers.
var names = []string{
	"XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2", "Heap",
	"Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic", "LogicalMessage",
}

func padded(l postgres.LSN) string { return fmt.Sprintf("%X/%08X", uint32(l>>32), uint32(l)) }

// line describes a record as blockrefs.txt does.
func line(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %d %s %s", names[r.RM], r.Length, r.XID, padded(r.LSN), padded(r.Prev))
	for _, ref := range r.Blocks {
		fmt.Fprintf(&b, " #%d %d/%d/%d", ref.ID, ref.Tablespace, ref.Database, ref.Relation)
		if ref.Fork != postgres.MainFork {
			fmt.Fprintf(&b, " fork %s", ref.Fork)
		}
		fmt.Fprintf(&b, " blk %d", ref.Block)
		if ref.Image {
			b.WriteString(" FPW")
		}
	}
	return b.String()
}

// decode decodes a segment and returns lines about its records.
func decode(t testing.TB, segment []byte) ([]string, *Result) {
	t.Helper()
	var lines []string
	d := NewDecoder(func(r *Record) { lines = append(lines, line(r)) })
	if n, err := d.Write(segment); n != len(segment) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	return lines, d.Result()
}
