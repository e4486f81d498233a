package backup

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"agent/internal/compress"
	"agent/internal/delta"
	"agent/internal/repo"
)

const (
	// stretchSize is how much of a large file one worker reads at a time.
	stretchSize = 16 << 20
	// batchBytes and batchFiles end a batch of small files.
	batchBytes = 4 << 20
	batchFiles = 256
)

// copyOptions is what the pipeline needs besides the walker.
type copyOptions struct {
	name     repo.BackupName
	workers  int
	codec    compress.Setting
	block    int64
	readRate int64 // bytes per second, 0 = unlimited
	pages    *pageChecker
	meter    *meter
}

// pipeline moves files through the workers and puts the results, which come
// out of order, into the manifest in order. The number of units under way is
// bounded, and so are the channels, so its memory does not depend on the
// number or the size of the files.
type pipeline struct {
	opts     copyOptions
	packs    *repo.Writer
	manifest *repo.ManifestWriter

	units chan *unit
	done  chan *unit
	order chan ordered // in manifest order
	limit *rate.Limiter
}

// ordered is a file, or an entry that needs no worker.
type ordered struct {
	file  *fileState
	entry repo.Entry
}

// copyFiles runs the pipeline to its end. w's visit is set here.
func copyFiles(ctx context.Context, w *walker, packs *repo.Writer, manifest *repo.ManifestWriter, opts copyOptions) error {
	p := &pipeline{
		opts: opts, packs: packs, manifest: manifest,
		units: make(chan *unit), done: make(chan *unit, 4*opts.workers), order: make(chan ordered, 1024),
	}
	if opts.readRate > 0 {
		p.limit = rate.NewLimiter(rate.Limit(opts.readRate), max(int(min(opts.readRate/8, 1<<20)), 64<<10))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(p.units)
		defer close(p.order)
		return p.produce(ctx, w)
	})
	var readers sync.WaitGroup
	for range opts.workers {
		readers.Add(1)
		g.Go(func() error {
			defer readers.Done()
			return p.work(ctx)
		})
	}
	g.Go(func() error {
		readers.Wait()
		close(p.done)
		return nil
	})
	g.Go(func() error { return p.collect(ctx) })
	return g.Wait()
}

// produce walks and cuts what it meets into units.
func (p *pipeline) produce(ctx context.Context, w *walker) error {
	var batch unit
	var size int64
	flush := func() error {
		if len(batch.stretches) == 0 {
			return nil
		}
		u := batch
		batch, size = unit{}, 0
		return put(ctx, p.units, &u)
	}
	// The collector may be waiting for a file of the batch: before this
	// goroutine waits for the collector, the batch goes to the workers.
	next := func(entry ordered) error {
		select {
		case p.order <- entry:
			return nil
		default:
		}
		if err := flush(); err != nil {
			return err
		}
		return put(ctx, p.order, entry)
	}
	w.visit = func(s source) error {
		if s.Kind != repo.EntryFile {
			return next(ordered{entry: s.Entry})
		}
		f, stretches := cut(s)
		if err := next(ordered{file: f}); err != nil {
			return err
		}
		if s.Size > batchBytes {
			if err := flush(); err != nil {
				return err
			}
			for _, one := range stretches {
				if err := put(ctx, p.units, &unit{stretches: []stretch{one}}); err != nil {
					return err
				}
			}
			return nil
		}
		batch.stretches = append(batch.stretches, stretches...)
		if size += s.Size; size >= batchBytes || len(batch.stretches) >= batchFiles {
			return flush()
		}
		return nil
	}
	if err := w.run(ctx); err != nil {
		return err
	}
	return flush()
}

// cut says which stretches of a file are read.
func cut(s source) (*fileState, []stretch) {
	f := &fileState{source: s}
	var stretches []stretch
	for part := range delta.Whole(s.Size, stretchSize) {
		stretches = append(stretches, stretch{Stretch: part, file: f, slot: len(stretches)})
	}
	f.results, f.left = make([]stretchResult, len(stretches)), len(stretches)
	return f, stretches
}

func put[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *pipeline) work(ctx context.Context) error {
	enc, err := compress.NewEncoder(p.opts.codec)
	if err != nil {
		return fmt.Errorf("make encoder: %w", err)
	}
	w := &worker{
		name: p.opts.name, packs: p.packs, enc: enc, pages: p.opts.pages, limit: p.limit,
		meter: p.opts.meter, raw: make([]byte, 0, compress.MaxFrame), block: p.opts.block,
	}
	for {
		select {
		case u, ok := <-p.units:
			if !ok {
				return nil
			}
			if err := w.do(ctx, u); err != nil {
				return err
			}
			if err := put(ctx, p.done, u); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// collect adds entries to the manifest in the order of the walk; a file is
// added when its last stretch has been read.
func (p *pipeline) collect(ctx context.Context) error {
	for next := range p.order {
		f := next.file
		if f == nil {
			if err := p.manifest.Add(ctx, next.entry, nil, nil); err != nil {
				return err
			}
			continue
		}
		for f.left > 0 {
			select {
			case u, ok := <-p.done:
				if !ok {
					return context.Cause(ctx)
				}
				for _, s := range u.stretches {
					s.file.left--
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := p.addFile(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// addFile puts a file's stretches together. One that was gone when its first
// stretch was read is left out: its removal is in the WAL.
func (p *pipeline) addFile(ctx context.Context, f *fileState) error {
	if f.results[0].gone {
		p.opts.meter.vanished.Add(1)
		return nil
	}
	if now := f.results[0].now; now != nil {
		f.Size, f.ModTime = now.size, now.modified
	}
	var runs []repo.Run
	frames := make(map[repo.PackID][]repo.Frame)
	for _, r := range f.results {
		for _, run := range r.runs {
			runs = appendRun(runs, run)
		}
		for _, ref := range r.frames {
			id := repo.PackID{Backup: p.opts.name, Number: ref.Pack}
			frames[id] = append(frames[id], ref.Frame())
		}
	}
	f.results = nil
	p.opts.meter.files.Add(1)
	return p.manifest.Add(ctx, f.Entry, runs, frames)
}

// appendRun joins a run to the one before it where they continue each other.
func appendRun(runs []repo.Run, r repo.Run) []repo.Run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		if last.Zero && r.Zero || !last.Zero && !r.Zero && last.Pack == r.Pack && last.Raw+last.Length == r.Raw {
			last.Length += r.Length
			return runs
		}
	}
	return append(runs, r)
}

// meter counts what passes, for progress and the summary.
type meter struct {
	read     atomic.Int64 // bytes read from the data directory
	stored   atomic.Int64 // bytes after compression
	files    atomic.Int64
	vanished atomic.Int64
	total    atomic.Int64 // bytes expected, 0 while not known
}

// badPages collects damaged pages: all are counted, the first are named.
type badPages struct {
	mu     sync.Mutex
	count  int64
	sample []string
}

const badPageSample = 20

func (b *badPages) add(path string, block uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	if len(b.sample) < badPageSample {
		b.sample = append(b.sample, fmt.Sprintf("%s block %d", path, block))
	}
}
