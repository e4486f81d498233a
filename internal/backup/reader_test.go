package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"agent/internal/compress"
	"agent/internal/postgres"
)

// script is a file whose every reading is what the test says next; the last
// answer stays.
type script struct {
	pages [][]byte
	err   error
	reads int
}

func (s *script) ReadAt(p []byte, _ int64) (int, error) {
	n := min(s.reads, len(s.pages)-1)
	s.reads++
	if s.err != nil {
		return 0, s.err
	}
	if copied := copy(p, s.pages[n]); copied < len(p) {
		return copied, io.EOF
	}
	return len(p), nil
}

func TestPageChecker(t *testing.T) {
	const start, insert = postgres.LSN(0x2000000), postgres.LSN(0x3000000)
	good := page(5, 0x1000000, 1)
	flying := damage(page(5, 0x2500000, 1))
	beyond := damage(page(5, insert+1, 1))
	server := errors.New("the session ended")
	disk := errors.New("input/output error")
	tests := map[string]struct {
		first []byte
		later script
		asks  error
		reads int
		bad   bool
		err   error
		want  []byte
	}{
		"whole":                    {first: good, reads: 0, want: good},
		"zeros":                    {first: make([]byte, block), reads: 0},
		"torn, then whole":         {first: damage(good), later: script{pages: [][]byte{good}}, reads: 1, want: good},
		"torn twice, then whole":   {first: damage(good), later: script{pages: [][]byte{damage(good), good}}, reads: 2, want: good},
		"torn, then in flight":     {first: damage(good), later: script{pages: [][]byte{flying}}, reads: 1, want: flying},
		"in flight":                {first: flying, reads: 0, want: flying},
		"in flight, at the start":  {first: damage(page(5, start, 1)), reads: 0},
		"damaged, before it":       {first: damage(page(5, start-1, 1)), later: script{pages: [][]byte{damage(page(5, start-1, 1))}}, reads: pageRetries, bad: true},
		"damaged":                  {first: damage(good), later: script{pages: [][]byte{damage(good)}}, reads: pageRetries, bad: true, want: damage(good)},
		"LSN beyond the server's":  {first: beyond, later: script{pages: [][]byte{beyond}}, reads: pageRetries, bad: true},
		"of another block":         {first: page(6, 0x1000000, 1), later: script{pages: [][]byte{page(6, 0x1000000, 1)}}, reads: pageRetries, bad: true},
		"truncated meanwhile":      {first: damage(good), later: script{pages: [][]byte{{}}}, reads: 1},
		"cut in the page":          {first: damage(good), later: script{pages: [][]byte{good[:100]}}, reads: 1},
		"the server does not know": {first: flying, asks: server, err: server},
		"the disk fails":           {first: damage(good), later: script{err: disk}, reads: 1, err: disk},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			var bad badPages
			asked := 0
			c := &pageChecker{
				enabled: true, block: block, segBlocks: 131072, start: start, bad: &bad,
				current: func(context.Context) (postgres.LSN, error) { asked++; return insert, test.asks },
			}
			file := &fileState{source: source{class: postgres.ClassifyPath("base/5/16384")}}
			file.Path = "base/5/16384"
			// The page is the second of a chunk that begins at block 4.
			chunk := append(page(4, 0x1000000, 9), test.first...)
			damaged, err := c.check(t.Context(), &test.later, file, 4*block, chunk)
			if !errors.Is(err, test.err) || (err != nil) != (test.err != nil) {
				t.Fatalf("got %v", err)
			}
			if (len(damaged) == 1 && damaged[0] == 1) != test.bad {
				t.Fatalf("damaged are %v", damaged)
			}
			if test.later.reads != test.reads || (bad.count == 1) != test.bad {
				t.Fatalf("%d readings, %d bad pages %v", test.later.reads, bad.count, bad.sample)
			}
			if test.bad && bad.sample[0] != "base/5/16384 block 5" {
				t.Fatalf("named as %q", bad.sample[0])
			}
			if test.want != nil && !bytes.Equal(chunk[block:], test.want) {
				t.Fatal("the backup would hold other bytes")
			}
		})
	}
}

