package summary

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"agent/internal/errs"
)

// Local keeps encoded summaries in a folder of this host, for as long as an
// incremental backup may ask for them. Several processes may use it.
type Local struct{ dir string }

// NewLocal keeps them below dir, which is made when the first is put.
func NewLocal(dir string) *Local { return &Local{dir: dir} }

const (
	// localAge is how long a summary is kept: longer than any chain of
	// incremental backups should be.
	localAge = 35 * 24 * time.Hour
	// pruneEvery is how many segments come between two looks at what is too old.
	pruneEvery = "00"
)

// Put keeps the summary of a segment, in place of one that is there. It is not
// made durable: what is lost is in the repository, or is missed and no more.
func (l *Local) Put(cluster, segment string, encoded []byte, now time.Time) error {
	dir := filepath.Join(l.dir, cluster)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.State(err, "keep a summary")
	}
	tmp, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return errs.State(err, "keep a summary")
	}
	_, err = tmp.Write(encoded)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, segment))
	}
	if err != nil {
		return errs.State(errors.Join(err, os.Remove(tmp.Name())), "keep a summary")
	}
	if strings.HasSuffix(segment, pruneEvery) {
		return l.prune(dir, now)
	}
	return nil
}

// Get is the summary of a segment. That there is none is os.ErrNotExist.
func (l *Local) Get(cluster, segment string) ([]byte, error) {
	encoded, err := os.ReadFile(filepath.Join(l.dir, cluster, segment))
	if err != nil {
		return nil, fmt.Errorf("read summary: %w", err)
	}
	return encoded, nil
}

// prune removes what is too old.
func (l *Local) prune(dir string, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errs.State(err, "remove old summaries")
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && now.Sub(info.ModTime()) > localAge {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // another process may have done so
			return errs.State(err, "remove old summaries")
		}
	}
	return nil
}
