package crypto

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"

	"agent/internal/errs"
)

// maxKeyFile bounds files of recipients or identities, in bytes.
const maxKeyFile = 1 << 20

const recipientHint = "Give age1… or age1pq1… recipients, ssh-ed25519 or ssh-rsa public keys, or the path of a file with one of them per line."

// Recipients are the public keys that objects are sealed for. The zero value
// is empty, which means that objects are not sealed. It is immutable and safe
// for concurrent use.
type Recipients struct {
	list        []recipient
	postQuantum bool
}

type recipient struct {
	text        string // canonical, without a comment
	age         age.Recipient
	postQuantum bool
}

// ParseRecipients reads recipients: each value is an age1… or age1pq1…
// recipient, an "ssh-ed25519 …" or "ssh-rsa …" public key line, several of
// these on lines of their own, or the path of a file with one per line. In
// files, blank lines and lines beginning with # are ignored. Repeated
// recipients count once. They must be all post-quantum or all classical. No
// values give empty Recipients; a file without any is an error. Errors are of
// kind errs.Config.
func ParseRecipients(values []string) (Recipients, error) {
	var r Recipients
	for _, value := range values {
		value = strings.TrimSpace(value)
		var found []recipient
		var err error
		switch {
		case value == "":
			continue
		case strings.Contains(value, "\n"):
			found, err = parseRecipientLines(strings.NewReader(value), "recipients")
		case looksLikeKey(value):
			var one recipient
			one, err = parseRecipient(value)
			found = []recipient{one}
		default:
			found, err = readRecipients(value)
		}
		if err != nil {
			return Recipients{}, err
		}
		for _, f := range found {
			if !slices.ContainsFunc(r.list, func(have recipient) bool { return have.text == f.text }) {
				r.list = append(r.list, f)
			}
		}
	}
	for _, f := range r.list {
		if f.postQuantum != r.list[0].postQuantum {
			pq, classical := f, r.list[0]
			if !f.postQuantum {
				pq, classical = classical, pq
			}
			return Recipients{}, errs.New(errs.Config,
				"Use post-quantum recipients (age1pq1…) alone, or none of them.",
				"recipient %s is post-quantum and %s is not: age refuses to mix them, as the object would be no safer than its weakest recipient",
				abbreviate(pq.text), abbreviate(classical.text))
		}
	}
	r.postQuantum = len(r.list) > 0 && r.list[0].postQuantum
	return r, nil
}

// looksLikeKey tells keys, also of kinds we refuse, from paths.
func looksLikeKey(value string) bool {
	if isSecret(value) || strings.HasPrefix(value, "age1") {
		return true
	}
	for _, prefix := range []string{"ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"} {
		if strings.HasPrefix(value, prefix) && strings.Contains(value, " ") {
			return true
		}
	}
	return false
}

// isSecret finds private keys, so that they are refused and never shown.
func isSecret(text string) bool {
	upper := strings.ToUpper(text)
	return strings.Contains(upper, "AGE-SECRET-KEY-") || strings.Contains(upper, "AGE-PLUGIN-") ||
		strings.Contains(upper, "PRIVATE KEY")
}

func readRecipients(path string) ([]recipient, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.Wrap(err, errs.Config, recipientHint, "open recipients file")
	}
	found, err := parseRecipientLines(f, "recipients file "+path)
	if cerr := f.Close(); err == nil && cerr != nil {
		return nil, errs.Wrap(cerr, errs.Config, "", "close recipients file")
	}
	return found, err
}

func parseRecipientLines(r io.Reader, where string) ([]recipient, error) {
	var found []recipient
	limited := &io.LimitedReader{R: r, N: maxKeyFile + 1}
	lines := bufio.NewScanner(limited)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		one, err := parseRecipient(line)
		if err != nil {
			return nil, errs.Wrap(err, errs.Config, "", "line %d of %s", n, where)
		}
		found = append(found, one)
	}
	if err := lines.Err(); err != nil {
		return nil, errs.Wrap(err, errs.Config, recipientHint, "read %s", where)
	}
	if limited.N == 0 {
		return nil, errs.New(errs.Config, recipientHint, "%s has more than %d bytes", where, maxKeyFile)
	}
	if len(found) == 0 {
		return nil, errs.New(errs.Config, recipientHint, "%s: there is no recipient in it", where)
	}
	return found, nil
}

