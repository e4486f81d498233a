package delta

import (
	"fmt"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// State is what a backup's server is like.
type State struct {
	Cluster        repo.ClusterID
	Major          int
	CatalogVersion uint32
	BlockSize      int64
	SegmentSize    postgres.SegmentSize
	Checksums      bool
	Timeline       postgres.Timeline
	History        postgres.History
	Start          postgres.LSN // of the backup; 0 while it is not known
}

// Unfit says why a backup cannot be the parent of one of this server, in words
// that go on "backup X cannot be the parent: "; empty: it can.
func Unfit(parent *repo.Backup, now State) string {
	switch {
	case parent.Cluster != now.Cluster:
		return fmt.Sprintf("it is of cluster %s", parent.Cluster)
	case parent.PostgresVersion/10000 != now.Major:
		return fmt.Sprintf("it is of PostgreSQL %d, the server is %d", parent.PostgresVersion/10000, now.Major)
	case parent.CatalogVersion != 0 && parent.CatalogVersion != now.CatalogVersion:
		return fmt.Sprintf("it is of catalog version %d, the server's is %d", parent.CatalogVersion, now.CatalogVersion)
	case parent.BlockSize != now.BlockSize || parent.SegmentSize != now.SegmentSize:
		return fmt.Sprintf("its blocks and WAL segments have %d and %d bytes, the server's %d and %d",
			parent.BlockSize, parent.SegmentSize, now.BlockSize, now.SegmentSize)
	case parent.Checksums != now.Checksums:
		return "page checksums were switched since"
	case parent.BadPages > 0:
		return fmt.Sprintf("it has %d damaged pages", parent.BadPages)
	case !now.History.Contains(parent.Timeline):
		return fmt.Sprintf("its timeline %d is not one of those that led to the server's, %d", parent.Timeline, now.Timeline)
	}
	if left, ok := now.History.SwitchPoint(parent.Timeline); ok && parent.StopLSN > left {
		return fmt.Sprintf("it ended at %s, but the server left timeline %d at %s", parent.StopLSN, parent.Timeline, left)
	}
	if now.Start != 0 && parent.StopLSN > now.Start {
		return fmt.Sprintf("it ended at %s, behind %s where this backup starts", parent.StopLSN, now.Start)
	}
	return ""
}
