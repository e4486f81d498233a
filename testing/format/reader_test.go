// Package format_test restores a backup with nothing but what docs/format.md
// says. It shares no code with the agent, so that a mistake in the text, or a
// change of the format without a change of the text, does not go unnoticed.
package format_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// reader reads one cluster of a repository in a folder.
type reader struct {
	dir        string // of the cluster
	identities []age.Identity
	packs      map[string][]byte // opened, by lender and number

	// The frame that was read last: small files share one.
	lastPack   string
	lastOffset uint64
	lastRaw    []byte

	// Of the backup that was read last.
	kind     string
	borrowed int // packs
}

// backupJSON is what a restore needs of backup.json.
type backupJSON struct {
	Format   int    `json:"format"`
	Name     string `json:"name"`
	Type     string `json:"type"`
	Files    int64  `json:"files"`
	Bytes    int64  `json:"data_bytes"`
	Packs    digest `json:"packs"`
	Manifest digest `json:"manifest"`
}

type digest struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func (d digest) check(what string, b []byte) error {
	sum := sha256.Sum256(b)
	if int64(len(b)) != d.Size || hex.EncodeToString(sum[:]) != d.SHA256 {
		return fmt.Errorf("%s is not what was stored", what)
	}
	return nil
}

// open decrypts an object if it is encrypted.
func (r *reader) open(stored []byte) ([]byte, error) {
	if !bytes.HasPrefix(stored, []byte("age-encryption.org/v1\n")) {
		return stored, nil
	}
	plain, err := age.Decrypt(bytes.NewReader(stored), r.identities...)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(plain)
}

// decompress gives the raw bytes of frames in a row.
func decompress(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte{0x57, 0x2A, 0x4D, 0x18, 0x20, 0, 0, 0}) && len(b) >= 40 {
		b = b[40:]
	}
	var frames io.Reader
	switch {
	case bytes.HasPrefix(b, []byte{0x28, 0xB5, 0x2F, 0xFD}):
		z, err := zstd.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		frames = z
	case bytes.HasPrefix(b, []byte{0x04, 0x22, 0x4D, 0x18}):
		frames = lz4.NewReader(bytes.NewReader(b))
	default:
		return nil, fmt.Errorf("no frame begins with %x", b[:min(4, len(b))])
	}
	return io.ReadAll(frames)
}

// packLine is a line of the list of packs.
type packLine struct {
	Number uint64 `json:"pack"`
	digest
	Lender string `json:"lender"`
}

// begin reads backup.json, the list of packs and all packs, and returns the
// raw bytes of the manifest.
func (r *reader) begin(name string) (b backupJSON, manifest []byte, err error) {
	dir := filepath.Join(r.dir, "backup", name)
	raw, err := os.ReadFile(filepath.Join(dir, "backup.json"))
	if err == nil {
		err = json.Unmarshal(raw, &b)
	}
	if err == nil {
		err = checkSelf(raw)
	}
	if err != nil || b.Format != 1 || b.Name != name {
		return b, nil, fmt.Errorf("read backup.json (%+v): %w", b, err)
	}
	list, err := readChecked(filepath.Join(dir, "packs"), b.Packs)
	if err == nil {
		list, err = decompress(list)
	}
	if err != nil {
		return b, nil, fmt.Errorf("read the list of packs: %w", err)
	}
	r.packs, r.kind, r.borrowed = make(map[string][]byte), b.Type, 0
	for line := range bytes.Lines(list) {
		var p packLine
		if err := json.Unmarshal(line, &p); err != nil {
			return b, nil, fmt.Errorf("read the list of packs: %w", err)
		}
		if p.Lender == "" {
			p.Lender = name
		} else {
			r.borrowed++
		}
		stored, err := readChecked(filepath.Join(r.dir, "backup", p.Lender, "pack", fmt.Sprintf("%08x", p.Number)), p.digest)
		if err == nil {
			stored, err = r.open(stored)
		}
		if err != nil {
			return b, nil, fmt.Errorf("read pack %d: %w", p.Number, err)
		}
		r.packs[packID(p.Lender, p.Number)] = stored
	}
	if manifest, err = readChecked(filepath.Join(dir, "manifest"), b.Manifest); err == nil {
		if manifest, err = r.open(manifest); err == nil {
			manifest, err = decompress(manifest)
		}
	}
	return b, manifest, err
}

// checkSelf compares the hash that backup.json carries of itself.
func checkSelf(body []byte) error {
	at := bytes.LastIndex(body, []byte(`"self_sha256": "`)) + len(`"self_sha256": "`)
	digits := string(body[at : at+64])
	blank := bytes.Clone(body)
	copy(blank[at:], strings.Repeat("0", 64))
	if sum := sha256.Sum256(blank); hex.EncodeToString(sum[:]) != digits {
		return fmt.Errorf("backup.json says that its hash is %s, it is %x", digits, sum)
	}
	return nil
}

