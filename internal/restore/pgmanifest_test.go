package restore

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func splitLines(b []byte) iter.Seq[string] {
	return strings.SplitSeq(strings.TrimSuffix(string(b), "\n"), "\n")
}

func TestPGManifest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "backup_manifest")
	m, err := newPGManifest(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	zone := time.FixedZone("", 3600)
	if err := m.add("base/1/1259", 8192, noon.In(zone), crc32.Checksum([]byte("123456789"), crcTable)); err != nil {
		t.Fatal(err)
	}
	if err := m.add("a \"quoted\" näme", 0, noon, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.add("latin\xff", 1, noon, 1); err != nil {
		t.Fatal(err)
	}
	if err := m.finish(2, 0x9000028, 0x1_0A000000); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The checksum of "123456789" is E3069283 (RFC 3720, B.4, and the CRC
	// catalogue); PostgreSQL prints its bytes in memory order.
	want := `{ "PostgreSQL-Backup-Manifest-Version": 1,
"Files": [
{ "Path": "base/1/1259", "Size": 8192, "Last-Modified": "2026-11-20 12:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "839206e3" },
{ "Path": "a \"quoted\" näme", "Size": 0, "Last-Modified": "2026-11-20 12:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "00000000" },
{ "Encoded-Path": "6c6174696eff", "Size": 1, "Last-Modified": "2026-11-20 12:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "01000000" }
],
"WAL-Ranges": [
{ "Timeline": 2, "Start-LSN": "0/9000028", "End-LSN": "1/A000000" }
],
`
	want += fmt.Sprintf("\"Manifest-Checksum\": \"%x\"}\n", sha256.Sum256([]byte(want)))
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Fatal(d)
	}
	if !json.Valid(got) {
		t.Fatal("it is not JSON")
	}
}
