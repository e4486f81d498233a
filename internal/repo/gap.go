package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// Dropped is the record of a row of segments of one timeline that were thrown
// away on purpose, so that no recovery takes their absence for the end of the
// WAL.
type Dropped struct {
	Format      int                  `json:"format"`
	Cluster     ClusterID            `json:"system_identifier,string"`
	Timeline    postgres.Timeline    `json:"timeline"`
	First       string               `json:"first"` // names of the first and the last segment
	Last        string               `json:"last"`
	Segments    uint64               `json:"segments"`
	SegmentSize postgres.SegmentSize `json:"wal_segment_size"`
	StartLSN    postgres.LSN         `json:"start_lsn"`
	EndLSN      postgres.LSN         `json:"end_lsn"` // exclusive
	Time        time.Time            `json:"time"`
	Host        string               `json:"host"`
	Reason      string               `json:"reason"`
	Backlog     int64                `json:"backlog_bytes"`
	Limit       int64                `json:"max_backlog"`
	Agent       string               `json:"agent"`
}

// gapKey names the record of a dropped row. The key alone says which segments
// these are, so that a listing is enough.
func (c ClusterID) gapKey(first, last postgres.Segment, size postgres.SegmentSize) string {
	return fmt.Sprintf("%s%s-%s-%s.json", c.gapPrefix(), first.Timeline, first.Name(size), last.Name(size))
}

// StoreDropped records that the segments from first to last, of one timeline,
// are dropped. When it returns without error the record is durable in every
// required place. One that is there already is as good.
func (r *Repository) StoreDropped(ctx context.Context, d Dropped, first, last postgres.Segment) error {
	size := d.SegmentSize
	d.Format, d.Time, d.Agent = Format, timestamp(r.now()), r.version
	d.Timeline, d.First, d.Last = first.Timeline, first.Name(size), last.Name(size)
	d.Segments, d.StartLSN, d.EndLSN = last.Number-first.Number+1, first.Start(size), last.End(size)
	body, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the record of dropped WAL: %w", err)
	}
	body = append(body, '\n')
	key := d.Cluster.gapKey(first, last, size)
	err = r.everywhere(ctx, key, func(ctx context.Context, p *place) error {
		_, err := p.Bucket.Put(ctx, key, storage.Bytes(body), storage.PutOptions{Lock: p.lock(r.now())})
		if errors.Is(err, storage.ErrExists) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("record dropped WAL: %w", err)
	}
	return nil
}

// DroppedRange is a row of dropped segments as the key of its record tells it.
type DroppedRange struct {
	First, Last string    // names of segments of one timeline
	At          time.Time // when it was recorded, by the store's clock
}

// Holds reports whether the segment of that name is in the range. Names of one
// length sort as the segments do.
func (d DroppedRange) Holds(name string) bool {
	return len(name) == len(d.First) && name >= d.First && name <= d.Last
}

// droppedIn lists the records at a place; a timeline of 0 is all timelines.
// What is not such a key is of another kind and left alone.
func droppedIn(ctx context.Context, p *place, cluster ClusterID, t postgres.Timeline) ([]DroppedRange, error) {
	prefix := cluster.gapPrefix()
	if t != 0 {
		prefix += t.String() + "-"
	}
	var all []DroppedRange
	for info, err := range p.Bucket.List(ctx, prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list dropped WAL: %w", err)
		}
		if d, ok := parseDropped(strings.TrimPrefix(info.Key, cluster.gapPrefix())); ok {
			d.At = info.ModTime
			all = append(all, d)
		}
	}
	return all, nil
}

// DroppedWAL lists the records of dropped segments of all places that answer,
// by name.
func (r *Repository) DroppedWAL(ctx context.Context, cluster ClusterID) ([]DroppedRange, error) {
	var all []DroppedRange
	err := r.anywhere(func(p *place) error {
		dropped, err := droppedIn(ctx, p, cluster, 0)
		all = append(all, dropped...)
		return err
	})
	return distinct(all), err
}

// distinct are the ranges by name, each once.
func distinct(all []DroppedRange) []DroppedRange {
	slices.SortStableFunc(all, func(a, b DroppedRange) int { return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last)) })
	return slices.CompactFunc(all, func(a, b DroppedRange) bool { return a.First == b.First && a.Last == b.Last })
}

// parseDropped reads "<timeline>-<first>-<last>.json".
func parseDropped(name string) (DroppedRange, bool) {
	stem, ok := strings.CutSuffix(name, ".json")
	parts := strings.Split(stem, "-")
	if !ok || len(parts) != 3 {
		return DroppedRange{}, false
	}
	for _, segment := range parts[1:] {
		f, err := postgres.ParseWALFile(segment)
		if err != nil || f.Kind != postgres.WALSegment || f.Timeline.String() != parts[0] {
			return DroppedRange{}, false
		}
	}
	return DroppedRange{First: parts[1], Last: parts[2]}, parts[1] <= parts[2]
}