func readChecked(path string, want digest) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return b, want.check(path, b)
}

func packID(backup string, number uint64) string { return fmt.Sprintf("%s/%d", backup, number) }

// frame decompresses one frame of a pack.
func (r *reader) frame(id string, offset, length, raw uint64) ([]byte, error) {
	if r.lastRaw != nil && r.lastPack == id && r.lastOffset == offset {
		return r.lastRaw, nil
	}
	pack := r.packs[id]
	if offset+length > uint64(len(pack)) {
		return nil, fmt.Errorf("frame at %d of pack %s is beyond its end", offset, id)
	}
	b, err := decompress(pack[offset : offset+length])
	if err == nil && uint64(len(b)) != raw {
		err = fmt.Errorf("frame at %d of pack %s has %d raw bytes instead of %d", offset, id, len(b), raw)
	}
	if err == nil {
		r.lastPack, r.lastOffset, r.lastRaw = id, offset, b
	}
	return b, err
}

// fields reads the primitives; the first error stays.
type fields struct {
	r   *bufio.Reader
	err error
}

func newFields(b []byte) *fields { return &fields{r: bufio.NewReader(bytes.NewReader(b))} }

func (f *fields) byte() byte {
	var b byte
	if f.err == nil {
		b, f.err = f.r.ReadByte()
	}
	return b
}

func (f *fields) uint() uint64 {
	var v uint64
	if f.err == nil {
		v, f.err = binary.ReadUvarint(f.r)
	}
	return v
}

func (f *fields) int() int64 {
	v := f.uint()
	if v&1 == 1 {
		return -int64(v>>1) - 1
	}
	return int64(v >> 1)
}

func (f *fields) bytes(n uint64) []byte {
	b := make([]byte, n)
	if f.err == nil {
		_, f.err = io.ReadFull(f.r, b)
	}
	return b
}

func (f *fields) string() string {
	n := f.uint()
	if n > 8192 {
		f.err = fmt.Errorf("a string of %d bytes", n)
	}
	return string(f.bytes(min(n, 8192)))
}

// tableFrame is an entry of a frame table.
type tableFrame struct {
	offset, raw, length, rawLength uint64
	ending                         string
}

// section gives the parts of its files, one after the other.
type section struct {
	r     *reader
	packs []string
	table [][]tableFrame
	f     *fields
	left  uint64 // parts
}

func (r *reader) section(f *fields) (*section, error) {
	lender := f.string()
	parts := f.uint()
	var body []byte
	for range f.uint() {
		number, offset, length, raw := f.uint(), f.uint(), f.uint(), f.uint()
		if f.err != nil {
			return nil, f.err
		}
		b, err := r.frame(packID(lender, number), offset, length, raw)
		if err != nil {
			return nil, err
		}
		body = append(body, b...)
	}
	s := &section{r: r, f: newFields(body)}
	if v := s.f.byte(); v != 1 {
		return nil, fmt.Errorf("section version %d", v)
	}
	names := make([]string, s.f.uint())
	for i := range names {
		names[i] = s.f.string()
	}
	for range s.f.uint() {
		backup := names[s.f.uint()]
		s.packs = append(s.packs, packID(backup, s.f.uint()))
		table := make([]tableFrame, s.f.uint())
		var offset, raw uint64
		for i := range table {
			t := tableFrame{offset: offset + s.f.uint(), raw: raw + s.f.uint(), length: s.f.uint(), rawLength: s.f.uint(), ending: string(s.f.bytes(4))}
			table[i], offset, raw = t, t.offset+t.length, t.raw+t.rawLength
		}
		s.table = append(s.table, table)
	}
	if s.left = s.f.uint(); s.left != parts {
		return nil, fmt.Errorf("section has %d parts instead of %d", s.left, parts)
	}
	return s, s.f.err
}

// part writes the next part to w.
func (s *section) part(w io.Writer) error {
	s.left--
	unit := s.f.uint()
	ended := make(map[uint64]int64)
	for range s.f.uint() {
		length := s.f.uint() * unit
		pack := s.f.uint()
		if pack == 0 {
			if _, err := w.Write(make([]byte, length)); err != nil {
				return err
			}
			continue
		}
		at := ended[pack] + s.f.int()*int64(unit)
		ended[pack] = at + int64(length)
		if s.f.err != nil {
			return s.f.err
		}
		if err := s.run(w, pack-1, uint64(at), length); err != nil {
			return err
		}
	}
	return s.f.err
}

