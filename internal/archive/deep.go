package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/summary"
)

// DeepOptions say how objects are read.
type DeepOptions struct {
	// All reads every WAL file; else only the segments that the backups need.
	All bool
	// Reach says which these are.
	Reach Reach
	// Concurrency is how many objects are read at a time; less than 1 is 1.
	Concurrency int
	// Fresh reports whether an object was read so short a time ago that it need
	// not be read again; nil: all are read. The one right before one that is read
	// is read too, since they must join.
	Fresh func(place string, o repo.WALObject) bool
	// Good is told of each object that is what its name says and joins the one
	// before it; nil: nobody is.
	Good func(place string, o repo.WALObject)
}

// reading reads the WAL of one place, each object once, several at a time, and
// joins their findings in the order of the listing.
type reading struct {
	survey  *Survey
	repo    *repo.Repository
	place   repo.WALHeld
	verdict *Verdict
	backups []*repo.Backup
	opts    DeepOptions

	needs [][]Span // of each of the backups
	chain *chain
}

// outcome is what was found out about one object.
type outcome struct {
	object  repo.WALObject
	summary *summary.Summary // of a segment
	err     error
}

// run reads all; its error ends the verification: no identity fits, or ctx has
// ended.
func (d *reading) run(ctx context.Context) error {
	d.chain = newChain(d.survey)
	for _, b := range d.backups {
		spans, err := d.survey.needs(b, d.opts.Reach)
		if err != nil {
			return err
		}
		d.needs = append(d.needs, spans)
	}
	ctx, cancel := context.WithCancel(ctx)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	// One slot for each object that is read or waits for those before it.
	order := make(chan chan outcome, max(d.opts.Concurrency, 1)-1)
	var listed error
	begin := func(o repo.WALObject) {
		result := make(chan outcome, 1)
		select {
		case order <- result:
			workers.Go(func() { result <- d.read(ctx, o) })
		case <-ctx.Done():
		}
	}
	workers.Go(func() {
		defer close(order)
		var skipped *repo.WALObject // the last one, if it was
		for o, err := range d.repo.WALObjects(ctx, d.place.Name, d.survey.Cluster) {
			switch {
			case err != nil:
				listed = err
				return
			case ctx.Err() != nil:
				return
			case !d.wanted(o):
				continue
			case d.opts.Fresh != nil && d.opts.Fresh(d.place.Name, o):
				skipped = &o
				continue
			}
			if skipped != nil && d.precedes(*skipped, o) {
				begin(*skipped)
			}
			skipped = nil
			begin(o)
		}
	})
	for result := range order {
		o := <-result
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if errs.KindOf(o.err) == errs.Identity {
			return o.err
		}
		if !d.take(o) {
			return nil // the place is away, and would fail for each of the others
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if listed != nil {
		d.verdict.add(Finding{Kind: Unreachable, Repository: d.place.Name, Err: listed})
	}
	return nil
}

// precedes reports whether a segment is the one before another.
func (d *reading) precedes(a, b repo.WALObject) bool {
	before, err := a.File.Segment(d.survey.Size)
	after, aerr := b.File.Segment(d.survey.Size)
	return errors.Join(err, aerr) == nil && a.File.Kind == postgres.WALSegment && before.Next() == after
}

func (d *reading) wanted(o repo.WALObject) bool {
	return d.opts.All || len(d.hurt(o.File)) > 0
}

// read opens one object, decodes it, proves its hash, and looks whether it is
// what its name says.
func (d *reading) read(ctx context.Context, o repo.WALObject) outcome {
	out := outcome{object: o}
	out.err = d.repo.ReadWALObject(ctx, d.place.Name, o.Key, func(raw io.Reader) error {
		switch o.File.Kind {
		case postgres.WALSegment, postgres.WALPartial:
			b := summary.NewBuilder()
			if err := d.segment(o, raw, b); err != nil {
				return err
			}
			out.summary = lightened(b)
			return nil
		case postgres.WALHistory:
			body, err := io.ReadAll(io.LimitReader(raw, maxText))
			if err != nil {
				return err
			}
			_, err = postgres.ParseHistory(o.File.Timeline, body)
			return d.wrong(o, err)
		default:
			_, err := io.Copy(io.Discard, raw)
			return err
		}
	})
	return out
}

// maxText bounds a history file, in bytes.
const maxText = 1 << 20

func (d *reading) segment(o repo.WALObject, raw io.Reader, records *summary.Builder) error {
	check := postgres.NewSegmentChecker(o.File, int64(d.survey.Size), uint64(d.survey.Cluster))
	var odd error
	err := repo.EachChunk(raw, func(b []byte) error {
		if odd == nil {
			_, odd = check.Write(b)
		}
		_, err := records.Write(b)
		return err
	})
	if err != nil {
		return err // the object itself: that tells more
	}
	if odd == nil {
		odd = check.Close()
	}
	return d.wrong(o, odd)
}

func (d *reading) wrong(o repo.WALObject, err error) error {
	return errs.Wrap(err, errs.Damaged, "", "object %s of %s is not what its name says", o.Key, d.place.URL)
}

// take judges the next object in order, and how it joins the one before. It is
// false if the place could not be asked.
func (d *reading) take(o outcome) (answered bool) {
	d.verdict.Objects++
	d.verdict.Bytes += o.object.Size
	switch {
	case o.err == nil:
	case errs.KindOf(o.err) == errs.Damaged && !errors.Is(o.err, storage.ErrUnavailable):
		d.verdict.add(Finding{Kind: Damaged, Repository: d.place.Name, Key: o.object.Key, Err: o.err, Backups: d.hurt(o.object.File)})
	default:
		d.verdict.add(Finding{Kind: Unreachable, Repository: d.place.Name, Key: o.object.Key, Err: o.err})
		return false
	}
	joined := o.err == nil
	if o.object.File.Kind == postgres.WALSegment {
		joined = d.join(o)
	}
	if joined && d.opts.Good != nil {
		d.opts.Good(d.place.Name, o.object)
	}
	return true
}

// join looks whether the segment can follow the one before, if that is the
// segment before. It is false if something is wrong.
func (d *reading) join(o outcome) bool {
	seg, err := o.object.File.Segment(d.survey.Size)
	if err != nil || o.err != nil {
		d.chain.lost()
		return false
	}
	if err := d.chain.add(seg, o.summary); err != nil {
		d.verdict.add(Finding{
			Kind: Damaged, Repository: d.place.Name, Key: o.object.Key, Backups: d.hurt(o.object.File),
			Err: fmt.Errorf("object %s of %s cannot be replayed behind the segment before it, or not to its end: %w", o.object.Key, d.place.URL, err),
		})
		return false
	}
	return true
}

// hurt are the backups whose recovery may ask for the file: a segment, or the
// history of a timeline.
func (d *reading) hurt(f postgres.WALFile) []repo.BackupName {
	history := f.Kind == postgres.WALHistory
	seg, err := f.Segment(d.survey.Size)
	if !history && (err != nil || f.Kind != postgres.WALSegment) {
		return nil
	}
	var names []repo.BackupName
	for i, b := range d.backups {
		if slices.ContainsFunc(d.needs[i], func(sp Span) bool {
			if history {
				return sp.First.Timeline == f.Timeline
			}
			return sp.First.Timeline == seg.Timeline && sp.First.Number <= seg.Number && seg.Number <= sp.Last.Number
		}) {
			names = append(names, b.Name)
		}
	}
	return names
}
