package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// A delete that keeps a backup with its own WAL alone leaves holes behind it. So
// that these are not taken for lost WAL, it says before it removes any from which
// segment of a timeline on there is all of it.

// Horizon is the content of such a record.
type Horizon struct {
	Format   int               `json:"format"`
	Cluster  ClusterID         `json:"system_identifier,string"`
	Timeline postgres.Timeline `json:"timeline"`
	// First is the first segment of which, and of all later ones, none was
	// deleted.
	First string    `json:"first"`
	Time  time.Time `json:"time"`
	Host  string    `json:"host"`
	Agent string    `json:"agent"`
}

func (c ClusterID) horizonPrefix() string { return c.prefix() + "horizon/" }

func (c ClusterID) horizonKey(seg postgres.Segment, size postgres.SegmentSize) string {
	return fmt.Sprintf("%s%s-%s.json", c.horizonPrefix(), seg.Timeline, seg.Name(size))
}

// StoreHorizon records from which segment on all WAL of its timeline stays, in
// every required place, and takes earlier records of it away.
func (r *Repository) StoreHorizon(ctx context.Context, cluster ClusterID, seg postgres.Segment, size postgres.SegmentSize, host string) error {
	body, err := json.MarshalIndent(Horizon{
		Format: Format, Cluster: cluster, Timeline: seg.Timeline, First: seg.Name(size), Time: timestamp(r.now()), Host: host, Agent: r.version,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the record of expired WAL: %w", err)
	}
	body = append(body, '\n')
	key := cluster.horizonKey(seg, size)
	err = r.everywhere(ctx, key, func(ctx context.Context, p *place) error {
		_, err := p.Bucket.Put(ctx, key, storage.Bytes(body), storage.PutOptions{})
		if err != nil && !errors.Is(err, storage.ErrExists) {
			return err
		}
		var earlier []string
		for info, err := range p.Bucket.List(ctx, cluster.horizonPrefix()+seg.Timeline.String()+"-", "") {
			if err != nil {
				return fmt.Errorf("list records of expired WAL: %w", err)
			}
			if info.Key < key { // names of one length sort as segments do
				earlier = append(earlier, info.Key)
			}
		}
		if len(earlier) == 0 {
			return nil
		}
		return p.Bucket.Delete(ctx, earlier...)
	})
	if err != nil {
		return fmt.Errorf("record expired WAL: %w", err)
	}
	return nil
}

// Horizons says for each timeline from which segment on none was deleted: below
// it there is only what single backups need. It costs a listing of each place; a
// timeline of which nothing was deleted is not in it.
func (r *Repository) Horizons(ctx context.Context, cluster ClusterID, size postgres.SegmentSize) (map[postgres.Timeline]uint64, error) {
	all := make(map[postgres.Timeline]uint64)
	err := r.anywhere(func(p *place) error {
		for info, err := range p.Bucket.List(ctx, cluster.horizonPrefix(), "") {
			if err != nil {
				return fmt.Errorf("list records of expired WAL: %w", err)
			}
			stem, _ := strings.CutSuffix(strings.TrimPrefix(info.Key, cluster.horizonPrefix()), ".json")
			_, name, _ := strings.Cut(stem, "-")
			if seg, err := postgres.ParseSegment(name, size); err == nil {
				all[seg.Timeline] = max(all[seg.Timeline], seg.Number)
			}
		}
		return nil
	})
	return all, err
}
