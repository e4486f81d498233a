package prefetch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"agent/internal/beside"
	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/storage/fs"
	"agent/internal/wal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counted is a bucket that counts what is read, and can hold readers back.
type counted struct {
	storage.Bucket
	mu   sync.Mutex
	gets map[string]int
	hold func(ctx context.Context, name string) error // before a segment is read; nil: nothing
}

func (c *counted) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	name := filepath.Base(key)
	c.mu.Lock()
	c.gets[name]++
	hold := c.hold
	c.mu.Unlock()
	if hold != nil {
		if err := hold(ctx, name); err != nil {
			return nil, storage.Info{}, err
		}
	}
	return c.Bucket.Get(ctx, key)
}

func (c *counted) count(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gets[name]
}

const segmentSize = postgres.MinSegmentSize

// site is a repository with segments and a pg_wal to fetch them into.
type site struct {
	t      *testing.T
	bucket *counted
	repo   *repo.Repository
	id     repo.ClusterID
	bodies map[string][]byte
	names  []string
	pgwal  string
	over   func() bool
	free   int64

	standby bool
}

// newSite archives n segments from number 11 on, made of one real one.
func newSite(t *testing.T, n int) *site {
	t.Helper()
	packed, err := os.ReadFile("../postgres/testdata/pg15/00000001000000000000000B.zst")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(compress.NewReader(bytes.NewReader(packed)))
	if err != nil {
		t.Fatal(err)
	}
	folder, err := fs.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{
		t: t, bucket: &counted{Bucket: folder, gets: map[string]int{}}, bodies: map[string][]byte{},
		id: repo.ClusterID(binary.LittleEndian.Uint64(raw[24:])), pgwal: filepath.Join(t.TempDir(), "pg_wal"),
		over: func() bool { return false }, free: 1 << 40,
	}
	if err := os.Mkdir(s.pgwal, 0o700); err != nil {
		t.Fatal(err)
	}
	s.repo = repo.New([]repo.Place{{Name: "main", Bucket: s.bucket, Required: true}}, repo.Options{
		SpoolDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if _, err := s.repo.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		s.archive(s.moved(raw, uint64(11+i)))
	}
	return s
}

// moved gives the body of a segment the addresses of another one.
func (s *site) moved(raw []byte, number uint64) (name string, body []byte) {
	segment := postgres.Segment{Timeline: 1, Number: number}
	body = bytes.Clone(raw)
	for page := 0; page < len(body); page += postgres.WALBlockSize {
		if binary.LittleEndian.Uint16(body[page:]) != 0 {
			binary.LittleEndian.PutUint64(body[page+8:], uint64(segment.Start(segmentSize))+uint64(page))
		}
	}
	return segment.Name(segmentSize), body
}

type taken struct{}

func (taken) Write(p []byte) (int, error) { return len(p), nil }
func (taken) Close() error                { return nil }

func (s *site) archive(name string, body []byte) {
	s.t.Helper()
	f, err := postgres.ParseWALFile(name)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.repo.PutWAL(s.t.Context(), s.id, f, bytes.NewReader(body), int64(len(body)), taken{}, nil); err != nil {
		s.t.Fatal(err)
	}
	s.bodies[name] = body
	s.names = append(s.names, name)
}

// running is a prefetcher at work.
type running struct {
	site *site
	name beside.Name
	stop func() error
	done chan struct{}
}

func (s *site) start(first string) *running {
	s.t.Helper()
	name := beside.Name("agent-test-" + strconv.Itoa(os.Getpid()) + s.pgwal)
	l, err := beside.Listen(s.t.Context(), name, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	segment, err := postgres.ParseSegment(first, segmentSize)
	if err != nil {
		s.t.Fatal(err)
	}
	p := &Prefetcher{
		Repo: s.repo, Cluster: s.id, Size: segmentSize, Dir: s.pgwal, Loads: 3,
		Free: func(string) (int64, error) { return s.free, nil }, Over: func() bool { return s.over() }, Standby: s.standby,
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	r := &running{site: s, name: name, done: make(chan struct{})}
	var result error
	go func() {
		defer close(r.done)
		result = p.Run(ctx, l, segment)
	}()
	r.stop = func() error { cancel(); <-r.done; return result }
	s.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			s.t.Error(err)
		}
		left, err := os.ReadDir(s.pgwal)
		if err != nil || len(left) != 0 {
			s.t.Errorf("it leaves %v (%v)", left, err)
		}
	})
	return r
}

