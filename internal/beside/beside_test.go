package beside

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAsk(t *testing.T) {
	name := Name("agent-test-" + t.Name() + strconv.Itoa(os.Getpid()))
	var answer int
	if err := Ask(t.Context(), name, 1, &answer); !errors.Is(err, ErrNone) {
		t.Fatalf("asked nobody: %v", err)
	}
	l, err := Listen(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), name, nil); !errors.Is(err, ErrTaken) {
		t.Errorf("the name was given twice: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var n int
			if Receive(conn, &n) == nil && n > 0 {
				Send(conn, n+1)
			}
			conn.Close()
		}
	}()
	if err := Ask(t.Context(), name, 41, &answer); err != nil || answer != 42 {
		t.Errorf("answer %d, %v", answer, err)
	}
	if err := Ask(t.Context(), name, -1, &answer); err == nil {
		t.Error("no answer is no error")
	}
	l.Close()
	<-done
	if err := Ask(t.Context(), name, 1, &answer); !errors.Is(err, ErrNone) {
		t.Errorf("asked one that has ended: %v", err)
	}
	again, err := Listen(t.Context(), name, nil)
	if err != nil {
		t.Fatalf("the name is not free again: %v", err)
	}
	again.Close()
}

// TestEnvironment answers only processes that began with the same environment.
func TestEnvironment(t *testing.T) {
	body, err := os.ReadFile("/proc/self/environ")
	if err != nil {
		t.Fatal(err)
	}
	own := strings.Split(strings.TrimSuffix(string(body), "\x00"), "\x00")
	slices.Reverse(own)
	for i, c := range []struct {
		environ []string
		same    bool
	}{
		{own, true},
		{append(slices.Clone(own), "PWD=/elsewhere", "_=x", "SHLVL=7"), true},
		{append(slices.Clone(own), "X=y"), false},
		{lasting(own)[1:], false},
	} {
		name := Name("agent-test-" + t.Name() + strconv.Itoa(os.Getpid()) + strconv.Itoa(i))
		l, err := Listen(t.Context(), name, c.environ)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				var n int
				if Receive(conn, &n) == nil {
					Send(conn, n)
				}
				conn.Close()
			}
		}()
		var answer int
		if err := Ask(t.Context(), name, 1, &answer); (err == nil) != c.same {
			t.Errorf("%d: %v", i, err)
		}
		l.Close()
		<-done
	}
}

func TestAskIsGivenUp(t *testing.T) {
	name := Name("agent-test-" + t.Name() + strconv.Itoa(os.Getpid()))
	l, err := Listen(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nobody accepts
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		var answer int
		result <- Ask(ctx, name, 1, &answer)
	}()
	cancel()
	if err := <-result; err == nil {
		t.Error("a question that was given up has an answer")
	}
}

func TestStart(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if out, err := exec.CommandContext(t.Context(), "mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	log := filepath.Join(dir, "log", "x.log")
	ctx, cancel := context.WithCancel(t.Context())
	pid, err := Start(ctx, Command{Program: "/bin/sh", Argv0: "sh", Args: []string{"-c", "echo $$ $X $(pwd); : <" + fifo}, Env: []string{"X=y"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cancel() // it outlives its starter
	watched, stop, err := WithServer(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := os.WriteFile(fifo, nil, 0); err != nil { // opens when it reads
		t.Fatal(err)
	}
	<-watched.Done()
	if cause := context.Cause(watched); !errors.Is(cause, ErrServerGone) {
		t.Errorf("the context ended with %v", cause)
	}
	said, err := os.ReadFile(log)
	if want := strconv.Itoa(pid) + " y /\n"; err != nil || string(said) != want {
		t.Errorf("it said %q (%v), expected %q", said, err, want)
	}
}

func TestWithServerStops(t *testing.T) {
	ctx, stop, err := WithServer(t.Context(), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if errors.Is(context.Cause(ctx), ErrServerGone) || ctx.Err() == nil {
		t.Errorf("stopped with %v", context.Cause(ctx))
	}
	if _, _, err := WithServer(t.Context(), 1<<22+1); err == nil {
		t.Error("a process that does not exist is watched")
	}
}

func TestPostmaster(t *testing.T) {
	for body, want := range map[string]int{"123\n/data\n": 123, "-123\n": 0, "": 0, "x\n": 0, "12": 0} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		pid, err := Postmaster(dir)
		if pid != want || (err == nil) != (want != 0) {
			t.Errorf("%q gives %d, %v", body, pid, err)
		}
	}
	if _, err := Postmaster(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
