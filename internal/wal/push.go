// Package wal archives WAL files and gives them back to recovery. Its two
// entry points are archive_command and restore_command; what PostgreSQL makes
// of their exit codes decides what is an error here and what is not.
package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Pusher archives WAL files into a repository.
type Pusher struct {
	Repo *repo.Repository
	Log  *slog.Logger
	Now  func() time.Time
	// StateDir is where what was archived ahead is recorded; empty: nothing is.
	StateDir string
	// Cluster says whose files these are where neither the file nor the
	// directory above it does; 0 is unknown.
	Cluster repo.ClusterID
	// Worker reports whether a process archives beside this one, and waits until
	// that has ended with the file, if it has taken it. Nil: there is none.
	Worker func(ctx context.Context, name string) bool

	// Alone leaves what is ready behind the file to the calls for it.
	Alone bool

	more string // the last file that the batch takes, if more are ready behind it
}

// More names the file behind which more are ready than Push has archived
// itself; empty: there are none.
func (p *Pusher) More() string { return p.more }

// Done reports whether just this file was archived by an earlier call, and
// forgets that: it is asked for once. It asks no store but those on this host,
// and needs no other one opened.
func (p *Pusher) Done(ctx context.Context, path string) (bool, error) {
	if p.StateDir == "" {
		return false, nil
	}
	owner, err := Owner(ctx, path)
	if err != nil || owner == nil {
		return false, err
	}
	name := filepath.Base(path)
	if _, err := postgres.ParseWALFile(name); err == nil {
		if info, err := os.Stat(path); err == nil {
			return p.recorded(ctx, newDone(p.StateDir, p.Repo, p.Now), repo.ClusterID(owner.SystemIdentifier), name, info)
		}
	}
	return false, nil // Push says what is wrong
}

// recorded takes the record of a file, if there is one.
func (p *Pusher) recorded(ctx context.Context, records *done, cluster repo.ClusterID, name string, info os.FileInfo) (bool, error) {
	if p.StateDir == "" || !records.take(cluster, name, info) {
		return false, nil
	}
	// An empty mount point is no archive, whatever was there before.
	if err := p.Repo.CheckLocal(ctx); err != nil {
		return false, err
	}
	p.Log.Debug("was archived by an earlier call", "wal", name)
	return true, nil
}

// Push archives the file at path, whose base name says what it is. When it
// returns without error the file is durable in the repository. A file that is
// there already with the same bytes is success; with other bytes it is an
// error, and nothing is replaced.
//
// Files that the server has marked ready behind it are archived beside it, and
// recorded, so that the calls for them end at once.
func (p *Pusher) Push(ctx context.Context, path string) (err error) {
	name, err := postgres.ParseWALFile(filepath.Base(path))
	if err != nil {
		return errs.Wrap(err, errs.Usage, "archive_command is: agent wal-push %p", "archive %s", path)
	}
	owner, err := Owner(ctx, path)
	if err != nil {
		return err
	}
	c, err := p.open(name, path, owner)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.file.Close()) }()
	records := newDone(p.StateDir, p.Repo, p.Now)
	// The worker's answer is its record.
	alone := p.Worker == nil || !p.Worker(ctx, name.Name)
	if done, err := p.recorded(ctx, records, c.cluster, name.Name, c.info); done || err != nil {
		return err
	}
	if err := p.Repo.Check(ctx); err != nil {
		return err
	}
	over := func(_, _ bool) {}
	if alone { // else what is ready behind it is the worker's
		over = p.batch(ctx, path, owner, records)
	}
	existed, err := p.put(ctx, c, nil)
	if err == nil {
		p.summarise(ctx, c)
	}
	over(err == nil, existed)
	if err == nil && alone && p.StateDir != "" {
		records.sweep(ctx)
	}
	return err
}

// candidate is an opened file that is to be archived.
type candidate struct {
	name    postgres.WALFile
	file    *os.File
	info    os.FileInfo // from before its bytes are read
	cluster repo.ClusterID
	check   checker
}

func (p *Pusher) open(name postgres.WALFile, path string, owner *postgres.Control) (*candidate, error) {
	file, info, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	c := &candidate{name: name, file: file, info: info}
	if c.cluster, c.check, err = p.identify(name, file, info.Size(), owner); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return c, nil
}