// ask asks as wal-fetch does, and takes what it got away as recovery does.
func (r *running) ask(name string) bool {
	r.site.t.Helper()
	var a Answer
	if err := beside.Ask(r.site.t.Context(), r.name, Question{name}, &a); err != nil {
		r.site.t.Fatal(err)
	}
	path := filepath.Join(r.site.pgwal, wal.RecoveryFile)
	body, err := os.ReadFile(path)
	if a.Done != (err == nil) {
		r.site.t.Fatalf("answer %v for %s, but the file: %v", a.Done, name, err)
	}
	if a.Done {
		if !bytes.Equal(body, r.site.bodies[name]) {
			r.site.t.Fatalf("other bytes than those of %s", name)
		}
		os.Remove(path)
	}
	return a.Done
}

func TestInOrder(t *testing.T) {
	s := newSite(t, 12)
	r := s.start(s.names[0])
	for _, name := range s.names[1:] {
		if !r.ask(name) {
			t.Errorf("%s was not fetched ahead", name)
		}
		if n := s.bucket.count(name); n != 1 {
			t.Errorf("%s was read %d times", name, n)
		}
	}
	// Behind the end somebody else decides; when more comes, it goes on.
	next, body := s.moved(s.bodies[s.names[0]], 23)
	if r.ask(next) {
		t.Error("a segment that does not exist was fetched")
	}
	for number := range uint64(3) {
		s.archive(s.moved(body, 23+number))
	}
	if r.ask(next) || r.ask(s.names[13]) {
		t.Error("what the caller was told to fetch was fetched too")
	}
	if !r.ask(s.names[14]) {
		t.Error("it does not go on behind a segment that came later")
	}
}

// TestEnd asks as a recovery does that comes to the end of the archive: for what
// is not there, perhaps twice, and then for the last one again.
func TestEnd(t *testing.T) {
	for _, standby := range []bool{false, true} {
		s := newSite(t, 6)
		s.standby = standby
		r := s.start(s.names[0])
		for _, name := range s.names[1:] {
			if !r.ask(name) {
				t.Errorf("%s was not fetched ahead", name)
			}
		}
		last := s.names[5]
		next, _ := s.moved(s.bodies[last], 17)
		for range 2 {
			if r.ask(next) {
				t.Error("a segment that does not exist was fetched")
			}
		}
		if got := r.ask(last); got == standby {
			t.Errorf("standby %v: the last segment is there again: %v", standby, got)
		}
		if r.ask(next) {
			t.Error("a segment that does not exist was fetched")
		}
		if n := s.bucket.count(next); n != 1 && !standby {
			t.Errorf("the segment that does not exist was asked for %d times", n)
		}
	}
}

// TestJumps asks for what is not next, as recovery does when it begins.
func TestJumps(t *testing.T) {
	s := newSite(t, 12)
	r := s.start(s.names[8])
	for _, want := range []struct {
		name  string
		ahead bool
	}{
		{s.names[9], true},
		{s.names[2], false}, // back to where redo begins
		{s.names[3], true},
		{s.names[4], true},
		{"00000002" + s.names[5][8:], false}, // another timeline, which is not there
		{"nonsense", false},
		{s.names[11], false},
		{s.names[4], false},
		{s.names[4], false}, // asked for twice
		{s.names[5], true},
	} {
		if got := r.ask(want.name); got != want.ahead {
			t.Errorf("%s: %v, expected %v", want.name, got, want.ahead)
		}
	}
}

