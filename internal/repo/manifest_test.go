package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/storage"
)

// item is an entry with what its manifest says of its content.
type item struct {
	Entry
	Runs []named
}

// store writes items as a manifest and returns the backup that has it.
func store(t testing.TB, r *Repository, items []item, frames map[PackID][]Frame) (*Backup, map[PackID]Pack) {
	t.Helper()
	ctx := t.Context()
	set := newPacks(ctx, r, testName, 2)
	m, err := r.NewManifestWriter(set.PackSet, ManifestHeader{Backup: testName, BlockSize: 8192, Mode: 0o700}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, i := range items {
		if err := m.Add(set.ctx, i.Entry, newParts(i.Runs, frames)); err != nil {
			t.Fatal(err)
		}
	}
	totals, err := m.Finish(set.ctx)
	if err := errorsFirst(err, set.group.Wait()); err != nil {
		t.Fatal(err)
	}
	list, err := set.Packs()
	if err != nil {
		t.Fatal(err)
	}
	b := &Backup{Name: testName, Cluster: testCluster, Files: totals.Files, DataBytes: totals.Bytes}
	if b.Manifest, err = m.Store(ctx); err != nil {
		t.Fatal(err)
	}
	if b.Packs, err = r.StorePacks(ctx, testCluster, testName, encodePacks(t, r, list)); err != nil {
		t.Fatal(err)
	}
	packs, err := r.LoadPacks(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(byID(testName, list), packs); d != "" {
		t.Fatalf("packs differ (-written +read):\n%s", d)
	}
	return b, packs
}

// newParts is a file's only part, or none.
func newParts(runs []named, frames map[PackID][]Frame) []FilePart {
	if len(runs) == 0 {
		return nil
	}
	return []FilePart{part(runs, frames)}
}

func encodePacks(t interface{ Fatal(...any) }, r *Repository, packs []Pack) []byte {
	encoded, err := r.EncodePacks(packs)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// load reads a manifest to its end.
func load(ctx context.Context, r *Repository, b *Backup, packs map[PackID]Pack) (items []item, totals ManifestTotals, err error) {
	root, err := r.OpenManifest(ctx, b)
	if err != nil {
		return nil, totals, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	m, err := root.Read(packs)
	if err != nil {
		return nil, totals, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	for {
		e, parts, err := m.Next(ctx)
		if errors.Is(err, io.EOF) {
			return items, m.Totals(), nil
		}
		if err != nil {
			return items, m.Totals(), err
		}
		i := item{Entry: e}
		for _, p := range parts {
			i.Runs = append(i.Runs, nameRuns(p.Runs, p.Section.Packs)...)
		}
		items = append(items, i)
	}
}

const blocks = 8192

// lent is a pack of another backup that is one large stretch of frames.
func lent() (PackID, []Frame) {
	id := PackID{otherName, 5}
	var frames []Frame
	for n := range int64(64) {
		frames = append(frames, Frame{Offset: n * 500_000, Length: 500_000, RawOffset: n * maxRawFrame, RawLen: maxRawFrame})
	}
	return id, frames
}

// drawTree makes the entries of a backup in their order.
func drawTree(t *rapid.T) []item {
	id, _ := lent()
	var items []item
	add := func(e Entry, runs ...named) {
		for _, r := range runs {
			e.Size += r.Length
		}
		items = append(items, item{e, runs})
	}
	for d := range rapid.IntRange(1, 4).Draw(t, "directories") {
		dir := fmt.Sprintf("base.%d", d)
		add(Entry{Kind: EntryDir, Path: dir, Mode: 0o700})
		for f := range rapid.IntRange(0, 1500).Draw(t, "files") {
			e := Entry{Kind: EntryFile, Path: fmt.Sprintf("%s/%05d", dir, f), Mode: 0o600, ModTime: testTime.Add(time.Duration(f) * time.Microsecond)}
			switch f % 7 {
			case 0:
				add(e)
			case 1:
				add(e, named{Length: 1, Zero: true})
			default:
				add(e, named{Length: int64(f%64+1) * blocks, Pack: id, Raw: int64(f%100) * blocks})
			}
		}
		if d == 0 && rapid.IntRange(0, 9).Draw(t, "big") == 0 {
			// More runs than a section takes, so the file spans several.
			runs := make([]named, rapid.IntRange(sectionRuns-2, 2*sectionRuns+10).Draw(t, "runs"))
			for i := range runs {
				runs[i] = named{Length: blocks, Pack: id, Raw: int64(i*2%4096) * blocks}
			}
			add(Entry{Kind: EntryFile, Path: dir + "/big", Mode: 0o640, ModTime: testTime}, runs...)
		}
	}
	add(Entry{Kind: EntryTablespace, Path: "pg_tblspc/16384", Mode: 0o700, OID: 16384, Location: "/srv/space one"})
	add(Entry{Kind: EntryFile, Path: "backup_label", Mode: 0o600, ModTime: testTime, Final: true}, named{Length: 230, Pack: id, Raw: 0})
	add(Entry{Kind: EntryFile, Path: "global/pg_control", Mode: 0o600, ModTime: testTime, Final: true}, named{Length: 8192, Pack: id, Raw: 8192})
	return items
}

func TestManifestRoundTrip(t *testing.T) {
	keys, _ := testKeys(t)
	rapid.Check(t, func(rt *rapid.T) {
		k := keys
		if !rapid.Bool().Draw(rt, "sealed") {
			k = Keys{}
		}
		codec := setting(t, rapid.SampledFrom([]string{"zstd", "lz4", "none"}).Draw(rt, "codec"))
		bucket, _ := folder(t)
		r := testRepo(bucket, k, codec)
		want := drawTree(rt)
		id, frames := lent()
		b, packs := store(t, r, want, map[PackID][]Frame{id: frames})
		got, totals, err := load(t.Context(), r, b, packs)
		if err != nil {
			rt.Fatal(err)
		}
		same := func(a, b item) bool { return a.Entry == b.Entry && slices.Equal(a.Runs, b.Runs) }
		if !slices.EqualFunc(want, got, same) {
			rt.Fatalf("entries differ (-written +read):\n%s", cmp.Diff(want, got))
		}
		if totals.Entries != int64(len(want)) || totals.Files != b.Files || totals.Bytes != b.DataBytes {
			rt.Fatalf("totals are %+v for %d entries, %d files, %d bytes", totals, len(want), b.Files, b.DataBytes)
		}
		root, rootTotals, err := load(t.Context(), r, b, nil)
		if err != nil || len(root) != len(want) || rootTotals != totals {
			rt.Fatalf("the root alone gives %d entries, %+v, %v", len(root), rootTotals, err)
		}
	})
}

func TestManifestWriterRefuses(t *testing.T) {
	file := func(path string, final bool) Entry {
		return Entry{Kind: EntryFile, Path: path, Mode: 0o600, Final: final}
	}
	tests := map[string][]item{
		"the same path twice":         {{Entry: file("a", false)}, {Entry: file("a", false)}},
		"a path before the last":      {{Entry: file("b", false)}, {Entry: file("a", false)}},
		"a name before a directory's": {{Entry: file("a.b", false)}, {Entry: file("a/b", false)}},
		"a plain file after a final":  {{Entry: file("a", true)}, {Entry: file("b", false)}},
		"runs shorter than the size":  {{Entry: Entry{Kind: EntryFile, Path: "a", Size: 2}, Runs: []named{{Length: 1, Zero: true}}}},
		"runs longer than the size":   {{Entry: Entry{Kind: EntryFile, Path: "a", Size: 2}, Runs: []named{{Length: 3, Zero: true}}}},
	}
	for name, items := range tests {
		t.Run(name, func(t *testing.T) {
			r := testRepo(newMemory(), Keys{}, setting(t, "zstd"))
			set := newPacks(t.Context(), r, testName, 1)
			m, err := r.NewManifestWriter(set.PackSet, ManifestHeader{Backup: testName, BlockSize: blocks, Mode: 0o700}, nil)
			if err != nil {
				t.Fatal(err)
			}
			last := len(items) - 1
			for n, i := range items {
				if err := m.Add(t.Context(), i.Entry, newParts(i.Runs, nil)); (err != nil) != (n == last) {
					t.Fatalf("entry %d: %v", n, err)
				}
			}
		})
	}
}

// ComparePaths is the order of a depth-first walk with sorted names.
func TestComparePaths(t *testing.T) {
	name := rapid.StringMatching(`[a.!~0-]{1,3}`)
	rapid.Check(t, func(t *rapid.T) {
		paths := make(map[string]bool)
		for range rapid.IntRange(1, 30).Draw(t, "paths") {
			parts := rapid.SliceOfN(name, 1, 4).Draw(t, "path")
			for n := range parts {
				paths[strings.Join(parts[:n+1], "/")] = true
			}
		}
		var want []string
		var walk func(dir string)
		walk = func(dir string) {
			var names []string
			for p := range paths {
				if rest, ok := strings.CutPrefix(p, dir); ok && !strings.Contains(rest, "/") {
					names = append(names, rest)
				}
			}
			slices.Sort(names)
			for _, n := range names {
				want = append(want, dir+n)
				walk(dir + n + "/")
			}
		}
		walk("")
		got := slices.SortedFunc(func(yield func(string) bool) {
			for p := range paths {
				if !yield(p) {
					return
				}
			}
		}, ComparePaths)
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("order differs (-walk +sort):\n%s", d)
		}
		for i, a := range got {
			for j, b := range got {
				if c := ComparePaths(a, b); (c < 0) != (i < j) || (c == 0) != (i == j) {
					t.Fatalf("%q and %q compare as %d", a, b, c)
				}
			}
		}
	})
}

// root is a manifest's raw bytes made by hand.
type root struct{ encoder }

func newRoot() *root {
	r := new(root)
	r.byte(recordHeader)
	r.uint(manifestVersion)
	r.string(string(testName))
	r.size(blocks)
	r.uint(0o700)
	return r
}

func (r *root) file(shared int, rest string, size int64, final byte) *root {
	r.byte(recordFile)
	r.uint(uint64(shared))
	r.string(rest)
	r.uint(0o600)
	r.int(testTime.UnixMicro())
	r.size(size)
	r.byte(final)
	return r
}

func (r *root) dir(path string) *root {
	r.byte(recordDir)
	r.uint(0)
	r.string(path)
	r.uint(0o700)
	return r
}

func (r *root) tablespace(path string, oid uint64) *root {
	r.byte(recordTablespace)
	r.uint(0)
	r.string(path)
	r.uint(0o700)
	r.uint(oid)
	r.string("/srv/space")
	return r
}

func (r *root) end(entries, files, bytes int64) *root {
	r.byte(recordEnd)
	r.size(entries)
	r.size(files)
	r.size(bytes)
	return r
}

// stored puts raw bytes as the root of a manifest, without sections.
func stored(t testing.TB, m *memory, raw []byte) *Backup {
	t.Helper()
	enc, err := compress.NewEncoder(compress.Setting{})
	if err != nil {
		t.Fatal(err)
	}
	var body []byte
	for first := true; first || len(raw) > 0; first = false {
		n := min(len(raw), compress.MaxFrame)
		if body, err = enc.AppendFrame(body, raw[:n]); err != nil {
			t.Fatal(err)
		}
		raw = raw[n:]
	}
	m.set(testCluster.manifestKey(testName), body)
	return &Backup{Name: testName, Cluster: testCluster, Manifest: ObjectDigest{Size: int64(len(body)), SHA256: sha(body)}}
}

func TestManifestReaderRefuses(t *testing.T) {
	good := newRoot().dir("base").file(4, "/1", 0, 0).tablespace("pg_tblspc/16384", 16384).end(3, 1, 0)
	header := func(version uint64, name BackupName) *root {
		r := new(root)
		r.byte(recordHeader)
		r.uint(version)
		r.string(string(name))
		r.size(blocks)
		r.uint(0o700)
		return r
	}
	tests := map[string]struct {
		raw  []byte
		want string
	}{
		"good":                        {good.b, ""},
		"empty":                       {nil, "ends in the middle"},
		"another version":             {header(2, testName).end(0, 0, 0).b, "version 2"},
		"another backup's":            {header(1, otherName).end(0, 0, 0).b, "is that of backup"},
		"no header":                   {good.b[1:], "begins with record"},
		"no end":                      {newRoot().dir("base").b, "ends in the middle"},
		"bytes after the end":         {append(slices.Clone(good.b), 0), "bytes after its end"},
		"unknown record":              {append(newRoot().b, 'X', 0, 1, 'a', 0), "unknown"},
		"wrong totals":                {newRoot().dir("base").end(2, 0, 0).b, "ends with"},
		"absolute path":               {newRoot().dir("/etc").end(1, 0, 0).b, "not below"},
		"path that climbs":            {newRoot().dir("base/../../etc").end(1, 0, 0).b, "not below"},
		"path that climbs by sharing": {newRoot().dir("base/.").b, "not below"},
		"path .. built from the last": {newRoot().file(0, "a/.x", 0, 0).file(3, ".", 0, 0).end(2, 2, 0).b, "not below"},
		"path with a zero byte":       {newRoot().dir("a\x00b").end(1, 0, 0).b, "not below"},
		"empty path":                  {newRoot().dir("").end(1, 0, 0).b, "not below"},
		"empty component":             {newRoot().dir("a//b").end(1, 0, 0).b, "not below"},
		"path too long":               {newRoot().dir(strings.Repeat("a", maxString+1)).b, "beyond"},
		"not in order":                {newRoot().dir("b").dir("a").end(2, 0, 0).b, "not in order"},
		"twice the same":              {newRoot().dir("b").dir("b").end(2, 0, 0).b, "not in order"},
		"plain file after a final":    {newRoot().file(0, "a", 0, 1).file(0, "b", 0, 0).end(2, 2, 0).b, "not in order"},
		"tablespace elsewhere":        {newRoot().tablespace("base", 16384).end(1, 0, 0).b, "tablespace"},
		"tablespace of another OID":   {newRoot().tablespace("pg_tblspc/16384", 16385).end(1, 0, 0).b, "tablespace"},
		"content without a section":   {newRoot().file(0, "a", 1, 0).end(1, 1, 1).b, "where the section"},
		"shared beyond the last path": {newRoot().dir("a").file(2, "b", 0, 0).end(2, 1, 0).b, "beyond"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			r := testRepo(m, Keys{}, compress.Setting{})
			b := stored(t, m, test.raw)
			_, _, err := load(t.Context(), r, b, map[PackID]Pack{})
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), testCluster.manifestKey(testName)) {
				t.Fatalf("got %v, want damage that names the manifest and says %q", err, test.want)
			}
		})
	}
}

// A manifest that is not the one that backup.json names is refused although
// it is whole.
func TestManifestReaderComparesDigest(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	b := stored(t, m, newRoot().dir("base").end(1, 0, 0).b)
	b.Manifest.SHA256[0] ^= 1
	if _, _, err := load(t.Context(), r, b, nil); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), "SHA-256") {
		t.Fatalf("got %v", err)
	}
	b.Manifest.Size++
	if _, _, err := load(t.Context(), r, b, nil); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), "bytes instead of") {
		t.Fatalf("got %v", err)
	}
	m.hook = func(op, _ string) error {
		if op == "get" {
			return storage.ErrUnavailable
		}
		return nil
	}
	if _, _, err := load(t.Context(), r, b, nil); !errors.Is(err, storage.ErrUnavailable) || errs.KindOf(err) == errs.Damaged {
		t.Fatalf("an outage is taken for damage: %v", err)
	}
}

