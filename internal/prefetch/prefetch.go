// Package prefetch brings WAL segments to where recovery will ask for them. Its
// process is started by the first wal-fetch of a recovery that finds a segment,
// lives as long as recovery goes on asking, and hands over what it has: a file
// that was fetched and checked as wal-fetch does it, by giving it its name. What
// it has not, or cannot get, the caller fetches itself, and alone decides what
// that means for recovery.
package prefetch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"agent/internal/beside"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/wal"
)

// Question is what wal-fetch asks for.
type Question struct {
	Segment string `json:"segment"`
}

// Answer says whether the segment is at wal.RecoveryFile now.
type Answer struct {
	Done bool `json:"done"`
}

// maxBytes bounds what is fetched ahead, and freeShare what part of the free
// space it may take.
const (
	maxBytes  = 256 << 20
	freeShare = 8
)

// Prefetcher fetches the segments of one recovery ahead.
type Prefetcher struct {
	Repo    *repo.Repository
	Cluster repo.ClusterID
	Size    postgres.SegmentSize
	Dir     string // pg_wal
	// Loads is how many segments are fetched at a time.
	Loads int
	// Free is the free space of the file system of a directory, in bytes.
	Free func(dir string) (int64, error)
	// Over reports that the recovery has ended; it is asked now and then.
	Over func() bool
	// Standby is that the server goes on at the end of the archive, and does not
	// end its recovery there.
	Standby bool
	Log     *slog.Logger
	Now     func() time.Time
}

// Run answers the questions that come in through l, beginning with fetching what
// follows the segment first. It returns when nobody asks any more, recovery has
// ended or ctx is done, and leaves nothing behind.
func (p *Prefetcher) Run(ctx context.Context, l net.Listener, first postgres.Segment) error {
	s, err := openScratch(p.Dir)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{
		Prefetcher: p, scratch: s, questions: make(chan question), loads: make(chan *slot),
		slots: make(map[postgres.Segment]*slot), last: first, next: first.Next(),
	}
	var listening sync.WaitGroup
	listening.Go(func() { w.listen(ctx, l) })
	w.run(ctx)
	cancel()
	err = l.Close()
	listening.Wait()
	w.drain(ctx)
	return errors.Join(err, s.close())
}

// worker is the state of a run; all but listen belongs to one goroutine.
type worker struct {
	*Prefetcher
	scratch   *scratch
	pace      pace
	questions chan question
	loads     chan *slot
	loading   int

	slots map[postgres.Segment]*slot // fetched, or being fetched
	last  postgres.Segment           // that was asked for
	next  postgres.Segment           // to be fetched
	// stopped is why the next one could not be fetched, if it could not: whether it
	// can is found out when it is asked for.
	stopped error
}

// question is one that waits for its answer.
type question struct {
	segment postgres.Segment
	answer  chan bool // takes one
}

// slot is a segment that is fetched ahead.
type slot struct {
	segment postgres.Segment
	cancel  context.CancelFunc
	file    *file
	began   time.Time
	err     error
	ended   bool
	waiting []chan bool
}

// listen takes connections and passes their questions on.
func (w *worker) listen(ctx context.Context, l net.Listener) {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		open.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			if err := w.converse(ctx, conn); err != nil {
				w.Log.Debug("answer", "error", err.Error())
			}
			_ = conn.Close()
		})
	}
}

func (w *worker) converse(ctx context.Context, conn net.Conn) error {
	var q Question
	if err := beside.Receive(conn, &q); err != nil {
		return err
	}
	segment, err := postgres.ParseSegment(q.Segment, w.Size)
	if err != nil {
		return errors.Join(err, beside.Send(conn, Answer{}))
	}
	answer := make(chan bool, 1)
	select {
	case w.questions <- question{segment, answer}:
	case <-ctx.Done():
		return nil
	}
	select {
	case done := <-answer:
		return beside.Send(conn, Answer{Done: done})
	case <-ctx.Done():
		return nil
	}
}

// lookEvery is how often it is looked whether recovery has ended.
const lookEvery = time.Second

func (w *worker) run(ctx context.Context) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	idle := time.NewTimer(w.pace.idle())
	defer idle.Stop()
	w.fill(ctx)
	for {
		select {
		case q := <-w.questions:
			w.answer(ctx, q)
			idle.Reset(w.pace.idle())
		case s := <-w.loads:
			w.loaded(ctx, s)
		case <-look.C:
			if w.Over() {
				w.Log.Debug("recovery has ended")
				return
			}
		case <-idle.C:
			if w.awaited() {
				idle.Reset(w.pace.idle())
				break
			}
			w.Log.Debug("nobody asks any more")
			return
		case <-ctx.Done():
			w.Log.Debug("stopped", "cause", context.Cause(ctx).Error())
			return
		}
		w.fill(ctx)
	}
}

// awaited reports whether recovery waits for a segment that is on its way.
func (w *worker) awaited() bool {
	for _, s := range w.slots {
		if len(s.waiting) > 0 {
			return true
		}
	}
	return false
}

