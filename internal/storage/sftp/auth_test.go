package sftp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"agent/internal/errs"
	"agent/internal/storage"
	"agent/testing/stores"
)

// probe opens a bucket over the server's folder and asks for one answer.
func probe(t *testing.T, o Options) error {
	t.Helper()
	b, err := Open(t.Context(), o)
	if err != nil {
		return err
	}
	defer b.Close()
	_, err = b.Probe(t.Context())
	return err
}

func TestHostKeys(t *testing.T) {
	rsa := filepath.Join(t.TempDir(), "rsa")
	stores.NewSSHKey(t, rsa, "rsa", "")
	ecdsa := filepath.Join(t.TempDir(), "ecdsa")
	stores.NewSSHKey(t, ecdsa, "ecdsa", "")
	other := filepath.Join(t.TempDir(), "other")
	stores.NewSSHKey(t, other, "ed25519", "")
	// This client prefers the other types if it is not told better.
	s := start(t, stores.SFTPOptions{Config: []string{"HostKey " + rsa, "HostKey " + ecdsa}})
	line := func(key string) string { return s.KnownHost(s.Address, key+".pub") }
	comment := "# the servers\n\n"
	elsewhere := s.KnownHost("127.0.0.1:1", other+".pub")
	for _, tt := range []struct{ name, known, want, hint string }{
		{"ed25519", comment + line(s.HostKeyFile), "", ""},
		{"rsa", elsewhere + line(rsa), "", ""},
		{"ecdsa", line(ecdsa), "", ""},
		{"several", line(other) + line(ecdsa), "", ""},
		{"unknown", elsewhere, "is not in", "ssh-keyscan -p "},
		{"changed", line(other), "HAS CHANGED: it shows ssh-ed25519 SHA256:", "Somebody may be listening"},
		{"revoked", "@revoked * " + strings.SplitN(line(s.HostKeyFile), " ", 2)[1] + line(s.HostKeyFile), "is revoked", "administrator"},
	} {
		o := optionsFor(t, s, s.Dir)
		o.KnownHostsFile = filepath.Join(t.TempDir(), "known_hosts")
		write(t, o.KnownHostsFile, tt.known)
		err := probe(t, o)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(errs.HintOf(err), tt.hint) ||
			errs.KindOf(err) != errs.Config || errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v (kind %d, hint %q), want %q", tt.name, err, errs.KindOf(err), errs.HintOf(err), tt.want)
		}
	}
	// A server that has no key of the known type.
	o := optionsFor(t, start(t, stores.SFTPOptions{}), s.Dir)
	o.KnownHostsFile = filepath.Join(t.TempDir(), "known_hosts")
	write(t, o.KnownHostsFile, s.KnownHost(fmt.Sprintf("127.0.0.1:%d", o.Port), rsa+".pub"))
	if err := probe(t, o); err == nil || !strings.Contains(err.Error(), "HAS CHANGED") || errs.KindOf(err) != errs.Config {
		t.Errorf("another type: %v", err)
	}
}

