package restore

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// markerName is in each directory that a restore fills while it is not
// finished. Together with its twins it proves that what is in the directory is
// of that restore, so that the next one may clear it; PostgreSQL refuses to
// start there, since pg_control is missing. The marker in the data directory
// is locked as long as the restore runs.
const markerName = ".agent-restore.json"

// marker is the content of that file, the same in each directory.
type marker struct {
	Backup      repo.BackupName `json:"backup"`
	Started     time.Time       `json:"started"`
	Nonce       string          `json:"nonce"`
	Directories []string        `json:"directories"` // all that the restore fills
}

// mark leaves the markers in directories that were just found empty, and
// takes the lock. A marker that is there by now is another restore's.
func (d *destination) mark(backup repo.BackupName, now time.Time, dirs []string) error {
	d.nonce = rand.Text()
	body, err := json.Marshal(marker{Backup: backup, Started: now.UTC(), Nonce: d.nonce, Directories: dirs})
	if err != nil {
		return fmt.Errorf("encode marker: %w", err)
	}
	// The data directory first: its lock speaks for the others.
	if err := d.createMarker(d.root, body); err != nil {
		return err
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	for _, dir := range dirs {
		if dir == d.root {
			continue
		}
		if err := d.createMarker(dir, body); err != nil {
			return err
		}
	}
	return nil
}

func (d *destination) createMarker(dir string, body []byte) error {
	f, err := os.OpenFile(filepath.Join(dir, markerName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, d.fileMode())
	if errors.Is(err, fs.ErrExist) {
		return d.inUse(dir)
	}
	if err != nil {
		return d.explain(err)
	}
	_, err = f.Write(append(body, '\n'))
	return d.explain(errors.Join(err, f.Sync(), f.Close()))
}

func (d *destination) inUse(dir string) error {
	return errs.New(errs.Locked, "Wait until it ends, or restore to another directory.", "another restore is writing to %s", dir)
}

func (d *destination) takeLock() error {
	l := flock.New(filepath.Join(d.root, markerName))
	got, err := l.TryLock()
	if err != nil {
		return d.explain(err)
	}
	if !got {
		return d.inUse(d.root)
	}
	d.lock = l
	return nil
}

// release gives the lock up, however the restore ended.
func (d *destination) release() error {
	if d.lock == nil {
		return nil
	}
	l := d.lock
	d.lock = nil
	if err := l.Unlock(); err != nil {
		return fmt.Errorf("unlock %s: %w", l.Path(), err)
	}
	return nil
}

// readMarker returns nil where there is none.
func (d *destination) readMarker(dir string) (*marker, error) {
	b, err := os.ReadFile(filepath.Join(dir, markerName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, d.explain(err)
	}
	m := new(marker)
	if len(bytes.TrimSpace(b)) == 0 {
		return m, nil // killed before it was written: nothing else was, either
	}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, errs.Wrap(err, errs.Destination, "Empty the directory by hand.", "read %s", filepath.Join(dir, markerName))
	}
	return m, nil
}

// clearUnfinished empties what an earlier restore left unfinished here: the
// data directory, and those directories that carry a marker of the same run.
func (d *destination) clearUnfinished() error {
	m, err := d.readMarker(d.root)
	if m == nil || err != nil {
		return err
	}
	if _, err := os.Stat(d.pathOf(postgres.ControlPath)); err == nil {
		return nil // it was finished but for the marker; checkEmpty refuses
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	for _, dir := range m.Directories {
		if _, ours := d.places[dir]; !ours || dir == d.root {
			continue // of other options than today's; checkEmpty decides
		}
		other, err := d.readMarker(dir)
		if err != nil {
			return err
		}
		if other == nil || other.Nonce != m.Nonce {
			continue
		}
		if err := d.empty(dir, ""); err != nil {
			return err
		}
	}
	if err := d.empty(d.root, markerName); err != nil {
		return err
	}
	// The lock goes with the file; whoever marks the directory next has it.
	if err := os.Remove(filepath.Join(d.root, markerName)); err != nil {
		return d.explain(err)
	}
	return d.release()
}

// empty removes everything in a directory but one name.
func (d *destination) empty(dir, but string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return d.explain(err)
	}
	for _, e := range entries {
		if e.Name() == but {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return d.explain(err)
		}
	}
	return nil
}

// stillMarked refuses to finish where something else has cleared the
// directory meanwhile.
func (d *destination) stillMarked() error {
	for dir := range d.places {
		m, err := d.readMarker(dir)
		if err != nil {
			return err
		}
		if m == nil || m.Nonce != d.nonce {
			return errs.New(errs.Destination, "Restore again, to a directory that nothing else touches.", "%s was cleared or replaced while it was restored to", dir)
		}
	}
	return nil
}

// unmark removes the markers of a finished restore.
func (d *destination) unmark() error {
	for dir := range d.places {
		if err := os.Remove(filepath.Join(dir, markerName)); err != nil {
			return d.explain(err)
		}
		if err := syncDir(dir); err != nil {
			return d.explain(err)
		}
	}
	return nil
}
