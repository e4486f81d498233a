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
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Name is that of a process of a kind which works for just these settings.
type Name string

// NewName makes a name that only the same kind and the same parts have.
func NewName(kind string, parts ...string) Name {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return Name("agent-" + kind + "-" + hex.EncodeToString(h.Sum(nil)[:16]))
}

func (n Name) address() string { return "@" + string(n) }

var (
	// ErrTaken is that another process has the name.
	ErrTaken = errors.New("such a process runs already")
	// ErrNone is that no process of this user has the name.
	ErrNone = errors.New("no such process runs")
)

// Listen takes the name, until the listener is closed or the process ends.
// Connections of other users are refused. The error is ErrTaken if another
// process has it.
func Listen(ctx context.Context, name Name) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", name.address())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, ErrTaken
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener{l}, nil
}

type listener struct{ net.Listener }

// Accept waits for the next connection of the same user.
func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if sameUser(conn) == nil {
			return conn, nil
		}
		// What becomes of a stranger's connection does not matter.
		_ = conn.Close()
	}
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
	if err := sameUser(conn); err != nil {
		return nil, errors.Join(ErrNone, err, conn.Close())
	}
	return conn, nil
}

// sameUser fails unless the other end runs as this user, by SO_PEERCRED.
func sameUser(conn net.Conn) error {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("ask for the user of a connection: %T has none", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("ask for the user of a connection: %w", err)
	}
	var peer *syscall.Ucred
	cerr := raw.Control(func(fd uintptr) {
		peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("ask for the user of a connection: %w", err)
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("the other end runs as user %d", peer.Uid)
	}
	return nil
}
