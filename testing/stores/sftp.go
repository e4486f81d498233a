package stores

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// SFTPOptions say how a server differs from OpenSSH's usual one.
type SFTPOptions struct {
	// Deny are requests and extensions that the server lacks, by the names of
	// `sftp-server -Q requests`, as "hardlink" or "fsync".
	Deny []string
	// Subsystem is the name under which SFTP is offered; "" is the usual one.
	Subsystem string
	// Config are more lines of sshd_config.
	Config []string
}

// SFTP is a running sshd with an internal SFTP server. The user who runs the
// test logs in with a key.
type SFTP struct {
	*Server
	User           string
	Dir            string // a folder for repositories, on this host
	KnownHostsFile string
	IdentityFile   string
	HostKeyFile    string // and ".pub"

	t testing.TB
}

// The programs of Debian's packages openssh-server and openssh-client.
const (
	sshd   = "/usr/sbin/sshd"
	keygen = "/usr/bin/ssh-keygen"
)

// StartSFTP starts OpenSSH's server with new keys. Its host key is of the type
// ed25519.
func StartSFTP(t testing.TB, o SFTPOptions) *SFTP {
	t.Helper()
	dir := tempDir(t)
	current, err := user.Current()
	if err != nil {
		t.Fatalf("find the user's name: %v", err)
	}
	s := &SFTP{
		User: current.Username, Dir: filepath.Join(dir, "root"), t: t,
		KnownHostsFile: filepath.Join(dir, "known_hosts"),
		IdentityFile:   filepath.Join(dir, "user"), HostKeyFile: filepath.Join(dir, "host"),
	}
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	NewSSHKey(t, s.HostKeyFile, "ed25519", "")
	NewSSHKey(t, s.IdentityFile, "ed25519", "")
	// The agent may run as another user; sshd insists on its own key only.
	if err := os.Chmod(s.IdentityFile, 0o644); err != nil {
		t.Fatal(err)
	}
	address := FreeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	if o.Subsystem == "" {
		o.Subsystem = "sftp"
	}
	subsystem := "Subsystem " + o.Subsystem + " internal-sftp"
	if len(o.Deny) > 0 {
		subsystem += " -P " + strings.Join(o.Deny, ",")
	}
	config := append([]string{
		"ListenAddress 127.0.0.1", "Port " + port, "HostKey " + s.HostKeyFile, "PidFile none",
		"AuthorizedKeysFile " + s.IdentityFile + ".pub", "StrictModes no", "UsePAM no",
		"PasswordAuthentication no", "PermitRootLogin prohibit-password", "MaxStartups 100", "LogLevel ERROR", subsystem,
	}, o.Config...)
	file := filepath.Join(dir, "sshd_config")
	s.write(file, strings.Join(config, "\n")+"\n")
	s.write(s.KnownHostsFile, s.KnownHost(address, s.HostKeyFile+".pub"))
	s.Server = start(t, dir, address, nil, listening(address), sshd, "-D", "-e", "-f", file)
	return s
}

func (s *SFTP) write(file, text string) {
	s.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// KnownHost is the line of known_hosts for a public key.
func (s *SFTP) KnownHost(address, publicKey string) string {
	s.t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := os.ReadFile(publicKey)
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("[%s]:%s %s", host, port, key)
}

// Trust adds the server's key to known_hosts under another address, as that of
// a proxy.
func (s *SFTP) Trust(address string) {
	s.t.Helper()
	known, err := os.ReadFile(s.KnownHostsFile)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(s.KnownHostsFile, string(known)+s.KnownHost(address, s.HostKeyFile+".pub"))
}

// Host and Port are the two parts of the server's address.
func (s *SFTP) Host() string {
	host, _, _ := strings.Cut(s.Address, ":")
	return host
}

// Port is a number, as clients' options want it.
func (s *SFTP) Port() int {
	s.t.Helper()
	_, text, _ := strings.Cut(s.Address, ":")
	port, err := strconv.Atoi(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return port
}

// Env is what a process needs in its environment to log in.
func (s *SFTP) Env() []string {
	return []string{"AGENT_SFTP_KNOWN_HOSTS=" + s.KnownHostsFile, "AGENT_SFTP_IDENTITY_FILE=" + s.IdentityFile}
}

// RepositoryURL is the URL of a folder below Dir, which need not exist.
func (s *SFTP) RepositoryURL(folder string) string {
	return "sftp://" + s.User + "@" + s.Address + filepath.Join(s.Dir, folder)
}

// NewSSHKey makes a private key file and its public one beside it.
func NewSSHKey(t testing.TB, file, kind, passphrase string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), keygen, "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", file).CombinedOutput()
	if err != nil {
		t.Fatalf("make an SSH key (testing/install/stores.sh installs what is needed): %v: %s", err, out)
	}
}
