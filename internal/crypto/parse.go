package crypto

import (
	"bytes"
	"errors"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"

	"agent/internal/errs"
)

// parseIdentities reads identities: age secret keys one per line, OpenSSH
// private keys as PEM blocks, blank lines and # comments. The messages of the
// libraries can quote their input, so none of them is passed on.
func parseIdentities(where string, text []byte) ([]age.Identity, error) {
	var found []age.Identity
	for n := 1; len(text) > 0; n++ {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		var one age.Identity
		var err error
		switch trimmed := string(bytes.TrimSpace(line)); {
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
			text = rest
			continue
		case strings.HasPrefix(trimmed, "-----BEGIN "):
			var block []byte
			block, rest = cutPEM(text)
			one, err = parseSSHIdentity(block)
			line = block
		default:
			one, err = parseAgeIdentity(trimmed)
		}
		if err != nil {
			return nil, errs.Wrap(err, errs.Identity, "", "line %d of %s", n, where)
		}
		found = append(found, one)
		n += bytes.Count(line, []byte("\n"))
		text = rest
	}
	if len(found) == 0 {
		return nil, errs.New(errs.Identity, identityHint, "%s: there is no identity in it", where)
	}
	return found, nil
}

func parseAgeIdentity(line string) (age.Identity, error) {
	const malformed = "Look for a character that is missing, added or mistyped."
	switch {
	case strings.HasPrefix(line, "AGE-SECRET-KEY-PQ-1"):
		id, err := age.ParseHybridIdentity(line)
		if err != nil {
			return nil, errs.New(errs.Identity, malformed, "malformed post-quantum secret key")
		}
		return id, nil
	case strings.HasPrefix(line, "AGE-SECRET-KEY-1"):
		id, err := age.ParseX25519Identity(line)
		if err != nil {
			return nil, errs.New(errs.Identity, malformed, "malformed secret key")
		}
		return id, nil
	case strings.HasPrefix(line, "AGE-PLUGIN-"):
		return nil, errs.New(errs.Identity, identityHint, "identities of age plugins are not supported")
	case strings.HasPrefix(line, strings.TrimSpace(magic)):
		return nil, encryptedIdentity("this is an encrypted identity file")
	case strings.HasPrefix(line, "age1"), strings.HasPrefix(line, "ssh-"):
		return nil, errs.New(errs.Identity, identityHint, "this is a recipient (a public key), not an identity")
	default:
		return nil, errs.New(errs.Identity, identityHint,
			"this is no identity: neither AGE-SECRET-KEY-1…, AGE-SECRET-KEY-PQ-1… nor an OpenSSH private key")
	}
}

func encryptedIdentity(what string) error {
	return errs.New(errs.Identity,
		"Give it unencrypted, or let AGENT_IDENTITY_COMMAND decrypt it, for example with age -d.", "%s", what)
}

// cutPEM splits behind the line that ends the first PEM block; without one,
// all is the block.
func cutPEM(text []byte) (block, rest []byte) {
	end := bytes.Index(text, []byte("-----END "))
	if end < 0 {
		return text, nil
	}
	newline := bytes.IndexByte(text[end:], '\n')
	if newline < 0 {
		return text, nil
	}
	return text[:end+newline], text[end+newline+1:]
}

func parseSSHIdentity(block []byte) (age.Identity, error) {
	if bytes.HasPrefix(bytes.TrimSpace(block), []byte("-----BEGIN AGE ENCRYPTED FILE-----")) {
		return nil, encryptedIdentity("this is an encrypted identity file")
	}
	id, err := agessh.ParseIdentity(block)
	var missing *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &missing):
		return nil, encryptedIdentity("this OpenSSH private key is protected by a passphrase")
	case err != nil:
		return nil, errs.New(errs.Identity, identityHint,
			"malformed private key, or one of another type than ed25519 and RSA")
	}
	return id, nil
}