// Of a later segment the block numbers go on, and a rest that is no page and
// files that are not relations are not judged.
func TestPageCheckerScope(t *testing.T) {
	check := func(path string, offset int64, chunk []byte) *badPages {
		t.Helper()
		var bad badPages
		c := &pageChecker{
			enabled: true, block: block, segBlocks: 131072, start: 1 << 40, bad: &bad,
			current: func(context.Context) (postgres.LSN, error) { return 0, errors.New("asked") },
		}
		file := &fileState{source: source{class: postgres.ClassifyPath(path)}}
		file.Path = path
		if _, err := c.check(t.Context(), &script{pages: [][]byte{chunk}}, file, offset, chunk); err != nil {
			t.Fatal(err)
		}
		return &bad
	}
	if bad := check("base/5/16384.2", 3*block, page(2*131072+3, 1, 1)); bad.count != 0 {
		t.Fatalf("%v", bad.sample)
	}
	if bad := check("base/5/16384.2", 3*block, page(3, 1, 1)); bad.count != 1 || bad.sample[0] != "base/5/16384.2 block 262147" {
		t.Fatalf("%v", bad.sample)
	}
	if bad := check("base/5/16384", 0, append(page(0, 1, 1), 1, 2, 3)); bad.count != 0 {
		t.Fatalf("a rest was judged: %v", bad.sample)
	}
	if bad := check("pg_xact/0000", 0, damage(page(0, 1, 1))); bad.count != 0 {
		t.Fatalf("a file without checksums was judged: %v", bad.sample)
	}
	var bad badPages
	for range 2 * badPageSample {
		bad.add("a", 1)
	}
	if bad.count != 2*badPageSample || len(bad.sample) != badPageSample {
		t.Fatalf("%d counted, %d named", bad.count, len(bad.sample))
	}
}

// What is read is what is stored, whatever happens to a file between the walk
// and the reading.
func TestShrinkingAndVanishing(t *testing.T) {
	const size = 3<<20 + 123
	for what, test := range map[string]struct {
		change func(t *testing.T, path string)
		want   func(body []byte) []byte // nil: not in the backup
	}{
		"grown":      {func(t *testing.T, p string) { appendTo(t, p, 5000) }, func(b []byte) []byte { return b }},
		"cut":        {func(t *testing.T, p string) { truncate(t, p, 1<<20+5) }, func(b []byte) []byte { clear(b[1<<20+5:]); return b }},
		"cut at all": {func(t *testing.T, p string) { truncate(t, p, 0) }, func(b []byte) []byte { clear(b); return b }},
		"removed": {func(t *testing.T, p string) {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		}, nil},
	} {
		t.Run(what, func(t *testing.T) {
			dir := folder(t)
			body := noise(3, size)
			path := filepath.Join(dir, "base/5/16384")
			write(t, path, body)
			write(t, filepath.Join(dir, "a"), []byte("first"))
			write(t, filepath.Join(dir, "z"), []byte("last"))
			// The walk meets the link behind the file, and says so, while the
			// batch with the file is not yet on its way to a worker.
			if err := os.Symlink("nothing", path+"_"); err != nil {
				t.Fatal(err)
			}
			log := slog.New(onRecord{slog.DiscardHandler, func() { test.change(t, path) }})
			res, err := archive(t, dir, openFolder(t), compress.Setting{}, 2, nil, log)
			if err != nil {
				t.Fatal(err)
			}
			_, files := res.content(t)
			got, ok := files["base/5/16384"]
			if test.want == nil {
				if ok || res.meter.vanished.Load() != 1 {
					t.Fatalf("%d bytes, %d vanished", len(got), res.meter.vanished.Load())
				}
			} else if want := test.want(body); !ok || !bytes.Equal(got, want) {
				t.Fatalf("%v, %d bytes, not %d of the right ones", ok, len(got), len(want))
			}
			if string(files["a"]) != "first" || string(files["z"]) != "last" {
				t.Fatal("the files beside it differ")
			}
		})
	}
}

func appendTo(t *testing.T, path string, n int) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.Write(noise(9, n))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, n int64) {
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

// onRecord is a log handler that calls do for each record.
type onRecord struct {
	slog.Handler
	do func()
}

func (onRecord) Enabled(context.Context, slog.Level) bool { return true }
func (h onRecord) Handle(context.Context, slog.Record) error {
	h.do()
	return nil
}
