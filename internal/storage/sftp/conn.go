package sftp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"agent/internal/errs"
	"agent/internal/storage"
)

// dialLimit bounds connecting, the handshake and the log-in together.
const dialLimit = 30 * time.Second

// Extensions of OpenSSH (PROTOCOL, sections 4.3 to 4.8).
const (
	extStatVFS  = "statvfs@openssh.com"
	extHardlink = "hardlink@openssh.com"
	extFsync    = "fsync@openssh.com"
	extLimits   = "limits@openssh.com"
)

// Sizes of one read or write request. All servers take 32 KiB
// (draft-ietf-secsh-filexfer-02, section 3); OpenSSH since 8.5, which is when
// it got limits@openssh.com, takes 255 KiB.
const (
	smallPacket = 32 << 10
	largePacket = 255 << 10
)

// conn is an SSH connection with one SFTP session. More sessions on a
// connection would share its encryption, which runs on one core.
type conn struct {
	ssh     *ssh.Client
	sftp    *sftp.Client
	hostKey ssh.PublicKey
	packet  int // bytes of one read or write

	broken     atomic.Bool
	dead       chan struct{} // closed when the connection has ended
	background sync.WaitGroup
}

// dial connects, checks the host key, logs in and starts an SFTP session.
func (b *Bucket) dial(ctx context.Context) (*conn, error) {
	limited, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	c, err := b.connect(limited)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		return nil, fmt.Errorf("%w: connect to %s: no answer within %s", storage.ErrUnavailable, b.address(), dialLimit)
	}
	return nil, b.dialError(err)
}

func (b *Bucket) connect(ctx context.Context) (*conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.address())
	if err != nil {
		return nil, err
	}
	// The handshake knows no context.
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	auth, done, err := b.auth.methods(ctx)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	defer done()
	c := &conn{packet: smallPacket, dead: make(chan struct{})}
	var refused error
	var first sync.Once // the keys are renewed from time to time
	config := &ssh.ClientConfig{
		Config:            ssh.Config{Ciphers: ciphers()},
		User:              b.o.User,
		Auth:              auth,
		HostKeyAlgorithms: b.hosts.algorithms,
		HostKeyCallback: func(address string, remote net.Addr, key ssh.PublicKey) error {
			first.Do(func() { c.hostKey = key })
			refused = b.hosts.check(address, remote, key)
			return refused
		},
	}
	sc, channels, requests, err := ssh.NewClientConn(raw, b.address(), config)
	if err != nil {
		return nil, errors.Join(refused, err)
	}
	c.ssh = ssh.NewClient(sc, channels, requests)
	c.sftp, err = sftp.NewClient(c.ssh, sftp.UseConcurrentWrites(true), sftp.MaxConcurrentRequestsPerFile(parallel))
	if err != nil {
		err = &sessionError{errors.Join(err, c.ssh.Close())}
		_ = c.ssh.Wait()
		return nil, err
	}
	if c.has(extLimits) && sftp.MaxPacketUnchecked(largePacket)(c.sftp) == nil {
		c.packet = largePacket
	}
	if !stop() {
		_ = c.ssh.Wait() // closed just now
		return nil, ctx.Err()
	}
	c.background.Go(c.watch)
	c.background.Go(func() { c.keepAlive(b.o.KeepAlive) })
	return c, nil
}

// ciphers has the fastest one first; the server takes the first it knows
// (RFC 4253, section 7.1).
func ciphers() []string {
	list := []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM}
	for _, c := range ssh.SupportedAlgorithms().Ciphers {
		if c != ssh.CipherAES128GCM && c != ssh.CipherAES256GCM {
			list = append(list, c)
		}
	}
	return list
}

// alive says whether the connection can be used, as far as is known.
func (c *conn) alive() bool { return c != nil && !c.broken.Load() }

// kill closes the connection at once; whatever waits for it ends.
func (c *conn) kill() {
	c.broken.Store(true)
	_ = c.ssh.Close() // it is of no use any more
}

// watch waits for the end of the session.
func (c *conn) watch() {
	_ = c.sftp.Wait()
	c.kill()
	_ = c.ssh.Wait()
	close(c.dead)
}

// keepAlive finds a dead peer, as ServerAliveInterval and ServerAliveCountMax
// of ssh_config(5) do.
func (c *conn) keepAlive(every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-c.dead:
			return
		case <-ticker.C:
		}
		answered := make(chan struct{})
		c.background.Go(func() {
			// A server that does not know the request says so, which will do.
			_, _, _ = c.ssh.SendRequest("keepalive@openssh.com", true, nil)
			close(answered)
		})
		limit := time.NewTimer(3 * every)
		select {
		case <-answered:
		case <-c.dead:
		case <-limit.C:
			c.kill()
		}
		limit.Stop()
	}
}

func (c *conn) has(extension string) bool {
	version, ok := c.sftp.HasExtension(extension)
	// statvfs has the version 2, the others 1.
	return ok && (version == "1" || version == "2")
}

// sessionError says that the log-in worked, but not what comes after it.
type sessionError struct{ err error }

func (e *sessionError) Error() string { return "start an SFTP session: " + e.err.Error() }
func (e *sessionError) Unwrap() error { return e.err }

// unauthenticated knows the library's texts for a refused log-in, for which it
// has no type: the last word on all methods, OpenSSH's when there were too many
// keys, and SSH_MSG_USERAUTH_FAILURE (RFC 4252, section 6: 51) to a dialogue.
func unauthenticated(text string) bool {
	return strings.Contains(text, "unable to authenticate") || strings.Contains(text, "Too many authentication failures") ||
		strings.Contains(text, "unexpected message type 51")
}

// dialError classifies what went wrong on the way to a session.
func (b *Bucket) dialError(err error) error {
	var known *errs.Error
	var algorithm *ssh.AlgorithmNegotiationError
	var session *sessionError
	text := err.Error()
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &algorithm) && strings.Contains(algorithm.What, "host key"):
		return b.hosts.otherTypes(err)
	case errors.As(err, &algorithm):
		return errs.Wrap(err, errs.Config, "Update the server, or allow it newer algorithms (sshd_config(5)).",
			"SSH server %s and this program have no algorithm in common", b.address())
	case unauthenticated(text):
		return errs.Wrap(fmt.Errorf("%w: %w", storage.ErrPermission, err), errs.Storage,
			"Check user and private key; `ssh -v -l "+b.o.User+" -p "+fmt.Sprint(b.o.Port)+" "+b.o.Host+"` shows what the server takes.",
			"SSH server %s refuses the user %s", b.address(), b.o.User)
	case errors.As(err, &session) && strings.Contains(text, "subsystem request failed"):
		return errs.Wrap(err, errs.Config, "Let the server have \"Subsystem sftp internal-sftp\" (sshd_config(5)).",
			"SSH server %s offers no SFTP to the user %s", b.address(), b.o.User)
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errors.New("timeout")
	}
	return fmt.Errorf("%w: connect to %s: %w", storage.ErrUnavailable, b.address(), err)
}
