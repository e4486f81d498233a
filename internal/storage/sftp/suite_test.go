package sftp

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"agent/internal/storage"
	"agent/internal/storage/storagetest"
	"agent/testing/stores"
)

// optionsFor opens a folder on the server.
func optionsFor(t *testing.T, s *stores.SFTP, folder string) Options {
	t.Helper()
	return Options{
		Host: s.Host(), Port: s.Port(), User: s.User, Folder: folder,
		KnownHostsFile: s.KnownHostsFile, IdentityFiles: []string{s.IdentityFile}, Connections: 4,
	}
}

func mustOpen(t *testing.T, o Options) *Bucket {
	t.Helper()
	b, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return b
}

// leftovers are the files that no listing shows.
func leftovers(t *testing.T, root string) []string {
	t.Helper()
	var left []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !storage.ValidComponent(d.Name()) {
			left = append(left, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// abandon leaves a file as a Put does that is killed.
func abandon(t *testing.T, root, key string) {
	t.Helper()
	p := filepath.Join(root, filepath.Dir(key), storage.TempPrefix+filepath.Base(key))
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, p, "half")
}

// TestSuite runs on OpenSSH as it is, and as servers without some of its
// extensions.
func TestSuite(t *testing.T) {
	for _, tt := range []struct {
		name string
		deny []string
		set  func(*Options)
	}{
		{"OpenSSH", nil, func(*Options) {}},
		{"Rename", []string{"hardlink", "limits"}, func(o *Options) { o.Connections = 1 }},
		{"Poor", []string{"hardlink", "limits", "fsync", "statvfs", "posix-rename", "fsetstat", "setstat"}, func(o *Options) { o.AllowNoFsync = true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := stores.StartSFTP(t, stores.SFTPOptions{Deny: tt.deny})
			storagetest.Run(t, func(t *testing.T) storagetest.Harness {
				root := filepath.Join(server.Dir, filepath.Base(t.TempDir()), t.Name())
				return storagetest.Harness{
					Open: func(t *testing.T) storage.Bucket {
						o := optionsFor(t, server, root)
						o.Create = true
						tt.set(&o)
						return mustOpen(t, o)
					},
					Leftovers: func(t *testing.T) []string { return leftovers(t, root) },
					Abandon:   func(t *testing.T, key string) { abandon(t, root, key) },
					Few:       tt.deny != nil,
				}
			})
		})
	}
}
