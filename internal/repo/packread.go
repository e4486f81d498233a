package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"agent/internal/crypto"
	"agent/internal/errs"
)

// PackStream yields the opened content of a stored pack in order, from one
// GET, and proves at its end that the whole object is what was stored.
type PackStream struct {
	from source
	key  string
	want Pack
	src  *storeReader
	body io.Closer
	r    io.Reader
	pos  int64
	hash hash.Hash // of the stored bytes
}

// ReadPack opens a pack of the cluster and lets use read it, to its end
// (Finish) if it is to be proved. want is its entry in the list of packs. If
// the copy turns out to be damaged, or its store fails, use is called again,
// from the beginning, for another copy.
func (r *Repository) ReadPack(ctx context.Context, cluster ClusterID, backup BackupName, want Pack, use func(*PackStream) error) error {
	key := cluster.packKey(backup, want.Number)
	err := r.read(ctx, key, expected, func(from source) error {
		s, err := from.openPack(ctx, key, want)
		if err != nil {
			return err
		}
		return errors.Join(use(s), s.body.Close())
	})
	return missing(err, key, r.String())
}

func (s source) openPack(ctx context.Context, key string, want Pack) (*PackStream, error) {
	body, info, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	if info.Size != want.Size {
		err := s.damaged(fmt.Errorf("it has %d bytes instead of %d", info.Size, want.Size), key)
		return nil, errors.Join(err, body.Close())
	}
	// age authenticates that the bytes are those of some pack; that they are
	// this pack's the hash alone says.
	sum := sha256.New()
	p := &PackStream{from: s, key: key, want: want, src: &storeReader{r: io.TeeReader(body, sum)}, body: body, hash: sum}
	if err := p.unseal(); err != nil {
		return nil, errors.Join(err, body.Close())
	}
	return p, nil
}

func (s *PackStream) unseal() error {
	head, rest, err := peek(s.src)
	if err != nil {
		return s.src.orDamaged(s.from, err, s.key)
	}
	if !crypto.IsSealed(head) {
		s.r = rest
		return nil
	}
	if s.r, err = s.from.repo.keys.Identities.Open(rest); err == nil {
		return nil
	}
	// Damage to the header looks like a key that does not fit; the hash tells.
	if errs.KindOf(err) == errs.Identity {
		s.r = rest
		if damage := s.Finish(); damage != nil {
			return damage
		}
	}
	return s.src.orDamaged(s.from, err, s.key)
}

// ReadFrame reads the stored bytes of a frame into dst, which has the frame's
// length. Frames are asked for by rising offset; what lies between is skipped.
func (s *PackStream) ReadFrame(offset int64, dst []byte) error {
	if offset < s.pos {
		return fmt.Errorf("read frame at %d of %s: already past it", offset, s.key)
	}
	n, err := io.CopyN(io.Discard, s.r, offset-s.pos)
	s.pos += n
	if err == nil {
		var m int
		m, err = io.ReadFull(s.r, dst)
		s.pos += int64(m)
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return s.src.orDamaged(s.from, err, s.key)
	}
	return nil
}

// Finish reads the rest and compares the whole with what was stored.
func (s *PackStream) Finish() error {
	if _, err := io.Copy(io.Discard, s.r); err != nil {
		return s.src.orDamaged(s.from, err, s.key)
	}
	if Digest(s.hash.Sum(nil)) != s.want.SHA256 {
		return s.Damaged(errors.New("its SHA-256 is not that of what was stored"))
	}
	return nil
}

// Damaged says that the pack's content is not what was stored.
func (s *PackStream) Damaged(err error) error { return s.from.damaged(err, s.key) }
