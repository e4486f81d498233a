package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

// flood is a server whose repository takes small objects and no WAL.
type flood struct {
	*world
	drop *Dropper
	log  *bytes.Buffer
}

func newFlood(t *testing.T) *flood {
	t.Helper()
	f := &flood{world: newWorld(t), log: new(bytes.Buffer)}
	f.push.Log = slog.New(slog.NewTextHandler(f.log, nil))
	f.drop = &Dropper{Pusher: f.push, MaxBacklog: 3 << 20, Host: "db"}
	f.bucket.put = func(key string) error {
		if strings.Contains(key, "/wal/") {
			return storage.ErrUnavailable
		}
		return nil
	}
	return f
}

// wait makes segments that wait to be archived, from number n on. They are
// copies of the first with another address.
func (f *flood) wait(numbers ...uint64) (names []string) {
	f.t.Helper()
	good := fixture(f.t, major+"/"+first+".zst")
	for _, n := range numbers {
		seg := postgres.Segment{Timeline: 1, Number: n}
		body := bytes.Clone(good)
		for at := 0; at < len(body); at += 8192 {
			binary.LittleEndian.PutUint64(body[at+8:], uint64(seg.Start(1<<20))+uint64(at))
		}
		name := seg.Name(1 << 20)
		f.write("pg_wal/"+name, body)
		f.write("pg_wal/archive_status/"+name+".ready", nil)
		names = append(names, name)
	}
	return names
}

// asks is what the server does: for a file until it succeeds, then it marks it.
func (f *flood) asks(name string) error {
	f.t.Helper()
	path := filepath.Join(f.pgdata, "pg_wal", name)
	done, err := f.drop.Done(f.t.Context(), path)
	if err == nil && !done {
		err = f.drop.Push(f.t.Context(), path)
	}
	if err == nil {
		mark := filepath.Join(f.pgdata, "pg_wal", "archive_status", name)
		if err := os.Rename(mark+".ready", mark+".done"); err != nil {
			f.t.Fatal(err)
		}
	}
	return err
}

// stored are the keys below a folder of the cluster.
func (f *flood) stored(folder string) (names []string) {
	f.t.Helper()
	files, err := filepath.Glob(filepath.Join(f.folder, "cluster/*", folder))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, path := range files {
		names = append(names, filepath.Base(path))
	}
	return names
}

