package beside

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrServerGone is why a context of WithServer ended.
var ErrServerGone = errors.New("the server has ended")

// Postmaster is the process id of the server that runs on a data directory, by
// its postmaster.pid (src/backend/utils/init/miscinit.c, CreateLockFile).
func Postmaster(dataDir string) (int, error) {
	f, err := os.Open(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return 0, fmt.Errorf("read postmaster.pid: %w", err)
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("read postmaster.pid: %w", err)
	}
	// A server in single-user mode writes its own id with a minus.
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("read postmaster.pid: it begins with %q", line)
	}
	return pid, nil
}

// WithServer gives a context that ends, with ErrServerGone, when the process
// does: it is told by the kernel, at once. stop must be called.
func WithServer(ctx context.Context, pid int) (_ context.Context, stop func(), err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	over, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("watch process %d: %w", pid, err), unix.Close(fd))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(over), Events: unix.POLLIN}}
		for {
			_, err := unix.Poll(events, -1)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && events[0].Revents != 0 {
				cancel(ErrServerGone)
			}
			return
		}
	}()
	return ctx, func() {
		// An event counter takes eight bytes; then the watcher ends.
		_, _ = unix.Write(over, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-done
		_, _ = unix.Close(fd), unix.Close(over)
		cancel(nil)
	}, nil
}
