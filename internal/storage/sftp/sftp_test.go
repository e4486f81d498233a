package sftp

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"agent/internal/errs"
	"agent/internal/storage"
	"agent/testing/stores"
)

// start starts a server for a test that leaves no goroutine behind.
func start(t *testing.T, o stores.SFTPOptions) *stores.SFTP {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	return stores.StartSFTP(t, o)
}

// folder makes a repository folder on the server, and a bucket over it.
func folder(t *testing.T, s *stores.SFTP, change func(*Options)) (*Bucket, string) {
	t.Helper()
	root := filepath.Join(s.Dir, filepath.Base(filepath.Dir(t.TempDir())))
	o := optionsFor(t, s, root)
	o.Create = true
	if change != nil {
		change(&o)
	}
	b := mustOpen(t, o)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b, root
}

func mustPut(t *testing.T, b storage.Bucket, key, text string) {
	t.Helper()
	if _, err := b.Put(t.Context(), key, storage.Bytes(text), storage.PutOptions{}); err != nil {
		t.Fatalf("put: %v", err)
	}
}

// everything runs each operation on a key that is not there.
func everything(ctx context.Context, b *Bucket) map[string]error {
	got := make(map[string]error)
	_, _, got["get"] = b.Get(ctx, "some/key")
	_, got["range"] = b.GetRange(ctx, "some/key", 0, 1)
	_, got["stat"] = b.Stat(ctx, "some/key")
	_, got["put"] = b.Put(ctx, "some/key", storage.Bytes("x"), storage.PutOptions{})
	_, got["put at the top"] = b.Put(ctx, "key", storage.Bytes("x"), storage.PutOptions{})
	got["delete"] = b.Delete(ctx, "some/key", "other")
	for _, err := range b.List(ctx, "", "") {
		got["list"] = err
	}
	for _, err := range b.List(ctx, "no/such/", "") {
		got["list of a prefix"] = err
	}
	for _, err := range b.Folders(ctx, "") {
		got["folders"] = err
	}
	_, got["clean"] = b.Clean(ctx, time.Unix(0, 0))
	for _, err := range b.Unfinished(ctx, "no/such/") {
		got["unfinished"] = err
	}
	got["discard"] = b.Discard(ctx, storage.Unfinished{Key: "some/.tmp-1", ID: ".tmp-1"})
	_, got["probe"] = b.Probe(ctx)
	return got
}

var operations = []string{"get", "range", "stat", "put", "put at the top", "delete", "list", "list of a prefix", "folders", "clean", "unfinished", "discard", "probe"}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	stores.NewSSHKey(t, key, "ed25519", "")
	locked := filepath.Join(dir, "locked")
	stores.NewSSHKey(t, locked, "ed25519", "open sesame")
	known := filepath.Join(dir, "known_hosts")
	write(t, known, "")
	bad := filepath.Join(dir, "bad")
	write(t, bad, "not a key\n")
	good := Options{Host: "h.example", User: "u", Folder: "/a/../b c", KnownHostsFile: known, IdentityFiles: []string{key}}
	for _, tt := range []struct {
		name, want string
		change     func(*Options)
	}{
		{"host", "no host", func(o *Options) { o.Host = "" }},
		{"user", "no user", func(o *Options) { o.User = "" }},
		{"folder", "relative", func(o *Options) { o.Folder = "b" }},
		{"port", "port 70000", func(o *Options) { o.Port = 70000 }},
		{"no known_hosts", "no known_hosts file", func(o *Options) { o.KnownHostsFile = "" }},
		{"absent known_hosts", "read known_hosts", func(o *Options) { o.KnownHostsFile = filepath.Join(dir, "absent") }},
		{"bad known_hosts", "cannot be understood", func(o *Options) { o.KnownHostsFile = key }},
		{"nothing to log in with", "nothing is given", func(o *Options) { o.IdentityFiles = nil }},
		{"absent key", "read the SSH private key", func(o *Options) { o.IdentityFiles = []string{filepath.Join(dir, "absent")} }},
		{"bad key", "cannot be used", func(o *Options) { o.IdentityFiles = []string{bad} }},
		{"locked key", "cannot be used", func(o *Options) { o.IdentityFiles = []string{locked} }},
		{"wrong passphrase", "cannot be used", func(o *Options) {
			o.IdentityFiles = []string{locked}
			o.Passphrase = func(string) (string, error) { return "hunter2", nil }
		}},
		{"no passphrase", "cannot be used", func(o *Options) {
			o.IdentityFiles = []string{locked}
			o.Passphrase = func(string) (string, error) { return "", io.ErrUnexpectedEOF }
		}},
	} {
		o := good
		tt.change(&o)
		_, err := Open(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), tt.want) || errs.KindOf(err) != errs.Config || errs.HintOf(err) == "" {
			t.Errorf("%s: %v (kind %d, hint %q)", tt.name, err, errs.KindOf(err), errs.HintOf(err))
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the passphrase: %v", tt.name, err)
		}
	}
	for want, change := range map[string]func(*Options){
		"sftp://u@h.example/b%20c":      func(*Options) {},
		"sftp://u@h.example:2222/b%20c": func(o *Options) { o.Port = 2222 },
		"sftp://u@[::1]/b%20c":          func(o *Options) { o.Host = "::1" },
		"as it was given":               func(o *Options) { o.URL = "as it was given" },
	} {
		o := good
		change(&o)
		b := mustOpen(t, o)
		if b.String() != want {
			t.Errorf("the bucket is called %s, want %s", b, want)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, good); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A folder that is not there is never an empty store.
func TestVanishedRoot(t *testing.T) {
	b, root := folder(t, start(t, stores.SFTPOptions{}), nil)
	mustPut(t, b, "a/b", "x")
	want := func(what string) {
		t.Helper()
		got := everything(t.Context(), b)
		for _, op := range operations {
			if !errors.Is(got[op], storage.ErrUnavailable) || errs.HintOf(got[op]) == "" {
				t.Errorf("%s, %s: %v, want ErrUnavailable", what, op, got[op])
			}
		}
	}
	if err := os.Rename(root, root+".away"); err != nil {
		t.Fatal(err)
	}
	want("absent")
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was made again: %v", err)
	}
	write(t, root, "a file")
	want("file")
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(root+".away", root); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stat(t.Context(), "a/b"); err != nil {
		t.Errorf("after it came back: %v", err)
	}
}

