package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Command prepares a program that runs as the user of the servers, in the given
// folder, with exactly the environment of baseEnv(dir) and env. It is killed
// when ctx ends or when the process of the test dies.
func Command(ctx context.Context, t testing.TB, dir string, env []string, path string, args ...string) *exec.Cmd {
	t.Helper()
	cred, err := credential()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	prepare(cmd, cred, dir, env)
	return cmd
}

// prepare sets what all children have in common.
func prepare(cmd *exec.Cmd, cred *syscall.Credential, dir string, env []string) {
	cmd.Dir = dir
	cmd.Env = append(baseEnv(dir), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGKILL}
}

// baseEnv is the environment of every child. Nothing else is inherited: what
// somebody has set for psql or for the agent must not reach a test.
func baseEnv(home string) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + home,
		"TMPDIR=" + os.TempDir(),
		"LC_ALL=C.UTF-8",
		"TZ=UTC",
	}
}

// process is a running child whose end can be awaited more than once.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed once err is set
	err    error
}

// spawn starts cmd and watches for its end.
func spawn(cmd *exec.Cmd) (*process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// running tells whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// stop sends sig and waits; after the limit it kills. It tells whether the
// process ended by itself.
func (p *process) stop(sig syscall.Signal, limit time.Duration) bool {
	if err := p.cmd.Process.Signal(sig); errors.Is(err, os.ErrProcessDone) {
		<-p.exited
		return true
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		_ = p.cmd.Process.Kill() // it may have ended meanwhile
		<-p.exited
		return false
	}
}

// exitCode returns a finished command's status as a shell shows it: 128 and the
// signal's number for one that was killed.
func exitCode(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// killWithin ends the processes whose working folder is dir or below it: what
// a server or an agent left running. It waits until they are gone and returns
// their command lines.
func killWithin(dir string) []string {
	var killed []string
	seen := map[int]bool{}
	for range 500 {
		pids := within(dir)
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if !seen[pid] {
				seen[pid] = true
				killed = append(killed, fmt.Sprintf("%d %s", pid, commandLine(pid)))
			}
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
		time.Sleep(10 * time.Millisecond) // only a parent is told of a process's end
	}
	return killed
}

// within lists the processes whose working folder is dir or below it, except
// this one. A process that has ended but was not waited for has none.
func within(dir string) []int {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd") // the pattern is well formed
	var pids []int
	for _, link := range links {
		cwd, err := os.Readlink(link)
		if err != nil {
			continue // another user's process, or ended meanwhile
		}
		cwd = strings.TrimSuffix(cwd, " (deleted)")
		if cwd != dir && !strings.HasPrefix(cwd, dir+"/") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// commandLine returns a process's arguments, or nothing if it ended.
func commandLine(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " "))
}
