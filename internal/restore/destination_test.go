package restore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// me is a user that exists, for tests that run as root.
const me = "daemon"

// wanted is a destination for a backup with one tablespace.
func wanted(root, location string, moved map[string]string) *destination {
	d := newDestination(root, 0o700, moved)
	d.expect(repo.Entry{Kind: repo.EntryDir, Path: "base"})
	d.expect(repo.Entry{Kind: repo.EntryFile, Path: "base/1", Size: 1000})
	if location != "" {
		d.expect(repo.Entry{Kind: repo.EntryTablespace, Path: "pg_tblspc/16384", OID: 16384, Location: location})
		d.expect(repo.Entry{Kind: repo.EntryFile, Path: "pg_tblspc/16384/PG_15_202209061/5/1", Size: 500})
	}
	return d
}

func write(t testing.TB, path, body string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(body), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestDestinationCheck(t *testing.T) {
	tests := map[string]struct {
		make func(t *testing.T, root, space string) *destination
		kind errs.Kind
		text string
	}{
		"does not exist": {func(_ *testing.T, root, _ string) *destination { return wanted(root, "", nil) }, errs.Other, ""},
		"empty": {func(t *testing.T, root, _ string) *destination {
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			return wanted(root, "", nil)
		}, errs.Other, ""},
		"only lost+found": {func(t *testing.T, root, _ string) *destination {
			if err := os.MkdirAll(root+"/lost+found", 0o700); err != nil {
				t.Fatal(err)
			}
			return wanted(root, "", nil)
		}, errs.Other, ""},
		"not empty": {func(t *testing.T, root, _ string) *destination {
			write(t, root+"/x", "")
			return wanted(root, "", nil)
		}, errs.Destination, "is not empty"},
		"a file": {func(t *testing.T, root, _ string) *destination {
			write(t, root, "")
			return wanted(root, "", nil)
		}, errs.Destination, ""},
		"a running server": {func(t *testing.T, root, _ string) *destination {
			write(t, root+"/postmaster.pid", fmt.Sprintf("%d\n%s\n", os.Getpid(), root))
			return wanted(root, "", nil)
		}, errs.Destination, "a server"},
		"a server that died": {func(t *testing.T, root, _ string) *destination {
			write(t, root+"/postmaster.pid", "4194304\n")
			return wanted(root, "", nil)
		}, errs.Destination, "is not empty"},
		"tablespace not empty": {func(t *testing.T, root, space string) *destination {
			write(t, space+"/x", "")
			return wanted(root, space, nil)
		}, errs.Destination, "/space is not empty"},
		"tablespace moved": {func(t *testing.T, root, space string) *destination {
			write(t, space+"/x", "")
			return wanted(root, space, map[string]string{space: space + "2"})
		}, errs.Other, ""},
		"tablespace unknown": {func(_ *testing.T, root, space string) *destination {
			return wanted(root, space, map[string]string{space + "/": "/x"})
		}, errs.Usage, "has no tablespace"},
		"tablespace relative": {func(_ *testing.T, root, _ string) *destination {
			return wanted(root, "../space", nil)
		}, errs.Destination, "not an absolute path"},
		"tablespace moved to a relative path": {func(_ *testing.T, root, space string) *destination {
			return wanted(root, space, map[string]string{space: "space"})
		}, errs.Destination, "not an absolute path"},
		"tablespace moved into the data directory's place": {func(_ *testing.T, root, space string) *destination {
			return wanted(root, space, map[string]string{space: root})
		}, errs.Destination, "would both be restored"},
		"two tablespaces in one place": {func(_ *testing.T, root, space string) *destination {
			d := newDestination(root, 0o700, map[string]string{"/nowhere": space})
			d.expect(repo.Entry{Kind: repo.EntryTablespace, Path: "pg_tblspc/1", OID: 1, Location: space})
			d.expect(repo.Entry{Kind: repo.EntryTablespace, Path: "pg_tblspc/2", OID: 2, Location: "/nowhere"})
			return d
		}, errs.Destination, "would both be restored"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			err := test.make(t, top+"/pg", top+"/space").check(t.Context(), me)
			if errs.KindOf(err) != test.kind || (err == nil) != (test.kind == errs.Other) {
				t.Fatalf("got %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %v, want %q", err, test.text)
			}
		})
	}
}

