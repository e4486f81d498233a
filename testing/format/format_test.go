package format_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
)

// TestSecondImplementation compares what docs/format.md gives with what
// backup-fetch restores, file by file.
func TestSecondImplementation(t *testing.T) {
	for _, c := range []struct {
		compression string
		sealed      bool
	}{{"zstd", true}, {"lz4", false}, {"none", false}} {
		t.Run(c.compression, func(t *testing.T) { compare(t, c.compression, c.sealed) })
	}
}

func compare(t *testing.T, compression string, sealed bool) {
	dir := harness.TempDir(t)
	repository := filepath.Join(dir, "repository")
	env := []string{"AGENT_REPOSITORY=" + repository, "AGENT_STATE_DIR=" + filepath.Join(dir, "state"), "AGENT_COMPRESSION=" + compression}
	r := &reader{}
	if sealed {
		key, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		r.identities = []age.Identity{key}
		env = append(env, "AGENT_RECIPIENTS="+key.Recipient().String(), "AGENT_IDENTITY="+key.String())
	}
	run(t, env, "repo", "init")

	space := filepath.Join(dir, "space")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	harness.Own(t, space)
	s := harness.Start(t, harness.Options{
		NoFsync: true, Env: env,
		Conf: map[string]string{"archive_mode": "on", "archive_command": harness.AgentBinary(t) + " wal-push %p"},
	})
	s.Exec(t,
		"CREATE TABLESPACE fast LOCATION '"+space+"'",
		"CREATE TABLE big AS SELECT i, md5(i::text) AS t FROM generate_series(1, 400000) i",
		"CREATE TABLE moved TABLESPACE fast AS SELECT generate_series(1, 1000) i",
		"CREATE TABLE empty (i int)",
		"CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS i",
	)
	env = append(env, s.Env()...)
	run(t, env, "backup-push")
	// A few pages change.
	s.Exec(t, "UPDATE big SET t = 'new' WHERE i % 50000 = 0", "CREATE TABLE more AS SELECT generate_series(1, 1000) i")
	run(t, env, "backup-push")
	clusters, err := filepath.Glob(filepath.Join(repository, "cluster", "*"))
	if err != nil || len(clusters) != 1 {
		t.Fatalf("clusters %v: %v", clusters, err)
	}
	r.dir = clusters[0]
	backups, err := filepath.Glob(filepath.Join(r.dir, "backup", "*", "backup.json"))
	if err != nil || len(backups) != 2 {
		t.Fatalf("backups %v: %v", backups, err)
	}
	var full, incremental map[string]entry
	for _, path := range backups {
		entries, err := r.restore(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		switch r.kind {
		case "full":
			full = entries
			if r.borrowed != 0 {
				t.Errorf("the full backup borrows %d packs", r.borrowed)
			}
		case "incremental":
			incremental = entries
			if r.borrowed == 0 {
				t.Error("the incremental backup borrows nothing")
			}
		}
	}
	if len(full) == 0 || len(incremental) <= len(full) {
		t.Fatalf("the full backup has %d entries, the incremental one %d", len(full), len(incremental))
	}
	got := incremental
	dest, newSpace := filepath.Join(dir, "restored"), filepath.Join(dir, "newspace")
	run(t, env, "backup-fetch", dest, "--tablespace-map", space+"="+newSpace)
	want := walk(t, dest)
	// What the restore adds or rewrites, as the page says.
	for _, added := range []string{"recovery.signal", "backup_manifest", "postgresql.auto.conf", "tablespace_map"} {
		if _, ok := want[added]; !ok {
			t.Errorf("%s was not restored", added)
		}
		delete(want, added)
		delete(got, added)
	}
	// Its contents stay out of backups; PostgreSQL wants to find the folder.
	if e, ok := want["pg_wal/archive_status"]; !ok || e.Type != 'D' {
		t.Errorf("pg_wal/archive_status was not made: %+v", e)
	}
	delete(want, "pg_wal/archive_status")
	for path, e := range got {
		switch {
		case e.Type == 'T':
			if e.Location != space || path != fmt.Sprintf("pg_tblspc/%d", e.OID) {
				t.Errorf("tablespace %s: %+v", path, e)
			}
			e.Location, e.OID, e.Mode = newSpace, 0, 0
			got[path] = e
		case e.Final:
			e.Final = false
			got[path] = e
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("backup-fetch (-) and docs/format.md (+) differ:\n%s", diff)
	}
	if len(got) < 900 {
		t.Errorf("only %d entries", len(got))
	}
	checkWAL(t, r, s, sealed)
}

func run(t *testing.T, env []string, args ...string) {
	t.Helper()
	if res := harness.Agent(t, env, args...); res.Code != 0 {
		t.Fatalf("agent %v ended with %d:\n%s", args, res.Code, res.Stderr)
	}
}

// walk describes a restored directory as the manifest would.
func walk(t *testing.T, root string) map[string]entry {
	t.Helper()
	all := make(map[string]entry)
	var visit func(dir, rel string)
	visit = func(dir, rel string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range entries {
			path, name := filepath.Join(dir, d.Name()), strings.TrimPrefix(rel+"/"+d.Name(), "/")
			info, err := d.Info()
			if err != nil {
				t.Fatal(err)
			}
			e := entry{Mode: uint64(info.Mode().Perm())}
			switch {
			case info.Mode()&fs.ModeSymlink != 0:
				e.Type, e.Mode = 'T', 0
				if e.Location, err = os.Readlink(path); err != nil {
					t.Fatal(err)
				}
				visit(path, name)
			case d.IsDir():
				e.Type = 'D'
				visit(path, name)
			default:
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				e.Type, e.Size, e.SHA256 = 'F', uint64(len(b)), sha256.Sum256(b)
			}
			all[name] = e
		}
	}
	visit(root, "")
	return all
}

// checkWAL opens every archived WAL file, and compares its head with its raw
// bytes and these with the server's own file where that is still there.
func checkWAL(t *testing.T, r *reader, s *harness.Server, sealed bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "wal", "*", "*"))
	if err != nil || len(files) < 3 {
		t.Fatalf("WAL files %v: %v", files, err)
	}
	compared := 0
	for _, path := range files {
		stored, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := r.open(stored)
		if err != nil {
			t.Fatalf("open %s: %v", path, err)
		}
		raw, err := decompress(opened)
		if err != nil {
			t.Fatalf("decompress %s: %v", path, err)
		}
		sum := sha256.Sum256(raw)
		head := append([]byte{0x57, 0x2A, 0x4D, 0x18, 0x20, 0, 0, 0}, sum[:]...)
		if sealed {
			head = []byte("age-encryption.org/v1\n-> walagent1 " + hex.EncodeToString(sum[:]) + "\n\n")
		}
		if !bytes.HasPrefix(stored, head) {
			t.Errorf("%s does not begin with the hash of its bytes", path)
		}
		local, err := os.ReadFile(filepath.Join(s.DataDir, "pg_wal", filepath.Base(path)))
		if errors.Is(err, fs.ErrNotExist) {
			continue // recycled
		}
		if err != nil {
			t.Fatal(err)
		}
		compared++
		if !bytes.Equal(local, raw) {
			t.Errorf("%s is not the server's file", path)
		}
	}
	if compared == 0 {
		t.Error("no WAL file could be compared with the server's")
	}
}
