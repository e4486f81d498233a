package fs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

// errNoUnnamed says that an unnamed file could be made but not be linked.
var errNoUnnamed = errors.New("unnamed files cannot be linked here")

// temp is an unfinished file: one without a name, which the kernel forgets
// when this process dies, or one with a reserved name.
type temp struct {
	f    *os.File
	dir  *os.File
	name string // in dir; empty for an unnamed file or when it is removed
}

// newTemp opens an unfinished file in dir, and owns dir if it succeeds.
func (b *Bucket) newTemp(dir *os.File) (*temp, error) {
	if !b.named.Load() {
		fd, err := b.sys.openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_WRONLY, fileMode)
		if err == nil {
			return &temp{f: os.NewFile(uintptr(fd), "unnamed file"), dir: dir}, nil
		}
		if !noTmpfile(err) {
			return nil, err
		}
		b.named.Store(true)
	}
	name := storage.TempPrefix + rand.Text()
	fd, err := b.sys.openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, err
	}
	return &temp{f: os.NewFile(uintptr(fd), name), dir: dir, name: name}, nil
}

// noTmpfile: open(2) names EOPNOTSUPP for a file system without O_TMPFILE, and
// EISDIR for a kernel or server that does not know the flag; some FUSE servers
// say EINVAL or ENOSYS.
func noTmpfile(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

// noLink: link(2) names EPERM for a file system without hard links; FUSE and
// SMB say EOPNOTSUPP or ENOSYS.
func noLink(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// link gives the file the name base in its directory unless that is taken.
// ENOENT means that the directory is gone, EEXIST that the name is taken.
func (b *Bucket) link(tmp *temp, base string) error {
	dir := int(tmp.dir.Fd())
	if tmp.name == "" {
		err := b.sys.linkat(unix.AT_FDCWD, procPath(tmp.f), dir, base, unix.AT_SYMLINK_FOLLOW)
		if noLink(err) || errors.Is(err, unix.EXDEV) {
			return fmt.Errorf("%w: %w", errNoUnnamed, err)
		}
		return os.NewSyscallError("linkat", err)
	}
	err := b.sys.linkat(dir, tmp.name, dir, base, 0)
	switch {
	case noLink(err):
		return b.rename(tmp, base)
	case errors.Is(err, unix.EEXIST) && tmp.is(base):
		return nil
	}
	return os.NewSyscallError("linkat", err)
}

// is tells whether base is this very file. An NFS server may have done a link
// whose reply was lost, and answer the repeated request with EEXIST (open(2),
// O_EXCL; link(2), BUGS): then the file has two names.
func (t *temp) is(base string) bool {
	var own unix.Stat_t
	if err := unix.Fstat(int(t.f.Fd()), &own); err != nil || own.Nlink != 2 {
		return false
	}
	st, err := lstatat(t.dir, base)
	return err == nil && st.Dev == own.Dev && st.Ino == own.Ino
}

// rename is create-if-absent for file systems without hard links, such as FAT
// or some SMB servers (rename(2), RENAME_NOREPLACE).
func (b *Bucket) rename(tmp *temp, base string) error {
	dir := int(tmp.dir.Fd())
	err := b.sys.renameat2(dir, tmp.name, dir, base, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return errNoAtomic(err)
	}
	if err != nil {
		return os.NewSyscallError("renameat2", err)
	}
	tmp.name = ""
	return nil
}

// move changes the directory that an unnamed file is to be linked into.
func (t *temp) move(dir *os.File) {
	t.dir.Close()
	t.dir = dir
}

// unname removes the reserved name, if there is one.
func (t *temp) unname() error {
	if t.name == "" {
		return nil
	}
	err := unix.Unlinkat(int(t.dir.Fd()), t.name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return os.NewSyscallError("unlinkat", err)
	}
	t.name = ""
	return nil
}

// discard gives up the file, as far as it has no other name yet, and closes
// what is open. Its errors would say nothing new: a published file was synced,
// and a reserved name that stays is hidden from every reader.
func (t *temp) discard() {
	_ = t.unname()
	t.f.Close()
	t.dir.Close()
}
