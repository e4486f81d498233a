package fs

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
	"agent/internal/storage/storagetest"
)

func openIn(t *testing.T, root string, sys system) *Bucket {
	t.Helper()
	b, err := open(t.Context(), root, sys)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// leftovers names the files that are not objects.
func leftovers(t *testing.T, root string) []string {
	t.Helper()
	var left []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !storage.ValidComponent(d.Name()) {
			left = append(left, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func harness(root string, sys system) storagetest.Harness {
	return storagetest.Harness{
		Open:      func(t *testing.T) storage.Bucket { return openIn(t, root, sys) },
		Leftovers: func(t *testing.T) []string { return leftovers(t, root) },
		Abandon:   func(t *testing.T, key string) { abandon(t, root, key) },
	}
}

// abandon leaves a file as a Put does that is killed, where files must have
// names.
func abandon(t *testing.T, root, key string) {
	t.Helper()
	p := filepath.Join(root, filepath.Dir(key), storage.TempPrefix+filepath.Base(key))
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, p, "half")
}

// noTmpfileSystem is a file system such as NFS, without unnamed files, on a
// kernel without openat2.
func noTmpfileSystem() system {
	sys := linux()
	sys.openat2 = func(int, string, *unix.OpenHow) (int, error) { return -1, unix.ENOSYS }
	sys.openat = func(dir int, name string, flags int, mode uint32) (int, error) {
		if flags&unix.O_TMPFILE == unix.O_TMPFILE {
			return -1, &os.PathError{Op: "open", Path: name, Err: unix.EOPNOTSUPP}
		}
		return openat(dir, name, flags, mode)
	}
	return sys
}

// noLinkSystem is a file system such as FAT, without hard links.
func noLinkSystem() system {
	sys := noTmpfileSystem()
	sys.linkat = func(int, string, int, string, int) error { return unix.EPERM }
	return sys
}

// noUnnamedLinkSystem makes unnamed files that cannot be linked.
func noUnnamedLinkSystem() system {
	sys := linux()
	sys.linkat = func(oldDir int, oldName string, newDir int, newName string, flags int) error {
		if flags&unix.AT_SYMLINK_FOLLOW != 0 {
			return unix.EOPNOTSUPP
		}
		return unix.Linkat(oldDir, oldName, newDir, newName, flags)
	}
	return sys
}

// fastDir is a folder in memory where there is one, for tests that make very
// many files.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "storage-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// unsynced makes a test fast whose point is not durability.
func unsynced(sys system) system {
	sys.fsync = func(*os.File) error { return nil }
	return sys
}

func TestBucket(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storagetest.Harness { return harness(t.TempDir(), linux()) })
}

func TestBucketOnLesserSystems(t *testing.T) {
	for name, sys := range map[string]system{
		"Memory":        linux(),
		"Named":         noTmpfileSystem(),
		"NoLink":        unsynced(noLinkSystem()),
		"NoUnnamedLink": unsynced(noUnnamedLinkSystem()),
	} {
		t.Run(name, func(t *testing.T) {
			storagetest.Run(t, func(t *testing.T) storagetest.Harness { return harness(fastDir(t), sys) })
		})
	}
}
