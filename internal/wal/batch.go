package wal

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"walagent/internal/postgres"
)

const (
	// batchFiles is how many files one call archives at most, and batchBytes how
	// many bytes of them: what one call does must stay within its time.
	batchFiles = 16
	batchBytes = 256 << 20
	// batchUploads is how many are under way at a time: it hides the latency of
	// the store behind the work on the others, and bounds memory to as many
	// sealed files.
	batchUploads = 4
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
	return files[:min(len(files), batchFiles)]
}

// batch archives files that are ready behind the one that was asked for, until
// stop is called, which waits for those under way at most for batchPatience.
// What becomes of them does not change the outcome for the one that was asked
// for: the server asks for each of them, and is told then.
func (p *Pusher) batch(ctx context.Context, path string) (stop func()) {
	files := behind(path)
	if len(files) == 0 || p.StateDir == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	// A slow line belongs to the file that was asked for.
	slow := time.AfterFunc(batchPatience, func() { cancel(errBatchOver) })
	g := new(errgroup.Group)
	g.SetLimit(batchUploads)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		left := int64(batchBytes)
		for _, f := range files {
			next := filepath.Join(filepath.Dir(path), f.Name)
			info, err := os.Stat(next)
			if err != nil || ctx.Err() != nil {
				break
			}
			if left -= info.Size(); left < 0 {
				break
			}
			g.Go(func() error {
				p.ahead(ctx, f, next)
				return nil
			})
		}
		_ = g.Wait() // nothing fails here
	}()
	return func() {
		slow.Reset(batchPatience)
		<-finished
		slow.Stop()
		cancel(nil)
	}
}

var errBatchOver = errors.New("the file that was asked for comes first")

// ahead archives one file and records it.
func (p *Pusher) ahead(ctx context.Context, f postgres.WALFile, path string) {
	if ctx.Err() != nil {
		return
	}
	c, err := p.open(ctx, f, path)
	if err == nil {
		if !p.done.has(c.cluster, f.Name, c.info) {
			if err = p.put(ctx, c); err == nil {
				err = p.done.add(c.cluster, f.Name, c.info)
			}
		}
		err = errors.Join(err, c.file.Close())
	}
	if err != nil {
		p.Log.Debug("archive ahead", "wal", f.Name, "error", err.Error())
	}
}
