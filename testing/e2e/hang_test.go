package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"agent/testing/harness"
)

// hangingFolder is a mounted file system that never answers, as an NFS server
// that is away behind a hard mount: a FUSE mount without anybody behind it
// (Linux, Documentation/filesystems/fuse.rst). Every look at it waits.
func hangingFolder(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("run it as root: it mounts a file system")
	}
	dir := filepath.Join(harness.TempDir(t), "hangs")
	makeDir(t, dir)
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device.Fd())
	if err := syscall.Mount("agent-test", dir, "fuse", 0, options); err != nil {
		t.Fatalf("mount a file system that hangs: %v", err)
	}
	t.Cleanup(func() {
		// All that waits gets an error when the device is closed.
		if err := device.Close(); err != nil {
			t.Error(err)
		}
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFolderHangs has a folder that never answers: alone it ends a push, with
// the reason; as a best-effort repository it holds nothing up.
func TestFolderHangs(t *testing.T) {
	t.Parallel()
	s, segments := walDir(t, 2)
	hangs := hangingFolder(t)
	env := append(s.env(), "AGENT_TIMEOUT=3s")
	hinted(t, harness.Agent(t, append(env, "AGENT_REPOSITORY="+hangs), "wal-push", segments[0]), 1, hangs)

	several := fmt.Sprintf("AGENT_REPOSITORIES=[{name: good, url: %q}, {name: far, url: %q, required: false}]", s.repo, hangs)
	var list []string
	for _, v := range s.env() {
		if v != "AGENT_REPOSITORY="+s.repo {
			list = append(list, v)
		}
	}
	list = append(list, several)
	for _, segment := range segments {
		must(t, harness.Agent(t, list, "wal-push", segment))
	}
	for _, segment := range segments {
		if !exists(s.walObject(t, filepath.Base(segment))) {
			t.Errorf("%s was not archived", segment)
		}
	}
}
