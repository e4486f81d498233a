package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
)

// segments holds WAL segments of real servers, compressed.
const segments = "../../internal/postgres/testdata"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"agent": main})
}

// TestScript runs the command line as a shell does. Each script has its own
// state directory and nothing else of the agent in its environment.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("AGENT_STATE_DIR", filepath.Join(env.WorkDir, "state"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":    runWithStatus,
			"segment":   unpackSegment,
			"flip":      flipByte,
			"jsonlines": jsonLines,
			"mode":      fileMode,
			"exitcodes": exitCodes,
		},
	})
}

// runWithStatus is "status CODE PROGRAM ARGS...": the program must end with
// exactly this status.
func runWithStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("run %s: %v", args[1], err)
	}
	if got != want {
		ts.Fatalf("%s ended with status %d, not %d\n%s%s", strings.Join(args[1:], " "), got, want,
			ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// unpackSegment is "segment SET/NAME DIR": the fixture goes to DIR/NAME.
func unpackSegment(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: segment SET/NAME DIR")
	}
	stored, err := os.ReadFile(filepath.Join(segments, filepath.FromSlash(args[0])+".zst"))
	ts.Check(err)
	dec, err := zstd.NewReader(nil)
	ts.Check(err)
	defer dec.Close()
	raw, err := dec.DecodeAll(stored, nil)
	ts.Check(err)
	dir := ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(os.WriteFile(filepath.Join(dir, filepath.Base(args[0])), raw, 0o600))
}

// flipByte is "flip FILE [TAIL]": one byte in the middle of the file, or TAIL
// bytes before its end, is altered.
func flipByte(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: flip FILE [TAIL]")
	}
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	at := len(b) / 2
	if len(args) == 2 {
		tail, err := strconv.Atoi(args[1])
		ts.Check(err)
		at = len(b) - tail
	}
	b[at] ^= 1
	ts.Check(os.WriteFile(path, b, 0o600))
}

// jsonLines is "jsonlines FILE KEY...": every line is a JSON object, and each
// key is in at least one of them.
func jsonLines(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: jsonlines FILE KEY...")
	}
	seen := make(map[string]bool)
	lines := 0
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			ts.Fatalf("line %q: %v", line, err)
		}
		lines++
		for key := range object {
			seen[key] = true
		}
	}
	if lines == 0 {
		ts.Fatalf("%s is empty", args[0])
	}
	for _, key := range args[1:] {
		if !seen[key] {
			ts.Fatalf("no line has the key %q:\n%s", key, ts.ReadFile(args[0]))
		}
	}
}

// fileMode is "mode OCTAL FILE".
func fileMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode OCTAL FILE")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, not %s", args[1], got, args[0])
	}
}

// exitCodes is "exitcodes ARGS...": every command that there is ends, with
// these arguments behind its name, as its contract says: wal-push with 1,
// wal-fetch with 126, all others with 2.
func exitCodes(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: exitcodes ARGS...")
	}
	commands := leafCommands()
	if len(commands) < 10 {
		ts.Fatalf("only %d commands: %v", len(commands), commands)
	}
	for _, command := range commands {
		want := "2"
		switch command[0] {
		case "wal-push":
			want = "1"
		case "wal-fetch":
			want = "126"
		}
		runWithStatus(ts, false, slices.Concat([]string{want, "agent"}, command, args))
		if msg := ts.ReadFile("stderr"); !strings.Contains(msg, "agent: error: ") || !strings.Contains(msg, "agent: hint: See: agent help "+strings.Join(command, " ")) {
			ts.Fatalf("agent %s says:\n%s", strings.Join(command, " "), msg)
		}
	}
}

// leafCommands are our own commands that do something.
func leafCommands() [][]string {
	var all [][]string
	for _, cmd := range newApp(os.Stdout, os.Stderr).root().Commands() {
		if len(cmd.Commands()) == 0 {
			all = append(all, []string{cmd.Name()})
		}
		for _, sub := range cmd.Commands() {
			all = append(all, []string{cmd.Name(), sub.Name()})
		}
	}
	return all
}