// What the store or a pack says at its end is not the end of the manifest.
func TestManifestReaderEnds(t *testing.T) {
	m := newMemory()
	r := testRepo(m, Keys{}, compress.Setting{})
	id, frames := lent()
	b, packs := store(t, r, []item{{Entry{Kind: EntryFile, Path: "a", ModTime: testTime, Size: blocks}, []named{{Length: blocks, Pack: id}}}}, map[PackID][]Frame{id: frames})
	key := testCluster.packKey(testName, 0)
	m.hook = func(_, of string) error {
		if of == key {
			return fmt.Errorf("read body: %w", io.EOF)
		}
		return nil
	}
	if items, _, err := load(t.Context(), r, b, packs); err == nil || !strings.Contains(err.Error(), key) {
		t.Fatalf("%d entries, %v", len(items), err)
	}
	m.hook = nil
	body := m.objects[key].body[:10]
	m.set(key, body)
	own := PackID{testName, 0}
	packs[own] = Pack{Kind: PackMeta, Size: int64(len(body)), SHA256: sha(body)}
	if items, _, err := load(t.Context(), r, b, packs); errs.KindOf(err) != errs.Damaged || !strings.Contains(err.Error(), key) {
		t.Fatalf("%d entries, %v", len(items), err)
	}
}