// What an unfinished restore left is cleared, in its own directories alone.
func TestClearUnfinished(t *testing.T) {
	top := t.TempDir()
	root, space, foreign := top+"/pg", top+"/space", top+"/foreign"
	begin := func(location string) *destination {
		t.Helper()
		d := wanted(root, location, nil)
		if err := errors.Join(d.check(t.Context(), me), d.begin(&repo.Backup{Name: "b"}, noon)); err != nil {
			t.Fatal(err)
		}
		write(t, root+"/base/1", "x")
		write(t, location+"/PG_15_202209061/5/1", "x")
		return d
	}
	kill := func(d *destination) { // the kernel gives the lock back
		if err := d.release(); err != nil {
			t.Fatal(err)
		}
	}
	names := func(dir string) (all []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}
	running := begin(space)
	if err := wanted(root, space, nil).check(t.Context(), me); errs.KindOf(err) != errs.Locked {
		t.Fatalf("a second restore beside the first: %v", err)
	}
	kill(running)
	kill(begin(space)) // the same again: what was there is cleared first
	if got := names(root); !cmp.Equal(got, []string{markerName, "base"}) {
		t.Fatalf("left in the data directory: %v", got)
	}
	// The tablespace goes elsewhere now: its old directory is not touched,
	// and neither is a link's target.
	write(t, foreign+"/x", "")
	if err := os.Symlink(foreign, root+"/link"); err != nil {
		t.Fatal(err)
	}
	d := wanted(root, space, map[string]string{space: top + "/new"})
	if err := d.check(t.Context(), me); err != nil {
		t.Fatal(err)
	}
	if got := names(root); len(got) != 0 {
		t.Fatalf("left in the data directory: %v", got)
	}
	if got := names(space); len(got) != 2 {
		t.Fatalf("the tablespace's directory of another restore has %v", got)
	}
	// A directory that was made anew since then, as a live server's
	// tablespace, has no marker and is not touched.
	if err := errors.Join(os.RemoveAll(space), os.RemoveAll(root)); err != nil {
		t.Fatal(err)
	}
	kill(begin(space))
	if err := os.Remove(space + "/" + markerName); err != nil {
		t.Fatal(err)
	}
	if err := wanted(root, space, nil).check(t.Context(), me); errs.KindOf(err) != errs.Destination {
		t.Fatalf("a live tablespace: %v", err)
	}
	if got := names(space); len(got) != 1 {
		t.Fatalf("the live tablespace has %v", got)
	}
	if err := errors.Join(os.RemoveAll(root), os.Mkdir(root, 0o700)); err != nil {
		t.Fatal(err)
	}
	if got := names(foreign); len(got) != 1 {
		t.Fatalf("the link's target has %v", got)
	}
	// With pg_control it was finished, and is a data directory.
	if err := d.begin(&repo.Backup{Name: "b"}, noon); err != nil {
		t.Fatal(err)
	}
	kill(d)
	write(t, root+"/"+postgres.ControlPath, "x")
	if err := wanted(root, "", nil).check(t.Context(), me); errs.KindOf(err) != errs.Destination {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(root + "/" + postgres.ControlPath); err != nil {
		t.Fatalf("a finished restore was cleared: %v", err)
	}
	// A marker that cannot be read proves nothing.
	os.Remove(root + "/" + postgres.ControlPath)
	write(t, root+"/"+markerName, "{")
	if err := wanted(root, "", nil).check(t.Context(), me); errs.KindOf(err) != errs.Destination || !strings.Contains(err.Error(), markerName) {
		t.Fatalf("got %v", err)
	}
}

// Directories get their modes, and what is above them lets the server pass.
func TestBegin(t *testing.T) {
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	top := t.TempDir()
	for mode, want := range map[uint32]os.FileMode{0o700: 0o700, 0o750: 0o750, 0o755: 0o750, 0o500: 0o700} {
		root := fmt.Sprintf("%s/%o/above/pg", top, mode)
		d := newDestination(root, mode, nil)
		if err := d.begin(&repo.Backup{Name: "b"}, noon); err != nil {
			t.Fatal(err)
		}
		for dir, want := range map[string]os.FileMode{root: want, filepath.Dir(root): 0o755} {
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != want {
				t.Fatalf("%s: %v, %v", dir, info.Mode(), err)
			}
		}
	}
}

// tiny is a file system of one MiB, for which root is needed.
func tiny(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a tmpfs (these tests run as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestNoSpace(t *testing.T) {
	dir := tiny(t)
	d := newDestination(dir+"/a/pg", 0o700, nil)
	d.expect(repo.Entry{Kind: repo.EntryFile, Path: "x", Size: 1 << 20})
	if err := d.check(t.Context(), me); err != nil {
		t.Fatalf("it fits exactly: %v", err)
	}
	d.expect(repo.Entry{Kind: repo.EntryFile, Path: "y", Size: 1})
	if err := d.check(t.Context(), me); errs.KindOf(err) != errs.NoSpace {
		t.Fatalf("one byte too much: %v", err)
	}
	// A tablespace on the same file system counts, too.
	d = newDestination(dir+"/pg", 0o700, nil)
	d.expect(repo.Entry{Kind: repo.EntryTablespace, Path: "pg_tblspc/1", OID: 1, Location: dir + "/space"})
	d.expect(repo.Entry{Kind: repo.EntryFile, Path: "x", Size: 600_000})
	d.expect(repo.Entry{Kind: repo.EntryFile, Path: "pg_tblspc/1/x", Size: 600_000})
	if err := d.check(t.Context(), me); errs.KindOf(err) != errs.NoSpace {
		t.Fatalf("together too much: %v", err)
	}
	// And where it runs full nevertheless, that is said.
	if err := d.begin(&repo.Backup{Name: "b"}, noon); err != nil {
		t.Fatal(err)
	}
	if err := d.writeFile("x", 0o600, make([]byte, 2<<20)); errs.KindOf(err) != errs.NoSpace || errs.HintOf(err) == "" {
		t.Fatalf("got %v", err)
	}
}

func TestRemap(t *testing.T) {
	d := wanted("/srv/pg", "/fast\nspace", map[string]string{"/fast\nspace": "/new\\space"})
	got, err := d.remap([]byte("16384 /fast\\\nspace\n16385 /other\n"))
	if err != nil || string(got) != "16384 /new\\\\space\n16385 /other\n" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := d.remap([]byte("16384")); err == nil {
		t.Fatal("a map that is cut short was taken")
	}
}

// Until the end there is no pg_control, and then no marker.
func TestFinishOrder(t *testing.T) {
	root := t.TempDir() + "/pg"
	d := newDestination(root, 0o700, nil)
	if err := d.begin(&repo.Backup{Name: "b"}, noon); err != nil {
		t.Fatal(err)
	}
	control := &pending{Entry: repo.Entry{Path: postgres.ControlPath, Mode: 0o600}, body: []byte("control")}
	if err := d.finish(control); err == nil {
		t.Fatal("finished without the directory global")
	}
	if _, err := os.Stat(root + "/" + markerName); err != nil {
		t.Fatalf("the marker went although it failed: %v", err)
	}
	if err := errors.Join(d.required(postgres.RequiredDirs()), d.finish(control)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(root + "/" + postgres.ControlPath); err != nil || string(b) != "control" {
		t.Fatalf("%q, %v", b, err)
	}
	entries, err := os.ReadDir(root + "/global")
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	if _, err := os.Stat(root + "/" + markerName); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the marker is there: %v", err)
	}
}
