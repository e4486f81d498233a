package sftp

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"agent/internal/errs"
)

// hostKeys is what known_hosts says of one server.
type hostKeys struct {
	file       string
	address    string
	host       string
	port       int
	callback   ssh.HostKeyCallback
	algorithms []string // that fit the known keys; nil: none is known
}

func readHostKeys(file, address, host string, port int) (*hostKeys, error) {
	k := &hostKeys{file: file, address: address, host: host, port: port}
	if file == "" {
		return nil, errs.New(errs.Config, "Name a known_hosts file with the server's host key.", "no known_hosts file is given for %s", address)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.Wrap(err, errs.Config, k.scan(), "read known_hosts for %s", address)
	}
	if k.callback, err = knownhosts.New(file); err != nil {
		return nil, errs.Wrap(err, errs.Config, "Correct or remove that line, or name another known_hosts file.",
			"known_hosts cannot be understood")
	}
	k.algorithms = k.suitable(text)
	return k, nil
}

// suitable returns the algorithms by which the server can show a key that is
// known. Without this a server that has keys of several types shows the one
// it prefers, which may not be the one that was noted.
func (k *hostKeys) suitable(text []byte) []string {
	// The library tells what it knows of a host by refusing another key.
	other, err := ssh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)))
	if err != nil {
		return nil
	}
	var refused *knownhosts.KeyError
	if !errors.As(k.callback(k.address, &net.TCPAddr{IP: net.IPv4zero, Port: k.port}, other), &refused) {
		return nil
	}
	lines := bytes.Split(text, []byte("\n"))
	var list []string
	for _, want := range refused.Want {
		if bytes.HasPrefix(bytes.TrimSpace(lines[want.Line-1]), []byte("@cert-authority")) {
			list = append(list, ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
				ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01)
			continue
		}
		switch t := want.Key.Type(); t {
		case ssh.KeyAlgoRSA: // RFC 8332: the same keys, better signatures
			list = append(list, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		default:
			list = append(list, t)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// check is an ssh.HostKeyCallback whose errors have the kind Config: trying
// again does not help.
func (k *hostKeys) check(address string, remote net.Addr, key ssh.PublicKey) error {
	err := k.callback(address, remote, key)
	if err == nil {
		return nil
	}
	shown := key.Type() + " " + ssh.FingerprintSHA256(key)
	var refused *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		return errs.Wrap(err, errs.Config, "Ask the server's administrator; somebody may be in its place.",
			"host key of %s (%s) is revoked in %s", address, shown, k.file)
	case errors.As(err, &refused) && len(refused.Want) == 0:
		return errs.Wrap(err, errs.Config, k.scan(), "host key of %s (%s) is not in %s", address, shown, k.file)
	default:
		return errs.Wrap(err, errs.Config,
			"Somebody may be listening in between. Only if the server's administrator confirms the new key, put it in the place of the old one.",
			"host key of %s HAS CHANGED: it shows %s, and %s has another", address, shown, k.file)
	}
}

// otherTypes is the error for a server that has no key of a known type.
func (k *hostKeys) otherTypes(err error) error {
	return errs.Wrap(err, errs.Config,
		"Either the server has new keys or somebody is in its place. Compare with the server's administrator, then: "+k.scan(),
		"host key of %s HAS CHANGED: the server has none of the types %s that are in %s", k.address, strings.Join(k.algorithms, ", "), k.file)
}

// scan is how to note a host key.
func (k *hostKeys) scan() string {
	port := ""
	if k.port != defaultPort {
		port = fmt.Sprintf("-p %d ", k.port)
	}
	return fmt.Sprintf("Note the server's key with `ssh-keyscan %s%s >> %s`, and compare its fingerprint (`ssh-keygen -lf`) with the server's own.", port, k.host, k.file)
}