// Gap says why a segment that is not in the repository must have been there:
// a later segment of its timeline is, or a part of one, or a descendant left the
// timeline behind it, or it is recorded that it was dropped. An empty reason means that the WAL
// simply ends before it. The listings that this needs run side by side.
func (r *Repository) Gap(ctx context.Context, cluster ClusterID, f postgres.WALFile, size postgres.SegmentSize) (reason string, err error) {
	looks := []func() (string, error){
		func() (string, error) {
			return r.firstReason(func(p *place) (string, error) {
				later, err := laterSegment(ctx, p, cluster, f)
				if later == "" || err != nil {
					return "", err
				}
				return "the later segment " + later + " is there", nil
			})
		},
		func() (string, error) {
			return r.firstReason(func(p *place) (string, error) { return laterStreamed(ctx, p, cluster, f, size) })
		},
		func() (string, error) {
			return r.firstReason(func(p *place) (string, error) {
				all, err := droppedIn(ctx, p, cluster, f.Timeline)
				for _, d := range all {
					if d.Holds(f.Name) {
						return fmt.Sprintf("it was dropped with the segments %s to %s, at %s, to save the server (max_backlog)", d.First, d.Last, d.At.UTC().Format(time.RFC3339)), nil
					}
				}
				return "", err
			})
		},
		func() (string, error) { return r.left(ctx, cluster, f, size) },
	}
	reasons, failed := make([]string, len(looks)), make([]error, len(looks))
	var all sync.WaitGroup
	for i, look := range looks {
		all.Go(func() { reasons[i], failed[i] = look() })
	}
	all.Wait()
	for _, reason := range reasons {
		if reason != "" {
			return reason, nil
		}
	}
	return "", errors.Join(failed...)
}

// firstReason asks all places at once for a reason, and gives that of the first
// that has one. Without any it fails if a required place does not answer.
func (r *Repository) firstReason(ask func(*place) (string, error)) (string, error) {
	reasons, failed := make([]string, len(r.places)), make([]error, len(r.places))
	var all sync.WaitGroup
	for i, p := range r.places {
		if p.Bucket == nil {
			failed[i] = p.Err
			continue
		}
		all.Go(func() { reasons[i], failed[i] = ask(p) })
	}
	all.Wait()
	var required error
	for i, p := range r.places {
		switch {
		case reasons[i] != "":
			return reasons[i], nil
		case failed[i] != nil && p.Required:
			required = first(required, failed[i])
		case failed[i] != nil:
			r.log.Warn("a best-effort repository could not be asked", "repository", p.Name, "error", failed[i].Error())
		}
	}
	return "", required
}

// left says which descendant left the segment's timeline behind the segment.
func (r *Repository) left(ctx context.Context, cluster ClusterID, f postgres.WALFile, size postgres.SegmentSize) (string, error) {
	histories, damaged, err := r.histories(ctx, cluster, r.surely)
	for _, d := range damaged {
		err = errors.Join(err, d) // it might be the one that tells
	}
	if err != nil {
		return "", err
	}
	segment, err := postgres.ParseSegment(f.Name, size)
	if err != nil {
		return "", err
	}
	for t, h := range histories {
		if at, ok := h.SwitchPoint(f.Timeline); ok && segment.Number < at.Segment(size) {
			return fmt.Sprintf("timeline %d left timeline %d behind it, at %s", t, f.Timeline, at), nil
		}
	}
	return "", nil
}

func laterSegment(ctx context.Context, p *place, cluster ClusterID, f postgres.WALFile) (string, error) {
	for info, err := range p.Bucket.List(ctx, cluster.timelinePrefix(f.Timeline), cluster.WALKey(f, [32]byte{})) {
		if err != nil {
			return "", fmt.Errorf("look for later WAL: %w", err)
		}
		name := info.Key[strings.LastIndexByte(info.Key, '/')+1:]
		later, err := postgres.ParseWALFile(name)
		if err == nil && later.Kind == postgres.WALSegment && later.Timeline == f.Timeline && later.Name > f.Name {
			return later.Name, nil
		}
	}
	return "", nil
}

// laterStreamed says which part of a later segment there is. A receiver stores
// none before all segments before it are whole, unless it went on behind a gap.
func laterStreamed(ctx context.Context, p *place, cluster ClusterID, f postgres.WALFile, size postgres.SegmentSize) (string, error) {
	segment, err := f.Segment(size)
	if err != nil {
		return "", fmt.Errorf("look for later streamed WAL: %w", err)
	}
	prefix := cluster.streamPrefix(f.Timeline)
	for info, err := range p.Bucket.List(ctx, prefix, fmt.Sprintf("%s%016X", prefix, uint64(segment.End(size)))) {
		if err != nil {
			return "", fmt.Errorf("look for later streamed WAL: %w", err)
		}
		if g, ok := parseStreamName(f.Timeline, strings.TrimPrefix(info.Key, prefix)); ok {
			return "the later WAL " + g.String() + " is there", nil
		}
	}
	return "", nil
}