// run writes raw bytes of a pack, frame by frame.
func (s *section) run(w io.Writer, pack, at, length uint64) error {
	for _, t := range s.table[pack] {
		if length == 0 || at < t.raw || at >= t.raw+t.rawLength {
			continue
		}
		raw, err := s.r.frame(s.packs[pack], t.offset, t.length, t.rawLength)
		if err != nil {
			return err
		}
		if stored := s.r.packs[s.packs[pack]][t.offset : t.offset+t.length]; !bytes.HasSuffix(stored, []byte(t.ending)) {
			return fmt.Errorf("frame at %d of pack %s ends with other bytes", t.offset, s.packs[pack])
		}
		n := min(length, t.raw+t.rawLength-at)
		if _, err := w.Write(raw[at-t.raw:][:n]); err != nil {
			return err
		}
		at, length = at+n, length-n
	}
	if length > 0 {
		return fmt.Errorf("a run of pack %s is not inside its frames", s.packs[pack])
	}
	return nil
}

// entry is what the manifest says of a path.
type entry struct {
	Type     byte
	Mode     uint64
	Size     uint64
	OID      uint64
	Location string
	Final    bool
	SHA256   [32]byte
}

// restore reads every file of a backup, and writes those that keep is not nil
// for. It returns all entries.
func (r *reader) restore(name string) (map[string]entry, error) {
	b, manifest, err := r.begin(name)
	if err != nil {
		return nil, err
	}
	f := newFields(manifest)
	if t, v, of := f.byte(), f.uint(), f.string(); t != 'H' || v != 1 || of != name {
		return nil, fmt.Errorf("header %c, version %d, backup %q", t, v, of)
	}
	f.uint() // block size
	f.uint() // mode of the data directory
	all := make(map[string]entry)
	var path string
	var s *section
	var entries, files, bytes uint64
	for f.err == nil {
		t := f.byte()
		switch t {
		case 'S':
			if s != nil && s.left != 0 {
				return nil, fmt.Errorf("%d parts of a section are of no file", s.left)
			}
			if s, err = r.section(f); err != nil {
				return nil, err
			}
			continue
		case 'E':
			if n, m, k := f.uint(), f.uint(), f.uint(); n != entries || m != files || k != bytes {
				return nil, fmt.Errorf("the end says %d, %d, %d, not %d, %d, %d", n, m, k, entries, files, bytes)
			}
			if int64(files) != b.Files || int64(bytes) != b.Bytes {
				return nil, fmt.Errorf("backup.json says %d files, %d bytes", b.Files, b.Bytes)
			}
			_, err := f.r.ReadByte()
			if err != io.EOF || f.err != nil {
				return nil, fmt.Errorf("the end is not the end: %w", f.err)
			}
			return all, nil
		case 'D', 'T', 'F':
		default:
			return nil, fmt.Errorf("record %q", t)
		}
		shared := f.uint()
		if shared > uint64(len(path)) {
			return nil, fmt.Errorf("%d bytes in common with %q", shared, path)
		}
		next := path[:shared] + f.string()
		e := entry{Type: t, Mode: f.uint()}
		var begin []byte // of its hash
		if t == 'T' {
			e.OID, e.Location = f.uint(), f.string()
		}
		if t == 'F' {
			f.int() // modification time
			e.Size = f.uint()
			flags := f.byte()
			if flags > 3 {
				return nil, fmt.Errorf("%s: flags %d", next, flags)
			}
			e.Final = flags&1 != 0
			if flags&2 != 0 {
				begin = f.bytes(16)
			}
		}
		if !e.Final && path != "" && !before(path, next) {
			return nil, fmt.Errorf("%q comes after %q", next, path)
		}
		path = next
		entries++
		if t == 'F' {
			files++
			bytes += e.Size
			if e.SHA256, s, err = r.content(f, s, e.Size); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			if string(e.SHA256[:len(begin)]) != string(begin) {
				return nil, fmt.Errorf("%s: its sum is %x, that of its content %x", path, begin, e.SHA256)
			}
		}
		all[path] = e
	}
	return nil, f.err
}

// content hashes the content of a file, taking parts from s and the sections
// that follow.
func (r *reader) content(f *fields, s *section, size uint64) (sum [32]byte, _ *section, err error) {
	h := sha256.New()
	w := &counter{w: h}
	for w.n < size {
		if s == nil || s.left == 0 {
			if t := f.byte(); t != 'S' {
				return sum, s, fmt.Errorf("record %q instead of a section", t)
			}
			if s, err = r.section(f); err != nil {
				return sum, s, err
			}
		}
		if err := s.part(w); err != nil {
			return sum, s, err
		}
	}
	if w.n != size {
		return sum, s, fmt.Errorf("%d bytes instead of %d", w.n, size)
	}
	return [32]byte(h.Sum(nil)), s, nil
}

type counter struct {
	w io.Writer
	n uint64
}

func (c *counter) Write(b []byte) (int, error) {
	c.n += uint64(len(b))
	return c.w.Write(b)
}

// before orders paths as the manifest does.
func before(a, b string) bool {
	smallest := func(s string) string { return strings.ReplaceAll(s, "/", "\x00") }
	return smallest(a) < smallest(b)
}
