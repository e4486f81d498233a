package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"agent/internal/errs"
	"agent/internal/repo"
)

// done remembers, in the state directory, which WAL files were archived before
// PostgreSQL has asked for them, so that the call for each of them ends without
// asking the store. A file there that is lost or damaged costs a request and
// nothing else.
type done struct {
	dir  string
	repo *repo.Repository
	now  func() time.Time
}

// doneAge is how long a record may wait for its call.
const doneAge = time.Hour

// identity is what tells a file from another one of its name: PostgreSQL
// renames old segments to new names and writes into them, which changes their
// times, and a cluster that was restored has other files.
type identity struct {
	// Repositories says where the file was archived: what was done for others
	// does not count.
	Repositories string `json:"repositories"`

	Cluster string `json:"system_identifier"`
	Size    int64  `json:"size"`
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"`
	MTime   int64  `json:"mtime_ns"`
}

func newDone(stateDir string, r *repo.Repository, now func() time.Time) *done {
	return &done{dir: filepath.Join(stateDir, "archived"), repo: r, now: now}
}

func (d *done) identify(info os.FileInfo, cluster repo.ClusterID) (identity, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	where, pinned := d.repo.Pinned()
	if !ok || !pinned {
		return identity{}, false
	}
	return identity{
		Repositories: where, Cluster: cluster.String(), Size: info.Size(),
		Device: st.Dev, Inode: st.Ino, MTime: info.ModTime().UnixNano(),
	}, true
}

func (d *done) path(cluster repo.ClusterID, name string) string {
	return filepath.Join(d.dir, cluster.String(), name)
}

// add records that the file which info describes is durable. info was taken
// before its bytes were read.
func (d *done) add(cluster repo.ClusterID, name string, info os.FileInfo) error {
	id, ok := d.identify(info, cluster)
	if !ok {
		return nil
	}
	body, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	path := d.path(cluster, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return errs.State(err, "use the state directory")
	}
	// A torn record is not valid JSON, and does not count.
	return errs.State(os.WriteFile(path, append(body, '\n'), 0o600), "use the state directory")
}

// take reports whether just this file was archived, and forgets it: it is asked
// for once.
func (d *done) take(cluster repo.ClusterID, name string, info os.FileInfo) bool {
	ok := d.has(cluster, name, info)
	return os.Remove(d.path(cluster, name)) == nil && ok
}

// has reports whether there is a record that take would accept.
func (d *done) has(cluster repo.ClusterID, name string, info os.FileInfo) bool {
	path := d.path(cluster, name)
	record, err := os.Stat(path)
	if err != nil || d.now().Sub(record.ModTime()) > doneAge {
		return false
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	want, ok := d.identify(info, cluster)
	var have identity
	return json.Unmarshal(body, &have) == nil && ok && have == want
}

// sweep removes records that nobody came for.
func (d *done) sweep(ctx context.Context) {
	paths, err := filepath.Glob(filepath.Join(d.dir, "*", "*"))
	if err != nil {
		return
	}
	for _, path := range paths {
		if ctx.Err() != nil {
			return
		}
		info, err := os.Stat(path)
		if err == nil && d.now().Sub(info.ModTime()) > doneAge {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return // the next run tries again
		}
	}
}
