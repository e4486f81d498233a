package receive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"

	"agent/internal/errs"
	"agent/internal/repo"
)

// lock keeps a second receiver of the slot with this state directory away. The
// kernel gives it back however the process ends.
func lock(stateDir, slot string) (unlock func() error, err error) {
	dir := filepath.Join(stateDir, "lock")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.State(err, "make lock directory")
	}
	l := flock.New(filepath.Join(dir, "receive-"+slot))
	got, err := l.TryLock()
	if err != nil {
		return nil, errs.State(err, "lock the slot")
	}
	if !got {
		return nil, errs.New(errs.Locked, "One is enough. A second one, elsewhere, needs a slot of its own (--slot).",
			"another wal-receive uses slot %s on this host (lock %s)", slot, l.Path())
	}
	return l.Unlock, nil
}

// checkSlotName follows ReplicationSlotValidateName
// (src/backend/replication/slot.c): 1 to 63 of a-z, 0-9 and _.
func checkSlotName(name string) error {
	if name != "" && len(name) < 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" {
		return nil
	}
	return errs.New(errs.Usage, "Name it with --slot; add --create-slot if it is to be made.",
		"%q is not the name of a replication slot: 1 to 63 small letters, digits and underscores", name)
}

// pinCluster remembers whose WAL a slot gives, so that a connection string that
// leads elsewhere one day does not begin another archive unnoticed.
func pinCluster(stateDir, slot string, cluster repo.ClusterID) error {
	dir := filepath.Join(stateDir, "receive")
	path := filepath.Join(dir, slot+".cluster")
	body, err := os.ReadFile(path)
	if err == nil {
		pinned, err := strconv.ParseUint(strings.TrimSpace(string(body)), 10, 64)
		if err != nil {
			return errs.Wrap(err, errs.Config, "Remove it.", "read %s", path)
		}
		if repo.ClusterID(pinned) != cluster {
			return foreignServer(repo.ClusterID(pinned), cluster, " If it is wanted, remove "+path+".")
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return errs.State(err, "read which cluster the slot belongs to")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.State(err, "make the receiver's directory")
	}
	tmp, err := os.CreateTemp(dir, ".cluster-*")
	if err != nil {
		return errs.State(err, "note which cluster the slot belongs to")
	}
	_, err = fmt.Fprintln(tmp, cluster)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errs.State(errors.Join(err, os.Remove(tmp.Name())), "note which cluster the slot belongs to")
	}
	return nil
}

func foreignServer(was, is repo.ClusterID, more string) error {
	return errs.New(errs.Foreign,
		"The connection leads to a server of another cluster. Look at the connection setting, PGHOST and PGPORT, or the address behind which the server is."+more,
		"the server is of cluster %s, not of %s as before", is, was)
}