func TestDrop(t *testing.T) {
	f := newFlood(t)
	names := f.wait(20, 21, 22)
	// As much as is allowed waits: nothing happens to it.
	if err := f.asks(names[0]); !errors.Is(err, storage.ErrUnavailable) || len(f.stored("gap/*")) != 0 {
		t.Fatalf("got %v, recorded %v", err, f.stored("gap/*"))
	}
	names = append(names, f.wait(23, 25)...)
	f.write("pg_wal/00000002.history", fixture(t, "timeline/00000002.history"))
	// The row that begins with the one that is asked for is given up, and no more.
	if err := f.asks(names[0]); err != nil {
		t.Fatal(err)
	}
	want := "00000001-" + names[0] + "-" + names[3] + ".json"
	if got := f.stored("gap/*"); len(got) != 1 || got[0] != want {
		t.Fatalf("recorded are %v, expected %s", got, want)
	}
	for _, text := range []string{"level=ERROR", "run agent backup-push", "first=" + names[0], "last=" + names[3], "segments=4", "backlog_bytes=5242880", "max_backlog=3145728"} {
		if !strings.Contains(f.log.String(), text) {
			t.Errorf("the log does not say %s: %s", text, f.log)
		}
	}
	// Each of them succeeds, without a look at the store, and says so.
	f.bucket.left.Store(-1)
	for _, name := range names[1:4] {
		f.log.Reset()
		if err := f.asks(name); err != nil || !strings.Contains(f.log.String(), "level=ERROR") || !strings.Contains(f.log.String(), name) {
			t.Fatalf("%s: %v, %s", name, err, f.log)
		}
	}
	f.bucket.left.Store(0)
	// What comes behind is archived again as soon as it can be.
	if err := f.asks(names[4]); err == nil || len(f.stored("gap/*")) != 1 {
		t.Fatal("one segment is no backlog")
	}
	f.bucket.put = nil
	if err := f.asks(names[4]); err != nil || len(f.stored("wal/*/*")) != 1 {
		t.Fatalf("%v, archived are %v", err, f.stored("wal/*/*"))
	}
	// A recovery stops before the first of them, and says why.
	for _, name := range names[:4] {
		if _, err := f.restore(name); errors.Is(err, ErrNotFound) || errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.fetch.EndBefore = names[0]
	if _, err := f.restore(names[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// The unfinished segment of a timeline that was left does not keep those behind
// it.
func TestDropPartial(t *testing.T) {
	f := newFlood(t)
	names := f.wait(20, 21, 22, 23, 24)
	partial := names[0] + ".partial"
	for _, ends := range []string{"", ".ready"} {
		dir := filepath.Join(f.pgdata, "pg_wal")
		if ends != "" {
			dir = filepath.Join(dir, "archive_status")
		}
		if err := os.Rename(filepath.Join(dir, names[0]+ends), filepath.Join(dir, partial+ends)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.asks(partial); err != nil {
		t.Fatal(err)
	}
	if err := f.asks(names[1]); err != nil {
		t.Fatal(err)
	}
	want := []string{"00000001-" + names[0] + "-" + names[4] + ".json"}
	if got := f.stored("gap/*"); !slices.Equal(got, want) {
		t.Errorf("recorded are %v", got)
	}
}

// A segment of the same name that is another file was not dropped.
func TestDropOtherFile(t *testing.T) {
	f := newFlood(t)
	names := f.wait(20, 21, 22, 23)
	if err := f.asks(names[0]); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(f.pgdata, "pg_wal", names[1])
	at := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
	f.bucket.put = nil
	if err := f.asks(names[1]); err != nil || !slices.Equal(f.stored("wal/*/*"), names[1:]) {
		t.Fatalf("%v, archived are %v", err, f.stored("wal/*/*"))
	}
	// Those behind it were archived beside it, and are not told as dropped.
	f.log.Reset()
	if err := f.asks(names[2]); err != nil || strings.Contains(f.log.String(), "level=ERROR") {
		t.Fatalf("%v, %s", err, f.log)
	}
}

// What was archived ahead is not recorded as dropped.
func TestDropAhead(t *testing.T) {
	f := newFlood(t)
	names := f.wait(20, 21, 22, 23)
	info, err := os.Stat(filepath.Join(f.pgdata, "pg_wal", names[2]))
	if err != nil {
		t.Fatal(err)
	}
	control, _, err := postgres.ReadControl(t.Context(), f.pgdata)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.repo.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := newDone(f.push.StateDir, f.repo, time.Now).add(repo.ClusterID(control.SystemIdentifier), names[2], info); err != nil {
		t.Fatal(err)
	}
	if err := f.asks(names[0]); err != nil {
		t.Fatal(err)
	}
	if got := f.stored("gap/*"); len(got) != 1 || got[0] != "00000001-"+names[0]+"-"+names[1]+".json" {
		t.Errorf("recorded are %v", got)
	}
}

// Nothing is dropped unless the repository is at fault and can record it.
func TestDropNot(t *testing.T) {
	outage := &storage.Error{Op: "put", Bucket: "x", Key: "x", Err: storage.ErrUnavailable}
	for name, c := range map[string]struct {
		change func(*flood)
		asked  string
		texts  []string
	}{
		"the record cannot be stored": {
			change: func(f *flood) { f.bucket.put = func(string) error { return storage.ErrNoSpace } },
			texts:  []string{"nothing is dropped", "max_backlog is 3145728"},
		},
		"the segment is damaged": {change: func(f *flood) { f.write("pg_wal/"+"000000010000000000000014", make([]byte, 1<<20)) }},
		"another cluster's place": {change: func(f *flood) {
			if err := os.Remove(filepath.Join(f.folder, "repository.json")); err != nil {
				f.t.Fatal(err)
			}
		}},
		"a conflict": {change: func(f *flood) {
			f.bucket.put = nil
			other := f.wait(20)
			if err := f.push.Push(f.t.Context(), filepath.Join(f.pgdata, "pg_wal", other[0])); err != nil {
				f.t.Fatal(err)
			}
			body, err := os.ReadFile(filepath.Join(f.pgdata, "pg_wal", other[0]))
			if err != nil {
				f.t.Fatal(err)
			}
			body[100]++
			f.write("pg_wal/"+other[0], body)
		}},
		"a history": {asked: "00000002.history", change: func(f *flood) {
			f.write("pg_wal/00000002.history", fixture(f.t, "timeline/00000002.history"))
			f.bucket.put = func(key string) error {
				if strings.Contains(key, "/gap/") {
					return nil
				}
				return storage.ErrUnavailable
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlood(t)
			f.wait(20, 21, 22, 23, 24)
			c.change(f)
			asked := c.asked
			if asked == "" {
				asked = "000000010000000000000014"
			}
			err := f.drop.Push(t.Context(), filepath.Join(f.pgdata, "pg_wal", asked))
			if err == nil || len(f.stored("gap/*")) != 0 {
				t.Fatalf("%v, recorded are %v", err, f.stored("gap/*"))
			}
			for _, text := range c.texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q is not told: %v", text, err)
				}
			}
		})
	}
	f := newFlood(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	late, over := context.WithTimeout(t.Context(), 0)
	defer over()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want bool
	}{
		{t.Context(), outage, true},
		{t.Context(), context.DeadlineExceeded, true},
		{t.Context(), &storage.Error{Err: storage.ErrNoSpace}, true},
		{late, outage, true},
		{ended, outage, false},
		{t.Context(), errors.New("x"), false},
		{t.Context(), errs.Wrap(outage, errs.NotInitialised, "", "x"), false},
		{t.Context(), errs.Wrap(outage, errs.Conflict, "", "x"), false},
	} {
		if got := f.drop.away(c.ctx, c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
