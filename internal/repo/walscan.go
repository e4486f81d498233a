package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"time"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// WALRange is a row of archived segments of one timeline without a hole.
type WALRange struct {
	First, Last postgres.Segment
	Bytes       int64     // stored
	Since       time.Time // when the oldest of them was archived, by the store's clock
	Until       time.Time // when the newest was
}

// Segments is how many there are.
func (w WALRange) Segments() uint64 { return w.Last.Number - w.First.Number + 1 }

// WALHeld is what one place holds of a cluster's WAL.
type WALHeld struct {
	Name     string
	URL      string
	Required bool
	// Err is why the place could not be listed, or not to its end: the rest
	// then says nothing about what is missing.
	Err       error
	Ranges    []WALRange // by timeline and number
	Histories []postgres.Timeline
	Dropped   []DroppedRange
}

// WALScan is what all places hold of a cluster's WAL.
type WALScan struct {
	Places []WALHeld
	// Ranges are those of all places together. Sizes and times of a segment
	// are those of the first place that has it.
	Ranges []WALRange
	// Odd counts segments whose names are not possible with the segment size.
	Odd int
}

// Dropped are the recorded rows of all places, by name.
func (s *WALScan) Dropped() []DroppedRange {
	var all []DroppedRange
	for _, p := range s.Places {
		all = append(all, p.Dropped...)
	}
	return distinct(all)
}

// scanAhead is how many objects of each place's listing are read before those
// of the others come to their keys.
const scanAhead = 2000

// ScanWAL lists all WAL of a cluster, in all places side by side, and nothing
// but that: a page of a listing for about a thousand segments. What it keeps
// grows with the holes, not with the segments. A place that cannot be listed has
// its error in the result.
func (r *Repository) ScanWAL(ctx context.Context, cluster ClusterID, size postgres.SegmentSize) (*WALScan, error) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	scan := &WALScan{Places: make([]WALHeld, len(r.places))}
	streams := make([]*walStream, len(r.places))
	for i, p := range r.places {
		s := &walStream{infos: make(chan storage.Info, scanAhead)}
		streams[i] = s
		scan.Places[i] = WALHeld{Name: p.Name, URL: p.String(), Required: p.Required}
		all.Go(func() { s.fill(ctx, p, cluster, &scan.Places[i]) })
	}
	for _, s := range streams {
		s.advance()
	}
	for {
		key := ""
		for _, s := range streams {
			if s.ok && (key == "" || s.info.Key < key) {
				key = s.info.Key
			}
		}
		if key == "" {
			break
		}
		segment, ok := segmentOf(key, size)
		if !ok {
			scan.Odd++
		}
		seen := false
		for i, s := range streams {
			if !s.ok || s.info.Key != key {
				continue
			}
			if ok {
				scan.Places[i].Ranges = extend(scan.Places[i].Ranges, segment, s.info)
			}
			if ok && !seen {
				scan.Ranges = extend(scan.Ranges, segment, s.info)
			}
			seen = true
			s.advance()
		}
	}
	all.Wait()
	return scan, context.Cause(ctx)
}

// walStream is the listing of the segments at one place, read ahead.
type walStream struct {
	infos chan storage.Info
	info  storage.Info
	ok    bool // info is the next one
}

func (s *walStream) advance() { s.info, s.ok = <-s.infos }

// fill lists what a place holds; held is its own until infos is closed.
func (s *walStream) fill(ctx context.Context, p *place, cluster ClusterID, held *WALHeld) {
	defer close(s.infos)
	err := p.err()
	if err == nil {
		held.Dropped, err = droppedIn(ctx, p, cluster, 0)
	}
	if err == nil {
		held.Histories, err = historiesIn(ctx, p, cluster)
	}
	if err == nil {
		err = s.segments(ctx, p, cluster)
	}
	held.Err = err
}

