package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
)

// defaultSegmentSize is initdb's, for a cluster of which nothing else is known.
const defaultSegmentSize postgres.SegmentSize = 16 << 20

// ErrNotFound is the one outcome of Fetch that tells PostgreSQL that there is
// no such file: recovery may end, a standby may look elsewhere. It is returned
// only when the repository, proved to be the right one, answered so, and the
// file is not missing from the middle of what is there.
var ErrNotFound = errors.New("not in the archive")

// OutagePolicy says what a standby does while the repository cannot be read.
type OutagePolicy string

// The policies; a server that is not a standby always stops.
const (
	OutageWait     OutagePolicy = "wait"     // try again until it is back
	OutageNotFound OutagePolicy = "notfound" // let the standby stream instead
	OutageStop     OutagePolicy = "stop"     // stop the standby
)

// Fetcher gives archived WAL files back.
type Fetcher struct {
	Repo *repo.Repository
	// Open opens Repo where it is nil: again for each attempt, since a
	// repository that is away cannot even be opened.
	Open     func(context.Context) (*repo.Repository, error)
	Log      *slog.Logger
	OnOutage OutagePolicy
	// GapWait is how long a segment is awaited that is missing between others:
	// a server archives several at a time, and the last one may arrive first.
	GapWait time.Duration
	// EndBefore is a segment that is lost for good: it and those behind it on
	// its timeline are answered with ErrNotFound, so that recovery ends before
	// it. Empty: none is.
	EndBefore string
	// Cluster says whose files are wanted where the directory above the
	// destination does not; 0 is unknown.
	Cluster repo.ClusterID
	// Found, if it is not nil, is called when a segment for recovery was found,
	// before its bytes are read: those behind it will be asked for next.
	Found func(cluster repo.ClusterID, segment postgres.Segment, size postgres.SegmentSize)
}

// RecoveryFile is the name that recovery gives to restore_command for every
// segment (xlogrecovery.c, XLogFileRead). Whoever else fetches, such as
// pg_rewind, names the segment itself.
const RecoveryFile = "RECOVERYXLOG"

// Fetch places the archived file name at dest, whole, checked and durable, or
// leaves dest alone. Its errors are ErrNotFound or reasons to stop recovery.
func (f *Fetcher) Fetch(ctx context.Context, name, dest string) error {
	file, err := postgres.ParseWALFile(name)
	if err != nil {
		return errs.Wrap(err, errs.Usage, "restore_command is: agent wal-fetch %f %p", "fetch %s", name)
	}
	if over, err := f.isOver(file); err != nil || over {
		return errors.Join(err, overError(over, name, f.EndBefore))
	}
	owner, err := Owner(ctx, dest)
	if err != nil {
		return err
	}
	standby, err := isStandby(dest)
	if err != nil {
		return err
	}
	attempt := func() (struct{}, error) {
		err := f.opened(ctx)
		if err == nil {
			err = f.fetch(ctx, file, dest, owner, standby)
		}
		if err == nil || !standby || !isOutage(err) {
			return struct{}{}, permanent(err)
		}
		switch f.OnOutage {
		case OutageNotFound:
			f.Log.Warn("the repository cannot be read: answering that the file is not there", "wal", name, "error", err.Error())
			return struct{}{}, permanent(fmt.Errorf("%s is %w, as far as can be told: %w", name, ErrNotFound, err))
		case OutageStop:
			return struct{}{}, permanent(err)
		default:
			f.Log.Warn("waiting for the repository", "wal", name, "error", err.Error())
			if f.Open != nil && f.Repo != nil {
				// The handle holds the folder open that was there, which a
				// mount that comes back covers: open what is there then.
				if err := f.Repo.Close(); err != nil {
					f.Log.Debug("close the repository", "error", err.Error())
				}
				f.Repo = nil
			}
			return struct{}{}, err
		}
	}
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = 30 * time.Second
	_, err = backoff.Retry(ctx, attempt, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0))
	return err
}

// isOver reports whether the file lies behind the end that was set.
func (f *Fetcher) isOver(file postgres.WALFile) (bool, error) {
	if f.EndBefore == "" {
		return false, nil
	}
	end, err := postgres.ParseWALFile(f.EndBefore)
	if err == nil && end.Kind != postgres.WALSegment {
		err = errors.New("it is not a segment")
	}
	if err != nil {
		return false, errs.Wrap(err, errs.Usage, "Give the name of a segment, such as 00000001000000000000002A.", "read --end-before %s", f.EndBefore)
	}
	return file.Kind == postgres.WALSegment && file.Timeline == end.Timeline && file.Name >= end.Name, nil
}

