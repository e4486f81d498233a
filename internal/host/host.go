// Package host says which machine this is, so that a restore can tell the
// recorded host from a clone.
package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Identity is a host as a repository records it.
type Identity struct {
	Name string
	// Machine is a hash of /etc/machine-id, which machine-id(5) asks not to
	// expose as it is; empty where there is none, as in many containers.
	Machine string
}

// Read finds out the identity of this host.
func Read() (Identity, error) {
	name, err := os.Hostname()
	if err != nil {
		return Identity{}, fmt.Errorf("read host name: %w", err)
	}
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("read machine id: %w", err)
	}
	i := Identity{Name: name}
	if s := strings.TrimSpace(string(id)); s != "" {
		sum := sha256.Sum256([]byte("walagent host\n" + s))
		i.Machine = hex.EncodeToString(sum[:8])
	}
	return i, nil
}
