// Package sftp is the storage backend for a folder on a server that speaks
// SFTP, version 3 of the protocol (draft-ietf-secsh-filexfer-02) with the
// extensions of OpenSSH (its file PROTOCOL, section 4).
//
// An object is a file below the folder. It is written under a name that begins
// with storage.TempPrefix, in its final directory, synced by
// fsync@openssh.com, and then hardlink@openssh.com gives it its name if that
// is free. A server without that extension is asked for the plain rename of
// version 3, which must refuse a name that is taken. An exclusive open of the
// final name would show half an object, and posix-rename@openssh.com replaces.
//
// What is durable. The protocol has no request to sync a directory, but OpenSSH
// opens one like a file, and its fsync then is fsync(2) of the directory: so
// Put and Delete end. A server that refuses to open a directory syncs the
// object once more after it got its name, which brings the name to the disk on
// file systems with a journal (ext4, XFS, Btrfs), though no standard says so.
//
// The server's host key is always checked against known_hosts. Connections are
// made when first needed, kept, and made anew after they broke; the operation
// that met a broken one fails with storage.ErrUnavailable.
package sftp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"agent/internal/errs"
	"agent/internal/storage"
)

// Modes of what is created, after the server's umask.
const (
	fileMode = 0o640
	dirMode  = 0o750
)

// maxConnections bounds the SSH connections of one bucket. Each has a window
// of 2 MiB for each direction, so that more of them help where answers take
// long; sshd refuses some of many at once (sshd_config(5), MaxStartups).
const maxConnections = 4

const (
	defaultPort      = 22
	defaultKeepAlive = 15 * time.Second
)

// Options say which folder, and how to get there.
type Options struct {
	Host   string
	Port   int    // 0 is 22
	User   string // never empty
	Folder string // absolute, as the server names it (below its chroot, if it has one)
	URL    string // for messages, without secrets; "" is made of the fields above

	// KnownHostsFile has the host keys to trust (sshd(8), "SSH_KNOWN_HOSTS FILE
	// FORMAT"), certificates of hosts included.
	KnownHostsFile string

	// IdentityFiles are private keys, tried in this order, before those of the
	// agent. A certificate beside one (its name and "-cert.pub") is used.
	IdentityFiles []string
	// Passphrase returns that of an encrypted private key; nil: there is none.
	Passphrase func(file string) (string, error)
	// AgentSocket is the socket of an ssh-agent; "": none.
	AgentSocket string
	// Password is tried last; "": none.
	Password string

	// Create makes the folder and those above it; only `agent repo init` says so.
	Create bool
	// AllowNoFsync takes a server without fsync@openssh.com. An object can then
	// be lost or damaged by a crash of the server after Put has returned.
	AllowNoFsync bool

	// Connections is how many requests to expect at a time; up to four SSH
	// connections are made for them. 0 is 1.
	Connections int
	// KeepAlive is how often an idle server is asked whether it is alive; after
	// three times as long without an answer the connection is given up. 0 is
	// 15 seconds.
	KeepAlive time.Duration
	Log       *slog.Logger // nil: none
}

// Bucket is a folder on an SFTP server as a storage.Bucket.
type Bucket struct {
	o     Options
	root  string
	url   string
	log   *slog.Logger
	auth  *credentials
	hosts *hostKeys
	pool  *pool

	// tasks are requests whose callers may have gone.
	tasks sync.WaitGroup
	// buffers are for readers.
	buffers sync.Pool

	noDirSync   atomic.Bool // this server does not open directories
	modeIgnored atomic.Bool // it was said that the server keeps its own modes

	mu        sync.Mutex
	abandoned []string // unfinished files that a broken connection left
}

var (
	_ storage.Bucket  = (*Bucket)(nil)
	_ storage.Prober  = (*Bucket)(nil)
	_ storage.Cleaner = (*Bucket)(nil)
)

// Open checks the options and reads known_hosts and the private keys. It does
// not connect unless the folder is to be created. Errors have the kind Config;
// those of creating the folder are those of the bucket's operations.
func Open(ctx context.Context, o Options) (*Bucket, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open repository folder: %w", err)
	}
	b, err := newBucket(o)
	if err != nil {
		return nil, err
	}
	if o.Create {
		if err := b.create(ctx); err != nil {
			_ = b.Close() // what went wrong before says more
			return nil, err
		}
	}
	return b, nil
}

func newBucket(o Options) (*Bucket, error) {
	switch {
	case o.Host == "":
		return nil, errs.New(errs.Config, "Write the URL as sftp://user@host:port/folder.", "no host is given for the SFTP repository")
	case o.User == "":
		return nil, errs.New(errs.Config, "Write the URL as sftp://user@host:port/folder.", "no user is given for the SFTP repository on %s", o.Host)
	case !strings.HasPrefix(o.Folder, "/"):
		return nil, errs.New(errs.Config, "Give an absolute path.", "repository folder %q on %s is a relative path", o.Folder, o.Host)
	case o.Port < 0 || o.Port > 65535:
		return nil, errs.New(errs.Config, "Give a number from 1 to 65535, or none for 22.", "port %d of the SFTP repository is none", o.Port)
	}
	if o.Port == 0 {
		o.Port = defaultPort
	}
	if o.KeepAlive <= 0 {
		o.KeepAlive = defaultKeepAlive
	}
	b := &Bucket{o: o, root: path.Clean(o.Folder), url: o.URL, log: o.Log}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.url == "" {
		b.url = b.makeURL()
	}
	var err error
	if b.hosts, err = readHostKeys(o.KnownHostsFile, b.address(), o.Host, o.Port); err != nil {
		return nil, err
	}
	if b.auth, err = readCredentials(o); err != nil {
		return nil, err
	}
	b.pool = newPool(min(max(o.Connections, 1), maxConnections), b.dial)
	return b, nil
}

func (b *Bucket) makeURL() string {
	host := b.o.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if b.o.Port != defaultPort {
		host += ":" + strconv.Itoa(b.o.Port)
	}
	return (&url.URL{Scheme: storage.SchemeSFTP, User: url.User(b.o.User), Host: host, Path: b.root}).String()
}

func (b *Bucket) address() string { return net.JoinHostPort(b.o.Host, strconv.Itoa(b.o.Port)) }

// Capabilities says that the repository is looked at each time: a connection
// is there anyway, and an unmounted folder must be found out.
func (b *Bucket) Capabilities() storage.Capabilities {
	return storage.Capabilities{CheapCheck: true}
}

// String is the URL of the folder.
func (b *Bucket) String() string { return b.url }

// Close gives requests whose callers have gone a moment, and closes the
// connections.
func (b *Bucket) Close() error {
	done := make(chan struct{})
	go func() {
		b.tasks.Wait()
		close(done)
	}()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
	b.pool.close()
	<-done
	return nil
}

// at is the path of a key, or of a directory of keys, on the server.
func (b *Bucket) at(key string) string { return path.Join(b.root, key) }

// above is the directory of a key or of a directory, empty for the root.
func above(key string) string { return key[:max(strings.LastIndexByte(key, '/'), 0)] }