// Other users of the server cannot read what is stored, and an umask of the
// server that forbids more is kept.
func TestModes(t *testing.T) {
	for mask, want := range map[string][2]os.FileMode{"0022": {0o750, 0o640}, "0000": {0o750, 0o640}, "0077": {0o700, 0o600}} {
		s := start(t, stores.SFTPOptions{Config: []string{"ForceCommand internal-sftp -u " + mask}})
		b, root := folder(t, s, nil)
		mustPut(t, b, "a/b", "x")
		for i, p := range []string{"a", "a/b"} {
			st, err := os.Stat(filepath.Join(root, p))
			if err != nil || st.Mode().Perm() != want[i] {
				t.Errorf("umask %s, %s: %v, %v, want %v", mask, p, st.Mode(), err, want[i])
			}
		}
	}
}

func TestNoFsync(t *testing.T) {
	s := start(t, stores.SFTPOptions{Deny: []string{"fsync"}})
	b, root := folder(t, s, nil)
	_, err := b.Put(t.Context(), "key", storage.Bytes("x"), storage.PutOptions{})
	if !errors.Is(err, storage.ErrUnsupported) || errs.HintOf(err) == "" || !strings.Contains(err.Error(), "fsync@openssh.com") {
		t.Errorf("put without fsync: %v, hint %q", err, errs.HintOf(err))
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestProbe(t *testing.T) {
	b, _ := folder(t, start(t, stores.SFTPOptions{}), nil)
	facts, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if facts.Free <= 0 || !strings.HasPrefix(facts.Notes["host key"], "ssh-ed25519 SHA256:") ||
		facts.Notes["sync"] != "files and directories" || facts.Notes["create"] != "hardlink@openssh.com" ||
		!strings.HasPrefix(facts.Notes["server"], "SSH-2.0-OpenSSH") {
		t.Errorf("facts: %+v", facts)
	}
	poor, _ := folder(t, start(t, stores.SFTPOptions{Deny: []string{"fsync", "hardlink", "statvfs"}}), nil)
	if facts, err = poor.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if facts.Free != -1 || facts.Notes["sync"] != "none" || facts.Notes["create"] != "rename" {
		t.Errorf("facts of a poor server: %+v", facts)
	}
}

func TestReadOnlyServer(t *testing.T) {
	s := start(t, stores.SFTPOptions{Config: []string{"ForceCommand internal-sftp -R"}})
	b, root := folder(t, s, func(o *Options) { o.Create, o.AllowNoFsync = false, true })
	if err := os.MkdirAll(filepath.Join(root, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "a", "b"), "x")
	for _, key := range []string{"a/c", "new/c", "c"} {
		if _, err := b.Put(t.Context(), key, storage.Bytes("x"), storage.PutOptions{}); !errors.Is(err, storage.ErrPermission) {
			t.Errorf("put %s: %v, want ErrPermission", key, err)
		}
	}
	if err := b.Delete(t.Context(), "a/b"); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("delete: %v, want ErrPermission", err)
	}
	o := optionsFor(t, s, root+"/new/folder")
	o.Create = true
	if _, err := Open(t.Context(), o); !errors.Is(err, storage.ErrPermission) || errs.KindOf(err) != errs.Storage {
		t.Errorf("create: %v, want ErrPermission", err)
	}
}

// A server says only "failure" of a full disk.
func TestFullDisk(t *testing.T) {
	s := start(t, stores.SFTPOptions{})
	root := filepath.Join(s.Dir, "full")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m,nr_inodes=8"); err != nil {
		t.Fatalf("mount a tmpfs (these tests run as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	o := optionsFor(t, s, root)
	b := mustOpen(t, o)
	defer b.Close()
	_, err := b.Put(t.Context(), "big", storage.Bytes(make([]byte, 3<<20)), storage.PutOptions{})
	if !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("put of more than fits: %v, want ErrNoSpace", err)
	}
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	mustPut(t, b, "small", "x")
	for err = nil; err == nil; {
		_, err = b.Put(t.Context(), "d/"+filepath.Base(t.TempDir()), storage.Bytes("x"), storage.PutOptions{})
	}
	if !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("put without an inode: %v, want ErrNoSpace", err)
	}
	for err = nil; err == nil; {
		_, err = b.Put(t.Context(), filepath.Base(t.TempDir())+"/d", storage.Bytes("x"), storage.PutOptions{})
	}
	if !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("new folder without an inode: %v, want ErrNoSpace", err)
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err = b.Put(t.Context(), "late", storage.Bytes("x"), storage.PutOptions{}); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("put to a read-only file system: %v, want ErrPermission", err)
	}
}

