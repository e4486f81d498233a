package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"agent/internal/errs"
	"agent/internal/storage"
)

// errRaced says that a directory was removed while it was being used: a Delete
// that emptied it came between. The caller starts again.
var errRaced = errors.New("folder was removed meanwhile")

// errSymlink is not "not found": whoever links a part of the repository
// elsewhere must be told that it does not work.
func errSymlink(name string) error {
	return errs.New(errs.Storage,
		"Put the folder itself there, by a bind mount if it must be on another file system.",
		"%s is a symbolic link, and none is followed below the repository folder", name)
}

// bodyError is an error of the source. It is kept from translation: an EIO of
// the file that is uploaded says nothing of the store.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// translate gives an error of the operating system the sentinel of its class
// (errno(3), open(2), link(2), nfs(5)). Errors that have one, or that are not
// of the operating system, are returned as they are.
func translate(err error) error {
	if body := (*bodyError)(nil); errors.As(err, &body) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, known := range []error{
		storage.ErrNotExist, storage.ErrExists, storage.ErrRange, storage.ErrBadLength, storage.ErrBadDigest,
		storage.ErrKey, storage.ErrPermission, storage.ErrNoSpace, storage.ErrUnavailable,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	if errors.Is(err, errRaced) {
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	if class := classOf(errno); class != nil {
		return fmt.Errorf("%w: %w", class, err)
	}
	return err
}

func classOf(errno syscall.Errno) error {
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return storage.ErrNoSpace
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return storage.ErrPermission
	case unix.ENAMETOOLONG:
		return storage.ErrKey
	case unix.EIO, unix.ESTALE, unix.EINTR, // a disk or an NFS server
		unix.ETIMEDOUT, unix.ENOTCONN, unix.ECONNRESET, unix.ECONNABORTED, unix.EHOSTDOWN, unix.EHOSTUNREACH, // a soft mount, FUSE
		unix.ENODEV, unix.ENXIO, unix.EREMOTEIO, unix.ENOMEDIUM, // a device that went
		unix.EAGAIN, unix.EBUSY, unix.ENOMEM, unix.ENOBUFS, unix.EMFILE, unix.ENFILE, // this host, for now
		unix.ENOENT: // of a folder that was there a moment ago; a missing object never comes here
		return storage.ErrUnavailable
	default:
		return nil
	}
}

func errSpecial(name string) error {
	return errs.New(errs.Storage, "Remove it: only the agent's own files belong there.",
		"%s in the repository folder is not a regular file", name)
}

func errNoAtomic(err error) error {
	return errs.Wrap(err, errs.Storage, "Use another file system, or another kind of repository.",
		"the file system can neither link a file nor rename one only if the new name is free, so that no object can be created safely")
}