func (s *walStream) segments(ctx context.Context, p *place, cluster ClusterID) error {
	for info, err := range p.Bucket.List(ctx, cluster.walPrefix(), "") {
		if err != nil {
			return fmt.Errorf("list WAL: %w", err)
		}
		if f, ok := walObject(info.Key); !ok || f.Kind != postgres.WALSegment {
			continue
		}
		select {
		case s.infos <- info:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func historiesIn(ctx context.Context, p *place, cluster ClusterID) ([]postgres.Timeline, error) {
	var all []postgres.Timeline
	for info, err := range p.Bucket.List(ctx, cluster.historyPrefix(), "") {
		if err != nil {
			return nil, fmt.Errorf("list timeline histories: %w", err)
		}
		if f, ok := walObject(info.Key); ok && f.Kind == postgres.WALHistory {
			all = append(all, f.Timeline)
		}
	}
	return all, nil
}

// walObject says which file the object of a key below wal/ or history/ is.
func walObject(key string) (postgres.WALFile, bool) {
	name := key[strings.LastIndexByte(key, '/')+1:]
	if stem, _, ok := strings.Cut(name, ".partial."); ok {
		name = stem + ".partial" // the key goes on with the hash
	}
	f, err := postgres.ParseWALFile(name)
	return f, err == nil
}

func segmentOf(key string, size postgres.SegmentSize) (postgres.Segment, bool) {
	f, ok := walObject(key)
	if !ok {
		return postgres.Segment{}, false
	}
	s, err := f.Segment(size)
	return s, err == nil
}

// extend adds a segment that comes behind all others.
func extend(ranges []WALRange, s postgres.Segment, info storage.Info) []WALRange {
	if n := len(ranges); n > 0 && ranges[n-1].Last.Next() == s {
		last := &ranges[n-1]
		last.Last, last.Bytes = s, last.Bytes+info.Size
		if info.ModTime.Before(last.Since) {
			last.Since = info.ModTime
		}
		if info.ModTime.After(last.Until) {
			last.Until = info.ModTime
		}
		return ranges
	}
	return append(ranges, WALRange{First: s, Last: s, Bytes: info.Size, Since: info.ModTime, Until: info.ModTime})
}

// WALObject is a stored WAL file.
type WALObject struct {
	Key  string
	File postgres.WALFile
	Size int64 // stored bytes
}

// WALObjects lists the objects of WAL files in the place of that name: segments
// with what belongs to each, in their order, then histories. Keys of other kinds
// are left out.
func (r *Repository) WALObjects(ctx context.Context, place string, cluster ClusterID) iter.Seq2[WALObject, error] {
	return func(yield func(WALObject, error) bool) {
		p, err := r.named(place)
		if err != nil {
			yield(WALObject{}, err)
			return
		}
		for _, prefix := range []string{cluster.walPrefix(), cluster.historyPrefix()} {
			for info, err := range p.Bucket.List(ctx, prefix, "") {
				if err != nil {
					yield(WALObject{}, fmt.Errorf("list WAL: %w", err))
					return
				}
				f, ok := walObject(info.Key)
				if ok && !yield(WALObject{Key: info.Key, File: f, Size: info.Size}, nil) {
					return
				}
			}
		}
	}
}

// ReadWALObject lets use take the raw bytes of a WAL file's object from the
// place of that name and from nowhere else; they are proved at their end.
func (r *Repository) ReadWALObject(ctx context.Context, place, key string, use func(io.Reader) error) error {
	p, err := r.named(place)
	if err != nil {
		return err
	}
	s := source{repo: r, place: p}
	o, err := s.openObject(ctx, key)
	if err != nil {
		return missing(err, key, p.String())
	}
	if o.want == nil {
		err = s.damaged(errNoHash, key)
	} else {
		err = use(o)
	}
	return errors.Join(err, o.Close())
}

// named is the place of that name, if it can be used.
func (r *Repository) named(name string) (*place, error) {
	for _, p := range r.places {
		if p.Name == name {
			err := p.err()
			return p, err
		}
	}
	return nil, fmt.Errorf("there is no repository %q", name)
}