// answer gives a segment that is here, lets one that is on its way be waited
// for, and says no to any other, whose successors it fetches from now on.
func (w *worker) answer(ctx context.Context, q question) {
	s := w.slots[q.segment]
	ended := errors.Is(w.stopped, storage.ErrNotExist) // it is known where what is there ends
	if s == nil && ended && q.segment == w.next {
		w.pace.heard(w.Now())
		q.answer <- false
		w.again(ctx, q.segment)
		return
	}
	w.pace.asked(w.Now(), s == nil || !s.ended)
	w.last = q.segment
	if s == nil || !ended {
		w.stopped = nil
	}
	if s == nil {
		// What lies ahead on the same timeline is still right.
		w.next = q.segment.Next()
	}
	for segment, old := range w.slots {
		if segment.Timeline != q.segment.Timeline || segment.Number < q.segment.Number {
			w.drop(old)
		}
	}
	for w.slots[w.next] != nil {
		w.next = w.next.Next()
	}
	for segment, old := range w.slots {
		// They must follow each other without a hole.
		if segment.Number > w.next.Number {
			w.drop(old)
		}
	}
	switch {
	case s == nil:
		q.answer <- false
	case s.ended:
		q.answer <- w.hand(s)
	default:
		s.waiting = append(s.waiting, q.answer)
	}
}

// again fetches the last segment before one that is not there once more: where
// recovery ends it reads the last record again, from the archive
// (xlogrecovery.c, FinishWalRecovery).
func (w *worker) again(ctx context.Context, missing postgres.Segment) {
	if w.Standby || w.last.Next() != missing || w.slots[w.last] != nil || w.room() < int64(w.Size) {
		return
	}
	w.load(ctx, w.last)
}

// hand gives the segment to recovery.
func (w *worker) hand(s *slot) bool {
	delete(w.slots, s.segment)
	if s.err != nil {
		return false
	}
	if err := s.file.publish(wal.RecoveryFile); err != nil {
		w.Log.Warn("hand over a segment", "wal", s.segment.Name(w.Size), "error", err.Error())
		return false
	}
	return true
}

// fill begins to fetch what should be here.
func (w *worker) fill(ctx context.Context) {
	depth := max(w.pace.depth, firstDepth)
	if len(w.slots) >= depth || w.loading >= w.Loads || w.stopped != nil {
		return
	}
	room := w.room()
	for len(w.slots) < depth && w.loading < w.Loads && int64(len(w.slots)+1)*int64(w.Size) <= room {
		w.load(ctx, w.next)
		w.next = w.next.Next()
	}
}

// room is how many bytes may lie ahead.
func (w *worker) room() int64 {
	free, err := w.Free(w.Dir)
	if err != nil {
		w.Log.Debug("look for free space", "error", err.Error())
		return 0
	}
	// One is ahead of segments that are larger, too.
	return min(max(maxBytes, int64(w.Size)), free/freeShare)
}

// load fetches a segment in the background.
func (w *worker) load(ctx context.Context, segment postgres.Segment) {
	ctx, cancel := context.WithCancel(ctx)
	s := &slot{segment: segment, cancel: cancel, began: w.Now()}
	w.slots[segment] = s
	w.loading++
	go func() {
		defer cancel()
		defer func() {
			// Where the server is process 1 it takes a crash of this process for
			// one of its own.
			if r := recover(); r != nil {
				s.err = fmt.Errorf("fetch: %v", r)
			}
			w.loads <- s
		}()
		s.err = w.get(ctx, s)
	}()
}

func (w *worker) get(ctx context.Context, s *slot) error {
	name, err := postgres.ParseWALFile(s.segment.Name(w.Size))
	if err != nil {
		return err
	}
	if s.file, err = w.scratch.create(name.Name); err != nil {
		return err
	}
	if err := wal.Fill(ctx, w.Repo, w.Cluster, name, s.file.File); err != nil {
		err = errors.Join(err, s.file.discard())
		s.file = nil
		return err
	}
	return nil
}

// loaded takes a segment that was fetched, or could not be.
func (w *worker) loaded(ctx context.Context, s *slot) {
	w.loading--
	s.ended = true
	if w.slots[s.segment] != s {
		w.discard(s) // it was dropped in the meantime
		return
	}
	if s.err == nil {
		w.pace.loaded(w.Now().Sub(s.began))
		if len(s.waiting) > 0 {
			done := w.hand(s)
			for _, answer := range s.waiting {
				answer <- done
			}
		}
		return
	}
	// Nothing behind it is wanted before it is.
	w.stopped, w.next = s.err, s.segment
	level := slog.LevelWarn
	if errors.Is(s.err, storage.ErrNotExist) {
		level = slog.LevelDebug // the end of the archive
		if len(s.waiting) > 0 {
			w.again(ctx, s.segment)
		}
	}
	w.Log.Log(ctx, level, "not fetched ahead", "wal", s.segment.Name(w.Size), "error", s.err.Error())
	for segment, other := range w.slots {
		if segment.Number >= s.segment.Number {
			w.drop(other)
		}
	}
}

// drop forgets a segment; whoever waits for it fetches it.
func (w *worker) drop(s *slot) {
	delete(w.slots, s.segment)
	s.cancel()
	for _, answer := range s.waiting {
		answer <- false
	}
	s.waiting = nil
	if s.ended {
		w.discard(s)
	}
}

func (w *worker) discard(s *slot) {
	if s.file == nil {
		return
	}
	if err := s.file.discard(); err != nil {
		w.Log.Debug("remove a segment", "wal", s.segment.Name(w.Size), "error", err.Error())
	}
	s.file = nil
}

// drain waits for what is under way, and forgets everything.
func (w *worker) drain(ctx context.Context) {
	for _, s := range w.slots {
		w.drop(s)
	}
	for w.loading > 0 {
		w.loaded(ctx, <-w.loads)
	}
}
