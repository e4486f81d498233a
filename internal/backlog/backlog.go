// Package backlog knows how much WAL of a server waits to be archived, and how
// long its disk will hold: a server whose archiving stalls quietly dies of a
// full disk. It asks nobody but the file system, so that it can tell also when
// the server and the repository cannot.
package backlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"agent/internal/postgres"
)

// Backlog is what waits in a pg_wal at one moment.
type Backlog struct {
	At       time.Time
	Files    int       // that the server has marked ready to be archived
	Segments int       // of these
	Bytes    int64     // of these files
	Oldest   time.Time // when the oldest of them was marked; zero if none waits
	// Made and Archived are how many bytes of WAL were finished and archived in
	// each second of the last hour, or since the oldest file of it, but of a minute
	// at least.
	Made, Archived float64
	Free           int64 // bytes free in the file system of pg_wal
}

// window is over which rates are taken.
const window = time.Hour

// The suffixes of the files in pg_wal/archive_status by which the server
// remembers what waits and what is archived (src/backend/access/transam/
// xlogarchive.c). It renames the one to the other, which leaves the time of
// the file's bytes and sets that of its change.
const (
	readySuffix = ".ready"
	doneSuffix  = ".done"
)

// Look measures the backlog of a pg_wal. It reads two directories, and looks at
// each of the files that wait or were archived in the last hour.
func Look(pgWAL string, now time.Time) (Backlog, error) {
	b := Backlog{At: now}
	entries, err := os.ReadDir(filepath.Join(pgWAL, "archive_status"))
	if err != nil {
		return b, fmt.Errorf("look for WAL that waits: %w", err)
	}
	var made, archived rate
	for _, e := range entries {
		name, ready := strings.CutSuffix(e.Name(), readySuffix)
		if !ready {
			var done bool
			if name, done = strings.CutSuffix(e.Name(), doneSuffix); !done {
				continue
			}
		}
		f, err := postgres.ParseWALFile(name)
		if err != nil {
			continue
		}
		mark, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // archived or removed in this moment
		}
		if err != nil {
			return b, fmt.Errorf("look for WAL that waits: %w", err)
		}
		if ready {
			b.Files++
			if b.Oldest.IsZero() || mark.ModTime().Before(b.Oldest) {
				b.Oldest = mark.ModTime()
			}
		}
		file, err := os.Stat(filepath.Join(pgWAL, name))
		if err != nil {
			continue // the server removes the mark of a file that is gone
		}
		if ready {
			b.Bytes += file.Size()
		}
		if f.Kind != postgres.WALSegment {
			continue
		}
		made.add(now, file.ModTime(), file.Size())
		if ready {
			b.Segments++
		} else if st, ok := mark.Sys().(*syscall.Stat_t); ok {
			archived.add(now, time.Unix(st.Ctim.Sec, st.Ctim.Nsec), file.Size())
		}
	}
	// Both are of the same time, or their difference would say nothing.
	since := made.since
	if since.IsZero() || !archived.since.IsZero() && archived.since.Before(since) {
		since = archived.since
	}
	b.Made, b.Archived = made.per(now, since), archived.per(now, since)
	b.Free, err = free(pgWAL)
	return b, err
}

// rate adds up what happened in the last hour.
type rate struct {
	bytes int64
	since time.Time // the oldest of it; zero: nothing did
}

func (r *rate) add(now, at time.Time, bytes int64) {
	if at.After(now) || now.Sub(at) > window {
		return
	}
	r.bytes += bytes
	if r.since.IsZero() || at.Before(r.since) {
		r.since = at
	}
}

// per is the bytes per second since a time, but over no less than a minute: a
// burst of some seconds says nothing of a rate.
func (r *rate) per(now, since time.Time) float64 {
	return float64(r.bytes) / max(now.Sub(since), time.Minute).Seconds()
}

// free is how many bytes this user may still write where dir is.
func free(dir string) (int64, error) {
	var s unix.Statfs_t
	for {
		err := unix.Statfs(dir, &s)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("ask for the free space of %s: %w", dir, err)
		}
		return int64(s.Bavail) * s.Bsize, nil
	}
}

// Age is how long the oldest file has waited; 0 if none waits.
func (b Backlog) Age() time.Duration {
	if b.Oldest.IsZero() {
		return 0
	}
	return max(b.At.Sub(b.Oldest), 0)
}

// FullIn is how long the disk holds if WAL is made and archived as it was; ok
// is false while the backlog does not grow. The server fills old segments again
// before it makes new ones, so it may be longer.
func (b Backlog) FullIn() (d time.Duration, ok bool) {
	growth := b.Made - b.Archived
	if b.Files == 0 || growth <= 0 {
		return 0, false
	}
	// A Duration holds some 290 years.
	seconds := min(float64(b.Free)/growth, float64(longest/time.Second))
	return time.Duration(seconds * float64(time.Second)), true
}

// longest is the longest time that is told.
const longest = 100 * 365 * 24 * time.Hour

// Share is which part of the room that was there the backlog has taken, from 0
// to 1.
func (b Backlog) Share() float64 {
	if b.Bytes == 0 {
		return 0
	}
	return float64(b.Bytes) / float64(b.Bytes+b.Free)
}
