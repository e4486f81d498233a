package backup

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"walagent/internal/errs"
)

// lock keeps a second backup of the cluster from this host away. The kernel
// gives it back however the process ends.
func (b *run) lock() (unlock func() error, err error) {
	dir := filepath.Join(b.StateDir, "lock")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.Wrap(err, errs.Config, "Give the agent a directory that its user may write with AGENT_STATE_DIR.", "make lock directory")
	}
	l := flock.New(filepath.Join(dir, fmt.Sprintf("backup-%d", b.control.SystemIdentifier)))
	got, err := l.TryLock()
	if err != nil {
		return nil, errs.Wrap(err, errs.Config, "Give the agent a directory that its user may write with AGENT_STATE_DIR.", "lock backups")
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