func FuzzManifestRoot(f *testing.F) {
	f.Add(newRoot().dir("base").file(4, "/1", 0, 0).tablespace("pg_tblspc/16384", 16384).end(3, 1, 0).b)
	f.Add(newRoot().file(0, "a", 1, 0).b)
	section := newRoot()
	section.byte(recordSection)
	section.string(string(otherName))
	section.uint(1)
	section.uint(1)
	section.uint(0)
	section.size(0)
	section.size(maxStoredFrame)
	section.size(maxRawFrame)
	f.Add(section.b)
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := newMemory()
		r := testRepo(m, Keys{}, compress.Setting{})
		b := stored(t, m, raw)
		for _, packs := range []map[PackID]Pack{nil, {PackID{otherName, 0}: {Size: 100}}} {
			items, totals, err := load(t.Context(), r, b, packs)
			if err != nil {
				if errs.KindOf(err) != errs.Damaged {
					t.Fatalf("not named damage: %v", err)
				}
				continue
			}
			if int64(len(items)) != totals.Entries {
				t.Fatalf("%d entries, but %+v", len(items), totals)
			}
			for _, i := range items {
				if !validPath(i.Path) {
					t.Fatalf("accepted path %q", i.Path)
				}
			}
		}
	})
}

// TestManifestReadStops ends the reading of a manifest before and behind its end.
func TestManifestReadStops(t *testing.T) {
	r := testRepo(newMemory(), Keys{}, setting(t, "zstd"))
	id, frames := lent()
	var items []item
	for n := range 1000 {
		items = append(items, item{
			Entry{Kind: EntryFile, Path: fmt.Sprintf("%05d", n), Mode: 0o600, ModTime: testTime, Size: blocks},
			[]named{{Length: blocks, Pack: id, Raw: int64(n%100) * blocks}},
		})
	}
	b, packs := store(t, r, items, map[PackID][]Frame{id: frames})
	root, err := r.OpenManifest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	read := func(ctx context.Context, m *ManifestReader, n int) (err error) {
		for range n {
			if _, _, err = m.Next(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	for n := range 20 {
		m, err := root.Read(packs)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if err := read(ctx, m, n*20+1); err != nil {
			t.Error(err)
		}
		switch n % 4 {
		case 0:
			cancel()
			if err := read(t.Context(), m, 1001); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("with another context, after the first was cancelled: %v", err)
			}
		case 1:
			if err := read(ctx, m, 1001); !errors.Is(err, io.EOF) {
				t.Errorf("at the end: %v", err)
			}
			if err := read(ctx, m, 1); !errors.Is(err, io.EOF) {
				t.Errorf("behind the end: %v", err)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if n%4 == 2 {
			if err := read(ctx, m, 1001); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("after it was closed: %v", err)
			}
		}
		cancel()
	}
}
