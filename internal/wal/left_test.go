package wal

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agent/internal/errs"
)

// The fixture's timeline 2 left timeline 1 at 0/A019D0: inside the first page
// of this segment.
const (
	leftSegment = "00000001000000000000000A"
	leftAtByte  = 0x19D0
)

// onTimelines is a world whose files are those of the timelines' fixture.
func onTimelines(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	if err := os.RemoveAll(filepath.Join(w.pgdata, "global")); err != nil {
		t.Fatal(err)
	}
	return w
}

// stored lists the names of the WAL objects.
func (w *world) stored() []string {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.folder, "cluster/*/wal/*/*"))
	if err != nil {
		w.t.Fatal(err)
	}
	for i, p := range paths {
		paths[i] = filepath.Base(p)
	}
	return paths
}

// recycled puts pages of another segment from this byte on.
func recycled(segment []byte, from int) []byte {
	b := bytes.Clone(segment)
	for at := from; at < len(b); at += 8192 {
		copy(b[at:], segment[:24]) // magic and flags as they were
		binary.LittleEndian.PutUint16(b[at+2:], 0)
		binary.LittleEndian.PutUint64(b[at+8:], uint64(0x500000+at))
	}
	return b
}

func TestPushUnfinishedSegment(t *testing.T) {
	whole := fixture(t, "timeline/"+leftSegment+".zst")
	history := fixture(t, "timeline/00000002.history")
	zeros := bytes.Clone(whole)
	clear(zeros[leftAtByte:])
	written := bytes.Clone(zeros)
	written[leftAtByte+100] = 1 // no record, behind the switch
	files := func(pairs ...string) map[string]string {
		m := make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	left := files("00000002.history", string(history))
	for what, test := range map[string]struct {
		body    []byte
		beside  map[string]string // in pg_wal
		partial bool
		refused bool
	}{
		"torn behind the switch":              {body: recycled(zeros, 8192), beside: left, partial: true},
		"torn later":                          {body: recycled(zeros, 5*8192), beside: left, partial: true},
		"zeros behind the switch":             {body: zeros, beside: left, partial: true},
		"garbage behind the switch":           {body: written, beside: left, partial: true},
		"whole":                               {body: whole, beside: left},
		"zeros, nobody left":                  {body: zeros, refused: true},
		"torn, nobody left":                   {body: recycled(zeros, 8192), refused: true},
		"torn before the switch":              {body: recycled(zeros, 8192), beside: files("00000002.history", "1\t0/A05000\tx\n"), refused: true},
		"torn at the switch":                  {body: recycled(zeros, 8192), beside: files("00000002.history", "1\t0/A02000\tx\n"), partial: true},
		"left in another segment":             {body: recycled(zeros, 8192), beside: files("00000002.history", "1\t0/B019D0\tx\n"), refused: true},
		"left at the segment's start":         {body: recycled(zeros, 8192), beside: files("00000002.history", "1\t0/A00000\tx\n"), refused: true},
		"left by a grandchild":                {body: recycled(zeros, 8192), beside: files("00000003.history", string(fixture(t, "timeline/00000003.history"))), partial: true},
		"the second of two histories says so": {body: recycled(zeros, 8192), beside: files("00000002.history", "1\t0/A05000\tx\n", "00000003.history", "1\t0/A019D0\tx\n"), partial: true},
		"a history that is none":              {body: recycled(zeros, 8192), beside: files("00000002.history", "1\t0/A0"), refused: true},
		"cut":                                 {body: zeros[:len(zeros)/2], beside: left, refused: true},
		"not WAL":                             {body: make([]byte, len(zeros)), beside: left, refused: true},
	} {
		t.Run(what, func(t *testing.T) {
			w := onTimelines(t)
			for name, body := range test.beside {
				w.write("pg_wal/"+name, []byte(body))
			}
			for range 2 { // the same again is success, too
				err := w.archive(leftSegment, test.body)
				if test.refused != (err != nil) || test.refused && (errs.KindOf(err) != errs.Damaged || errs.HintOf(err) == "") {
					t.Fatalf("got %v", err)
				}
			}
			got := w.stored()
			switch {
			case test.refused:
				if len(got) != 0 {
					t.Errorf("stored %q", got)
				}
			case len(got) != 1, strings.HasPrefix(got[0], leftSegment+".partial.") != test.partial:
				t.Errorf("stored %q", got)
			default:
				name := leftSegment
				if test.partial {
					name += ".partial"
				}
				if body, err := w.restore(name); err != nil || !bytes.Equal(body, test.body) {
					t.Errorf("other bytes came back (%v)", err)
				}
			}
		})
	}
}

// The old primary may live and complete the segment that a standby has left.
func TestPushUnfinishedThenWhole(t *testing.T) {
	whole := fixture(t, "timeline/"+leftSegment+".zst")
	w := onTimelines(t)
	history := w.write("pg_wal/00000002.history", fixture(t, "timeline/00000002.history"))
	zeros := bytes.Clone(whole)
	clear(zeros[leftAtByte:])
	for _, body := range [][]byte{zeros, recycled(zeros, 8192)} {
		if err := w.archive(leftSegment, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(history); err != nil {
		t.Fatal(err)
	}
	if err := w.archive(leftSegment, whole); err != nil {
		t.Fatal(err)
	}
	if got := w.stored(); len(got) != 3 {
		t.Errorf("stored %q", got)
	}
}

// What is archived ahead is judged the same way, and its call ends at once.
func TestPushUnfinishedAhead(t *testing.T) {
	w := newWorld(t)
	control, err := os.ReadFile(filepath.Join(w.pgdata, "global/pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	before, zeros := fixture(t, "timeline/000000010000000000000009.zst"), fixture(t, "timeline/"+leftSegment+".zst")
	for _, body := range [][]byte{before, zeros} {
		copy(body[24:32], control) // the system identifier
	}
	clear(zeros[leftAtByte:])
	w.write("pg_wal/00000002.history", fixture(t, "timeline/00000002.history"))
	path := w.write("pg_wal/"+leftSegment, recycled(zeros, 8192))
	w.write("pg_wal/archive_status/"+leftSegment+".ready", nil)
	if err := w.archive("000000010000000000000009", before); err != nil {
		t.Fatal(err)
	}
	if done, err := w.push.Done(t.Context(), path); err != nil || !done {
		t.Errorf("it was not archived ahead: %v", err)
	}
	if got := w.stored(); len(got) != 2 || !strings.HasPrefix(got[1], leftSegment+".partial.") {
		t.Errorf("stored %q", got)
	}
}
