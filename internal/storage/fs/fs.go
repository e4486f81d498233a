// Package fs is the storage backend for a folder, local or on NFS.
//
// An object is a file below the root. It is written under no name at all
// (O_TMPFILE) or, where the file system has no such files, under a name that
// begins with storage.TempPrefix; it is synced, and then link(2) gives it its
// name if that is free, which is the one operation that both local file
// systems and NFS do atomically. The directory is synced last.
//
// Every call opens the root anew and compares device, inode and birth time
// with what was there when the bucket was opened, so that an unmounted or
// replaced folder is an error and never an empty store, and so that an idle
// bucket does not keep a file system from being unmounted. Below the root no
// symbolic link is followed, and none is taken for a missing object.
//
// On NFS, of several clients, one may see a new object or a delete a moment
// later than another, within the limits of close-to-open consistency (nfs(5),
// "Data And Metadata Coherence"); mount with lookupcache=positive so that a
// miss is never answered from a cache.
package fs

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"agent/internal/errs"
	"agent/internal/storage"
)

// Modes of what is created, before the umask.
const (
	fileMode = 0o640
	dirMode  = 0o750
)

// Bucket is a folder as a storage.Bucket. It is safe for concurrent use, also
// by several processes on one folder, and holds no file open between calls.
type Bucket struct {
	root string // absolute and clean
	url  string
	id   identity

	sys   system
	named atomic.Bool // unnamed files do not work here; learnt from the first failure
}

var (
	_ storage.Bucket  = (*Bucket)(nil)
	_ storage.Cleaner = (*Bucket)(nil)
)

// Open opens the folder root, which must be an absolute path of a directory
// that exists: a mount point where nothing is mounted must not become an empty
// repository. Errors are *errs.Error of kind Config (a relative path) or
// Storage; a folder that is not there matches storage.ErrUnavailable, one that
// must not be read storage.ErrPermission.
func Open(ctx context.Context, root string) (*Bucket, error) {
	return open(ctx, root, linux())
}

func open(ctx context.Context, root string, sys system) (*Bucket, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open repository folder: %w", err)
	}
	if !filepath.IsAbs(root) {
		return nil, errs.New(errs.Config, "Give an absolute path.", "repository folder %q is a relative path", root)
	}
	b := &Bucket{root: filepath.Clean(root), sys: sys}
	b.url = (&url.URL{Scheme: storage.SchemeFile, Path: b.root}).String()
	f, id, err := b.openRootAny()
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, errs.Wrap(fmt.Errorf("%w: %w", storage.ErrUnavailable, err), errs.Storage,
			"Mount the file system that holds the repository, or make a new repository with `agent repo init`.",
			"repository folder %s is not there", b.root)
	case err != nil:
		return nil, errs.Wrap(translate(err), errs.Storage,
			"Check that the user who runs the agent may read, write and enter the folder.",
			"repository folder %s cannot be opened", b.root)
	}
	b.id = id
	b.named.Store(!hasProc())
	return b, f.Close()
}

// Create makes the folder root with mode 0750, and the folders above it that
// are missing, makes them durable, and opens it. A folder that exists is taken
// as it is. Only `agent repo init` calls it. Errors are as those of Open, and
// of kind NoSpace.
func Create(ctx context.Context, root string) (*Bucket, error) {
	if filepath.IsAbs(root) && ctx.Err() == nil {
		if err := makeAll(filepath.Clean(root)); err != nil {
			err = translate(err)
			kind := errs.Storage
			if errors.Is(err, storage.ErrNoSpace) {
				kind = errs.NoSpace
			}
			return nil, errs.Wrap(err, kind,
				"Check that the user who runs the agent may create the folder, or create it for this user.",
				"repository folder %s cannot be created", root)
		}
	}
	return Open(ctx, root)
}

func makeAll(dir string) error {
	err := os.Mkdir(dir, dirMode)
	if errors.Is(err, unix.ENOENT) {
		if err := makeAll(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, dirMode)
	}
	if errors.Is(err, unix.EEXIST) {
		return nil // Open says if it is not a directory
	}
	if err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	return errors.Join(linux().syncDir(parent), parent.Close())
}

// Capabilities says that looking at an object costs no request.
func (b *Bucket) Capabilities() storage.Capabilities {
	return storage.Capabilities{CheapCheck: true, Local: true}
}

// String is the URL of the folder.
func (b *Bucket) String() string { return b.url }

// Close does nothing: no file is open between calls.
func (b *Bucket) Close() error { return nil }

// openRootAny opens whatever directory is at the root's path now.
func (b *Bucket) openRootAny() (*os.File, identity, error) {
	fd, err := openat(unix.AT_FDCWD, b.root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, identity{}, err
	}
	f := os.NewFile(uintptr(fd), b.root)
	id, err := identify(f)
	if err != nil {
		return nil, identity{}, errors.Join(err, f.Close())
	}
	return f, id, nil
}

// openRoot opens the root and makes sure that it is the directory that was
// there when the bucket was opened.
func (b *Bucket) openRoot() (*os.File, error) {
	f, id, err := b.openRootAny()
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: the repository folder has vanished; is its file system still mounted? (%w)",
			storage.ErrUnavailable, err)
	}
	if err != nil {
		return nil, err
	}
	if id != b.id {
		f.Close()
		return nil, fmt.Errorf("%w: another folder is now in the place of the repository folder; is its file system still mounted?",
			storage.ErrUnavailable)
	}
	return f, nil
}

// checkRoot is openRoot without keeping it open.
func (b *Bucket) checkRoot() error {
	f, err := b.openRoot()
	if err != nil {
		return err
	}
	return f.Close()
}

// missing is the error for an object that was not found. The root may have
// gone between opening it and looking, so it is looked at again before a miss
// is believed.
func (b *Bucket) missing() error {
	if err := b.checkRoot(); err != nil {
		return err
	}
	return storage.ErrNotExist
}

// fail names the operation and the object.
func (b *Bucket) fail(op, key string, err error) error {
	return &storage.Error{Op: op, Bucket: b.url, Key: key, Err: translate(err)}
}