// A certificate of the host is taken where known_hosts names its authority.
func TestHostCertificate(t *testing.T) {
	dir := t.TempDir()
	ca, host, user := filepath.Join(dir, "ca"), filepath.Join(dir, "host"), filepath.Join(dir, "user")
	for _, key := range []string{ca, host, user} {
		stores.NewSSHKey(t, key, "ed25519", "")
	}
	run(t, "ssh-keygen", "-q", "-s", ca, "-I", "host", "-h", "-n", "127.0.0.1", host+".pub")
	s := start(t, stores.SFTPOptions{Config: []string{"HostKey " + host, "HostCertificate " + host + "-cert.pub", "TrustedUserCAKeys " + ca + ".pub"}})
	o := optionsFor(t, s, s.Dir)
	o.KnownHostsFile = filepath.Join(dir, "known_hosts")
	write(t, o.KnownHostsFile, "@cert-authority "+s.KnownHost(s.Address, ca+".pub"))
	if err := probe(t, o); err != nil {
		t.Error(err)
	}
	// The same authority signs a user's key, which no file of the server has.
	o.IdentityFiles = []string{user}
	if err := probe(t, o); !errors.Is(err, storage.ErrPermission) {
		t.Errorf("a foreign key: %v, want ErrPermission", err)
	}
	run(t, "ssh-keygen", "-q", "-s", ca, "-I", "user", "-n", s.User, user+".pub")
	if err := probe(t, o); err != nil {
		t.Errorf("a certified key: %v", err)
	}
	write(t, user+"-cert.pub", "nonsense")
	if err := probe(t, o); errs.KindOf(err) != errs.Config {
		t.Errorf("a bad certificate: %v", err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func TestLogin(t *testing.T) {
	s := start(t, stores.SFTPOptions{})
	foreign := filepath.Join(t.TempDir(), "foreign")
	stores.NewSSHKey(t, foreign, "ed25519", "")
	locked := filepath.Join(t.TempDir(), "locked")
	text, err := os.ReadFile(s.IdentityFile)
	if err != nil {
		t.Fatal(err)
	}
	write(t, locked, string(text))
	run(t, "ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", locked)
	socket := runAgent(t, text)
	for _, tt := range []struct {
		name   string
		change func(*Options)
		class  error
		kind   errs.Kind
	}{
		{"key", func(*Options) {}, nil, 0},
		{"second key", func(o *Options) { o.IdentityFiles = []string{foreign, s.IdentityFile} }, nil, 0},
		{"foreign key", func(o *Options) { o.IdentityFiles = []string{foreign} }, storage.ErrPermission, errs.Storage},
		{"other user", func(o *Options) { o.User = "nobody-here" }, storage.ErrPermission, errs.Storage},
		{"password", func(o *Options) { o.IdentityFiles, o.Password = nil, "hunter2" }, storage.ErrPermission, errs.Storage},
		{"passphrase", func(o *Options) {
			o.IdentityFiles = []string{locked}
			o.Passphrase = func(file string) (string, error) {
				if file != locked {
					t.Errorf("asked for the passphrase of %s", file)
				}
				return "open sesame", nil
			}
		}, nil, 0},
		{"agent", func(o *Options) { o.IdentityFiles, o.AgentSocket = nil, socket }, nil, 0},
		{"agent has the locked key", func(o *Options) { o.IdentityFiles, o.AgentSocket = []string{locked}, socket }, nil, 0},
		{"agent has the second key", func(o *Options) { o.IdentityFiles, o.AgentSocket = []string{foreign}, socket }, nil, 0},
		{"no agent", func(o *Options) { o.IdentityFiles, o.AgentSocket = nil, socket+"x" }, storage.ErrPermission, errs.Storage},
		{"no agent, but a key", func(o *Options) { o.AgentSocket = socket + "x" }, nil, 0},
		{"empty agent", func(o *Options) { o.IdentityFiles, o.AgentSocket = nil, runAgent(t, nil) }, storage.ErrPermission, errs.Storage},
	} {
		o := optionsFor(t, s, s.Dir)
		tt.change(&o)
		err := probe(t, o)
		if !errors.Is(err, tt.class) || err != nil && (errs.KindOf(err) != tt.kind || errs.HintOf(err) == "") {
			t.Errorf("%s: %v (kind %d, hint %q), want %v", tt.name, err, errs.KindOf(err), errs.HintOf(err), tt.class)
		}
		if err != nil && strings.Contains(err.Error()+errs.HintOf(err), "hunter2") {
			t.Errorf("%s: the error shows the password: %v", tt.name, err)
		}
	}
}

// runAgent runs an ssh-agent with one private key or none.
func runAgent(t *testing.T, key []byte) (socket string) {
	t.Helper()
	ring := agent.NewKeyring()
	if key != nil {
		private, err := ssh.ParseRawPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := ring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
			t.Fatal(err)
		}
	}
	socket = filepath.Join(t.TempDir(), "agent")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				_ = agent.ServeAgent(ring, c) // until the client goes
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		running.Wait()
	})
	return socket
}

func TestIdentities(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := Identities(home); len(got) != 0 {
		t.Errorf("found %q", got)
	}
	write(t, filepath.Join(home, ".ssh", "id_rsa"), "")
	write(t, filepath.Join(home, ".ssh", "id_ed25519"), "")
	if got := Identities(home); len(got) != 2 || filepath.Base(got[0]) != "id_ed25519" || filepath.Base(got[1]) != "id_rsa" {
		t.Errorf("found %q", got)
	}
}

func TestNoSubsystem(t *testing.T) {
	s := start(t, stores.SFTPOptions{Config: []string{"ForceCommand /bin/false"}})
	if err := probe(t, optionsFor(t, s, s.Dir)); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("a command that is no SFTP server: %v", err)
	}
	s = start(t, stores.SFTPOptions{Subsystem: "other"})
	if err := probe(t, optionsFor(t, s, s.Dir)); errs.KindOf(err) != errs.Config || !strings.Contains(errs.HintOf(err), "Subsystem sftp") {
		t.Errorf("no subsystem: %v, hint %q", err, errs.HintOf(err))
	}
}
