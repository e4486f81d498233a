package fs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agent/internal/errs"
	"agent/internal/storage"
)

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	writeFile(t, file, "x")
	for _, tt := range []struct {
		name, root string
		kind       errs.Kind
		class      error
	}{
		{"absent", filepath.Join(dir, "absent"), errs.Storage, storage.ErrUnavailable},
		{"below a file", filepath.Join(file, "x"), errs.Storage, storage.ErrUnavailable},
		{"file", file, errs.Storage, storage.ErrUnavailable},
		{"relative", "some/folder", errs.Config, nil},
		{"empty", "", errs.Config, nil},
	} {
		_, err := Open(t.Context(), tt.root)
		if errs.KindOf(err) != tt.kind || tt.class != nil && !errors.Is(err, tt.class) {
			t.Errorf("%s: %v (kind %d)", tt.name, err, errs.KindOf(err))
		}
		if errs.HintOf(err) == "" || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s: %v, hint %q", tt.name, err, errs.HintOf(err))
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open has made the folder: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := Create(ctx, filepath.Join(dir, "new")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled create: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a cancelled Create has made the folder: %v", err)
	}
}

func TestCreate(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a", "b b")
	for range 2 { // the second finds it there
		b, err := Create(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		if want := "file://" + strings.ReplaceAll(root, " ", "%20"); b.String() != want {
			t.Errorf("the bucket is called %s, want %s", b, want)
		}
		if _, err := b.Put(t.Context(), "k/"+filepath.Base(t.TempDir()), storage.Bytes("x"), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Create(t.Context(), "/proc/no/such/folder")
	if errs.KindOf(err) != errs.Storage || errs.HintOf(err) == "" {
		t.Errorf("create in /proc: %v (kind %d)", err, errs.KindOf(err))
	}
	if _, err := Create(t.Context(), "relative"); errs.KindOf(err) != errs.Config {
		t.Errorf("create of a relative path: %v", err)
	}
}

// everything runs each operation on a key that is not there.
func everything(ctx context.Context, b *Bucket) map[string]error {
	got := make(map[string]error)
	_, _, got["get"] = b.Get(ctx, "some/key")
	_, got["range"] = b.GetRange(ctx, "some/key", 0, 1)
	_, got["stat"] = b.Stat(ctx, "some/key")
	_, got["put"] = b.Put(ctx, "some/key", storage.Bytes("x"), storage.PutOptions{})
	got["delete"] = b.Delete(ctx, "some/key", "other")
	for _, err := range b.List(ctx, "", "") {
		got["list"] = err
	}
	for _, err := range b.List(ctx, "no/such/", "") {
		got["list of a prefix"] = err
	}
	_, got["clean"] = b.Clean(ctx, testTime)
	for _, err := range b.Unfinished(ctx, "no/such/") {
		got["unfinished"] = err
	}
	got["discard"] = b.Discard(ctx, storage.Unfinished{Key: "some/.tmp-1", ID: ".tmp-1"})
	return got
}

// A folder that was unmounted or replaced is never an empty store.
func TestVanishedRoot(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	b, err := Create(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, b, "a/b", "x")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	wantUnavailable := func(what string) {
		t.Helper()
		errs := everything(t.Context(), b)
		for _, op := range []string{"get", "range", "stat", "put", "delete", "list", "list of a prefix", "clean", "unfinished", "discard"} {
			if !errors.Is(errs[op], storage.ErrUnavailable) {
				t.Errorf("%s, %s: %v, want ErrUnavailable", what, op, errs[op])
			}
		}
	}
	move(root, root+".away")
	wantUnavailable("absent")
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was made again: %v", err)
	}
	writeFile(t, root, "a file")
	wantUnavailable("file")
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root, 0o750); err != nil {
		t.Fatal(err)
	}
	wantUnavailable("empty folder in its place")
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("something was written to the other folder: %v, %v", left, err)
	}
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	move(root+".away", root)
	if _, err := b.Stat(t.Context(), "a/b"); err != nil {
		t.Errorf("after it came back: %v", err)
	}
}

