package backlog

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// walDir is a pg_wal whose files are made as a server makes them.
type walDir struct {
	t   *testing.T
	dir string
	now time.Time
}

func newWALDir(t *testing.T) *walDir {
	t.Helper()
	w := &walDir{t: t, dir: filepath.Join(t.TempDir(), "pg_wal"), now: time.Now()}
	if err := os.MkdirAll(filepath.Join(w.dir, "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	return w
}

// file makes a file that was finished so long ago, with its mark.
func (w *walDir) file(name, mark string, size int64, ago time.Duration) {
	w.t.Helper()
	for path, size := range map[string]int64{filepath.Join(w.dir, name): size, filepath.Join(w.dir, "archive_status", name+mark): 0} {
		at := w.now.Add(-ago)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size), os.Chtimes(path, at, at)); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *walDir) look() Backlog {
	w.t.Helper()
	b, err := Look(w.dir, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func TestLook(t *testing.T) {
	w := newWALDir(t)
	if b := w.look(); b.Files != 0 || b.Made != 0 || b.Free <= 0 || b.Age() != 0 || b.Share() != 0 {
		t.Fatalf("empty: %+v", b)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "archive_status", "note.ready"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.file("000000010000000000000001", ".ready", 1<<20, 2*time.Hour) // older than the window
	w.file("000000010000000000000002", ".ready", 1<<20, 100*time.Second)
	w.file("000000010000000000000003", ".ready", 1<<20, 50*time.Second)
	w.file("00000002.history", ".ready", 40, 10*time.Second)
	w.file("000000010000000000000004", "", 1<<20, 5*time.Second) // being written
	b := w.look()
	if b.Files != 4 || b.Segments != 3 || b.Bytes != 3<<20+40 || b.Age() != 2*time.Hour {
		t.Errorf("%+v", b)
	}
	if want := float64(2<<20) / 100; b.Made < want*0.99 || b.Made > want*1.01 || b.Archived != 0 {
		t.Errorf("made %f, expected %f; archived %f", b.Made, want, b.Archived)
	}
	full, ok := b.FullIn()
	if want := float64(b.Free) / b.Made; !ok || full.Seconds() < want*0.99 || full.Seconds() > want*1.01 {
		t.Errorf("full in %v (%v)", full, ok)
	}

	// Archived is when the mark was renamed, which leaves the time of its bytes.
	w.file("000000010000000000000005", ".ready", 1<<20, 3*time.Hour)
	mark := filepath.Join(w.dir, "archive_status", "000000010000000000000005")
	if err := os.Rename(mark+".ready", mark+".done"); err != nil {
		t.Fatal(err)
	}
	w.now = time.Now().Add(time.Second)
	b = w.look()
	if b.Segments != 3 || b.Archived < float64(1<<20)/103 || b.Archived > float64(1<<20)/100 {
		t.Errorf("%+v", b)
	}
	if _, err := Look(filepath.Join(w.dir, "nothing"), w.now); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestLevel(t *testing.T) {
	now := time.Now()
	const gib = 1 << 30
	waits := func(age time.Duration, b Backlog) Backlog {
		b.At, b.Oldest = now, now.Add(-age)
		b.Files = max(b.Files, 1)
		return b
	}
	for name, c := range map[string]struct {
		b     Backlog
		level Level
		text  string
	}{
		"nothing":                   {Backlog{At: now, Free: 0, Made: 1e9}, OK, ""},
		"a moment":                  {waits(5*time.Second, Backlog{Bytes: 1 << 24, Free: 100 * gib}), OK, ""},
		"for a while":               {waits(10*time.Minute, Backlog{Free: 100 * gib}), Warning, "waits for 10m"},
		"for an hour":               {waits(time.Hour, Backlog{Free: 100 * gib}), Critical, "waits for 1h0m"},
		"a burst":                   {waits(30*time.Second, Backlog{Free: gib, Made: 1e8}), OK, ""},
		"full in 17 minutes":        {waits(2*time.Minute, Backlog{Free: 1e11, Made: 1e8}), Critical, "full in 17m"},
		"full in 20 hours":          {waits(2*time.Minute, Backlog{Free: 72e9, Made: 1e6}), Warning, "full in 20h0m"},
		"it shrinks":                {waits(2*time.Minute, Backlog{Free: 1e11, Made: 1e8, Archived: 2e8}), OK, ""},
		"a fifth of the room":       {waits(time.Second, Backlog{Bytes: gib, Free: 4 * gib}), Warning, "20% of the room"},
		"half of the room":          {waits(time.Second, Backlog{Bytes: gib, Free: gib}), Critical, "50% of the room"},
		"all, and for a long while": {waits(100*24*time.Hour, Backlog{Bytes: gib}), Critical, "100 days"},
		"by a clock that is behind": {Backlog{At: now, Oldest: now.Add(time.Hour), Files: 1, Free: gib}, OK, ""},
	} {
		level, reasons := c.b.Level()
		if level != c.level || (level == OK) != (reasons == nil) || !strings.Contains(strings.Join(reasons, "; "), c.text) {
			t.Errorf("%s: %s %q", name, level, reasons)
		}
	}
	if full, ok := (Backlog{Files: 1, Free: 1 << 62, Made: 0.001}).FullIn(); !ok || full != longest {
		t.Errorf("%v", full)
	}
	for want, b := range map[string]Backlog{
		"nothing waits; WAL is made at 1.0 KiB/s; 2.0 GiB free":                                                                   {Made: 1024, Free: 2 << 30},
		"3 files wait, 3.0 MiB, the oldest for 1m; WAL is made at 2.0 KiB/s and archived at 1.0 KiB/s; 1.0 MiB free, full in 17m": {At: now, Oldest: now.Add(-time.Minute), Files: 3, Bytes: 3 << 20, Made: 2048, Archived: 1024, Free: 1 << 20},
	} {
		if got := b.String(); got != want {
			t.Errorf("%q and not %q", got, want)
		}
	}
}

// The log is told once a minute, with the numbers, and only what is bad.
func TestWatch(t *testing.T) {
	w := newWALDir(t)
	var log bytes.Buffer
	watch := Watch{StateDir: filepath.Join(t.TempDir(), "state"), Log: slog.New(slog.NewTextHandler(&log, nil)), Now: func() time.Time { return w.now }}
	tell := func(want string) {
		t.Helper()
		log.Reset()
		watch.Tell(t.Context(), filepath.Join(w.dir, "000000010000000000000001"))
		if got := log.String(); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("told is %q", got)
		}
	}
	tell("")
	w.file("000000010000000000000001", ".ready", 1<<20, 20*time.Minute)
	tell("") // not due
	w.now = w.now.Add(time.Minute)
	tell("level=WARN msg=\"archiving falls behind\" reason=\"the oldest file waits for 21m\" waiting=1 waiting_bytes=1048576 oldest_seconds=1260")
	tell("")
	w.now = w.now.Add(time.Hour)
	tell("level=ERROR")
	w.now = w.now.Add(-30 * time.Minute) // the clock was set back
	tell("level=WARN")
	log.Reset()
	w.now = w.now.Add(time.Hour)
	watch.Tell(t.Context(), filepath.Join(t.TempDir(), "000000010000000000000001"))
	if log.Len() > 0 {
		t.Errorf("not a server's: %s", log.String())
	}
	// A state directory that cannot be used is no reason to be silent.
	watch.StateDir = "/dev/null/state"
	tell("level=ERROR")
}
