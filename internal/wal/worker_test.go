package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"agent/internal/beside"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

// moved is the first fixture with the addresses of another segment.
func moved(t *testing.T, number uint64) (name string, body []byte) {
	t.Helper()
	body = bytes.Clone(fixture(t, major+"/"+first+".zst"))
	segment := postgres.Segment{Timeline: 1, Number: number}
	for page := 0; page < len(body); page += postgres.WALBlockSize {
		if binary.LittleEndian.Uint16(body[page:]) != 0 {
			binary.LittleEndian.PutUint64(body[page+8:], uint64(segment.Start(1<<20))+uint64(page))
		}
	}
	return segment.Name(1 << 20), body
}

// atWork is a worker with n files to archive behind another one.
type atWork struct {
	*world
	names  []string
	bodies map[string][]byte
	name   beside.Name
	stop   func() error
	done   chan struct{}
}

func newWork(t *testing.T, n int) *atWork {
	t.Helper()
	w := &atWork{world: newWorld(t), bodies: map[string][]byte{}, done: make(chan struct{})}
	for i := range n + 1 {
		name, body := moved(t, uint64(100+i))
		w.names, w.bodies[name] = append(w.names, name), body
		w.write("pg_wal/"+name, body)
		w.write("pg_wal/archive_status/"+name+".ready", nil)
	}
	return w
}

func (w *atWork) start() {
	w.t.Helper()
	w.name = beside.Name("agent-test-" + w.t.Name() + strconv.Itoa(os.Getpid()))
	l, err := beside.Listen(w.t.Context(), w.name, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	worker := &Worker{Pusher: w.push, Dir: filepath.Join(w.pgdata, "pg_wal")}
	var result error
	go func() {
		defer close(w.done)
		result = worker.Run(ctx, l, w.names[0])
	}()
	w.stop = func() error { cancel(); <-w.done; return result }
	w.t.Cleanup(func() { w.stop() })
}

// call is what wal-push does for a file.
func (w *atWork) call(name string) error {
	w.t.Helper()
	path := filepath.Join(w.pgdata, "pg_wal", name)
	p := *w.push
	if done, err := p.Done(w.t.Context(), path); done || err != nil {
		return err
	}
	p.Worker = func(ctx context.Context, name string) bool {
		return beside.Ask(ctx, w.name, FileQuestion{File: name}, &FileAnswer{}) == nil
	}
	return p.Push(w.t.Context(), path)
}

// TestWorker archives more than one call may, in order, and the calls find it.
func TestWorker(t *testing.T) {
	w := newWork(t, 100)
	var mu sync.Mutex
	puts := map[string]int{}
	var last string
	w.bucket.put = func(key string) error {
		if !strings.Contains(key, "/wal/") {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		name := filepath.Base(key)
		puts[name]++
		// Two go at a time, so that one may be overtaken by the next.
		if i, j := slices.Index(w.names, name), slices.Index(w.names, last); puts[name] == 1 && last != "" && i < j-1 {
			t.Errorf("%s was stored behind %s", name, last)
		}
		last = max(last, name)
		return nil
	}
	if err := w.call(w.names[0]); err != nil {
		t.Fatal(err)
	}
	w.start()
	for _, name := range w.names[1:] {
		if err := w.call(name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		// As the server does then.
		os.Remove(filepath.Join(w.pgdata, "pg_wal", "archive_status", name+".ready"))
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	for _, name := range w.names {
		if n := puts[name]; n < 1 || n > 2 { // a call may meet a file before the worker has taken it
			t.Errorf("%s was put %d times", name, n)
		}
		if body, err := w.restore(name); err != nil || !bytes.Equal(body, w.bodies[name]) {
			t.Errorf("%s: %d bytes, %v", name, len(body), err)
		}
	}
}

// TestWorkerFails shows that a file which cannot be archived ends the worker,
// and that the call for it says why.
func TestWorkerFails(t *testing.T) {
	w := newWork(t, 20)
	bad := w.names[10]
	w.bucket.put = func(key string) error {
		if filepath.Base(key) == bad {
			return storage.ErrPermission
		}
		return nil
	}
	w.start()
	<-w.done
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	for i, name := range w.names {
		err := w.call(name)
		if name == bad {
			if !errors.Is(err, storage.ErrPermission) {
				t.Errorf("the call for the bad file: %v", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestWorkerIsGone asks one that ends while a call waits.
func TestWorkerIsGone(t *testing.T) {
	w := newWork(t, 3)
	begun, hold := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.bucket.put = func(key string) error {
		if filepath.Base(key) == w.names[1] {
			once.Do(func() { close(begun); <-hold })
		}
		return nil
	}
	w.start()
	<-begun
	result := make(chan error, 1)
	go func() { result <- w.call(w.names[1]) }()
	go func() { w.stop() }()
	close(hold)
	if err := <-result; err != nil {
		t.Error(err)
	}
	<-w.done
	if _, err := w.restore(w.names[1]); err != nil {
		t.Error(err)
	}
}

// TestMore shows that nobody goes on behind a file that the batch could not
// archive: it would leave a hole.
func TestMore(t *testing.T) {
	w := newWork(t, 40)
	bad := w.names[3]
	refuse := true
	w.bucket.put = func(key string) error {
		if refuse && filepath.Base(key) == bad {
			return storage.ErrPermission
		}
		return nil
	}
	push := func() string {
		p := *w.push
		if err := p.Push(t.Context(), filepath.Join(w.pgdata, "pg_wal", w.names[0])); err != nil {
			t.Fatal(err)
		}
		return p.More()
	}
	if more := push(); more != "" {
		t.Errorf("a worker is to go on behind %s, but %s is missing", more, bad)
	}
	w.start() // it would have been
	<-w.done
	if _, err := w.restore(w.names[5]); err == nil {
		t.Error("a file behind the refused one was archived")
	}
	refuse = false
	if more := push(); more != w.names[batchFiles] {
		t.Errorf("a worker is to go on behind %q, expected %s", more, w.names[batchFiles])
	}
}

// TestShared archives behind another server that has the same segments and then
// another one of its own: nothing is stored behind that.
func TestShared(t *testing.T) {
	w := newWork(t, 12)
	for i, name := range w.names[:6] {
		body := bytes.Clone(w.bodies[name])
		if i == 5 {
			body[len(body)-1] ^= 1
		}
		other := *w.push
		other.StateDir, other.Alone = t.TempDir(), true
		dir := filepath.Join(t.TempDir(), "pg_wal")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, name), body, 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := other.Push(t.Context(), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.push.Push(t.Context(), filepath.Join(w.pgdata, "pg_wal", w.names[0])); err != nil {
		t.Fatal(err)
	}
	for _, name := range w.names[6:] {
		if _, err := w.restore(name); err == nil {
			t.Errorf("%s was stored behind a segment that was refused", name)
		}
	}
}

// TestWaitOpens waits for a repository that cannot even be opened.
func TestWaitOpens(t *testing.T) {
	w := newWorld(t)
	if err := w.archive(first, fixture(t, major+"/"+first+".zst")); err != nil {
		t.Fatal(err)
	}
	w.write("standby.signal", nil)
	tries := 0
	w.fetch.Repo = nil
	w.fetch.Open = func(context.Context) (*repo.Repository, error) {
		if tries++; tries == 1 {
			return nil, storage.ErrUnavailable
		}
		return w.repo, nil
	}
	if _, err := w.restore(first); err != nil || tries != 2 {
		t.Fatalf("%d tries, %v", tries, err)
	}
}
