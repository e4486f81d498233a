package sftp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"agent/internal/errs"
	"agent/internal/storage"
)

// credentials are what the user can show.
type credentials struct {
	signers  []ssh.Signer
	socket   string
	password string
}

// Identities returns those of the private keys that ssh(1) looks for in a home
// directory by itself that exist, for Options.IdentityFiles.
func Identities(home string) []string {
	var found []string
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		file := filepath.Join(home, ".ssh", name)
		if _, err := os.Stat(file); err == nil {
			found = append(found, file)
		}
	}
	return found
}

func readCredentials(o Options) (*credentials, error) {
	a := &credentials{socket: o.AgentSocket, password: o.Password}
	for _, file := range o.IdentityFiles {
		signer, err := readIdentity(file, o)
		if err != nil {
			return nil, err
		}
		if signer != nil {
			a.signers = append(a.signers, signer)
		}
	}
	if len(a.signers) == 0 && a.socket == "" && a.password == "" {
		return nil, errs.New(errs.Config, "Name a private key, or run an ssh-agent.", "nothing is given to log in to %s with", o.Host)
	}
	return a, nil
}

// readIdentity reads a private key, and a certificate if one is beside it. A
// key that needs a passphrase which nobody gives is left to the agent, if
// there is one, and is nil then.
func readIdentity(file string, o Options) (ssh.Signer, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.Wrap(err, errs.Config, "Name a private key that the agent's user can read.", "read the SSH private key")
	}
	signer, err := ssh.ParsePrivateKey(text)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		switch {
		case o.Passphrase != nil:
			signer, err = unlock(file, text, o.Passphrase)
		case o.AgentSocket != "":
			return nil, nil
		}
	}
	if err != nil {
		return nil, errs.Wrap(err, errs.Config, "Give a private key in the format of OpenSSH or PEM, with its passphrase if it has one.",
			"SSH private key %s cannot be used", file)
	}
	return certified(signer, file+"-cert.pub")
}

func unlock(file string, text []byte, passphrase func(string) (string, error)) (ssh.Signer, error) {
	secret, err := passphrase(file)
	if err != nil {
		return nil, fmt.Errorf("get its passphrase: %w", err)
	}
	return ssh.ParsePrivateKeyWithPassphrase(text, []byte(secret))
}

// certified adds the certificate of a key (ssh-keygen(1), "CERTIFICATES").
func certified(signer ssh.Signer, file string) (ssh.Signer, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return signer, nil
	}
	if err == nil {
		var key ssh.PublicKey
		key, _, _, _, err = ssh.ParseAuthorizedKey(text)
		if cert, ok := key.(*ssh.Certificate); err == nil && ok {
			signer, err = ssh.NewCertSigner(cert, signer)
		}
	}
	return signer, errs.Wrap(err, errs.Config, "Give the certificate that belongs to the private key, or remove it.", "SSH certificate %s cannot be used", file)
}

// methods returns the ways to log in, and what to call after the handshake.
func (a *credentials) methods(ctx context.Context) ([]ssh.AuthMethod, func(), error) {
	done := func() {}
	signers := a.signers
	if a.socket != "" {
		held, closeAgent, err := fromAgent(ctx, a.socket)
		switch {
		case err == nil:
			signers = append(signers[:len(signers):len(signers)], held...)
			done = closeAgent
		case len(signers) == 0 && a.password == "":
			return nil, nil, errs.Wrap(fmt.Errorf("%w: %w", storage.ErrPermission, err), errs.Storage,
				"Start the ssh-agent, or name a private key.", "no key can be had from the ssh-agent at %s", a.socket)
		}
	}
	var list []ssh.AuthMethod
	if len(signers) > 0 {
		list = append(list, ssh.PublicKeys(signers...))
	}
	if a.password != "" {
		list = append(list, ssh.Password(a.password), ssh.KeyboardInteractive(a.answer))
	}
	return list, done, nil
}

// answer gives the password where a server asks for it by a dialogue (RFC
// 4256), as those with PAM do.
func (a *credentials) answer(_, _ string, questions []string, echos []bool) ([]string, error) {
	answers := make([]string, len(questions))
	for i, echo := range echos {
		if echo {
			return nil, errors.New("the server asks for more than a password")
		}
		answers[i] = a.password
	}
	return answers, nil
}

// fromAgent asks an ssh-agent for its keys. It signs until the connection to
// it is closed.
func fromAgent(ctx context.Context, socket string) ([]ssh.Signer, func(), error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, nil, err
	}
	// An agent that does not answer must not outlast the log-in.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	done := func() {
		stop()
		_ = c.Close() // it was only asked
	}
	held, err := agent.NewClient(c).Signers()
	if err == nil && len(held) == 0 {
		err = errors.New("it holds no key")
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return held, done, nil
}
