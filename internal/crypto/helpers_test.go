package crypto

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"agent/internal/errs"
)

// generate makes an identity and its recipient.
func generate(t testing.TB, postQuantum bool) (identity, recipient string) {
	t.Helper()
	identity, recipient, err := Generate(postQuantum)
	if err != nil {
		t.Fatal(err)
	}
	return identity, recipient
}

func recipients(t testing.TB, values ...string) Recipients {
	t.Helper()
	r, err := ParseRecipients(values)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func identities(t testing.TB, text ...string) *Identities {
	t.Helper()
	return NewIdentities(t.Context(), Sources{Text: strings.Join(text, "\n")})
}

func seal(t testing.TB, r Recipients, raw []byte, hash *[32]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := r.Seal(&b, hash)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(ids *Identities, sealed []byte) ([]byte, error) {
	r, err := ids.Open(bytes.NewReader(sealed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(3, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func hashOf(raw []byte) *[32]byte {
	sum := sha256.Sum256(raw)
	return &sum
}

func write(t testing.TB, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sshKey makes an OpenSSH key pair with the tool that users have.
func sshKey(t testing.TB, kind, passphrase string) (private, public string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	out, err := exec.CommandContext(t.Context(),
		"ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "somebody@example", "-f", path).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	for file, text := range map[string]*string{path: &private, path + ".pub": &public} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		*text = string(b)
	}
	return private, strings.TrimSpace(public)
}

// wantError checks kind, a part of the text, and that there is a hint.
func wantError(t *testing.T, err error, kind errs.Kind, part string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("no error; wanted %q", part)
	case errs.KindOf(err) != kind || !strings.Contains(err.Error(), part):
		t.Errorf("kind %d, %v; wanted kind %d and %q", errs.KindOf(err), err, kind, part)
	case errs.HintOf(err) == "":
		t.Errorf("no hint: %v", err)
	}
}

func wantCorrupt(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, ErrCorrupt) || errors.Is(err, io.EOF) || errs.KindOf(err) == errs.Identity {
		t.Errorf("%s: %v", what, err)
	}
}
