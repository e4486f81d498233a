package restore

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"agent/internal/postgres"
)

// pgManifest writes a backup_manifest that pg_verifybackup accepts
// (PostgreSQL documentation, "Backup Manifest Format", version 1, which all
// supported majors read). It is written as a stream while files are completed.
type pgManifest struct {
	file *os.File
	out  *bufio.Writer
	hash hash.Hash
	some bool
	err  error
}

func newPGManifest(path string, mode os.FileMode) (*pgManifest, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return nil, fmt.Errorf("create backup_manifest: %w", err)
	}
	m := &pgManifest{file: f, out: bufio.NewWriter(f), hash: sha256.New()}
	m.print("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")
	return m, m.err
}

// print writes what the checksum at the end is taken over.
func (m *pgManifest) print(format string, args ...any) {
	if m.err == nil {
		_, m.err = fmt.Fprintf(io.MultiWriter(m.out, m.hash), format, args...)
	}
}

// add appends a file. PostgreSQL prints the bytes of a CRC-32C in memory
// order, which is little-endian.
func (m *pgManifest) add(path string, size int64, modified time.Time, crc uint32) error {
	sep := ",\n"
	if !m.some {
		sep, m.some = "\n", true
	}
	name, err := json.Marshal(path)
	if err != nil {
		return fmt.Errorf("encode path %q: %w", path, err)
	}
	key := "Path"
	if !utf8.ValidString(path) {
		key, name = "Encoded-Path", []byte(`"`+hex.EncodeToString([]byte(path))+`"`)
	}
	m.print("%s{ \"%s\": %s, \"Size\": %d, \"Last-Modified\": \"%s\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"%x\" }",
		sep, key, name, size, modified.UTC().Format("2006-01-02 15:04:05 GMT"), binary.LittleEndian.AppendUint32(nil, crc))
	return m.err
}

// finish writes the range of WAL that the backup needs and the checksum.
func (m *pgManifest) finish(t postgres.Timeline, start, stop postgres.LSN) error {
	m.print("\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": %d, \"Start-LSN\": \"%s\", \"End-LSN\": \"%s\" }\n],\n", uint32(t), start, stop)
	if m.err == nil {
		_, m.err = fmt.Fprintf(m.out, "\"Manifest-Checksum\": \"%x\"}\n", m.hash.Sum(nil))
	}
	if m.err == nil {
		m.err = m.out.Flush()
	}
	err := errors.Join(m.err, m.file.Close())
	m.file = nil
	if err != nil {
		return fmt.Errorf("write backup_manifest: %w", err)
	}
	return nil
}

// abandon gives the file up where finish was not reached; the restore has
// failed for another reason by then.
func (m *pgManifest) abandon() {
	if m.file != nil {
		m.file.Close()
	}
}
