package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// oldTool answers pg_upgrade's questions about the old cluster with a program of
// the new major: the servers of the cache come without these. It makes a
// directory of the new major's version around the old pg_control, whose format
// must be the same.
const oldTool = `#!/bin/sh
set -eu
tool=%s
for last; do :; done
case ${1:-} in --version | -V) exec "$tool" --version ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/global"
cp "$last/global/pg_control" "$work/global/"
ln -s "$last/pg_wal" "$work/pg_wal"
echo %d >"$work/PG_VERSION"
chmod -R go-rwx "$work"
case $tool in
*pg_resetwal) "$tool" -n "$work" ;;
*) "$tool" "$work" ;;
esac
`

// Upgrade makes a cluster of another major from that of a stopped server, with
// pg_upgrade and links to the old files, and returns its directory. WAL segments
// must be as big as the old ones (MiB; 0: PostgreSQL's 16). The new major must be one whose tools are installed, and must write pg_control as the
// old one does. The old cluster cannot be started again.
func Upgrade(t testing.TB, s *Server, major, segmentMB int) (dataDir string) {
	t.Helper()
	if s.Running() {
		t.Fatal("upgrade: the server runs")
	}
	upgrade, err := findProgram(major, "pg_upgrade")
	if err != nil {
		t.Fatal(err)
	}
	to, err := newServer(t, "", major, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	to.initdb(Options{WALSegSizeMB: segmentMB})
	bin := filepath.Join(to.base, "old")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatalf("upgrade: %v", err)
	}
	for _, name := range []string{"postgres", "pg_ctl"} {
		path, err := findProgram(s.Major, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatalf("upgrade: %v", err)
		}
	}
	for _, name := range []string{"pg_controldata", "pg_resetwal"} {
		path := filepath.Join(filepath.Dir(upgrade), name)
		if err := os.WriteFile(filepath.Join(bin, name), fmt.Appendf(nil, oldTool, path, major), 0o755); err != nil {
			t.Fatalf("upgrade: %v", err)
		}
	}
	Own(t, bin)
	cmd := Command(t.Context(), t, to.base, nil, upgrade, "--link", "-U", "postgres",
		"-b", bin, "-B", filepath.Dir(upgrade), "-d", s.DataDir, "-D", to.DataDir,
		"-s", to.SocketDir, "-o", "-c archive_mode=off", "-O", "-c archive_mode=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		logs, _ := filepath.Glob(filepath.Join(to.DataDir, "pg_upgrade_output.d/*/log/*")) // the pattern is well formed
		for _, path := range logs {
			if raw, rerr := os.ReadFile(path); rerr == nil {
				t.Logf("%s:\n%s", path, raw)
			}
		}
		t.Fatalf("pg_upgrade: %v\n%s", err, out)
	}
	return to.DataDir
}
