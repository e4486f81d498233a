package prefetch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"agent/internal/wal"
)

// scratch makes files in pg_wal that nobody sees before they are asked for, so
// that a file can get its name there without being copied.
type scratch struct {
	dir *os.File // pg_wal itself, whatever takes its path
	// named is that its file system has no files without a name (O_TMPFILE),
	// which are gone with the process, however that ends, or that none can be
	// given one here.
	named atomic.Bool
	count atomic.Int64 // of files with a name: a segment may be fetched again while it is being forgotten
}

func openScratch(dir string) (*scratch, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	return &scratch{dir: d}, nil
}

func (s *scratch) close() error { return s.dir.Close() }

// file is a file that is being filled, or waits to be asked for.
type file struct {
	*os.File
	in   *scratch
	name string // in the directory; "" for one without a name
}

// mode is that of files in pg_wal, which PostgreSQL changes where its group may
// read them.
const mode = 0o600

func (s *scratch) create(segment string) (*file, error) {
	if !s.named.Load() {
		fd, err := unix.Openat(int(s.dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
		if err == nil {
			return &file{File: os.NewFile(uintptr(fd), segment), in: s}, nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
			return nil, fmt.Errorf("make file: %w", err)
		}
		s.named.Store(true) // NFS, for one
	}
	name := wal.TempPrefix + strconv.Itoa(os.Getpid()) + "-ahead" + strconv.FormatInt(s.count.Add(1), 10) + "-" + segment
	fd, err := unix.Openat(int(s.dir.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, fmt.Errorf("make file: %w", err)
	}
	return &file{File: os.NewFile(uintptr(fd), name), in: s, name: name}, nil
}

// publish gives the file its name in the directory, in place of a file that has
// it, and closes it. It is not made durable: PostgreSQL does so itself when it
// renames what it has restored (xlogarchive.c, KeepFileRestoredFromArchive).
func (f *file) publish(name string) error {
	dir := int(f.in.dir.Fd())
	var err error
	if f.name != "" {
		err = unix.Renameat(dir, f.name, dir, name)
	} else {
		err = f.link(dir, name)
		if errors.Is(err, unix.EEXIST) {
			if err = unix.Unlinkat(dir, name, 0); err == nil {
				err = f.link(dir, name)
			}
		}
	}
	if err != nil {
		f.in.named.Store(true) // where there is no /proc
		return fmt.Errorf("name file: %w", errors.Join(err, f.discard()))
	}
	return f.Close()
}

func (f *file) link(dir int, name string) error {
	return unix.Linkat(unix.AT_FDCWD, filepath.Join("/proc/self/fd", strconv.Itoa(int(f.Fd()))), dir, name, unix.AT_SYMLINK_FOLLOW)
}

// discard removes the file.
func (f *file) discard() error {
	var err error
	if f.name != "" {
		err = unix.Unlinkat(int(f.in.dir.Fd()), f.name, 0)
	}
	return errors.Join(err, f.Close())
}
