package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// load reads a file of testdata, unpacked if its name ends in .zst.
func load(t testing.TB, path ...string) []byte {
	t.Helper()
	name := filepath.Join(append([]string{"testdata"}, path...)...)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(name, ".zst") {
		return b
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

// walFixtures are all segments of testdata by path.
func walFixtures(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/*/0*0*.zst")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, name := range names {
		rel := strings.TrimPrefix(name, "testdata/")
		out[strings.TrimSuffix(rel, ".zst")] = load(t, rel)
	}
	if len(out) < 17 {
		t.Fatalf("only %d segments in testdata", len(out))
	}
	return out
}

func mustWALFile(t testing.TB, name string) WALFile {
	t.Helper()
	f, err := ParseWALFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
