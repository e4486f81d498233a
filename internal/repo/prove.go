package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/errs"
)

// ReadSmall reads a small object that is not compressed, such as the JSON of a
// claim, from the first place that has it. More than 4 MiB are refused.
func (r *Repository) ReadSmall(ctx context.Context, key string) (body []byte, err error) {
	err = r.read(ctx, key, expected, func(s source) (err error) {
		body, err = s.readAll(ctx, key, maxTomb)
		return err
	})
	return body, err
}

// CarriedHash is the SHA-256 that an object carries of its raw bytes, from the
// first place that has it. No key is needed.
func (r *Repository) CarriedHash(ctx context.Context, key string) (sum [32]byte, err error) {
	err = r.read(ctx, key, expected, func(s source) (err error) {
		sum, err = s.carriedHash(ctx, key)
		return err
	})
	return sum, err
}

// ProvePack reads a whole pack and compares it with its entry in a list; nil if
// no list has it. If it can be opened, every frame in it is decoded; opened tells
// whether that was so. A pack is not held in memory.
func (r *Repository) ProvePack(ctx context.Context, cluster ClusterID, id PackID, want *Pack) (opened bool, err error) {
	key := cluster.packKey(id.Backup, id.Number)
	err = r.read(ctx, key, expected, func(s source) (err error) {
		opened, err = s.provePack(ctx, key, want)
		return err
	})
	return opened, missing(err, key, r.String())
}

func (s source) provePack(ctx context.Context, key string, want *Pack) (opened bool, err error) {
	body, info, err := s.get(ctx, key)
	if err != nil {
		return false, err
	}
	defer body.Close()
	if want != nil && info.Size != want.Size {
		return false, s.otherSize(info.Size, want.Size, key)
	}
	sum := sha256.New()
	src := &storeReader{r: io.TeeReader(body, sum)}
	bad := s.decodeFrames(src)
	// What is behind an error belongs to the hash, which tells more.
	if _, err := io.Copy(io.Discard, src); err != nil {
		return false, fmt.Errorf("read %s of %s: %w", key, s, err)
	}
	if want != nil && Digest(sum.Sum(nil)) != want.SHA256 {
		return false, s.damaged(errors.New("its SHA-256 is not that of what was stored"), key)
	}
	if errs.KindOf(bad) == errs.Identity {
		return false, nil
	}
	if bad != nil {
		return false, src.orDamaged(s, bad, key)
	}
	return true, nil
}

// decodeFrames decodes everything that src holds.
func (s source) decodeFrames(src io.Reader) error {
	head, rest, err := peek(src)
	if err != nil {
		return err
	}
	var frames io.Reader = rest
	if crypto.IsSealed(head) {
		if frames, err = s.repo.keys.Identities.Open(rest); err != nil {
			return err
		}
	}
	raw := compress.NewReader(frames)
	defer raw.Close()
	_, err = io.Copy(io.Discard, raw)
	return err
}
