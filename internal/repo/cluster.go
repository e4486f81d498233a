package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"agent/internal/postgres"
	"agent/internal/storage"
)

// Cluster is cluster.json: what stays the same for a system identifier.
type Cluster struct {
	Format         int                  `json:"format"`
	ID             ClusterID            `json:"system_identifier,string"`
	Major          int                  `json:"postgres_major"`
	CatalogVersion uint32               `json:"catalog_version"`
	BlockSize      uint32               `json:"block_size"`
	RelSegBlocks   uint32               `json:"relation_segment_blocks"`
	SegmentSize    postgres.SegmentSize `json:"wal_segment_size"`
	Created        time.Time            `json:"created"`
}

// EnsureCluster creates cluster.json if it is not there.
func (r *Repository) EnsureCluster(ctx context.Context, c Cluster) error {
	c.Format, c.Created = Format, timestamp(r.now())
	body, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode cluster.json: %w", err)
	}
	body = append(body, '\n')
	err = r.everywhere(ctx, c.ID.clusterKey(), func(ctx context.Context, p *place) error {
		_, err := p.Bucket.Put(ctx, c.ID.clusterKey(), storage.Bytes(body), storage.PutOptions{Lock: p.lock(r.now())})
		if errors.Is(err, storage.ErrExists) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("store cluster.json: %w", err)
	}
	return nil
}

// Cluster reads cluster.json.
func (r *Repository) Cluster(ctx context.Context, id ClusterID) (Cluster, error) {
	var c Cluster
	err := r.read(ctx, id.clusterKey(), expected, func(s source) error {
		body, err := s.readAll(ctx, id.clusterKey(), maxMarker)
		if err != nil {
			return err
		}
		c = Cluster{}
		if err := json.Unmarshal(body, &c); err != nil {
			return s.damaged(fmt.Errorf("decode: %w", err), id.clusterKey())
		}
		if c.ID != id || !c.SegmentSize.Valid() {
			return s.damaged(fmt.Errorf("it describes cluster %s with WAL segments of %d bytes", c.ID, uint32(c.SegmentSize)), id.clusterKey())
		}
		return nil
	})
	return c, err
}
