package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// agentLimit bounds one run of the agent, so that one that hangs fails its own
// test and not the whole package.
const agentLimit = 10 * time.Minute

// Result is what a finished command left.
type Result struct {
	Code   int // exit status; 128 and the signal's number for one that was killed
	Stdout string
	Stderr string
}

// agentBinary builds the agent at most once per test process.
var agentBinary = sync.OnceValues(func() (string, error) { return build("cmd/agent") })

// AgentBinary returns the path of the agent, built from this tree the first
// time a test process asks for it. Every user can run it.
func AgentBinary(t testing.TB) string {
	t.Helper()
	path, err := agentBinary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Agent runs the agent as the servers' user, in a folder of its own, with the
// given environment (such as Server.Env) and none of this process's, and waits
// for its end. Any exit status is a result, not a failure of the test.
func Agent(t testing.TB, env []string, args ...string) Result {
	t.Helper()
	return StartAgent(t, env, args...).Wait()
}

// Process is a command that runs beside the test.
type Process struct {
	t       testing.TB
	proc    *process
	dir     string // holds what it prints
	started string // the command line, for messages
}

// StartAgent is Agent without waiting, for runs that are to be watched, killed
// or interrupted. The agent is killed when the test ends.
func StartAgent(t testing.TB, env []string, args ...string) *Process {
	t.Helper()
	return startProgram(t, env, AgentBinary(t), args...)
}

// startProgram starts any program as StartAgent does.
func startProgram(t testing.TB, env []string, path string, args ...string) *Process {
	t.Helper()
	dir := TempDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), agentLimit)
	cmd := Command(ctx, t, dir, env, path, args...)
	p := &Process{t: t, dir: dir, started: fmt.Sprintf("%s %q", filepath.Base(path), args)}
	// Files, since the end of a pipe would be awaited as long as any background
	// child of the command holds it open.
	stdout, err := os.Create(filepath.Join(dir, "stdout"))
	if err != nil {
		cancel()
		t.Fatalf("make a file for the output of %s: %v", p.started, err)
	}
	defer func() { _ = stdout.Close() }() // the command has its own handle
	stderr, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		cancel()
		t.Fatalf("make a file for the messages of %s: %v", p.started, err)
	}
	defer func() { _ = stderr.Close() }() // the command has its own handle
	cmd.Stdout, cmd.Stderr = stdout, stderr
	proc, err := spawn(cmd)
	if err != nil {
		cancel()
		t.Fatalf("run %s: %v", p.started, err)
	}
	p.proc = proc
	t.Cleanup(func() {
		cancel()
		<-proc.exited
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("%s ran for %v and was killed, its messages:\n%s", p.started, agentLimit, p.Stderr())
		}
	})
	return p
}

// Wait waits for the end of the command. It may be called more than once.
func (p *Process) Wait() Result {
	<-p.proc.exited
	return Result{
		Code:   exitCode(p.proc.cmd.ProcessState),
		Stdout: p.Stdout(),
		Stderr: p.Stderr(),
	}
}

// Signal sends a signal; one that comes too late is no failure.
func (p *Process) Signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.proc.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("send %v to %s: %v", sig, p.started, err)
	}
}

// Done is closed when the command has ended.
func (p *Process) Done() <-chan struct{} { return p.proc.exited }

// Stdout returns what the command has printed so far.
func (p *Process) Stdout() string { return p.printed("stdout") }

// Stderr returns what the command has reported so far.
func (p *Process) Stderr() string { return p.printed("stderr") }

// printed reads one of the command's outputs.
func (p *Process) printed(name string) string {
	p.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		p.t.Fatalf("read what %s printed: %v", p.started, err)
	}
	return string(raw)
}

// build compiles a package of this module, named by its folder, and returns the
// program's path. It is put into the cache folder, one place per tree, so that
// it outlives the test that asked first, is linked anew only if its source
// changed, and nothing piles up in the folder for temporary files.
func build(pkg string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(root))
	dir := filepath.Join(cache, "build", hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the folder for the program: %w", err)
	}
	// Packages are tested side by side, and each process builds.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("open the build's lock: %w", err)
	}
	defer func() { _ = lock.Close() }() // which releases it
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("wait for another build: %w", err)
	}
	program := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(context.Background(), "go", "build", "-tags", "disable_grpc_modules", "-trimpath", "-buildvcs=false", "-o", program, "./"+pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	if err := os.Chmod(program, 0o755); err != nil {
		return "", fmt.Errorf("let every user run the program: %w", err)
	}
	return program, nil
}

// moduleRoot returns the folder of this module's go.mod: tests run in the
// folder of their package, which is below it.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the module: no go.mod above the working folder")
		}
		dir = parent
	}
}
