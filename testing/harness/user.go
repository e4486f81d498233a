package harness

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

const (
	installBase = "testing/install/postgres.sh"
	installAll  = "testing/install/postgres.sh all"
	serverUser  = "postgres" // the system user that Debian's server package makes
)

// credential returns as whom servers, tools and the agent run: nil for the
// current user, the user postgres if that is root.
func credential() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(serverUser)
	if err != nil {
		return nil, fmt.Errorf("find the user %s (run %s): %w", serverUser, installBase, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("parse the id of user %s: %w", serverUser, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("parse the group of user %s: %w", serverUser, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// TempDir returns a new folder that belongs to the user whom servers and the
// agent run as. It is removed, with all that is in it, when the test ends;
// processes that still work in it are killed first.
func TempDir(t testing.TB) string {
	t.Helper()
	// Short, because a socket's path may have no more than 107 bytes.
	dir, err := os.MkdirTemp("", "agent-")
	if err != nil {
		t.Fatalf("make a folder for the test: %v", err)
	}
	t.Cleanup(func() {
		for _, p := range killWithin(dir) {
			t.Logf("killed a process left behind in %s: %s", dir, p)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's folder: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatalf("open the test's folder: %v", err)
	}
	Own(t, dir)
	return dir
}

// Own gives a file or folder, with all that is in it, to the user whom servers
// and the agent run as. Links are given, not followed.
func Own(t testing.TB, path string) {
	t.Helper()
	cred, err := credential()
	if err != nil {
		t.Fatal(err)
	}
	if cred == nil {
		return
	}
	err = filepath.WalkDir(path, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, int(cred.Uid), int(cred.Gid))
	})
	if err != nil {
		t.Fatalf("give %s to the server's user: %v", path, err)
	}
}
