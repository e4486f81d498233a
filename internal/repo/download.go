package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// listMemory is how much of a downloaded list stays in memory.
const listMemory = 1 << 20

// download brings an object whose size and hash are known onto this host, from
// the first place that has it as it was stored. So nothing of it is believed
// before all of it was proved, and no connection is kept open while what it
// lists is worked on, which may take hours.
func (r *Repository) download(ctx context.Context, key string, want ObjectDigest) (*spool, error) {
	var got *spool
	err := r.read(ctx, key, expected, func(s source) error {
		d := &spool{dir: r.spoolDir, most: listMemory}
		if err := s.fill(ctx, d, key, want); err != nil {
			return errors.Join(err, d.Close())
		}
		got = d
		return nil
	})
	if err != nil {
		return nil, missing(err, key, r.String())
	}
	return got, nil
}

func (s source) fill(ctx context.Context, d *spool, key string, want ObjectDigest) error {
	body, info, err := s.get(ctx, key)
	if err != nil {
		return err
	}
	defer body.Close()
	if info.Size != want.Size {
		return s.damaged(fmt.Errorf("it has %d bytes instead of %d", info.Size, want.Size), key)
	}
	sum := sha256.New()
	src := &storeReader{r: io.TeeReader(body, sum)}
	if _, err := io.Copy(d, src); err != nil {
		if src.err != nil {
			return fmt.Errorf("read %s of %s: %w", key, s, err)
		}
		return err
	}
	if Digest(sum.Sum(nil)) != want.SHA256 {
		return s.damaged(errors.New("its SHA-256 is not that of what was stored"), key)
	}
	return nil
}
