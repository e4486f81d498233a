package repo

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

// restore reads all of a backup as a restore does: backup.json, the list of
// packs, the manifest, each pack, each WAL file and the histories.
func (s *several) restore(t testing.TB) error {
	t.Helper()
	ctx := t.Context()
	b, err := s.LoadBackup(ctx, testCluster, testName)
	if err != nil {
		return err
	}
	packs, err := s.LoadPacks(ctx, b)
	if err != nil {
		return err
	}
	if len(packs) != 2 {
		t.Fatalf("%d packs", len(packs))
	}
	root, err := s.OpenManifest(ctx, b)
	if err != nil {
		return err
	}
	if err := root.Close(); err != nil {
		return err
	}
	for id, p := range packs {
		if err := s.ReadPack(ctx, testCluster, id.Backup, p, (*PackStream).Finish); err != nil {
			return err
		}
	}
	for _, n := range []int{3, 4, 5} {
		got, err := getWAL(t, s.Repository, segment(n))
		if err != nil {
			return missing(err, segment(n), s.String())
		}
		if name := segment(n); !bytes.Equal(got, noise(uint64(name[len(name)-1]), 100_000)) {
			t.Fatalf("%s has other bytes", name)
		}
	}
	_, damaged, err := s.Histories(ctx, testCluster)
	for _, d := range damaged {
		err = errors.Join(err, d)
	}
	if err != nil {
		return err
	}
	if c, err := s.Cluster(ctx, testCluster); err != nil || c.ID != testCluster {
		return missing(err, testCluster.clusterKey(), s.String())
	}
	return nil
}

// noHistory makes the history file of the test backup one that can be parsed.
func noHistory(t testing.TB, s *several) {
	t.Helper()
	key := testCluster.WALKey(walFile(t, "00000002.history"), [32]byte{})
	for _, spot := range s.spots {
		delete(spot.objects, key)
	}
	body := []byte("1\t0/1000000\tno recovery target specified\n")
	if _, err := s.PutWAL(t.Context(), testCluster, walFile(t, "00000002.history"), bytes.NewReader(body), int64(len(body)), noCheck{}, nil); err != nil {
		t.Fatal(err)
	}
}

// Every object that is damaged or missing in the first place, or cannot be
// read there, is read from the next, which is told.
func TestReadNextPlace(t *testing.T) {
	keys, _ := testKeys(t)
	for name, k := range map[string]Keys{"sealed": keys, "plain": {}} {
		s := newSeveral(t, k, true, false)
		s.backup(t)
		noHistory(t, s)
		for _, key := range sorted(s.content(0)) {
			if strings.HasSuffix(key, "/cluster.json") {
				continue // below
			}
			good := s.spots[0].objects[key].body
			for how, body := range map[string][]byte{"flipped": flipped(string(good)), "cut": good[:len(good)-1], "empty": {}, "removed": nil} {
				t.Run(name+"/"+strings.TrimPrefix(key, testCluster.prefix())+"/"+how, func(t *testing.T) {
					s.again()
					s.log.Reset()
					s.spots[0].set(key, body)
					if body == nil {
						delete(s.spots[0].objects, key)
					}
					defer s.spots[0].set(key, good)
					if err := s.restore(t); err != nil {
						t.Fatal(err)
					}
					told := s.log.String()
					if !strings.Contains(told, "level=WARN") || !strings.Contains(told, key) || !strings.Contains(told, "read_from=memory:///b") || !strings.Contains(told, "repository=a") {
						t.Fatalf("told:\n%s", told)
					}
					// And without another place it is an error that names it.
					s.spots[1].down = true
					defer func() { s.spots[1].down = false }()
					s.again()
					err := s.restore(t)
					if strings.Contains(key, "/history/") && body == nil {
						return // a listing cannot know
					}
					if kind := errs.KindOf(err); kind != errs.Damaged && kind != errs.NotFound {
						t.Fatalf("got %v", err)
					}
				})
			}
		}
		s.spots[0].set(testCluster.clusterKey(), []byte("{"))
		if err := s.restore(t); err != nil {
			t.Fatal(err)
		}
	}
}