// put archives the file, and tells whether it was there already.
func (p *Pusher) put(ctx context.Context, c *candidate, turn func(context.Context) error) (existed bool, err error) {
	existed, err = p.Repo.PutWAL(ctx, c.cluster, c.name, c.file, c.info.Size(), c.check, turn)
	l, ok, lerr := left(c, err)
	if ok {
		return p.putLeft(ctx, c, l, turn)
	}
	if err := errors.Join(err, lerr); err != nil {
		return existed, fmt.Errorf("archive %s: %w", c.name.Name, err)
	}
	for _, w := range c.check.Warnings() {
		p.Log.Warn(w, "wal", c.name.Name)
	}
	if existed {
		p.Log.Info("was archived already with the same bytes", "wal", c.name.Name)
	} else {
		p.Log.Debug("archived", "wal", c.name.Name, "bytes", c.info.Size())
	}
	return existed, nil
}

func openRegular(path string) (*os.File, os.FileInfo, error) {
	file, err := os.Open(path)
	if err != nil {
		hint := ""
		if errors.Is(err, fs.ErrPermission) {
			hint = "Run the agent as the user that PostgreSQL runs as."
		}
		return nil, nil, errs.Wrap(err, errs.Other, hint, "open WAL file")
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open WAL file %s: %w", path, err), file.Close())
	}
	return file, info, nil
}

// checker is told the bytes of a file and says at the end what they are worth.
type checker interface {
	repo.WALCheck
	Warnings() []string
}

// identify finds the cluster that the file belongs to and the check that its
// kind asks for.
func (p *Pusher) identify(name postgres.WALFile, file *os.File, size int64, owner *postgres.Control) (repo.ClusterID, checker, error) {
	known := p.Cluster
	if owner != nil {
		if known != 0 && known != repo.ClusterID(owner.SystemIdentifier) {
			return 0, nil, errs.New(errs.Foreign, "Remove --system-identifier, or archive the files of that cluster.",
				"%s belongs to cluster %d, not to %s", name.Name, owner.SystemIdentifier, known)
		}
		known = repo.ClusterID(owner.SystemIdentifier)
	}
	if name.Kind == postgres.WALSegment || name.Kind == postgres.WALPartial {
		head := make([]byte, 64)
		if _, err := file.ReadAt(head, 0); err != nil {
			return 0, nil, errs.Wrap(err, errs.Damaged, segmentHint, "%s is not a whole WAL segment", name.Name)
		}
		check := newSegmentCheck(name, size, known, file, filepath.Dir(file.Name()))
		if known == 0 {
			h, err := postgres.ParsePageHeader(head)
			if err != nil {
				return 0, nil, errs.Wrap(err, errs.Damaged, segmentHint, "read header of %s", name.Name)
			}
			known = repo.ClusterID(h.SystemID)
		}
		return known, check, nil
	}
	if known == 0 {
		return 0, nil, errs.New(errs.Usage,
			"Call it with the path below the data directory (archive_command does), or give --system-identifier.",
			"cannot tell which cluster %s belongs to: there is no global/pg_control above its directory", name.Name)
	}
	return known, &textCheck{name: name}, nil
}

const segmentHint = "Nothing was archived. If the server made this file, look at its log for disk errors; if it came from elsewhere, it does not belong into this archive."

// maxText bounds history and backup history files.
const maxText = 1 << 20

// textCheck refuses a history or backup history file that recovery could not
// read.
type textCheck struct {
	name postgres.WALFile
	buf  bytes.Buffer
}

func (c *textCheck) Write(b []byte) (int, error) {
	if c.buf.Len()+len(b) > maxText {
		return 0, errs.New(errs.Damaged, segmentHint, "%s is larger than %d bytes", c.name.Name, maxText)
	}
	return c.buf.Write(b)
}

func (c *textCheck) Close() error {
	var err error
	if c.name.Kind == postgres.WALHistory {
		_, err = postgres.ParseHistory(c.name.Timeline, c.buf.Bytes())
	} else if !bytes.HasPrefix(c.buf.Bytes(), []byte("START WAL LOCATION: ")) {
		err = errors.New("it does not begin with START WAL LOCATION")
	}
	return errs.Wrap(err, errs.Damaged, segmentHint, "%s was refused", c.name.Name)
}

func (c *textCheck) Warnings() []string { return nil }

// Owner reads the control file of the data directory whose pg_wal holds the
// file, or nil if there is none: the directory above the file's, by name, so
// that a pg_wal that is a symbolic link is found through the data directory.
// Of a major that is not known only the system identifier is: WAL of a new
// PostgreSQL must not pile up because nobody has updated the agent.
func Owner(ctx context.Context, path string) (*postgres.Control, error) {
	pgdata := filepath.Join(filepath.Dir(path), "..")
	control, _, err := postgres.ReadControl(ctx, pgdata)
	if errors.Is(err, postgres.ErrControlVersion) {
		id, err := postgres.ReadSystemIdentifier(pgdata)
		return &postgres.Control{SystemIdentifier: id}, err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read control file of %s: %w", pgdata, err)
	}
	return control, nil
}
