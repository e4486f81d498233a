package early

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"agent/internal/config"
	"agent/internal/wal"
)

const segment = "00000001000000000000000B"

func TestFind(t *testing.T) {
	for _, c := range []struct {
		args          string
		command, file string // "": it is no such call
	}{
		{"wal-push pg_wal/" + segment, Push, segment},
		{"--config x wal-push --label wal-fetch /d/pg_wal/" + segment + ".partial", Push, segment + ".partial"},
		{"wal-push pg_wal/00000002.history", Push, "00000002.history"},
		{"wal-push pg_wal/" + segment + ".00000028.backup", Push, segment + ".00000028.backup"},
		{"wal-fetch " + segment + " pg_wal/RECOVERYXLOG", Fetch, segment},
		{"wal-push pg_wal/x", "", ""},
		{"wal-push pg_wal/" + segment + "\"", "", ""},
		{"wal-push pg_wal/" + segment + ".\"", "", ""},
		{"wal-fetch " + segment + " pg_wal/" + segment, "", ""},
		{"wal-fetch 00000002.history pg_wal/RECOVERYXLOG", "", ""},
		{"wal-fetch " + segment + ".partial pg_wal/RECOVERYXLOG", "", ""},
		{"wal-fetch " + segment + " pg_wal/RECOVERYXLOG --no-prefetch", "", ""},
		{"wal-fetch --end-before=" + segment + " " + segment + " pg_wal/RECOVERYXLOG", "", ""},
		{"wal-show pg_wal/" + segment, "", ""},
		{"", "", ""},
	} {
		found, ok := Find(strings.Fields(c.args))
		if ok != (c.command != "") || ok && (found.Command != c.command || found.File != c.file) {
			t.Errorf("%q: %+v, %v", c.args, found, ok)
		}
		if ok && !slices.Contains(strings.Fields(c.args), found.Path) {
			t.Errorf("%q: path %q", c.args, found.Path)
		}
	}
}

// TestNames holds what this package says again, since it must not import those
// that say it first.
func TestNames(t *testing.T) {
	if RecoveryFile != wal.RecoveryFile || DefaultConfig != config.DefaultFile {
		t.Errorf("%s, %s", RecoveryFile, DefaultConfig)
	}
}

func TestName(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write := func(path, body string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mkdir := func(path string) {
		t.Helper()
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mkdir("pg_wal")
	env := map[string]string{"HOME": dir}
	name := func(args ...string) string {
		t.Helper()
		c, ok := Find(args)
		if !ok {
			t.Fatalf("%q is no such call", args)
		}
		n, err := c.Name(func(v string) string { return env[v] })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	file := "pg_wal/" + segment
	args := []string{Push, "--config", "own.yaml", file}
	first := name(args...)
	if again := name(Push, "--config", "own.yaml", file[:len(file)-1]+"C"); again != first {
		t.Error("the next file has another name")
	}
	seen := map[string]string{first: "the first"}
	differs := func(what, n string) {
		t.Helper()
		if other, ok := seen[n]; ok {
			t.Errorf("%s has the name of %s", what, other)
		}
		seen[n] = what
	}
	differs("another argument", name(append(args, "--no-batch")...))
	differs("another command", name(Fetch, "--config", "own.yaml", segment, "pg_wal/RECOVERYXLOG"))
	differs("a new configuration file", func() string { write("own.yaml", "a"); return name(args...) }())
	differs("a changed configuration file", func() string { write("own.yaml", "ab"); return name(args...) }())
	env["AGENT_CONFIG"] = "~/env.yaml"
	differs("the environment's configuration file", func() string { write("env.yaml", "abc"); return name(args...) }())
	if err := os.Rename("pg_wal", "old"); err != nil {
		t.Fatal(err)
	}
	mkdir("pg_wal")
	differs("another directory at the same path", name(args...))
	absolute := []string{Push, "--config", filepath.Join(dir, "own.yaml"), filepath.Join(dir, file)}
	differs("an absolute path", name(absolute...))
	mkdir("elsewhere")
	t.Chdir("elsewhere")
	differs("another working directory", name(absolute...))
	c, _ := Find([]string{Push, "missing/" + segment})
	if _, err := c.Name(os.Getenv); err == nil {
		t.Error("a directory that is missing has a name")
	}
}

// listen takes connections to a name and gives each to answer, with the question.
func listen(t *testing.T, answer func(question string, conn net.Conn)) (name string) {
	t.Helper()
	name = "agent-test-" + t.Name() + strconv.Itoa(os.Getpid())
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			question, err := bufio.NewReader(conn).ReadString('\n')
			if err == nil {
				answer(question, conn)
			}
			conn.Close()
		}
	}()
	return name
}

func TestAsk(t *testing.T) {
	says := ""
	name := listen(t, func(question string, conn net.Conn) {
		if question == "x\n" {
			conn.Write([]byte(says))
		}
	})
	for answer, want := range map[string]bool{
		`{"done":true}` + "\n": true, `{"done":false}` + "\n": false, `{"done":true}`: false, "": false, "yes and no, but nothing else\n": false,
	} {
		says = answer
		if ask(name, "x", fetchPatience) != want {
			t.Errorf("%q is not %v", answer, want)
		}
	}
	if ask(name+"x", "x", fetchPatience) {
		t.Error("nobody has answered yes")
	}
}

func TestAskIsGivenUp(t *testing.T) {
	hold := make(chan struct{})
	name := listen(t, func(string, net.Conn) { <-hold })
	if ask(name, "x", 1000) { // nanoseconds: the shortest that there is
		t.Error("no answer is a yes")
	}
	close(hold)
}

// TestSignal ends a call of archive_command that waits, with a status.
func TestSignal(t *testing.T) {
	hold := make(chan struct{})
	name := listen(t, func(string, net.Conn) {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		<-hold
	})
	if code, answered := push(name, segment); code != 1 || !answered {
		t.Errorf("status %d, %v", code, answered)
	}
	close(hold)
}