// A place that is down, denied, or gone entirely is passed over.
func TestReadWithoutFirst(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	s.backup(t)
	noHistory(t, s)
	for what, fail := range map[string]error{"down": storage.ErrUnavailable, "denied": storage.ErrPermission, "no bucket": storage.ErrNoBucket} {
		s.again()
		asked := 0
		s.spots[0].hook = func(string, string) error { asked++; return fail }
		if err := s.CheckAny(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := s.restore(t); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if asked != 1 {
			t.Errorf("%s: it was asked %d times", what, asked)
		}
		s.spots[0].hook = nil
	}
	// It fails in the middle: the rest is read from the other, first.
	s.again()
	asked := 0
	s.spots[0].hook = func(op, key string) error {
		if strings.Contains(key, "/pack/") || asked > 0 {
			asked++
			return storage.ErrUnavailable
		}
		return nil
	}
	if err := s.restore(t); err != nil {
		t.Fatal(err)
	}
	if asked > 2 { // the listing of histories asks all
		t.Errorf("it was asked %d times", asked)
	}
	// An empty place is not the repository that it was.
	s.spots[0].hook, s.spots[0].objects = nil, map[string]memoryObject{}
	s.again()
	if err := errorsFirst(s.CheckAny(t.Context()), s.restore(t)); err != nil {
		t.Fatal(err)
	}
	s.spots[1].down = true
	s.again()
	if err := s.CheckAny(t.Context()); !errors.Is(err, ErrGone) && !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

// A pack that turns out to be damaged only near its end is read again from
// another place.
func TestReadPackAgain(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	b := s.backup(t)
	packs, err := s.LoadPacks(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	key := testCluster.packKey(testName, 0)
	good := s.spots[0].objects[key].body
	bad := slices.Clone(good)
	bad[len(bad)-10] ^= 1
	s.spots[0].set(key, bad)
	begun := 0
	var got []byte
	err = s.ReadPack(t.Context(), testCluster, testName, packs[PackID{testName, 0}], func(p *PackStream) error {
		begun++
		got = make([]byte, 300_000)
		if err := p.ReadFrame(0, got); err != nil {
			return err
		}
		return p.Finish()
	})
	if err != nil || begun != 2 || !bytes.Equal(got, good) {
		t.Fatalf("%d times, %v", begun, err)
	}
	// An error of the reader itself is not tried again.
	begun = 0
	err = s.ReadPack(t.Context(), testCluster, testName, packs[PackID{testName, 0}], func(*PackStream) error { begun++; return errCut })
	if !errors.Is(err, errCut) || begun != 1 {
		t.Fatalf("%d times, %v", begun, err)
	}
}

// What no place has whole is looked for among older versions, for as long as it
// is not an ordinary question.
func TestReadOlder(t *testing.T) {
	s := newSeveral(t, Keys{}, true, false)
	s.wal(t, segment(1))
	key := testCluster.WALKey(walFile(t, segment(1)), [32]byte{})
	good := s.spots[0].objects[key].body
	delete(s.spots[1].objects, key)
	for how, body := range map[string][]byte{"damaged": flipped(string(good)), "hidden": nil} {
		s.again()
		s.spots[0].set(key, body)
		if body == nil {
			delete(s.spots[0].objects, key)
		}
		s.spots[0].versions[key] = [][]byte{good[:100], good}
		s.log.Reset()
		if got, err := getWAL(t, s.Repository, segment(1)); err != nil || len(got) != 100_000 {
			t.Fatalf("%s: %v", how, err)
		}
		if !strings.Contains(s.log.String(), `read_from="memory:///a (version 1)"`) {
			t.Errorf("%s: told\n%s", how, s.log)
		}
		err := s.ReadWAL(t.Context(), testCluster, walFile(t, segment(1)), true, func(r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if how == "hidden" && !errors.Is(err, storage.ErrNotExist) || how == "damaged" && err != nil {
			t.Fatalf("%s, asked in passing: %v", how, err)
		}
	}
}

// "There is no such file" is said only if every required place says so, and
// nothing was damaged.
func TestReadNowhere(t *testing.T) {
	const has, none, down, damaged = "has", "none", "down", "damaged"
	for _, test := range []struct {
		required []bool
		state    []string
		want     string
	}{
		{[]bool{true}, []string{none}, none},
		{[]bool{true, true}, []string{none, none}, none},
		{[]bool{true, true}, []string{none, down}, down},
		{[]bool{true, true}, []string{down, none}, down},
		{[]bool{true, false}, []string{none, none}, none},
		{[]bool{true, false}, []string{none, down}, none},
		{[]bool{true, false}, []string{down, none}, down},
		{[]bool{false, true}, []string{down, none}, none},
		{[]bool{true, false}, []string{down, down}, down},
		{[]bool{true, false}, []string{down, has}, has},
		{[]bool{true, false}, []string{none, has}, has},
		{[]bool{true, true, false}, []string{none, damaged, none}, damaged},
		{[]bool{true, false}, []string{none, damaged}, damaged},
		{[]bool{true, true}, []string{down, damaged}, damaged},
		{[]bool{true, true}, []string{damaged, has}, has},
	} {
		s := newSeveral(t, Keys{}, test.required...)
		s.wal(t, segment(1))
		key := testCluster.WALKey(walFile(t, segment(1)), [32]byte{})
		for n, state := range test.state {
			switch body := s.spots[n].objects[key].body; state {
			case none:
				delete(s.spots[n].objects, key)
			case down:
				s.spots[n].down = true
			case damaged:
				s.spots[n].set(key, flipped(string(body)))
			}
		}
		_, err := getWAL(t, s.Repository, segment(1))
		got := has
		switch {
		case errors.Is(err, storage.ErrNotExist):
			got = none
		case errors.Is(err, storage.ErrUnavailable):
			got = down
		case errs.KindOf(err) == errs.Damaged:
			got = damaged
		case err != nil:
			t.Fatal(err)
		}
		if got != test.want {
			t.Errorf("required %v, %v: %s, not %s (%v)", test.required, test.state, got, test.want, err)
		}
	}
}

// MissingWAL speaks for all required places, and Gap looks into each.
func TestSeveralMissing(t *testing.T) {
	s := newSeveral(t, Keys{}, true, true, false)
	s.wal(t, segment(3), segment(4), segment(5))
	noHistory(t, s)
	first, last := postgres.Segment{Timeline: 2, Number: 3}, postgres.Segment{Timeline: 2, Number: 5}
	ask := func() string {
		got, err := s.MissingWAL(t.Context(), testCluster, first, last, 16<<20)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	key := func(n int) string { return testCluster.WALKey(walFile(t, segment(n)), [32]byte{}) }
	delete(s.spots[2].objects, key(4))
	if got := ask(); got != "" {
		t.Errorf("%s is missing in a best-effort place", got)
	}
	delete(s.spots[1].objects, key(4))
	if got := ask(); got != segment(4) {
		t.Errorf("%q is missing", got)
	}
	s.spots[1].down = true
	if _, err := s.MissingWAL(t.Context(), testCluster, first, last, 16<<20); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	s.spots[1].down = false
	for n := range 2 {
		for _, segment := range []int{4, 5} {
			delete(s.spots[n].objects, key(segment))
		}
	}
	if reason, err := s.Gap(t.Context(), testCluster, walFile(t, segment(4)), 16<<20); err != nil || !strings.Contains(reason, segment(5)) {
		t.Errorf("%q, %v", reason, err)
	}
	s.spots[2].down = true
	if reason, err := s.Gap(t.Context(), testCluster, walFile(t, segment(6)), 16<<20); err != nil || reason != "" {
		t.Errorf("%q, %v", reason, err)
	}
	s.spots[1].down = true
	if _, err := s.Gap(t.Context(), testCluster, walFile(t, segment(6)), 16<<20); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
