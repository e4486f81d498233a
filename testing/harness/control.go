package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// logPath is where the server writes its log.
func (s *Server) logPath() string { return filepath.Join(s.base, "server.log") }

// Log returns all that the server has logged since it was made, over restarts.
func (s *Server) Log() string {
	raw, err := os.ReadFile(s.logPath())
	if err != nil {
		return "" // not started yet
	}
	return string(raw)
}

// tail returns the last lines of the log.
func (s *Server) tail() string {
	lines := strings.Split(strings.TrimRight(s.Log(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-logTail):], "\n")
}

// Running tells whether the server's process runs.
func (s *Server) Running() bool { return s.proc != nil && s.proc.running() }

// Stop stops the server fast: transactions are ended, a checkpoint is written,
// and what is left to archive is archived.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGINT, stopLimit)
}

// Kill stops the server at once, as a crash of all its processes would: the
// next start recovers.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGQUIT, killLimit)
}

// end stops a running server and waits for its end.
func (s *Server) end(t testing.TB, sig syscall.Signal, limit time.Duration) {
	t.Helper()
	if !s.Running() {
		t.Fatalf("the server on port %d does not run", s.Port)
	}
	if !s.proc.stop(sig, limit) {
		t.Fatalf("the server on port %d was still there %v after %v", s.Port, limit, sig)
	}
}

// Restart stops the server fast if it runs and starts it again on the same port.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if s.Running() {
		s.Stop(t)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// WaitExit waits until the server ends by itself, as it does when recovery
// fails or reaches its target with recovery_target_action=shutdown, and returns
// its exit status.
func (s *Server) WaitExit(t testing.TB) int {
	t.Helper()
	if s.proc == nil {
		t.Fatalf("the server on port %d was never started", s.Port)
	}
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	select {
	case <-s.proc.exited:
	case <-timer.C:
		t.Fatalf("the server on port %d still runs", s.Port)
	}
	return exitCode(s.proc.cmd.ProcessState)
}

// ConnInfo returns a connection string for the superuser, over TCP.
func (s *Server) ConnInfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable", s.Port)
}

// socketInfo is ConnInfo over the Unix socket.
func (s *Server) socketInfo() string {
	return fmt.Sprintf("host='%s' port=%d user=postgres dbname=postgres sslmode=disable", s.SocketDir, s.Port)
}

// Env returns the variables with which PostgreSQL's programs and the agent find
// the server, over its Unix socket.
func (s *Server) Env() []string {
	return []string{
		"PGHOST=" + s.SocketDir,
		"PGPORT=" + strconv.Itoa(s.Port),
		"PGUSER=postgres",
		"PGDATABASE=postgres",
		"PGDATA=" + s.DataDir,
	}
}

// Tool returns the path of one of PostgreSQL's client programs: that of the
// server's major where it is installed, else that of DefaultMajor. A program
// that is missing fails the test.
func (s *Server) Tool(name string) string {
	s.t.Helper()
	path, err := findTool(s.Major, name)
	if err != nil {
		s.t.Fatal(err)
	}
	return path
}

// Run runs one of PostgreSQL's programs as the server's user with Env, and
// returns its standard output. A status other than 0 fails the test.
func (s *Server) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := Command(t.Context(), t, s.base, s.Env(), s.Tool(name), args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// waitContext is a context for waiting on the server, within the test's.
func waitContext(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), startLimit)
}