// TestDamaged shows that what is not as it was archived is not handed over.
func TestDamaged(t *testing.T) {
	s := newSite(t, 6)
	wrong := bytes.Clone(s.bodies[s.names[3]])
	name, body := s.moved(wrong, 17)
	body[segmentSize/2+8] ^= 1 // the address of a page
	s.archive(name, body)
	r := s.start(s.names[4])
	if !r.ask(s.names[5]) {
		t.Error("a good segment was not fetched")
	}
	if r.ask(name) {
		t.Error("a segment with a wrong page was handed over")
	}
}

// TestWaits shows that a segment under way is awaited, and one whose store fails
// is left to the caller.
func TestWaits(t *testing.T) {
	s := newSite(t, 6)
	begun, go1 := make(chan struct{}), make(chan error)
	s.bucket.hold = func(ctx context.Context, name string) error {
		if name != s.names[1] {
			return nil
		}
		close(begun)
		select {
		case err := <-go1:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	r := s.start(s.names[0])
	<-begun
	answer := make(chan bool)
	go func() { answer <- r.ask(s.names[1]) }()
	select {
	case <-answer:
		t.Fatal("it did not wait")
	case go1 <- nil:
	}
	if !<-answer {
		t.Error("what was awaited was not handed over")
	}
	s.bucket.mu.Lock()
	s.bucket.hold = func(context.Context, string) error {
		return &storage.Error{Op: "get", Err: storage.ErrUnavailable}
	}
	s.bucket.mu.Unlock()
	failed := 0
	for _, name := range s.names[2:] {
		if !r.ask(name) {
			failed++
		}
	}
	if failed == 0 {
		t.Error("all was fetched from a store that is away")
	}
}

// TestBounds looks at what is fetched while nobody asks.
func TestBounds(t *testing.T) {
	s := newSite(t, 12)
	s.free = freeShare * (int64(segmentSize) + 5) // room for one
	r := s.start(s.names[0])
	for _, name := range s.names[1:5] {
		r.ask(name)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range s.names[6:] {
		if n := s.bucket.count(name); n != 0 {
			t.Errorf("%s was fetched, for which there is no room", name)
		}
	}
}

func TestEndsWithRecovery(t *testing.T) {
	s := newSite(t, 3)
	s.over = func() bool { return true }
	r := s.start(s.names[0])
	<-r.done
	var a Answer
	if err := beside.Ask(t.Context(), r.name, Question{s.names[1]}, &a); !errors.Is(err, beside.ErrNone) {
		t.Errorf("asked one that has ended: %v", err)
	}
}

// TestNamedFiles is for file systems that have no files without a name.
func TestNamedFiles(t *testing.T) {
	dir := t.TempDir()
	for _, unnamed := range []bool{true, false} {
		s, err := openScratch(dir)
		if err != nil {
			t.Fatal(err)
		}
		s.named.Store(!unnamed)
		old := filepath.Join(dir, wal.RecoveryFile)
		if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := s.create("000000010000000000000001")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("new"); err != nil {
			t.Fatal(err)
		}
		visible, _ := os.ReadDir(dir)
		if names := len(visible); unnamed && names != 1 || !unnamed && (names != 2 || !strings.HasPrefix(visible[0].Name(), wal.TempPrefix)) {
			t.Errorf("unnamed %v: there are %v", unnamed, visible)
		}
		if err := f.publish(wal.RecoveryFile); err != nil {
			t.Fatal(err)
		}
		if body, err := os.ReadFile(old); err != nil || string(body) != "new" {
			t.Errorf("unnamed %v: %q, %v", unnamed, body, err)
		}
		other, err := s.create("000000010000000000000002")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(other.discard(), s.close()); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("unnamed %v: left %v", unnamed, left)
		}
	}
}
