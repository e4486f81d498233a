// Package beside is about processes that run beside those that PostgreSQL
// calls: how one is started, how the next call finds it, and how it notices that
// the server which it works for is gone.
//
// A call finds such a process by an abstract Unix socket (unix(7)): the name is
// gone with the process, however that ends, and nothing is left on disk. Such
// names have no permissions, so that either side makes sure that the other one
// runs as the same user.
package beside

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
)

// Name is that of a process which works for the calls that look for it: it is
// made of what they have in common, but for the environment, which may hold
// secrets.
type Name string

func (n Name) address() string { return "@" + string(n) }

var (
	// ErrTaken is that another process has the name.
	ErrTaken = errors.New("such a process runs already")
	// ErrNone is that no process of this user has the name.
	ErrNone = errors.New("no such process runs")
)

// Listen takes the name, until the listener is closed or the process ends.
// Connections of other users are refused, and those of processes which began with another
// environment than environ; nil stands for any. The error is ErrTaken if another process
// has the name.
func Listen(ctx context.Context, name Name, environ []string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", name.address())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, ErrTaken
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener{l, environ}, nil
}

type listener struct {
	net.Listener
	environ []string
}

// Accept waits for the next connection of the same user and environment.
func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, err := sameUser(conn); err == nil && l.sameEnvironment(peer) {
			return conn, nil
		}
		// What becomes of a stranger's connection does not matter.
		_ = conn.Close()
	}
}

// sameEnvironment reports whether a process began with the environment of those
// that are answered, by /proc/PID/environ (proc(5)).
func (l listener) sameEnvironment(pid int32) bool {
	if l.environ == nil {
		return true
	}
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	theirs := strings.Split(strings.TrimSuffix(string(body), "\x00"), "\x00")
	return err == nil && slices.Equal(lasting(theirs), lasting(l.environ))
}

// lasting is an environment in order, without what shells set anew for each call.
func lasting(environ []string) []string {
	kept := slices.DeleteFunc(slices.Clone(environ), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains([]string{"", "_", "SHLVL", "PWD", "OLDPWD"}, name)
	})
	slices.Sort(kept)
	return slices.Compact(kept)
}

// Dial connects to the process that has the name. The error is ErrNone if there
// is none, or one of another user.
func Dial(ctx context.Context, name Name) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", name.address())
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if _, err := sameUser(conn); err != nil {
		return nil, errors.Join(ErrNone, err, conn.Close())
	}
	return conn, nil
}

// sameUser is the process at the other end, by SO_PEERCRED. It fails unless that
// runs as this user.
func sameUser(conn net.Conn) (pid int32, err error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("ask for the user of a connection: %T has none", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("ask for the user of a connection: %w", err)
	}
	var peer *syscall.Ucred
	cerr := raw.Control(func(fd uintptr) {
		peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("ask for the user of a connection: %w", err)
	}
	if int(peer.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("the other end runs as user %d", peer.Uid)
	}
	return peer.Pid, nil
}
