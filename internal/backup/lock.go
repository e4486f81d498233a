package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"agent/internal/errs"
	"agent/internal/repo"
)

// lock keeps a second backup of the cluster from this host away. The kernel
// gives it back however the process ends.
func (b *run) lock() (unlock func() error, err error) {
	dir := filepath.Join(b.StateDir, "lock")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.State(err, "make lock directory")
	}
	l := flock.New(filepath.Join(dir, fmt.Sprintf("backup-%d", b.control.SystemIdentifier)))
	got, err := l.TryLock()
	if err != nil {
		return nil, errs.State(err, "lock backups")
	}
	if !got {
		if b.AllowConcurrent {
			return func() error { return nil }, nil
		}
		return nil, errs.New(errs.Locked, "Wait until it ends, or allow two at once with --allow-concurrent.",
			"another backup of cluster %d is being made on this host (lock %s)", b.control.SystemIdentifier, l.Path())
	}
	return l.Unlock, nil
}

// ownLock marks the run itself as alive, by its backup's name: a claim of this
// host and state directory whose lock is free is that of a run which died.
func (b *run) ownLock() (unlock func() error, err error) {
	l := flock.New(b.lockPath(b.backup.Name))
	if _, err := l.TryLock(); err != nil {
		return nil, errs.State(err, "lock the backup")
	}
	return func() error { return errors.Join(os.Remove(l.Path()), l.Unlock()) }, nil
}

// running tells whether another run of this state directory holds its lock.
func (b *run) running(name repo.BackupName) bool {
	path := b.lockPath(name)
	if _, err := os.Stat(path); err != nil {
		return false
	}
	l := flock.New(path)
	got, err := l.TryLock()
	if err != nil || !got {
		return true
	}
	// It died and left its file, which goes now.
	return errors.Join(os.Remove(path), l.Unlock()) != nil
}

func (b *run) lockPath(name repo.BackupName) string {
	return filepath.Join(b.StateDir, "lock", string(name))
}
