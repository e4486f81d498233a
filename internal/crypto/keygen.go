package crypto

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"

	"agent/internal/errs"
)

// Generate makes a new identity (a secret key) and its recipient, X25519 or,
// if postQuantum, ML-KEM-768 with X25519. age before 1.3 cannot use the latter.
func Generate(postQuantum bool) (identity, recipient string, err error) {
	if postQuantum {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			return "", "", fmt.Errorf("generate identity: %w", err)
		}
		return id.String(), id.Recipient().String(), nil
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", fmt.Errorf("generate identity: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// WriteIdentityFile creates path with mode 0600, in the form of age-keygen,
// and makes it durable. A file that exists is never touched: the error is of
// kind errs.Usage, since the key in it may be the only one to old backups.
func WriteIdentityFile(path, identity, recipient string, created time.Time) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return errs.Wrap(err, errs.Usage, "Name another file; the identity in this one may be needed for backups.",
			"create identity file")
	}
	if err != nil {
		return fmt.Errorf("create identity file: %w", err)
	}
	_, err = fmt.Fprintf(f, "# created: %s\n# public key: %s\n%s\n",
		created.Format(time.RFC3339), recipient, identity)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write identity file: %w", errors.Join(err, os.Remove(path)))
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write identity file: %w", err)
	}
	return nil
}

// syncDir makes the name of a new file durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
