package backup

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"agent/internal/compress"
	"agent/internal/repo"
)

const (
	// batchBytes and batchStretches end a batch of small stretches.
	batchBytes     = 4 << 20
	batchStretches = 256
	// runsUnderWay bounds the runs of earlier backups and of this one that are
	// held until their file is done, at some 64 bytes for a run.
	runsUnderWay = 1 << 18
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
	// layers are what earlier backups have, in the order of the walk; none: all
	// is read.
	layers []*layer
	marks  *marker // nil: none are set
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
	runs  *semaphore.Weighted
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
		runs: semaphore.NewWeighted(runsUnderWay),
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
	c := &cutter{p: p, plan: planner{layers: p.opts.layers}}
	w.visit = func(s source) error {
		if s.Kind != repo.EntryFile {
			return c.next(ctx, ordered{entry: s.Entry})
		}
		return c.file(ctx, s)
	}
	if err := w.run(ctx); err != nil {
		return err
	}
	return c.flush(ctx)
}

// cutter gathers small stretches into units.
type cutter struct {
	p     *pipeline
	plan  planner
	batch unit
	size  int64
}

func (c *cutter) flush(ctx context.Context) error {
	if len(c.batch.stretches) == 0 {
		return nil
	}
	u := c.batch
	c.batch, c.size = unit{}, 0
	return put(ctx, c.p.units, &u)
}

// next hands an entry to the collector, which may be waiting for a file of the
// batch: before this goroutine waits for the collector, the batch goes to the
// workers.
func (c *cutter) next(ctx context.Context, entry ordered) error {
	select {
	case c.p.order <- entry:
		return nil
	default:
	}
	if err := c.flush(ctx); err != nil {
		return err
	}
	return put(ctx, c.p.order, entry)
}

func (c *cutter) file(ctx context.Context, s source) error {
	f, stretches, err := c.plan.file(ctx, s)
	if err != nil {
		return err
	}
	if !c.p.runs.TryAcquire(f.weight) {
		if err := c.flush(ctx); err != nil {
			return err
		}
		if err := c.p.runs.Acquire(ctx, f.weight); err != nil {
			return context.Cause(ctx)
		}
	}
	if err := c.next(ctx, ordered{file: f}); err != nil {
		return err
	}
	for _, one := range stretches {
		n := one.bytes()
		if n > batchBytes {
			if err := c.flush(ctx); err != nil {
				return err
			}
			if err := put(ctx, c.p.units, &unit{stretches: []stretch{one}}); err != nil {
				return err
			}
			continue
		}
		c.batch.stretches = append(c.batch.stretches, one)
		if c.size += n; c.size >= batchBytes || len(c.batch.stretches) >= batchStretches {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
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
		packs: p.packs, enc: enc, pages: p.opts.pages, limit: p.limit,
		meter: p.opts.meter, raw: make([]byte, 0, compress.MaxFrame), scan: make([]byte, 0, compress.MaxFrame), block: p.opts.block,
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
	last := ""
	for next := range p.order {
		f := next.file
		if f == nil {
			if err := p.manifest.Add(ctx, next.entry, nil); err != nil {
				return err
			}
			last = next.entry.Path
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
					s.file.seen[s.slot] = true
				}
				if err := p.mark(ctx, last, f); err != nil {
					return err
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := p.addFile(ctx, f); err != nil {
			return err
		}
		p.runs.Release(f.weight)
		last = f.Path
		if err := p.mark(ctx, last, nil); err != nil {
			return err
		}
	}
	return nil
}

func (p *pipeline) mark(ctx context.Context, last string, f *fileState) error {
	if p.opts.marks == nil {
		return nil
	}
	return p.opts.marks.due(ctx, last, f)
}

// addFile puts a file together. One that was gone when it was read is left out:
// its removal is in the WAL.
func (p *pipeline) addFile(ctx context.Context, f *fileState) error {
	for _, r := range f.results {
		if r.gone {
			p.opts.meter.vanished.Add(1)
			return nil
		}
	}
	if f.summed() {
		f.Sum, f.HasSum = f.results[0].sum, true
		if now := f.results[0].now; now != nil {
			f.Size, f.ModTime = now.size, now.modified
		}
	}
	parts, inherited := f.assemble(p.opts.name)
	f.results, f.former = nil, nil
	p.opts.meter.files.Add(1)
	p.opts.meter.inherited.Add(inherited)
	return p.manifest.Add(ctx, f.Entry, parts)
}

// meter counts what passes, for progress and the summary.
type meter struct {
	read      atomic.Int64 // bytes read from the data directory
	stored    atomic.Int64 // bytes after compression
	files     atomic.Int64
	vanished  atomic.Int64
	inherited atomic.Int64 // bytes that are as an earlier backup has them
	total     atomic.Int64 // bytes expected, 0 while not known
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