func TestClean(t *testing.T) {
	b, root := folder(t, start(t, stores.SFTPOptions{}), nil)
	mustPut(t, b, "a/b", "x")
	old := time.Unix(1_700_000_000, 0)
	for _, name := range []string{".tmp-1", "a/.tmp-2", "a/.tmp-new", "a/other"} {
		p := filepath.Join(root, name)
		write(t, p, "x")
		if !strings.HasSuffix(name, "new") {
			if err := os.Chtimes(p, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n, err := b.Clean(t.Context(), old); n != 0 || err != nil {
		t.Errorf("clean before: %d, %v", n, err)
	}
	if n, err := b.Clean(t.Context(), old.Add(time.Second)); n != 2 || err != nil {
		t.Errorf("clean: %d, %v, want 2", n, err)
	}
	if left := leftovers(t, root); len(left) != 1 || filepath.Base(left[0]) != ".tmp-new" {
		t.Errorf("left over: %q", left)
	}
	if _, err := os.Stat(filepath.Join(root, "a", "other")); err != nil {
		t.Error(err)
	}
}

// Nothing but an unfinished file is discarded, and the folder goes with it.
func TestDiscard(t *testing.T) {
	b, root := folder(t, start(t, stores.SFTPOptions{}), nil)
	mustPut(t, b, "a/b", "x")
	write(t, filepath.Join(filepath.Dir(root), storage.TempPrefix+"outside"), "x")
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
	if _, err := os.Stat(filepath.Join(filepath.Dir(root), storage.TempPrefix+"outside")); err != nil {
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

// What is no file of ours is told, and is not taken for a missing object.
func TestOddFiles(t *testing.T) {
	b, root := folder(t, start(t, stores.SFTPOptions{}), nil)
	mustPut(t, b, "a/b", "x")
	for name, target := range map[string]string{"a/link": "b", "a/lost": "nowhere", "dir": "nowhere"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"a/link", "a/lost", "dir/b", "dir/b/c"} {
		_, _, gerr := b.Get(t.Context(), key)
		_, serr := b.Stat(t.Context(), key)
		_, perr := b.Put(t.Context(), key, storage.Bytes("x"), storage.PutOptions{})
		for op, err := range map[string]error{"get": gerr, "stat": serr, "put": perr} {
			if err == nil || errors.Is(err, storage.ErrNotExist) || !strings.Contains(err.Error(), "symbolic link") {
				t.Errorf("%s of %s: %v", op, key, err)
			}
		}
	}
	for _, prefix := range []string{"", "a/", "dir/", "dir/x/"} {
		var err error
		for _, err = range b.List(t.Context(), prefix, "") {
			if err != nil {
				break
			}
		}
		if err == nil || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("list of %q: %v", prefix, err)
		}
	}
	// An object is no folder, and a folder no object.
	for _, key := range []string{"a/b/c", "a/b/c/d", "a"} {
		if _, err := b.Put(t.Context(), key, storage.Bytes("x"), storage.PutOptions{}); !errors.Is(err, storage.ErrKey) {
			t.Errorf("put %s: %v, want ErrKey", key, err)
		}
	}
}

// An object that shrinks or is replaced under a reader is not read as whole.
func TestChangedObject(t *testing.T) {
	b, root := folder(t, start(t, stores.SFTPOptions{}), nil)
	const size = 9 << 20
	mustPut(t, b, "k", strings.Repeat("x", size))
	for to, want := range map[int64]error{size - 1: io.ErrUnexpectedEOF, largePacket * 20: io.ErrUnexpectedEOF, size + 1: storage.ErrUnavailable} {
		r, _, err := b.Get(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		// More than is read ahead is left.
		if err := os.Truncate(filepath.Join(root, "k"), to); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if !errors.Is(err, want) {
			t.Errorf("%d bytes instead of %d: read %d, %v, want %v", to, size, n, err, want)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := os.Truncate(filepath.Join(root, "k"), size); err != nil {
			t.Fatal(err)
		}
	}
	r, err := b.GetRange(t.Context(), "k", 1, size-1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Truncate(filepath.Join(root, "k"), size-1); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, storage.ErrRange) {
		t.Errorf("a range of a shorter object: %v, want ErrRange", err)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
