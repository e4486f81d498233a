package format_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage/fs"
	"agent/internal/summary"
)

// readSummary reads a summary as docs/format.md says and describes it in lines.
func (r *reader) readSummary(path string) ([]string, error) {
	stored, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	opened, err := r.open(stored)
	if err != nil {
		return nil, err
	}
	raw, err := decompress(opened)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	if !bytes.HasPrefix(stored, []byte("age-encryption.org/v1\n-> walagent1 "+hex.EncodeToString(sum[:])+"\n\n")) {
		return nil, fmt.Errorf("it does not begin with the hash of its bytes")
	}
	f := newFields(raw)
	if format, version := f.byte(), f.uint(); format != 1 || version != 1 {
		return nil, fmt.Errorf("format %d, version %d", format, version)
	}
	all := []string{fmt.Sprintf("cluster %d major %d", f.uint(), f.uint())}
	start := uint64(1) << f.byte()
	start *= f.uint()
	first := f.uint()
	all = append(all, fmt.Sprintf("start %d timelines %d %d", start, first, first+f.uint()))
	hash := make([]byte, 32)
	for i := range hash {
		hash[i] = f.byte()
	}
	all = append(all, fmt.Sprintf("hash %x ending %d doubts %d", hash, f.byte(), f.byte()))
	if n := f.uint(); n > 0 {
		first := start + f.uint()
		all = append(all, fmt.Sprintf("records %d first %d behind %d last %d", n, first, first-f.uint(), first+f.uint()))
	}
	all = append(all, fmt.Sprintf("end %d overwritten %d", start+f.uint(), f.byte()))
	for _, name := range []string{"head", "tail"} {
		length := f.uint()
		if length == 0 {
			continue
		}
		left, piece := f.uint(), make([]byte, min(length, 16<<20))
		for i := range piece {
			piece[i] = f.byte()
		}
		line := fmt.Sprintf("%s %d left %d hash %x", name, length, left, sha256.Sum256(piece))
		if name == "tail" {
			line += fmt.Sprintf(" start %d", start+f.uint())
		}
		all = append(all, line)
	}
	if f.byte() == 1 {
		all = append(all, fmt.Sprintf("newest commit %d %d", start+f.uint(), f.int()))
	}
	for range f.uint() {
		lsn, at, name := start+f.uint(), f.int(), f.string()
		all = append(all, fmt.Sprintf("restore point %d %d %s", lsn, at, name))
	}
	all = append(all, f.forks()...)
	if _, err := f.r.ReadByte(); err != io.EOF || f.err != nil {
		return nil, fmt.Errorf("the end is not the end: %w", f.err)
	}
	return all, nil
}

// forks reads the table.
func (f *fields) forks() []string {
	var all []string
	var tablespace, database, relation int64
	for range f.uint() {
		tablespace, database, relation = tablespace+f.int(), database+f.int(), relation+f.int()
		name := fmt.Sprintf("%d/%d/%d fork %d", tablespace, database, relation, f.byte())
		if limit := f.uint(); limit > 0 {
			all = append(all, fmt.Sprintf("%s limit %d", name, limit-1))
		}
		var at uint64
		for length := f.uint(); length > 0; length = f.uint() {
			at += f.uint()
			for range length {
				all = append(all, fmt.Sprintf("%s block %d", name, at))
				at++
			}
		}
	}
	return all
}

// describe says of a summary what readSummary says.
func describe(s *summary.Summary) []string {
	all := []string{
		fmt.Sprintf("cluster %d major %d", s.SystemID, s.Major),
		fmt.Sprintf("start %d timelines %d %d", s.Start, s.Timeline, s.Until),
		fmt.Sprintf("hash %x ending %d doubts %d", s.SHA256, s.Ending, s.Doubts),
		fmt.Sprintf("records %d first %d behind %d last %d", s.Records, s.First, s.FirstPrev, s.Last),
		fmt.Sprintf("end %d overwritten %d", s.End, 0),
	}
	if p := s.Head; p.Length > 0 {
		all = append(all, fmt.Sprintf("head %d left %d hash %x", p.Length, p.Left, sha256.Sum256(p.Bytes)))
	}
	if p := s.Tail; p.Length > 0 {
		all = append(all, fmt.Sprintf("tail %d left %d hash %x start %d", p.Length, p.Left, sha256.Sum256(p.Bytes), s.TailStart))
	}
	all = append(all, fmt.Sprintf("newest commit %d %d", s.Newest.LSN, s.Newest.Micros))
	for _, p := range s.RestorePoints {
		all = append(all, fmt.Sprintf("restore point %d %d %s", p.LSN, p.Micros, p.Name))
	}
	for _, k := range s.Table.Keys() {
		name := fmt.Sprintf("%d/%d/%d fork %d", k.Tablespace, k.Database, k.Relation, k.Fork)
		if limit := s.Table.Limit(k); limit != summary.NoLimit {
			all = append(all, fmt.Sprintf("%s limit %d", name, limit))
		}
		for block := range s.Table.Blocks(k, 0, math.MaxUint32) {
			all = append(all, fmt.Sprintf("%s block %d", name, block))
		}
	}
	return all
}

// TestSecondImplementationOfSummaries compares what docs/format.md makes of the
// summaries of real segments with what they were made of.
func TestSecondImplementationOfSummaries(t *testing.T) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	to, err := crypto.ParseRecipients([]string{key.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bucket, err := fs.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r := repo.New([]repo.Place{{Name: "main", Bucket: bucket, Required: true}}, repo.Options{
		Keys: repo.Keys{Meta: to}, Log: slog.New(slog.DiscardHandler), Codec: compress.Setting{}, Now: time.Now,
	})
	found, err := filepath.Glob(filepath.Join("..", "..", "internal", "postgres", "testdata", "pg*", "0*0*.zst"))
	if err != nil || len(found) != 12 {
		t.Fatalf("segments %v: %v", found, err)
	}
	reader := &reader{identities: []age.Identity{key}}
	for i, path := range found {
		packed, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		segment, err := decompress(packed)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(path)[:24]
		file, err := postgres.ParseWALFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b := summary.NewBuilder()
		b.Write(segment)
		s, err := b.Finish(sha256.Sum256(segment))
		if err != nil {
			t.Fatal(err)
		}
		cluster := repo.ClusterID(i + 1)
		if err := r.PutSummary(t.Context(), cluster, file, s.Encode()); err != nil {
			t.Fatal(err)
		}
		got, err := reader.readSummary(filepath.Join(dir, "cluster", fmt.Sprintf("%020d", i+1), "summary", name[:16], name))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if diff := cmp.Diff(describe(s), got); diff != "" {
			t.Errorf("%s: the summary (-) and docs/format.md (+) differ:\n%s", path, diff)
		}
	}
}
