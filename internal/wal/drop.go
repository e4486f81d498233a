package wal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

// Dropper archives as Pusher does, until more WAL waits than the server may
// hold and the repository does not take it: then it gives the waiting segments
// up, so that the server removes them, and records in the repository which they
// are.
type Dropper struct {
	*Pusher
	// MaxBacklog is how many bytes of segments may wait.
	MaxBacklog int64
	Host       string // for the record
}

// recordLimit bounds the storing of the record, after the push has used up its
// own time.
const recordLimit = 20 * time.Second

// Done is Pusher.Done, and true besides for a segment that was given up by an
// earlier call.
func (d *Dropper) Done(ctx context.Context, path string) (bool, error) {
	done, err := d.Pusher.Done(ctx, path)
	if done || err != nil {
		return done, err
	}
	s, err := d.candidate(ctx, path)
	if err != nil || s == nil || !s.records.take(s.cluster, s.name, s.info) {
		return false, err
	}
	d.tell(s.name)
	return true, nil
}

// Push is Pusher.Push. Besides, its error is nil for a segment whose loss is
// recorded, durable in every required place. Done was asked before.
func (d *Dropper) Push(ctx context.Context, path string) error {
	failure := d.Pusher.Push(ctx, path)
	if failure == nil || !d.away(ctx, failure) {
		return failure
	}
	s, err := d.candidate(ctx, path)
	if err != nil || s == nil {
		return errors.Join(failure, err)
	}
	last, backlog, err := d.waiting(s)
	if err != nil || backlog <= d.MaxBacklog {
		return errors.Join(failure, err)
	}
	if err := d.drop(ctx, s, last, backlog); err != nil {
		return errors.Join(failure, err)
	}
	return nil
}

// away reports whether the push failed because the repository does not take
// WAL: never for what is wrong with the file, the settings or the place, and not
// when the agent is told to end.
func (d *Dropper) away(ctx context.Context, failure error) bool {
	if errors.Is(ctx.Err(), context.Canceled) {
		return false
	}
	switch errs.KindOf(failure) {
	case errs.Other, errs.Storage, errs.NoSpace:
		return isOutage(failure) || errors.Is(failure, storage.ErrNoSpace) || errors.Is(failure, context.DeadlineExceeded)
	default:
		return false
	}
}

// dropping is a segment that the server asks for.
type dropping struct {
	dir     string // pg_wal
	name    string
	info    os.FileInfo
	segment postgres.Segment
	size    postgres.SegmentSize
	cluster repo.ClusterID
	// records are of the segments that were given up, archived of those that
	// were archived ahead.
	records, archived *done
}

// candidate is the segment at path, or nil for what is never dropped: other
// files, and those that are not in a server's pg_wal.
func (d *Dropper) candidate(ctx context.Context, path string) (*dropping, error) {
	owner, err := Owner(ctx, path)
	if err != nil || owner == nil || d.StateDir == "" {
		return nil, err
	}
	s := &dropping{
		dir: filepath.Dir(path), name: filepath.Base(path), size: owner.WALSegmentSize, cluster: repo.ClusterID(owner.SystemIdentifier),
		records: newDone(d.StateDir, d.Repo, d.Now), archived: newDone(d.StateDir, d.Repo, d.Now),
	}
	s.records.dir = filepath.Join(d.StateDir, "dropped")
	var whole bool
	if s.segment, s.info, whole = segmentAt(path, s.size); !whole {
		return nil, nil
	}
	return s, nil
}

// segmentAt is the whole segment at path, if there is one; or the unfinished one
// of a timeline that was left, N.partial, which is as long, and behind which the
// server would keep all others. What is wrong with another file is told by the
// push.
func segmentAt(path string, size postgres.SegmentSize) (postgres.Segment, os.FileInfo, bool) {
	segment, err := postgres.ParseSegment(strings.TrimSuffix(filepath.Base(path), ".partial"), size)
	info, serr := os.Stat(path)
	return segment, info, err == nil && serr == nil && info.Size() == int64(size)
}

// waiting finds the end of the row of waiting segments that begins with the
// one that is asked for, and how many bytes of segments wait in all. One that
// was archived ahead ends the row.
func (d *Dropper) waiting(s *dropping) (last postgres.Segment, bytes int64, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "archive_status"))
	if err != nil {
		return last, 0, fmt.Errorf("look for WAL that waits: %w", err)
	}
	ready := make(map[postgres.Segment]bool)
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".ready"); ok {
			if seg, _, whole := segmentAt(filepath.Join(s.dir, name), s.size); whole {
				ready[seg] = true
			}
		}
	}
	last = s.segment
	for ready[last.Next()] {
		name := last.Next().Name(s.size)
		_, info, whole := segmentAt(filepath.Join(s.dir, name), s.size)
		if !whole || s.archived.has(s.cluster, name, info) {
			break
		}
		last = last.Next()
	}
	return last, int64(len(ready)) * int64(s.size), nil
}

// drop records the row in the repository, then on this host, so that the call
// for each of its segments ends with success.
func (d *Dropper) drop(ctx context.Context, s *dropping, last postgres.Segment, backlog int64) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), recordLimit,
		errs.New(errs.Storage, "", "the record of what is dropped could not be stored within %s", recordLimit))
	defer cancel()
	record := repo.Dropped{
		Cluster: s.cluster, SegmentSize: s.size, Host: d.Host, Reason: "max_backlog", Backlog: backlog, Limit: d.MaxBacklog,
	}
	err := d.Repo.Check(ctx)
	if err == nil {
		err = d.Repo.StoreDropped(ctx, record, s.segment, last)
	}
	if err != nil {
		return fmt.Errorf("nothing is dropped, though %d bytes of WAL wait and max_backlog is %d: %w", backlog, d.MaxBacklog, err)
	}
	d.Log.Error("WAL is dropped to save the server: what is changed from now on cannot be recovered until a new backup is made; run agent backup-push as soon as the repository takes WAL again",
		"first", s.name, "last", last.Name(s.size), "segments", last.Number-s.segment.Number+1, "backlog_bytes", backlog, "max_backlog", d.MaxBacklog)
	for seg := s.segment.Next(); seg.Number <= last.Number; seg = seg.Next() {
		name := seg.Name(s.size)
		info, err := os.Stat(filepath.Join(s.dir, name))
		if err == nil {
			err = s.records.add(s.cluster, name, info)
		}
		if err != nil {
			// It is asked for and fails like this one, and its row is recorded anew.
			d.Log.Warn("remember a dropped segment", "wal", name, "error", err.Error())
		}
	}
	d.tell(s.name)
	return nil
}

func (d *Dropper) tell(name string) {
	d.Log.Error("dropped, not archived (max_backlog): take a new backup", "wal", name)
}
