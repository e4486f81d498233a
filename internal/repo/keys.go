// Package repo is the repository format: which objects there are, how they
// are named, sealed, packed and described. It knows PostgreSQL's names (LSN,
// segment, timeline) but no server and no command. docs/format.md is the same
// knowledge byte by byte.
package repo

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"regexp"
	"strings"
	"time"

	"agent/internal/postgres"
)

// repositoryKey is the one object outside of any cluster.
const repositoryKey = "repository.json"

// clusterRoot holds one folder for each system identifier.
const clusterRoot = "cluster/"

// ClusterID is PostgreSQL's system identifier, the name of a cluster in the
// repository. pg_upgrade makes a new one.
type ClusterID uint64

// String is the identifier as PostgreSQL prints it.
func (c ClusterID) String() string { return fmt.Sprintf("%d", uint64(c)) }

// prefix is where everything of the cluster lies; the identifier has 20
// digits so that clusters list in numeric order.
func (c ClusterID) prefix() string { return fmt.Sprintf("%s%020d/", clusterRoot, uint64(c)) }

func (c ClusterID) clusterKey() string { return c.prefix() + "cluster.json" }

// WALKey names the object of a WAL file. There is one canonical key for each
// file, whatever the compression or encryption was, so that the store's
// create-if-absent protects it. hash is used for .partial files only: several
// different ones of one segment may exist, one for each promotion.
func (c ClusterID) WALKey(f postgres.WALFile, hash [32]byte) string {
	switch f.Kind {
	case postgres.WALHistory:
		return fmt.Sprintf("%shistory/%s", c.prefix(), f.Name)
	case postgres.WALPartial:
		return fmt.Sprintf("%s.%x", c.walDir(f)+f.Name, hash[:8])
	default:
		return c.walDir(f) + f.Name
	}
}

func (c ClusterID) walDir(f postgres.WALFile) string {
	return fmt.Sprintf("%s%08X%08X/", c.walPrefix(), uint32(f.Timeline), f.Log)
}

func (c ClusterID) walPrefix() string { return c.prefix() + "wal/" }

// timelinePrefix is the common part of the keys of all WAL of a timeline.
func (c ClusterID) timelinePrefix(t postgres.Timeline) string {
	return fmt.Sprintf("%s%08X", c.walPrefix(), uint32(t))
}

func (c ClusterID) historyPrefix() string { return c.prefix() + "history/" }

// streamPrefix is where the ranges of a timeline's unfinished segments lie.
func (c ClusterID) streamPrefix(t postgres.Timeline) string {
	return fmt.Sprintf("%sstream/%08X/", c.prefix(), uint32(t))
}

func (c ClusterID) backupPrefix() string { return c.prefix() + "backup/" }
func (c ClusterID) claimPrefix() string  { return c.prefix() + "claim/" }
func (c ClusterID) gapPrefix() string    { return c.prefix() + "gap/" }

func (c ClusterID) backupDir(name BackupName) string {
	return c.backupPrefix() + string(name) + "/"
}

func (c ClusterID) backupKey(name BackupName) string   { return c.backupDir(name) + "backup.json" }
func (c ClusterID) manifestKey(name BackupName) string { return c.backupDir(name) + "manifest" }
func (c ClusterID) packsKey(name BackupName) string    { return c.backupDir(name) + "packs" }

// packKey names pack n of a backup.
func (c ClusterID) packKey(name BackupName, n uint32) string {
	return fmt.Sprintf("%s%08x", c.packPrefix(name), n)
}

func (c ClusterID) packPrefix(name BackupName) string { return c.backupDir(name) + "pack/" }

func (c ClusterID) claimKey(name BackupName, n int) string {
	return fmt.Sprintf("%s%s/%d", c.claimPrefix(), name, n)
}

// claimEnd says that a claim was given back.
func (c ClusterID) claimEnd(name BackupName) string {
	return fmt.Sprintf("%s%s/ended", c.claimPrefix(), name)
}

// BackupName is the UTC start time and six random letters, for people:
// nothing is ordered by it, since clocks go wrong.
type BackupName string

var backupNameRE = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-[a-z2-7]{6}$`)

// NewBackupName makes a name that no other host makes in the same second but
// by a chance of one in 2^30; the claim on it is decided by the store.
func NewBackupName(now time.Time) (BackupName, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("read random name: %w", err)
	}
	suffix := strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:6]
	return BackupName(now.UTC().Format("20060102T150405Z-") + suffix), nil
}

// ParseBackupName refuses what is not a backup's name, so that it can go into
// a key.
func ParseBackupName(s string) (BackupName, error) {
	if !backupNameRE.MatchString(s) {
		return "", fmt.Errorf("%q is not a backup name such as 20261120T101530Z-k3v7qa", s)
	}
	return BackupName(s), nil
}

// firstComponent splits "name/rest" below prefix off key.
func firstComponent(key, prefix string) string {
	rest := strings.TrimPrefix(key, prefix)
	name, _, _ := strings.Cut(rest, "/")
	return name
}