// File systems use inode numbers again at once; a folder made anew is another
// one all the same.
func TestRootMadeAnew(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	b, err := Create(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	made := func() time.Time {
		t.Helper()
		st, err := os.Stat(root)
		if err != nil {
			t.Fatal(err)
		}
		return st.ModTime()
	}
	for first := made(); made().Equal(first); { // until the file system's clock ticks
		if err := errors.Join(os.Remove(root), os.Mkdir(root, 0o750)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Stat(t.Context(), "k"); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("stat: %v, want ErrUnavailable", err)
	}
	if err := putErr(t.Context(), b, "k"); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("put: %v, want ErrUnavailable", err)
	}
}

// The root goes between a call's first look and its answer.
func TestRootVanishesMeanwhile(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	b, err := Create(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		mustPut(t, b, "dir/"+string(rune('a'+i)), "x")
	}
	var last error
	for _, err := range b.List(t.Context(), "", "") {
		if err == nil {
			err = os.RemoveAll(root)
		}
		last = err
	}
	if !errors.Is(last, storage.ErrUnavailable) {
		t.Errorf("a listing whose folder vanished ends with %v, want ErrUnavailable", last)
	}
	b, err = Create(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	src := hookSource{"data", func() error { return os.RemoveAll(root) }}
	if _, err := b.Put(t.Context(), "x/y", src, storage.PutOptions{}); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("a put whose folder vanished: %v, want ErrUnavailable", err)
	}
}

// No symbolic link is followed, none is taken for a missing object, and none
// leads out.
func TestSymlinks(t *testing.T) {
	outside := t.TempDir()
	writeFile(t, filepath.Join(outside, "secret"), "x")
	root := t.TempDir()
	b := openIn(t, root, linux())
	mustPut(t, b, "in/object", "x")
	mustPut(t, b, "in/sub/object", "x")
	for name, target := range map[string]string{
		"out": outside, "file": filepath.Join(outside, "secret"), "inside": "in", "dangling": "nowhere", "up": "..", "self": "self",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	for _, key := range []string{"out/secret", "out/new", "file", "inside/object", "inside/sub/object", "inside/sub/new", "dangling", "dangling/x", "up/x", "self", "self/x"} {
		got := make(map[string]error)
		_, _, got["get"] = b.Get(ctx, key)
		_, got["range"] = b.GetRange(ctx, key, 0, 1)
		_, got["stat"] = b.Stat(ctx, key)
		_, got["put"] = b.Put(ctx, key, storage.Bytes("y"), storage.PutOptions{})
		for op, err := range got {
			if err == nil || errors.Is(err, storage.ErrNotExist) || errors.Is(err, storage.ErrExists) || !strings.Contains(err.Error(), "symbolic link") {
				t.Errorf("%s of %s: %v", op, key, err)
			}
		}
	}
	var last error
	for _, err := range b.List(ctx, "", "") {
		last = err
	}
	if last == nil || !strings.Contains(last.Error(), "symbolic link") {
		t.Errorf("list: %v", last)
	}
	if err := b.Delete(ctx, "out/secret"); err == nil {
		t.Error("delete through a symbolic link gives no error")
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 1 || left[0].Name() != "secret" {
		t.Errorf("outside there is %v, %v", left, err)
	}
}

// An object stands in the way of longer keys, and a folder in the way of its
// own name; neither is hidden from the caller as success or as "exists".
func TestObjectOrFolder(t *testing.T) {
	b := openIn(t, t.TempDir(), linux())
	mustPut(t, b, "a", "x")
	mustPut(t, b, "d/e/f", "x")
	for _, key := range []string{"a/b", "a/b/c", "d", "d/e"} {
		if _, err := b.Put(t.Context(), key, storage.Bytes("y"), storage.PutOptions{}); !errors.Is(err, storage.ErrKey) {
			t.Errorf("put %s: %v, want ErrKey", key, err)
		}
		if _, err := b.Stat(t.Context(), key); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("stat %s: %v, want ErrNotExist", key, err)
		}
	}
}

// What file systems and people leave in the folder is not listed; what could
// hide something is an error.
func TestForeignFiles(t *testing.T) {
	root := t.TempDir()
	b := openIn(t, root, linux())
	mustPut(t, b, "a/b", "x")
	for _, name := range []string{"lost+found/x", ".nfs0001", "a/.nfs0002", "a/notes~", "a b/c", "a/.tmp-XYZ", "a/end."} {
		writeFile(t, filepath.Join(root, name), "x")
	}
	var keys []string
	for info, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	if len(keys) != 1 || keys[0] != "a/b" {
		t.Errorf("listed: %q", keys)
	}
	if err := unix.Mkfifo(filepath.Join(root, "a", "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]error)
	_, _, got["get"] = b.Get(t.Context(), "a/pipe")
	_, got["stat"] = b.Stat(t.Context(), "a/pipe")
	_, got["put"] = b.Put(t.Context(), "a/pipe", storage.Bytes("x"), storage.PutOptions{})
	for _, err := range b.List(t.Context(), "", "") {
		got["list"] = err
	}
	for _, op := range []string{"get", "stat", "put", "list"} {
		if got[op] == nil || errors.Is(got[op], storage.ErrNotExist) || !strings.Contains(got[op].Error(), "not a regular file") {
			t.Errorf("%s with a named pipe: %v", op, got[op])
		}
	}
}
