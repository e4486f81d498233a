// Package host says which machine this is, so that a restore can tell the
// recorded host from a clone.
package host

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"agent/internal/errs"
)

// Identity is a host as a repository records it.
type Identity struct {
	Name string
	// Machine is a hash of /etc/machine-id, which machine-id(5) asks not to
	// expose as it is; empty where there is none, as in many containers.
	Machine string
	// State is the random id of the agent's state directory: what is left to
	// know a host again where there is no machine id.
	State string
}

// Same reports whether two identities are surely of one host: by name and
// machine id, or, where one of them has no machine id, by the state directory.
// A disk that is copied to another machine takes its state directory along.
func (i Identity) Same(j Identity) bool {
	if i.Name != j.Name {
		return false
	}
	if i.Machine != "" && j.Machine != "" {
		return i.Machine == j.Machine
	}
	return i.State != "" && i.State == j.State
}

func stateID(dir string) (string, error) {
	path := filepath.Join(dir, "id")
	id, err := os.ReadFile(path)
	if s := strings.TrimSpace(string(id)); err == nil && s != "" {
		return s, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", stateError(err)
	}
	fresh := rand.Text()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", stateError(err)
	}
	return fresh, stateError(os.WriteFile(path, []byte(fresh+"\n"), 0o600))
}

func stateError(err error) error { return errs.State(err, "use the state directory") }

// Read finds out the identity of this host. stateDir is the agent's, and gets
// an id if it has none.
func Read(stateDir string) (Identity, error) {
	name, err := os.Hostname()
	if err != nil {
		return Identity{}, fmt.Errorf("read host name: %w", err)
	}
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("read machine id: %w", err)
	}
	i := Identity{Name: name}
	if i.State, err = stateID(stateDir); err != nil {
		return Identity{}, err
	}
	if s := strings.TrimSpace(string(id)); s != "" {
		sum := sha256.Sum256([]byte("walagent host\n" + s))
		i.Machine = hex.EncodeToString(sum[:8])
	}
	return i, nil
}
