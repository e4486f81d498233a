package docs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"agent/testing/harness"
)

// scratchPaths are the paths in the documents that stand for folders of the
// scratch place.
var scratchPaths = regexp.MustCompile(`(^|[\s='":<>(])/(backup|restore|srv)\b`)

// limit bounds the commands of one document, which may wait for ever.
const limit = 3 * time.Minute

// TestCommands runs the commands of each document.
func TestCommands(t *testing.T) {
	ran := 0
	for _, d := range documents(t) {
		if len(d.blocks) == 0 {
			continue
		}
		ran++
		t.Run(filepath.Base(d.name), func(t *testing.T) { runDocument(t, d) })
	}
	if ran < 5 {
		t.Errorf("only %d documents have commands", ran)
	}
}

func runDocument(t *testing.T, d document) {
	dir := harness.TempDir(t)
	for _, name := range []string{"backup", "restore", "srv", "bin", "out"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(harness.AgentBinary(t), filepath.Join(dir, "bin", "agent")); err != nil {
		t.Fatal(err)
	}
	harness.Own(t, dir)
	s := harness.Start(t, harness.Options{NoFsync: true})
	// A restored server has no command line of ours: what it needs is in its
	// settings. It listens on the socket alone, so any port is free.
	s.AppendConf(t, map[string]string{
		"port": strconv.Itoa(s.Port), "listen_addresses": "", "unix_socket_directories": s.SocketDir,
	})

	examples := startStores(t, dir, d)
	here := func(text string) string {
		return scratchPaths.ReplaceAllString(examples.real(text), "${1}"+dir+"/$2")
	}
	script := &strings.Builder{}
	for i, b := range d.blocks {
		fmt.Fprintf(script, "echo '%s:%d' >&2\n{\n%s} >%s\n", d.name, b.line, here(b.script), outputOf(dir, i))
	}
	env := append(s.Env(), "PATH="+filepath.Join(dir, "bin")+":"+filepath.Dir(s.Tool("pg_ctl"))+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := harness.Command(ctx, t, dir, env, "/bin/bash", "-eu", "-o", "pipefail", "-c", script.String())
	// Files, since the servers that are started keep what they are given.
	messages, err := os.Create(filepath.Join(dir, "messages"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = messages, messages
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if cerr := messages.Close(); cerr != nil {
		t.Fatal(cerr)
	}
	if err != nil {
		t.Fatalf("run the commands of %s: %v\n%s%s", d.name, err, read(t, messages.Name()), logs(t, dir))
	}
	for i, b := range d.blocks {
		printed := strings.ReplaceAll(examples.shown(read(t, outputOf(dir, i))), dir, "")
		if b.checks && !fits(b.output, printed) {
			t.Errorf("%s:%d printed\n%s\nand not\n%s", d.name, b.line, printed, b.output)
		}
	}
}

func outputOf(dir string, i int) string { return filepath.Join(dir, "out", strconv.Itoa(i)) }

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// logs is the end of each server's log, and what the blocks printed.
func logs(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	for _, pattern := range []string{"*.log", "out/*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text := read(t, name)
			fmt.Fprintf(&all, "--- %s\n%s\n", filepath.Base(name), text[max(0, len(text)-3000):])
		}
	}
	return all.String()
}
