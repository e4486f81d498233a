package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"

	"agent/internal/errs"
	"agent/internal/storage"
)

// Status codes of later drafts that some servers send in version 3 too
// (draft-ietf-secsh-filexfer-13, section 9.1). Version 3 itself has hardly
// more than "failure".
const (
	codeFailure      = 4
	codeConnections  = 6 // and 7: no connection, connection lost
	codeLost         = 7
	codeUnsupported  = 8
	codeExists       = 11
	codeWriteProtect = 12
	codeNoSpace      = 14
	codeQuota        = 15
)

// errRaced says that a directory was removed while it was being used: a Delete
// that emptied it came between. The caller starts again.
var errRaced = errors.New("folder was removed meanwhile")

// bodyError is an error of the source. It is kept from translation: what is
// wrong with the file that is uploaded says nothing of the store.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// fail names the operation and the object.
func (b *Bucket) fail(op, key string, err error) error {
	return &storage.Error{Op: op, Bucket: b.url, Key: key, Err: translate(err)}
}

// translate gives an error the sentinel of its class. Whatever is neither an
// answer of the server nor of ours is a broken connection.
func translate(err error) error {
	if body := (*bodyError)(nil); errors.As(err, &body) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if ours := (*errs.Error)(nil); errors.As(err, &ours) {
		return err
	}
	for _, known := range []error{
		storage.ErrNotExist, storage.ErrExists, storage.ErrRange, storage.ErrBadLength, storage.ErrBadDigest,
		storage.ErrKey, storage.ErrPermission, storage.ErrNoSpace, storage.ErrUnsupported, storage.ErrUnavailable,
		io.ErrUnexpectedEOF,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: %w", storage.ErrPermission, err)
	}
	class := storage.ErrUnavailable
	if status := (*sftp.StatusError)(nil); errors.As(err, &status) {
		if class = classOf(status.Code); class == nil {
			return err
		}
	}
	return fmt.Errorf("%w: %w", class, err)
}

// classOf is the class of a status that says no more than its code. A bare
// failure is most often a passing one: of a disk, of a limit of open files, of
// something that is busy; those of which more can be found out do not come here.
func classOf(code uint32) error {
	switch code {
	case codeFailure, codeConnections, codeLost:
		return storage.ErrUnavailable
	case codeUnsupported:
		return storage.ErrUnsupported
	case codeExists:
		return storage.ErrExists
	case codeWriteProtect:
		return storage.ErrPermission
	case codeNoSpace, codeQuota:
		return storage.ErrNoSpace
	default:
		return nil
	}
}

// answered says whether err is an answer of the server, so that its connection
// is whole.
func answered(err error) bool {
	status := (*sftp.StatusError)(nil)
	return err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.As(err, &status) || endOfFile(err)
}

// endOfFile tells the server's status from an EOF of the connection, which the
// library wraps.
func endOfFile(err error) bool { return errors.Is(err, io.EOF) && errors.Unwrap(err) == nil }

// vague says whether the server gave no reason.
func vague(err error) bool {
	status := (*sftp.StatusError)(nil)
	return errors.As(err, &status) && status.Code == codeFailure
}

// explain looks for the reason of a failed write or creation of which the
// server says no more than "failure": a full disk, or a read-only one. size is
// how many bytes were to be stored.
func (b *Bucket) explain(ctx context.Context, c *conn, err error, size int64) error {
	if !vague(err) || !c.has(extStatVFS) {
		return err
	}
	st, serr := call(ctx, b, func() (*sftp.StatVFS, error) { return c.sftp.StatVFS(b.root) })
	if serr != nil {
		return err
	}
	switch {
	case st.Flag&readOnly != 0:
		return fmt.Errorf("%w: the server's file system is read-only: %w", storage.ErrPermission, err)
	case freeBytes(st) < size:
		return fmt.Errorf("%w: %d bytes are free: %w", storage.ErrNoSpace, freeBytes(st), err)
	case st.Files > 0 && st.Favail == 0:
		return fmt.Errorf("%w: no more files can be made: %w", storage.ErrNoSpace, err)
	}
	return fmt.Errorf("the server gives no reason; it may be a quota, a limit, or a disk: %w", err)
}

// readOnly is SSH_FXE_STATVFS_ST_RDONLY (OpenSSH, PROTOCOL, section 4.4).
const readOnly = 1

// freeBytes is what is free for users without privileges.
func freeBytes(st *sftp.StatVFS) int64 {
	if st.Frsize != 0 && st.Bavail > 1<<62/st.Frsize {
		return 1 << 62
	}
	return int64(st.Bavail * st.Frsize)
}

func errSymlink(name string) error {
	return errs.New(errs.Storage,
		"Put the folder itself there, by a bind mount on the server if it must be on another file system.",
		"%s is a symbolic link, and none is followed below the repository folder", name)
}

func errSpecial(name string) error {
	return errs.New(errs.Storage, "Remove it: only the agent's own files belong there.",
		"%s in the repository folder is not a regular file", name)
}

// errVanished is for a folder that is not there: not yet, or not mounted.
func (b *Bucket) errVanished() error {
	return errs.Wrap(storage.ErrUnavailable, errs.Storage,
		"Mount the file system that holds the repository on the server, or make a new repository with `agent repo init`.",
		"folder %s is not there on %s", b.root, b.o.Host)
}
