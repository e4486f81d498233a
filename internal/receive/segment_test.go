package receive

import (
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"pgregory.net/rapid"

	"agent/internal/postgres"
)

// Whatever comes, ranges follow on each other, a recovery has to fetch very many
// only if the others are longer by far, and no byte is stored more than six times.
func TestChain(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const start = postgres.LSN(1 << 24)
		most := rapid.IntRange(100, 100_000).Draw(rt, "most")
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		c := chain{end: start}
		stored, base, needed, at := int64(0), int64(0), 0, start
		for at < start+(1<<24) {
			before := c.end
			at += postgres.LSN(1 + rnd.IntN(most))
			g := c.next(1, start, at)
			if g.End != at || g.Start != start && g.Start != before {
				rt.Fatalf("%s after %s", g, before)
			}
			stored += int64(g.End - g.Start)
			if needed++; g.Start == start {
				needed, base = 1, int64(at-start)
			}
			if needed > tooManyRanges+1 && int64(at-start)*4 >= base*5 {
				rt.Fatalf("%d ranges are needed for %d bytes behind %d", needed, int64(at-start)-base, base)
			}
		}
		if stored > 6*int64(at-start) {
			rt.Errorf("%d bytes were stored of %d", stored, at-start)
		}
	})
}

func TestSegmentFile(t *testing.T) {
	dir := t.TempDir()
	seg := postgres.Segment{Timeline: 1, Number: 3}
	f, err := newSegmentFile(dir, seg, postgres.MinSegmentSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.write(f.start()+5, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f.section(f.start()+6, f.start()+9)); err != nil || string(got) != "ell" {
		t.Errorf("%q, %v", got, err)
	}
	if left, err := os.ReadDir(dir + "/receive"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := f.close(); err != nil {
		t.Error(err)
	}
}

func TestParseSegmentSize(t *testing.T) {
	for text, want := range map[string]postgres.SegmentSize{
		"16MB": 16 << 20, "1GB": 1 << 30, "1MB": 1 << 20, "1024kB": 1 << 20, "2GB": 0, "3MB": 0, "": 0, "x": 0, "16": 0, "99999999GB": 0,
	} {
		got, err := parseSegmentSize(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(dir, "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir, "one"); err == nil {
		t.Error("locked twice")
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if unlock, err = lock(dir, "one"); err != nil {
		t.Fatal(err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := pinCluster(dir, "one", 7); err != nil {
			t.Error(err)
		}
	}
	if err := pinCluster(dir, "one", 8); err == nil {
		t.Error("another cluster was taken")
	}
}

// FuzzCopyData takes any message.
func FuzzCopyData(f *testing.F) {
	f.Add([]byte("w01234567012345670123456789"))
	f.Add([]byte("k01234567012345671"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := parseCopyData(b)
		if ok && m.err == nil && !m.keepalive && len(m.wal) != len(b)-25 {
			t.Errorf("%d bytes of WAL from %d", len(m.wal), len(b))
		}
	})
}
