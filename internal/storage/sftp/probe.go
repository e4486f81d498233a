package sftp

import (
	"context"
	"errors"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"agent/internal/storage"
)

// Probe tells the free space, as far as the server says it, and who the server
// is. The server's clock is not known by this protocol.
func (b *Bucket) Probe(ctx context.Context) (storage.Facts, error) {
	facts, err := b.probe(ctx)
	if err != nil {
		return storage.Facts{}, b.fail("probe", "", err)
	}
	return facts, nil
}

func (b *Bucket) probe(ctx context.Context) (storage.Facts, error) {
	c, release, err := b.pool.acquire(ctx)
	if err != nil {
		return storage.Facts{}, err
	}
	defer release()
	if err := b.checkRoot(ctx, c); err != nil {
		return storage.Facts{}, err
	}
	facts := storage.Facts{Free: -1, Notes: map[string]string{
		"host key": c.hostKey.Type() + " " + ssh.FingerprintSHA256(c.hostKey),
		"server":   string(c.ssh.ServerVersion()),
		"create":   extHardlink,
		"sync":     "files and directories",
	}}
	if !c.has(extHardlink) {
		facts.Notes["create"] = "rename"
	}
	if facts.Notes["sync"], err = b.probeSync(ctx, c); err != nil {
		return storage.Facts{}, err
	}
	if !c.has(extStatVFS) {
		return facts, nil
	}
	st, err := call(ctx, b, func() (*sftp.StatVFS, error) { return c.sftp.StatVFS(b.root) })
	switch {
	case err == nil:
		facts.Free = freeBytes(st)
	case !answered(err) || errors.Is(err, ctx.Err()):
		return storage.Facts{}, err
	}
	return facts, nil
}

// probeSync says what the server can make durable.
func (b *Bucket) probeSync(ctx context.Context, c *conn) (string, error) {
	if !c.has(extFsync) {
		return "none", nil
	}
	if err := b.syncDir(ctx, c, b.root); err != nil {
		return "", err
	}
	if b.noDirSync.Load() {
		return "files", nil
	}
	return "files and directories", nil
}
