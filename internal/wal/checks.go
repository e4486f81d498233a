package wal

import (
	"io"

	"agent/internal/postgres"
	"agent/internal/repo"
)

// Check is told the bytes of a WAL file, says at the end whether it may be
// archived, and remarks on what was taken nevertheless.
type Check = checker

// CheckSegment is what wal-push asks of a segment or .partial file of a cluster,
// which can be read again.
func CheckSegment(f postgres.WALFile, size int64, cluster repo.ClusterID, again io.ReaderAt) Check {
	return newSegmentCheck(f, size, cluster, again, "")
}

// CheckHistory is what wal-push asks of a timeline history file.
func CheckHistory(f postgres.WALFile) Check { return &textCheck{name: f} }
