package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const openDirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW

// split cuts a key into its directory, empty for the root, and its last
// component.
func split(key string) (dir, base string) {
	i := strings.LastIndexByte(key, '/')
	if i < 0 {
		return "", key
	}
	return key[:i], key[i+1:]
}

// openDir opens a directory below the root, given by its key without a slash
// at the end. A directory that is missing, or is an object, gives an error
// that matches ENOENT.
func (b *Bucket) openDir(root *os.File, dir string) (*os.File, error) {
	return b.descend(root, dir, func(*os.File, string) error { return unix.ENOENT })
}

// makeDir is openDir that makes what is missing. Each directory it made, or
// saw another make, is durable when it returns.
func (b *Bucket) makeDir(root *os.File, dir string) (*os.File, error) {
	return b.descend(root, dir, func(parent *os.File, name string) error {
		err := unix.Mkdirat(int(parent.Fd()), name, dirMode)
		if errors.Is(err, unix.ENOENT) {
			return errRaced
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkdir", Path: name, Err: err}
		}
		return b.sys.syncDir(parent)
	})
}

// descend opens the components of dir one after the other. Where one is
// missing it calls absent, which makes it or gives the error to return.
//
// A directory that is there is mostly had by one openat2(2). Where that fails,
// be it that the kernel or a container's filter does not know it, the way on
// foot finds out why.
func (b *Bucket) descend(root *os.File, dir string, absent func(parent *os.File, name string) error) (*os.File, error) {
	if dir == "" {
		return openFileAt(root, ".", openDirFlags)
	}
	fd, err := b.sys.openat2(int(root.Fd()), dir, &unix.OpenHow{
		Flags:   openDirFlags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	at, err := openFileAt(root, ".", openDirFlags)
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(dir, "/") {
		next, err := openFileAt(at, name, openDirFlags)
		if errors.Is(err, unix.ENOENT) {
			if err = absent(at, name); err == nil {
				next, err = openFileAt(at, name, openDirFlags)
				if errors.Is(err, unix.ENOENT) {
					err = errRaced
				}
			}
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			err = notDir(at, name)
		}
		at.Close()
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// errObject says that what should be a directory is an object.
var errObject = fmt.Errorf("a part of the key is an object: %w", unix.ENOENT)

// notDir says what is in the place of a directory.
func notDir(parent *os.File, name string) error {
	st, err := lstatat(parent, name)
	if err != nil {
		return err
	}
	if fileType(st) == unix.S_IFLNK {
		return errSymlink(name)
	}
	return errObject
}

// openFileAt opens name, one component, in dir.
func openFileAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := openat(int(dir.Fd()), name, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// removed tells whether an open directory was removed since. Creating in it
// fails then, with ENOENT or, by ext4's unnamed files, with EPERM.
func removed(dir *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(dir.Fd()), &st) == nil && st.Nlink == 0
}