func overError(over bool, name, end string) error {
	if !over {
		return nil
	}
	return fmt.Errorf("%s is %w: recovery is to end before %s", name, ErrNotFound, end)
}

func (f *Fetcher) opened(ctx context.Context) (err error) {
	if f.Repo == nil {
		f.Repo, err = f.Open(ctx)
	}
	return err
}

func permanent(err error) error {
	if err == nil {
		return nil
	}
	return backoff.Permanent(err)
}

// isOutage reports whether the repository could not be asked. That one which
// was seen before is not there is such a case: its mount may come back.
func isOutage(err error) bool {
	return errors.Is(err, storage.ErrUnavailable) || errors.Is(err, storage.ErrPermission) ||
		errors.Is(err, repo.ErrGone) || errs.KindOf(err) == errs.Storage
}

// isStandby looks for standby.signal beside the pg_wal that dest is in.
func isStandby(dest string) (bool, error) { return hasSignal(dest, "standby.signal") }

func (f *Fetcher) fetch(ctx context.Context, file postgres.WALFile, dest string, owner *postgres.Control, standby bool) error {
	cluster, err := f.cluster(ctx, owner)
	if err != nil {
		return err
	}
	for waited := time.Duration(0); ; waited += gapPoll {
		err = f.once(ctx, cluster, file, dest, owner, standby)
		if !errors.Is(err, errGap) || waited >= f.GapWait {
			return err
		}
		f.Log.Info("waiting for a segment that is missing between others", "wal", file.Name)
		if err := sleep(ctx, gapPoll); err != nil {
			return err
		}
	}
}

// once looks for the file once.
func (f *Fetcher) once(ctx context.Context, cluster repo.ClusterID, file postgres.WALFile, dest string, owner *postgres.Control, standby bool) error {
	// A standby asks for the next segment again and again, and can stream it.
	err := f.Repo.ReadSegment(ctx, cluster, file, standby, func(body io.Reader) error {
		f.found(cluster, file, dest, owner)
		return place(body, file, dest, cluster)
	})
	switch {
	case err == nil:
		f.Log.Debug("fetched", "wal", file.Name)
		return nil
	case !errors.Is(err, storage.ErrNotExist):
		return fmt.Errorf("fetch %s: %w", file.Name, err)
	}
	e, err := f.evidence(ctx, cluster, file, dest, owner, standby)
	if err != nil {
		return err
	}
	return f.judge(ctx, cluster, file, dest, e)
}

// found tells that recovery goes on.
func (f *Fetcher) found(cluster repo.ClusterID, file postgres.WALFile, dest string, owner *postgres.Control) {
	if f.Found == nil || file.Kind != postgres.WALSegment || filepath.Base(dest) != RecoveryFile || owner == nil {
		return
	}
	if segment, err := file.Segment(owner.WALSegmentSize); err == nil {
		f.Found(cluster, segment, owner.WALSegmentSize)
		f.Found = nil
	}
}

// gapPoll is how often a segment that is missing between others is looked for.
const gapPoll = 500 * time.Millisecond

// errGap is that a segment must have been in the repository.
var errGap = errors.New("it is missing between others")

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// cluster is that of the data directory; without one, the only one there is.
func (f *Fetcher) cluster(ctx context.Context, owner *postgres.Control) (repo.ClusterID, error) {
	switch {
	case owner != nil && f.Cluster != 0 && f.Cluster != repo.ClusterID(owner.SystemIdentifier):
		return 0, errs.New(errs.Foreign, "Remove --system-identifier, or fetch to another directory.",
			"the destination belongs to cluster %d, not to %s", owner.SystemIdentifier, f.Cluster)
	case owner != nil:
		return repo.ClusterID(owner.SystemIdentifier), nil
	case f.Cluster != 0:
		return f.Cluster, nil
	}
	return OnlyCluster(ctx, f.Repo)
}