// parseRecipient reads one public key. What is not clearly one is never
// repeated in the error: it may be a secret in the wrong place.
func parseRecipient(text string) (recipient, error) {
	switch {
	case isSecret(text):
		return recipient{}, errs.New(errs.Config,
			"A recipient is the public key; age-keygen -y prints it. Keep the secret key off this host if it only archives.",
			"this is a secret key, not a recipient")
	case strings.HasPrefix(text, "age1"):
		return parseAgeRecipient(text)
	case strings.HasPrefix(text, "ssh-"), strings.HasPrefix(text, "ecdsa-sha2-"), strings.HasPrefix(text, "sk-"):
		return parseSSHRecipient(text)
	default:
		return recipient{}, errs.New(errs.Config, recipientHint, "this is not a recipient")
	}
}

func parseAgeRecipient(text string) (recipient, error) {
	malformed := func() error {
		return errs.New(errs.Config, recipientHint,
			"recipient %s is malformed, perhaps mistyped or cut off", abbreviate(text))
	}
	// Bech32: the data has no "1", so the last one ends the prefix.
	switch prefix := text[:strings.LastIndexByte(text, '1')]; prefix {
	case "age":
		r, err := age.ParseX25519Recipient(text)
		if err != nil {
			return recipient{}, malformed()
		}
		return recipient{text: r.String(), age: r}, nil
	case "age1pq":
		r, err := age.ParseHybridRecipient(text)
		if err != nil {
			return recipient{}, malformed()
		}
		return recipient{text: r.String(), age: r, postQuantum: true}, nil
	default:
		name, ok := strings.CutPrefix(prefix, "age1")
		if !ok || name == "" {
			return recipient{}, malformed()
		}
		return recipient{}, errs.New(errs.Config, recipientHint,
			"recipient %s needs the age plugin %q, and plugins are not supported", abbreviate(text), name)
	}
}

func parseSSHRecipient(text string) (recipient, error) {
	kind, _, _ := strings.Cut(text, " ")
	if kind != ssh.KeyAlgoED25519 && kind != ssh.KeyAlgoRSA {
		return recipient{}, errs.New(errs.Config, recipientHint,
			"SSH key of type %s cannot be a recipient", abbreviate(kind))
	}
	malformed := errs.New(errs.Config, recipientHint,
		"recipient %s is malformed, perhaps cut off, or an RSA key of less than 2048 bits", abbreviate(text))
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil {
		return recipient{}, malformed
	}
	canonical := string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key)))
	r, err := agessh.ParseRecipient(canonical)
	if err != nil {
		return recipient{}, malformed
	}
	return recipient{text: canonical, age: r}, nil
}

// abbreviate makes a public key short enough for a message; a post-quantum
// recipient has 1,959 characters.
func abbreviate(text string) string {
	const most = 72
	if len(text) <= most {
		return fmt.Sprintf("%q", text)
	}
	return fmt.Sprintf("%q", text[:32]+"…")
}

// Empty says that objects are not sealed.
func (r Recipients) Empty() bool { return len(r.list) == 0 }

// PostQuantum says that all recipients are post-quantum.
func (r Recipients) PostQuantum() bool { return r.postQuantum }

// Strings returns the recipients as age reads them, in the order given and
// without the comments of SSH keys. They are public.
func (r Recipients) Strings() []string {
	texts := make([]string, len(r.list))
	for i, one := range r.list {
		texts[i] = one.text
	}
	return texts
}

// Fingerprint identifies the set of recipients whatever its order: the first
// 16 hex digits of the SHA-256 of the sorted Strings, each followed by a line
// feed. Empty recipients have the fingerprint "".
func (r Recipients) Fingerprint() string {
	if r.Empty() {
		return ""
	}
	texts := r.Strings()
	slices.Sort(texts)
	sum := sha256.Sum256([]byte(strings.Join(texts, "\n") + "\n"))
	return hex.EncodeToString(sum[:8])
}

// errNotSealing is a mistake in the program: asking Empty comes first, so that
// nothing is ever stored readable by accident.
var errNotSealing = errors.New("seal object: there are no recipients")
