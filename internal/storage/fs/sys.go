package fs

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// system is the few calls that tests make fail.
type system struct {
	openat    func(dir int, name string, flags int, mode uint32) (int, error)
	openat2   func(dir int, name string, how *unix.OpenHow) (int, error)
	linkat    func(oldDir int, oldName string, newDir int, newName string, flags int) error
	renameat2 func(oldDir int, oldName string, newDir int, newName string, flags uint) error
	fsync     func(f *os.File) error
}

func linux() system {
	return system{
		openat:    openat,
		openat2:   unix.Openat2,
		linkat:    unix.Linkat,
		renameat2: unix.Renameat2,
		fsync:     (*os.File).Sync,
	}
}

// openat is openat(2) with O_CLOEXEC, begun again when a signal interrupts it,
// which happens on FUSE and interruptible NFS mounts even with SA_RESTART.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// lstatat is fstatat(2) of a name itself, not of what it links to.
func lstatat(dir *os.File, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return st, &os.PathError{Op: "stat", Path: name, Err: err}
		}
		return st, nil
	}
}

// identity tells a directory from any other that may be at its path later.
// The kernel gives the device numbers of unmounted tmpfs, NFS, btrfs and
// overlay mounts to later ones, and file systems their inode numbers; the time
// of birth, where the file system keeps it (statx(2), STATX_BTIME), differs.
type identity struct {
	dev, ino uint64
	birth    unix.StatxTimestamp
}

func identify(f *os.File) (identity, error) {
	var sx unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &sx); err == nil {
		id := identity{dev: unix.Mkdev(sx.Dev_major, sx.Dev_minor), ino: sx.Ino}
		if sx.Mask&unix.STATX_BTIME != 0 {
			id.birth = sx.Btime
		}
		return id, nil
	}
	// An old kernel, or a container's filter, that does not know statx.
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, os.NewSyscallError("fstat", err)
	}
	return identity{dev: st.Dev, ino: st.Ino}, nil
}

func fileType(st unix.Stat_t) uint32 { return st.Mode & unix.S_IFMT }

// procPath is the name by which an open file can be linked without a
// privilege (open(2), O_TMPFILE).
func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

func hasProc() bool {
	_, err := os.Stat("/proc/self/fd")
	return err == nil
}

// syncDir makes the names in a directory durable. File systems that cannot
// sync a directory say EINVAL (fsync(2)); they have nothing better to offer.
func (s system) syncDir(dir *os.File) error {
	err := s.fsync(dir)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
