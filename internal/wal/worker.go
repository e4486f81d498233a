package wal

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"agent/internal/beside"
	"agent/internal/postgres"
)

// FileQuestion is what wal-push asks the worker.
type FileQuestion struct {
	File string `json:"file"`
	// Take leaves all to the worker that the call for a file which is archived has
	// to do.
	Take bool `json:"take,omitempty"`
}

// FileAnswer says that the worker has ended with the file, or has not taken it.
type FileAnswer struct {
	// Done is that the file is archived, its record taken, and nothing left for the call but to
	// end; never true unless the question is to take it. Otherwise the record tells.
	Done bool `json:"done"`
}

// takePatience is how long a call that leaves all to the worker waits for its
// file: if the worker hangs, the call must have the time to archive it itself.
const takePatience = 4 * time.Second

// Worker archives the files that are ready, one after the other, beside the
// calls of archive_command, which find its records: a backlog that is longer
// than one call may archive is worked off while the calls come and go. One that
// is lost at any moment costs nothing: what it has not recorded is archived by
// the call for it.
type Worker struct {
	*Pusher
	Dir string // pg_wal
	// Answer does what the call for a file does that is archived already, and
	// reports whether that was all. Nil: calls do so themselves.
	Answer func(ctx context.Context, path string) bool

	mu    sync.Mutex
	taken map[string]chan struct{} // closed when it has ended with the file
}

const (
	// windowFiles is how many files are looked for at a time.
	windowFiles = 64
	// restPoll is how often it is looked whether there are new ones, and restFor
	// for how long, before the worker ends.
	restPoll = 100 * time.Millisecond
	restFor  = 3 * time.Second
)

// Run archives what is ready behind the file after, until nothing is, one fails
// or ctx is done. It answers the questions that come in through l.
func (w *Worker) Run(ctx context.Context, l net.Listener, after string) error {
	w.taken = make(map[string]chan struct{})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var listening sync.WaitGroup
	listening.Go(func() { w.listen(ctx, l) })
	err := w.work(ctx, cancel, after)
	cancel(nil)
	err = errors.Join(err, l.Close())
	listening.Wait()
	return err
}

func (w *Worker) work(ctx context.Context, cancel context.CancelCauseFunc, after string) error {
	owner, err := Owner(ctx, filepath.Join(w.Dir, after))
	if err != nil || owner == nil {
		return err
	}
	if err := w.Repo.Check(ctx); err != nil {
		return err
	}
	a := &ahead{
		Pusher: w.Pusher, dir: w.Dir, owner: owner, records: newDone(w.StateDir, w.Repo, w.Now),
		stop: func() { cancel(errBatchOver) }, ended: w.ended,
	}
	first := make(chan struct{})
	close(first)
	rested := time.Duration(0)
	histories := make(map[string]bool) // that were archived, and are ready until their call
	for ctx.Err() == nil && rested < restFor {
		files := slices.DeleteFunc(behind(filepath.Join(w.Dir, after)), func(f postgres.WALFile) bool { return histories[f.Name] })
		if len(files) == 0 {
			if sleep(ctx, restPoll) == nil {
				rested += restPoll
			}
			continue
		}
		rested = 0
		files = files[:min(len(files), windowFiles)]
		w.take(files)
		all := a.archive(ctx, files, first)
		w.release(files)
		if !all {
			return nil // nobody goes on behind a file that could not be archived
		}
		for _, f := range files {
			if f.Kind == postgres.WALHistory {
				histories[f.Name] = true
			} else {
				after = f.Name
			}
		}
		a.records.sweep(ctx)
	}
	return nil
}

// take makes calls for these files wait.
func (w *Worker) take(files []postgres.WALFile) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range files {
		w.taken[f.Name] = make(chan struct{})
	}
}

// ended lets the call for a file go on.
func (w *Worker) ended(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.taken[name]; ok {
		close(c)
		delete(w.taken, name)
	}
}

// release is for files that were not even begun.
func (w *Worker) release(files []postgres.WALFile) {
	for _, f := range files {
		w.ended(f.Name)
	}
}

func (w *Worker) listen(ctx context.Context, l net.Listener) {
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
			var q FileQuestion
			err := beside.Receive(conn, &q)
			if err == nil {
				err = beside.Send(conn, w.answer(ctx, q))
			}
			if err != nil {
				w.Log.Debug("answer", "error", err.Error())
			}
			_ = conn.Close()
		})
	}
}

// answer waits until the worker has ended with a file, and takes it for the call
// if that is asked.
func (w *Worker) answer(ctx context.Context, q FileQuestion) FileAnswer {
	if !q.Take {
		w.await(ctx, q.File)
		return FileAnswer{}
	}
	if w.Answer == nil || filepath.Base(q.File) != q.File {
		return FileAnswer{}
	}
	ctx, cancel := context.WithTimeout(ctx, takePatience)
	defer cancel()
	w.await(ctx, q.File)
	return FileAnswer{Done: ctx.Err() == nil && w.Answer(ctx, filepath.Join(w.Dir, q.File))}
}

// await waits until the worker has ended with a file that it has taken.
func (w *Worker) await(ctx context.Context, name string) {
	w.mu.Lock()
	c, ok := w.taken[name]
	w.mu.Unlock()
	if !ok {
		return
	}
	select {
	case <-c:
	case <-ctx.Done():
	}
}
