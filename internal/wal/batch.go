package wal

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"agent/internal/postgres"
)

const (
	// batchFiles is how many files one call archives at most: what it does must
	// stay within its time.
	batchFiles = 16
	// batchBytes is how many bytes of files are prepared at a time, beside the
	// one that was asked for: it bounds memory. What is sealed counts twice, as
	// it is there twice. Larger files do not go ahead.
	batchBytes = 64 << 20
	// batchPatience is how long the others may take from the bandwidth of the
	// file that was asked for, and after it.
	batchPatience = 10 * time.Second
)

// behind lists the files that the server has marked ready behind the one that
// it asks for, in the order in which it will ask for them: histories first, as
// since PostgreSQL 15 (pgarch.c, ready_file_comparator), then by name.
func behind(path string) []postgres.WALFile {
	asked := filepath.Base(path)
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(path), "archive_status"))
	if err != nil {
		return nil // not a server's pg_wal
	}
	var files []postgres.WALFile
	for _, e := range entries {
		name, ready := strings.CutSuffix(e.Name(), ".ready")
		if !ready || name == asked {
			continue
		}
		f, err := postgres.ParseWALFile(name)
		if err != nil || f.Kind != postgres.WALHistory && name < asked {
			continue
		}
		files = append(files, f)
	}
	history := func(f postgres.WALFile) int {
		if f.Kind == postgres.WALHistory {
			return 0
		}
		return 1
	}
	slices.SortFunc(files, func(a, b postgres.WALFile) int {
		return cmp.Or(cmp.Compare(history(a), history(b)), cmp.Compare(a.Name, b.Name))
	})
	return files
}

// batch archives files that are ready behind the one that was asked for, until
// over is called, which gives those under way at most batchPatience more. They
// are read, compressed and sealed side by side, and sent in their order when the
// file that was asked for is durable, two at a time, which hides half of the
// store's latency: when the host is lost in this moment, the archive lacks at
// most the one file before its last, and wal-fetch --end-before names it. What
// becomes of them does not change the outcome for the one that was asked for:
// the server asks for each of them, and is told then.
func (p *Pusher) batch(ctx context.Context, path string, owner *postgres.Control, records *done) (over func(durable, existed bool)) {
	if p.Alone || p.StateDir == "" {
		return func(bool, bool) {}
	}
	files := behind(path)
	if len(files) == 0 {
		return func(bool, bool) {}
	}
	more := ""
	if len(files) > batchFiles {
		files = files[:batchFiles]
		more = files[batchFiles-1].Name
	}
	ctx, cancel := context.WithCancelCause(ctx)
	// A slow line belongs to the file that was asked for.
	slow := time.AfterFunc(batchPatience, func() { cancel(errBatchOver) })
	asked := make(chan struct{})
	finished := make(chan bool, 1)
	a := &ahead{
		Pusher: p, dir: filepath.Dir(path), owner: owner, records: records,
		stop: func() { cancel(errBatchOver) }, ended: func(string) {},
	}
	go func() { finished <- a.archive(ctx, files, asked) }()
	return func(durable, existed bool) {
		if durable {
			a.shared.Store(existed)
			close(asked)
			slow.Reset(batchPatience)
		} else {
			cancel(errBatchOver)
		}
		if all := <-finished; all && durable {
			// Nobody goes on behind a file that could not be archived.
			p.more = more
		}
		slow.Stop()
		cancel(nil)
	}
}

var errBatchOver = errors.New("the file that was asked for comes first")

// ahead archives the files behind the one that was asked for.
type ahead struct {
	*Pusher
	dir     string // pg_wal
	owner   *postgres.Control
	records *done
	stop    func()            // ends the rest when one fails
	ended   func(name string) // is told when a file has ended, however
	// shared is that a file was there already: another server archives here, too,
	// and may refuse what comes next. Then one goes at a time, so that nothing is
	// stored behind a file that is refused.
	shared atomic.Bool
}

// archive takes files in their order, each when all up to the last but one before
// it are durable. asked is closed when the file ahead of all of them is. It
// reports whether all of them are archived in the end.
func (a *ahead) archive(ctx context.Context, files []postgres.WALFile, asked <-chan struct{}) bool {
	lastButOne, last := asked, asked
	room := semaphore.NewWeighted(batchBytes)
	// What is compressed takes a processor; more than there are would only get into
	// each other's way. What is on its way to the store takes none.
	processors := semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0)))
	var all sync.WaitGroup
	var failed atomic.Bool
	defer all.Wait()
	for _, f := range files {
		path := filepath.Join(a.dir, f.Name)
		info, err := os.Stat(path)
		if err != nil {
			return false
		}
		weight := info.Size()
		if a.Repo.SealsWAL() {
			weight *= 2
		}
		if weight > batchBytes || room.Acquire(ctx, weight) != nil {
			return false
		}
		if processors.Acquire(ctx, 1) != nil {
			room.Release(weight)
			return false
		}
		made := sync.OnceFunc(func() { processors.Release(1) })
		turn, before, durable := lastButOne, last, make(chan struct{})
		all.Go(func() {
			one := func() bool {
				defer room.Release(weight)
				defer made()
				return a.one(ctx, f, path, made, turn, before, durable)
			}
			ok := one()
			a.ended(f.Name)
			if !ok {
				failed.Store(true)
				a.stop()
			}
		})
		lastButOne, last = last, durable
	}
	all.Wait()
	return !failed.Load()
}

// one archives a file, when its turn has come, and records it. made is called when
// its object is, durable closed when it and all that is before it are durable.
func (a *ahead) one(ctx context.Context, f postgres.WALFile, path string, made func(), turn, before <-chan struct{}, durable chan<- struct{}) bool {
	await := func(ctx context.Context, c <-chan struct{}) error {
		select {
		case <-c:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	// Every second file could run away from the others, if it counted before they
	// do.
	counts := func() error {
		err := await(ctx, before)
		if err == nil {
			close(durable)
		}
		return err
	}
	ready := func(ctx context.Context) error {
		made()
		err := await(ctx, turn)
		if err == nil && a.shared.Load() {
			err = await(ctx, before)
		}
		return err
	}
	c, err := a.open(f, path, a.owner)
	if err == nil {
		if a.records.has(c.cluster, f.Name, c.info) {
			made()
			err = counts()
		} else if existed, perr := a.put(ctx, c, ready); perr != nil {
			err = perr
		} else {
			if existed {
				a.shared.Store(true)
			}
			if err = counts(); err == nil {
				// A record stands for both, so that no summary is forgotten.
				a.summarise(ctx, c)
				err = a.records.add(c.cluster, f.Name, c.info)
			}
		}
		err = errors.Join(err, c.file.Close())
	}
	if err != nil {
		a.Log.Debug("archive ahead", "wal", f.Name, "error", err.Error())
	}
	return err == nil
}