// OnlyCluster is the cluster of a repository that has just one.
func OnlyCluster(ctx context.Context, r *repo.Repository) (repo.ClusterID, error) {
	if err := r.CheckAny(ctx); err != nil {
		return 0, err
	}
	ids, err := r.Clusters(ctx)
	if err != nil {
		return 0, err
	}
	switch len(ids) {
	case 0:
		return 0, errs.New(errs.NotFound, "Take a backup with: agent backup-push",
			"nothing is stored in %s yet", r)
	case 1:
		return ids[0], nil
	default:
		return 0, errs.New(errs.Usage, "Say which with --system-identifier.",
			"%s holds %d clusters: %v", r, len(ids), ids)
	}
}

// TempPrefix begins the names of files that are not yet whole; the id of the
// process that writes them follows. PostgreSQL ignores them in pg_wal, and
// backups leave them out.
const TempPrefix = ".agent-wal-"

// Fill reads an archived segment into a file, checked as Fetch checks it. The
// file is not made durable. The error is storage.ErrNotExist if there is none.
func Fill(ctx context.Context, r *repo.Repository, cluster repo.ClusterID, segment postgres.WALFile, to *os.File) error {
	return r.ReadSegment(ctx, cluster, segment, true, func(body io.Reader) error {
		_, err := to.Seek(0, io.SeekStart)
		if err == nil {
			err = to.Truncate(0) // of what another copy has left
		}
		if err != nil {
			return destError(err)
		}
		return copyChecked(to, body, segment, cluster)
	})
}

// place writes body beside dest, checks it, makes it durable and renames it.
func place(body io.Reader, file postgres.WALFile, dest string, cluster repo.ClusterID) (err error) {
	dir := filepath.Dir(dest)
	sweep(dir)
	tmp, err := os.OpenFile(filepath.Join(dir, TempPrefix+strconv.Itoa(os.Getpid())+"-"+file.Name),
		os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return destError(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	err = copyChecked(tmp, body, file, cluster)
	// PostgreSQL makes durable what it has asked for when it renames it
	// (xlogarchive.c, KeepFileRestoredFromArchive).
	durable := filepath.Base(dest) != RecoveryFile
	if err == nil && durable {
		err = destError(tmp.Sync())
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err = destError(os.Rename(tmp.Name(), dest)); err != nil || !durable {
		return err
	}
	return destError(syncDir(dir))
}

func destError(err error) error {
	kind, hint := errs.Destination, "The agent writes it as the user that runs it, beside the path that PostgreSQL gave: look at the directory's owner and mode."
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		kind, hint = errs.NoSpace, "Make room where pg_wal is, and start the server again: recovery goes on where it stopped."
	}
	return errs.Wrap(err, kind, hint, "write restored WAL file")
}

// copyChecked writes body to w; a segment is checked on its way as it was when
// it was archived, so that what PostgreSQL gets is the file it asked for.
func copyChecked(w io.Writer, body io.Reader, file postgres.WALFile, cluster repo.ClusterID) error {
	var check *postgres.SegmentChecker
	wrong := func(err error) error {
		return errs.Wrap(err, errs.Damaged,
			"Recovery must not use it: bring a good copy of its object back from another copy of the repository, or recover to a moment before it, with a target.",
			"archived %s is not what its name says", file.Name)
	}
	err := repo.EachChunk(body, func(raw []byte) error {
		if check == nil && (file.Kind == postgres.WALSegment || file.Kind == postgres.WALPartial) {
			h, err := postgres.ParsePageHeader(raw)
			if err != nil {
				return wrong(err)
			}
			check = postgres.NewSegmentChecker(file, int64(h.SegmentSize), uint64(cluster))
		}
		if check != nil {
			if _, err := check.Write(raw); err != nil {
				return wrong(err)
			}
		}
		_, err := w.Write(raw)
		return destError(err)
	})
	switch {
	case err != nil:
		return err
	case check != nil:
		return wrong(check.Close())
	case file.Kind == postgres.WALSegment || file.Kind == postgres.WALPartial:
		return wrong(errors.New("it is empty"))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// sweep removes what killed runs left beside the destination. It is a
// courtesy: whatever it cannot remove is left for the next time.
func sweep(dir string) {
	names, err := filepath.Glob(filepath.Join(dir, TempPrefix+"*"))
	if err != nil {
		return
	}
	for _, name := range names {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), TempPrefix), "-")
		n, err := strconv.Atoi(pid)
		if err == nil && n != os.Getpid() && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			// Another sweep may have been faster.
			if err := os.Remove(name); err != nil {
				continue
			}
		}
	}
}
