package fs

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

var testTime = time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func mustPut(t *testing.T, b *Bucket, key, body string) {
	t.Helper()
	if _, err := b.Put(t.Context(), key, storage.Bytes(body), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

// hookSource runs a hook when its body is opened.
type hookSource struct {
	data string
	hook func() error
}

func (h hookSource) Size() int64 { return int64(len(h.data)) }
func (h hookSource) Open() (io.ReadCloser, error) {
	if err := h.hook(); err != nil {
		return nil, err
	}
	return storage.Bytes(h.data).Open()
}

// Every error of the system has the class that callers decide by, and leaves
// nothing but, for the last sync, the object itself.
func TestPutFaults(t *testing.T) {
	classes := map[syscall.Errno]error{
		unix.ENOSPC: storage.ErrNoSpace, unix.EDQUOT: storage.ErrNoSpace,
		unix.EACCES: storage.ErrPermission, unix.EROFS: storage.ErrPermission,
		unix.EIO: storage.ErrUnavailable, unix.ESTALE: storage.ErrUnavailable, unix.EINTR: storage.ErrUnavailable,
	}
	bases := map[string]system{"unnamed": linux(), "named": noTmpfileSystem()}
	for errno, class := range classes {
		for name, base := range bases {
			for _, call := range []string{"open", "sync file", "sync folder", "link"} {
				root := t.TempDir()
				mustPut(t, openIn(t, root, base), "d/other", "x")
				sys := base
				switch call {
				case "open":
					sys.openat = func(dir int, name string, flags int, mode uint32) (int, error) {
						if flags&unix.O_TMPFILE == unix.O_TMPFILE || flags&unix.O_CREAT != 0 {
							return -1, &os.PathError{Op: "open", Path: name, Err: errno}
						}
						return base.openat(dir, name, flags, mode)
					}
				case "sync file", "sync folder":
					sys.fsync = func(f *os.File) error {
						if st, err := f.Stat(); err != nil || st.IsDir() == (call == "sync folder") {
							return &os.PathError{Op: "sync", Path: f.Name(), Err: errno}
						}
						return f.Sync()
					}
				case "link":
					sys.linkat = func(int, string, int, string, int) error { return errno }
				}
				b := openIn(t, root, sys)
				_, err := b.Put(t.Context(), "d/key", storage.Bytes("x"), storage.PutOptions{})
				if !errors.Is(err, class) {
					t.Errorf("%v at %s, %s: %v, want %v", errno, call, name, err, class)
				}
				if _, err := b.Stat(t.Context(), "d/key"); call != "sync folder" && !errors.Is(err, storage.ErrNotExist) {
					t.Errorf("%v at %s, %s: the object is there (%v)", errno, call, name, err)
				}
				if left := leftovers(t, root); len(left) != 0 {
					t.Errorf("%v at %s, %s: left over %q", errno, call, name, left)
				}
			}
		}
	}
}

// An EIO of the body is not one of the store.
func TestBodyErrorHasNoClass(t *testing.T) {
	b := openIn(t, t.TempDir(), linux())
	src := hookSource{"x", func() error { return unix.EIO }}
	_, err := b.Put(t.Context(), "k", src, storage.PutOptions{})
	if !errors.Is(err, unix.EIO) || errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
}

// link(2) on NFS may answer EEXIST although it was this call that made the
// name.
func TestLostReplyOfLink(t *testing.T) {
	sys := noTmpfileSystem()
	sys.linkat = func(oldDir int, oldName string, newDir int, newName string, flags int) error {
		if err := unix.Linkat(oldDir, oldName, newDir, newName, flags); err != nil {
			return err
		}
		return unix.EEXIST
	}
	root := t.TempDir()
	b := openIn(t, root, sys)
	mustPut(t, b, "d/key", "mine")
	_, err := b.Put(t.Context(), "d/key", storage.Bytes("mine"), storage.PutOptions{})
	if !errors.Is(err, storage.ErrExists) {
		t.Errorf("second put: %v, want ErrExists", err)
	}
	if left := leftovers(t, root); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}

// Another creator comes between the look and the link.
func TestLosesAtLink(t *testing.T) {
	for name, base := range map[string]system{"unnamed": linux(), "named": noTmpfileSystem(), "no link": noLinkSystem()} {
		root := t.TempDir()
		b := openIn(t, root, base)
		src := hookSource{"second", func() error {
			_, err := b.Put(t.Context(), "d/key", storage.Bytes("first"), storage.PutOptions{})
			return err
		}}
		if _, err := b.Put(t.Context(), "d/key", src, storage.PutOptions{}); !errors.Is(err, storage.ErrExists) {
			t.Errorf("%s: %v, want ErrExists", name, err)
		}
		if got, err := os.ReadFile(filepath.Join(root, "d", "key")); err != nil || string(got) != "first" {
			t.Errorf("%s: the object is %q, %v", name, got, err)
		}
		if left := leftovers(t, root); len(left) != 0 {
			t.Errorf("%s: left over %q", name, left)
		}
	}
}

// A Delete takes the directory away while the body is being written.
func TestDirectoryRemovedMeanwhile(t *testing.T) {
	for name, sys := range map[string]system{"unnamed": linux(), "named": noTmpfileSystem()} {
		b := openIn(t, t.TempDir(), sys)
		mustPut(t, b, "d/e/other", "x")
		src := hookSource{"data", func() error { return b.Delete(t.Context(), "d/e/other") }}
		if _, err := b.Put(t.Context(), "d/e/key", src, storage.PutOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Stat(t.Context(), "d/e/key"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNeitherLinkNorRename(t *testing.T) {
	sys := noLinkSystem()
	sys.renameat2 = func(int, string, int, string, uint) error { return unix.EINVAL }
	root := t.TempDir()
	_, err := openIn(t, root, sys).Put(t.Context(), "k", storage.Bytes("x"), storage.PutOptions{})
	if err == nil || !strings.Contains(err.Error(), "neither link") {
		t.Errorf("put: %v", err)
	}
	if left := leftovers(t, root); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}

// What is synced, and in which order.
func TestSyncs(t *testing.T) {
	for name, base := range map[string]system{"unnamed": linux(), "named": noTmpfileSystem()} {
		t.Run(name, func(t *testing.T) {
			root, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			var syncs []string
			sys := base
			sys.fsync = func(f *os.File) error {
				path, err := os.Readlink(procPath(f))
				if err != nil {
					return err
				}
				st, err := f.Stat()
				if err != nil {
					return err
				}
				if !st.IsDir() {
					path = root + "/FILE"
				}
				syncs = append(syncs, strings.TrimPrefix(path, root))
				return f.Sync()
			}
			b := openIn(t, root, sys)
			for _, step := range []struct {
				what string
				do   func() error
				want []string
			}{
				{"first put", func() error { return putErr(t.Context(), b, "a/b/c/key") }, []string{"", "/a", "/a/b", "/FILE", "/a/b/c"}},
				{"second put", func() error { return putErr(t.Context(), b, "a/b/c/key2") }, []string{"/FILE", "/a/b/c"}},
				{"put at the root", func() error { return putErr(t.Context(), b, "key") }, []string{"/FILE", ""}},
				{"put over it", func() error {
					if err := putErr(t.Context(), b, "a/b/c/key"); !errors.Is(err, storage.ErrExists) {
						return err
					}
					return nil
				}, []string{"/a/b/c"}},
				{"delete", func() error { return b.Delete(t.Context(), "a/b/c/key", "key", "a/b/c/key2") }, []string{"/a/b/c", ""}},
			} {
				syncs = nil
				if err := step.do(); err != nil {
					t.Fatalf("%s: %v", step.what, err)
				}
				if diff := cmp.Diff(step.want, syncs); diff != "" {
					t.Errorf("%s syncs (-want +got):\n%s", step.what, diff)
				}
			}
			if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
				t.Errorf("emptied folders stay: %v, %v", left, err)
			}
		})
	}
}

func putErr(ctx context.Context, b *Bucket, key string) error {
	_, err := b.Put(ctx, key, storage.Bytes("x"), storage.PutOptions{})
	return err
}

func TestModes(t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	for umask, want := range map[int][2]os.FileMode{0o022: {0o640, 0o750}, 0o077: {0o600, 0o700}} {
		unix.Umask(umask)
		for name, sys := range map[string]system{"unnamed": linux(), "named": noTmpfileSystem()} {
			root := t.TempDir()
			mustPut(t, openIn(t, root, sys), "d/key", "x")
			for i, p := range []string{"d/key", "d"} {
				st, err := os.Stat(filepath.Join(root, p))
				if err != nil || st.Mode().Perm() != want[i] {
					t.Errorf("%s with umask %o: %s has %v, %v, want %v", name, umask, p, st.Mode(), err, want[i])
				}
			}
		}
	}
}

// A Put that is killed leaves nothing where unnamed files work, and elsewhere
// a file that no reader sees and that Clean removes.
func TestKilledPut(t *testing.T) {
	if root := os.Getenv("FS_TEST_PUT_IN"); root != "" {
		sys := linux()
		if os.Getenv("FS_TEST_NAMED") != "" {
			sys = noTmpfileSystem()
		}
		r, w := io.Pipe()
		go func() {
			w.Write([]byte("half of the body"))
			os.Stdout.WriteString("half\n")
		}()
		_, err := openIn(t, root, sys).Put(t.Context(), "d/key", pipeSource{r}, storage.PutOptions{})
		t.Fatalf("put ended: %v", err) // it is killed instead
	}
	for _, named := range []string{"", "yes"} {
		root := t.TempDir()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledPut$")
		cmd.Env = append(os.Environ(), "FS_TEST_PUT_IN="+root, "FS_TEST_NAMED="+named)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "half\n" {
			t.Errorf("the other process says %q, %v", line, err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the other process ended: %v", err)
		}
		b := openIn(t, root, linux())
		if _, err := b.Stat(t.Context(), "d/key"); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("stat: %v, want ErrNotExist", err)
		}
		for info, err := range b.List(t.Context(), "", "") {
			t.Errorf("listed: %q, %v", info.Key, err)
		}
		left := leftovers(t, root)
		if want := len(named) / 3; len(left) != want {
			t.Errorf("left over: %q, want %d", left, want)
		}
		checkClean(t, b, root, left)
		mustPut(t, b, "d/key", "x")
	}
}

// pipeSource is a body whose end never comes.
type pipeSource struct{ r io.ReadCloser }

func (pipeSource) Size() int64                    { return 1 << 20 }
func (p pipeSource) Open() (io.ReadCloser, error) { return p.r, nil }

func checkClean(t *testing.T, b *Bucket, root string, left []string) {
	t.Helper()
	writeFile(t, filepath.Join(root, "d", "notes~"), "not ours")
	for _, p := range left {
		if err := os.Chtimes(p, testTime, testTime); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := b.Clean(t.Context(), testTime); n != 0 || err != nil {
		t.Errorf("clean of older files: %d, %v", n, err)
	}
	if n, err := b.Clean(t.Context(), testTime.Add(1)); n != len(left) || err != nil {
		t.Errorf("clean: %d, %v, want %d", n, err, len(left))
	}
	if got := leftovers(t, root); !slices.Equal(got, []string{filepath.Join(root, "d", "notes~")}) {
		t.Errorf("after clean there is %q", got)
	}
}

// Nothing but an unfinished file is discarded, and the folder goes with it.
func TestDiscard(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	b, err := Create(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, b, "a/b", "x")
	outside := filepath.Join(filepath.Dir(root), storage.TempPrefix+"outside")
	writeFile(t, outside, "x")
	for _, u := range []storage.Unfinished{
		{},
		{Key: "a/b", ID: "b"},
		{Key: "a", ID: "a"},
		{Key: "../.tmp-outside", ID: ".tmp-outside"},
		{Key: "a/.tmp-1", ID: ".tmp-2"},
		{Key: ".tmp-1/b", ID: "b"},
		{Key: "a//.tmp-1", ID: ".tmp-1"},
	} {
		if err := b.Discard(t.Context(), u); !errors.Is(err, storage.ErrKey) {
			t.Errorf("discard of %+v: %v, want ErrKey", u, err)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	abandon(t, root, "c/d/e")
	if err := b.Discard(t.Context(), storage.Unfinished{Key: "c/d/.tmp-e", ID: ".tmp-e"}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, "c")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of what was discarded: %v", err)
	}
}
