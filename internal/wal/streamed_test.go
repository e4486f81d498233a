package wal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// stream stores bytes [from, to) of the first segment as wal-receive does.
func (w *world) stream(body []byte, from, to int) {
	w.t.Helper()
	size := postgres.SegmentSize(len(body))
	seg, err := postgres.ParseSegment(first, size)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := postgres.ReadSystemIdentifier(w.pgdata)
	if err != nil {
		w.t.Fatal(err)
	}
	at := seg.Start(size)
	g := repo.StreamRange{Timeline: seg.Timeline, Start: at + postgres.LSN(from), End: at + postgres.LSN(to)}
	if err := w.repo.PutStream(w.t.Context(), repo.ClusterID(id), g, size, bytes.NewReader(body[from:to])); err != nil {
		w.t.Fatal(err)
	}
}

// cutAt is a segment of which only the first bytes are known.
func cutAt(body []byte, n int) []byte {
	return append(bytes.Clone(body[:n]), make([]byte, len(body)-n)...)
}

// What was received of a segment is given to a server that is being restored,
// and to nobody else.
func TestFetchStreamed(t *testing.T) {
	good, later := fixture(t, major+"/"+first+".zst"), fixture(t, major+"/"+second+".zst")
	t.Run("who asks", func(t *testing.T) {
		w := newWorld(t)
		w.stream(good, 0, 5000)
		w.stream(good, 4000, 20_000)
		if _, err := w.restore(first); !errors.Is(err, ErrNotFound) {
			t.Errorf("without a signal: %v", err)
		}
		signal := w.write("recovery.signal", nil)
		if got, err := w.restore(first); err != nil || !bytes.Equal(got, cutAt(good, 20_000)) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if _, err := w.restore(second); !errors.Is(err, ErrNotFound) {
			t.Errorf("nothing was received of it: %v", err)
		}
		w.write("standby.signal", nil)
		if _, err := w.restore(first); !errors.Is(err, ErrNotFound) {
			t.Errorf("a standby: %v", err)
		}
		if err := os.Remove(signal); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a header that is cut", func(t *testing.T) {
		for reach, want := range map[int]int{10: -1, 39: -1, 40: 40, 8192 + 23: 8192, 8192 + 24: 8192 + 24, 16384: 16384} {
			w := newWorld(t)
			w.write("recovery.signal", nil)
			w.stream(good, 0, reach)
			got, err := w.restore(first)
			if want < 0 && !errors.Is(err, ErrNotFound) || want >= 0 && (err != nil || !bytes.Equal(got, cutAt(good, want))) {
				t.Errorf("%d: %d bytes, %v", reach, len(got), err)
			}
		}
	})
	t.Run("whole is better", func(t *testing.T) {
		w := newWorld(t)
		w.write("recovery.signal", nil)
		w.stream(good, 0, 20_000)
		if err := w.archive(first, good); err != nil {
			t.Fatal(err)
		}
		if got, err := w.restore(first); err != nil || !bytes.Equal(got, good) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	t.Run("a gap", func(t *testing.T) {
		w := newWorld(t)
		w.write("recovery.signal", nil)
		w.stream(good, 0, 20_000)
		if err := w.archive(second, later); err != nil {
			t.Fatal(err)
		}
		if _, err := w.restore(first); errors.Is(err, ErrNotFound) || errs.KindOf(err) != errs.Damaged {
			t.Errorf("half a segment fills no gap: %v", err)
		}
		w.stream(good, 20_000, len(good))
		if got, err := w.restore(first); err != nil || !bytes.Equal(got, good) {
			t.Errorf("all of it does: %d bytes, %v", len(got), err)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		w := newWorld(t)
		w.write("recovery.signal", nil)
		w.stream(good, 0, 20_000)
		found, err := filepath.Glob(filepath.Join(w.folder, "cluster/*/stream/*/*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%v, %v", found, err)
		}
		if err := errors.Join(os.Remove(found[0]), os.WriteFile(found[0], []byte("nothing"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.restore(first); errors.Is(err, ErrNotFound) || errs.KindOf(err) != errs.Damaged {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not what it says", func(t *testing.T) {
		w := newWorld(t)
		w.write("recovery.signal", nil)
		w.stream(later, 0, 20_000)
		if _, err := w.restore(first); errors.Is(err, ErrNotFound) || errs.KindOf(err) != errs.Damaged {
			t.Errorf("got %v", err)
		}
	})
}
