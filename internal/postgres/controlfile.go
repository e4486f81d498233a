package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"agent/internal/errs"
)

// How often and at which interval a torn read of pg_control is repeated: a
// server writes it in one call, so the second read is right almost always.
const (
	controlReads = 10
	controlPause = 100 * time.Millisecond
)

// ReadControl reads the control file of the data directory pgdata, which may
// be in use: a read whose checksum is wrong is repeated up to ten times, 100 ms
// apart. raw are the verified bytes, all 8192 of them: what a backup stores.
// The error after ten reads wraps ErrControlCRC; that of a missing file wraps
// fs.ErrNotExist; that of an ended ctx wraps its cause.
func ReadControl(ctx context.Context, pgdata string) (c *Control, raw []byte, err error) {
	path := filepath.Join(pgdata, filepath.FromSlash(ControlPath))
	c, raw, err = readControl(ctx, func() ([]byte, error) { return readControlFile(path) }, controlPause)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return c, raw, nil
}

// readControl reads until the checksum is right, a few times at most.
func readControl(ctx context.Context, read func() ([]byte, error), pause time.Duration) (*Control, []byte, error) {
	for try := 1; ; try++ {
		raw, err := read()
		if err != nil {
			return nil, nil, err
		}
		c, err := ParseControl(raw)
		if err == nil {
			return c, raw, nil
		}
		if !errors.Is(err, ErrControlCRC) || try == controlReads {
			return nil, nil, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, context.Cause(ctx)
		}
	}
}

// readControlFile reads exactly the length that a control file has.
func readControlFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		hint := ""
		if errors.Is(err, fs.ErrNotExist) {
			hint = "Is this the data directory of a PostgreSQL server?"
		} else if errors.Is(err, fs.ErrPermission) {
			hint = "Run the agent as the operating system user that owns the data directory."
		}
		return nil, errs.Wrap(err, errs.Server, hint, "")
	}
	defer func() { _ = f.Close() }()
	raw := make([]byte, ControlFileSize)
	if _, err := io.ReadFull(f, raw); err != nil {
		return nil, errs.Wrap(err, errs.Damaged, "", "expected %d bytes", ControlFileSize)
	}
	return raw, nil
}

// ReadSystemIdentifier reads from the control file of pgdata the one field that
// has the same place in every version, the first (src/include/catalog/pg_control.h).
// It never changes, so a read beside a write is whole.
func ReadSystemIdentifier(pgdata string) (uint64, error) {
	path := filepath.Join(pgdata, filepath.FromSlash(ControlPath))
	raw, err := readControlFile(path)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return binary.LittleEndian.Uint64(raw), nil
}
