package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"agent/internal/storage"
)

// A file that shrinks under a reader is never a clean end.
func TestTruncatedObject(t *testing.T) {
	root := t.TempDir()
	b := openIn(t, root, linux())
	for i, tt := range []struct {
		open func(key string) (io.ReadCloser, error)
		want error
	}{
		{func(key string) (io.ReadCloser, error) {
			r, _, err := b.Get(t.Context(), key)
			return r, err
		}, io.ErrUnexpectedEOF},
		{func(key string) (io.ReadCloser, error) { return b.GetRange(t.Context(), key, 10, 80) }, storage.ErrRange},
	} {
		key := fmt.Sprintf("cut/%d", i)
		mustPut(t, b, key, strings.Repeat("x", 100))
		r, err := tt.open(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(root, key), 50); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if !errors.Is(err, tt.want) || len(got) == 0 || len(got) > 50 {
			t.Errorf("reading a truncated object: %d bytes, %v, want %v", len(got), err, tt.want)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A directory outside the listing is not read: here it would be an error.
func TestListPrunes(t *testing.T) {
	root := t.TempDir()
	b := openIn(t, root, linux())
	for _, key := range []string{"a/1/x", "a/2/x", "a/3/x", "b/x"} {
		mustPut(t, b, key, "x")
	}
	for _, dir := range []string{"a/1", "b"} {
		if err := os.Symlink("nowhere", filepath.Join(root, dir, "trap")); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		prefix, after string
		want          int // -1: the trap is met
	}{
		{"", "", -1},
		{"a/", "", -1},
		{"a/", "a/1/zzz", -1},
		{"a/1/x", "", -1},
		{"b", "", -1},
		{"a/", "a/10", 2},
		{"a/", "a/2", 2},
		{"a/", "a/2/x", 1},
		{"a/2", "", 1},
		{"a/3/", "", 1},
		{"", "c", 0},
		{"c/", "", 0},
		{"a/1/x/", "", 0},
	} {
		n := 0
		for _, err := range b.List(t.Context(), tt.prefix, tt.after) {
			if err != nil {
				n = -1
				break
			}
			n++
		}
		if n != tt.want {
			t.Errorf("list %q after %q: %d, want %d", tt.prefix, tt.after, n, tt.want)
		}
	}
}

func TestListLargeDirectory(t *testing.T) {
	root := fastDir(t)
	const files = 100_000
	for i := range files {
		fd, err := unix.Open(filepath.Join(root, fmt.Sprintf("%08x", i*7919%files)), unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	b := openIn(t, root, linux())
	for _, from := range []int{0, files - 10} {
		after := ""
		if from > 0 {
			after = fmt.Sprintf("%08x", from-1)
		}
		n := from
		for info, err := range b.List(t.Context(), "", after) {
			if err != nil || info.Key != fmt.Sprintf("%08x", n) {
				t.Fatalf("entry %d is %q, %v", n, info.Key, err)
			}
			n++
		}
		if n != files {
			t.Errorf("list after %q ends at %d, want %d", after, n, files)
		}
	}
}

func TestTranslate(t *testing.T) {
	for errno, want := range map[error]error{
		unix.ENOSPC: storage.ErrNoSpace, unix.EDQUOT: storage.ErrNoSpace,
		unix.EACCES: storage.ErrPermission, unix.EPERM: storage.ErrPermission, unix.EROFS: storage.ErrPermission,
		unix.EIO: storage.ErrUnavailable, unix.ESTALE: storage.ErrUnavailable, unix.EINTR: storage.ErrUnavailable,
		unix.ETIMEDOUT: storage.ErrUnavailable, unix.EMFILE: storage.ErrUnavailable, errRaced: storage.ErrUnavailable,
		unix.ENAMETOOLONG: storage.ErrKey,
	} {
		got := translate(fmt.Errorf("open: %w", errno))
		if !errors.Is(got, want) || !errors.Is(got, errno) || errors.Is(got, storage.ErrNotExist) {
			t.Errorf("%v becomes %v, want %v", errno, got, want)
		}
	}
	for _, same := range []error{unix.EBADF, io.EOF, storage.ErrExists, &bodyError{unix.EIO}, errSymlink("x")} {
		if got := translate(same); !errors.Is(got, same) || errors.Is(got, storage.ErrUnavailable) {
			t.Errorf("%v becomes %v", same, got)
		}
	}
}

func BenchmarkPut32MiB(b *testing.B) {
	bucket, err := Open(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	body := make(storage.Bytes, 32<<20)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := bucket.Put(b.Context(), "dir/key", body, storage.PutOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := bucket.Delete(b.Context(), "dir/key"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkGetSmall(b *testing.B) {
	bucket, err := Open(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	const key = "cluster/07300000000000000001/wal/0000000100000000/000000010000000000000001"
	if _, err := bucket.Put(b.Context(), key, storage.Bytes("x"), storage.PutOptions{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r, _, err := bucket.Get(b.Context(), key)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadAll(r); err != nil {
			b.Fatal(err)
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
