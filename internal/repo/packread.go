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

// PackStream yields frames of a stored pack in order, and proves what it gave:
// either the whole object at its end, from one GET, or each frame by itself.
type PackStream struct {
	from source
	key  string
	body packBody
}

// packBody is how the opened content of a pack comes here. Its errors name the
// pack.
type packBody interface {
	readFrame(offset int64, dst []byte) error
	finish() error
	whole() bool
	Close() error
}

// ReadFrame reads the stored bytes of a frame into dst, which has the frame's
// length. Frames are asked for by rising offset; what lies between is skipped.
func (s *PackStream) ReadFrame(offset int64, dst []byte) error { return s.body.readFrame(offset, dst) }

// Finish ends the reading. Where the whole pack is read it compares it with what
// was stored; where not, the checksum in each frame is all there is
// (ReadFrames).
func (s *PackStream) Finish() error { return s.body.finish() }

// Whole reports whether Finish proves what was read.
func (s *PackStream) Whole() bool { return s.body.whole() }

// Damaged says that the pack's content is not what was stored.
func (s *PackStream) Damaged(err error) error { return s.from.damaged(err, s.key) }

// ReadPack opens a pack of the cluster and lets use read it, to its end
// (Finish) if it is to be proved. want is its entry in the list of packs. If
// the copy turns out to be damaged, or its store fails, use is called again,
// from the beginning, for another copy.
func (r *Repository) ReadPack(ctx context.Context, cluster ClusterID, backup BackupName, want Pack, use func(*PackStream) error) error {
	return r.readPack(ctx, cluster, backup, want, use, source.openPack)
}

// packOpener is how one copy of a pack is opened.
type packOpener = func(s source, ctx context.Context, key string, want Pack) (packBody, error)

func (r *Repository) readPack(ctx context.Context, cluster ClusterID, backup BackupName, want Pack, use func(*PackStream) error, open packOpener) error {
	key := cluster.packKey(backup, want.Number)
	err := r.read(ctx, key, expected, func(from source) error {
		body, err := open(from, ctx, key, want)
		if err != nil {
			return err
		}
		return errors.Join(use(&PackStream{from: from, key: key, body: body}), body.Close())
	})
	return missing(err, key, r.String())
}

// wholePack reads a pack to its end.
type wholePack struct {
	from source
	key  string
	want Pack
	src  *storeReader
	body io.Closer
	r    io.Reader
	pos  int64
	hash hash.Hash // of the stored bytes
}

func (s source) openPack(ctx context.Context, key string, want Pack) (packBody, error) {
	p, err := s.openWhole(ctx, key, want)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (s source) openWhole(ctx context.Context, key string, want Pack) (*wholePack, error) {
	body, info, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	if info.Size != want.Size {
		return nil, errors.Join(s.otherSize(info.Size, want.Size, key), body.Close())
	}
	// age authenticates that the bytes are those of some pack; that they are
	// this pack's the hash alone says.
	sum := sha256.New()
	p := &wholePack{from: s, key: key, want: want, src: &storeReader{r: io.TeeReader(body, sum)}, body: body, hash: sum}
	if err := p.unseal(); err != nil {
		return nil, errors.Join(err, body.Close())
	}
	return p, nil
}

func (s source) otherSize(is, want int64, key string) error {
	return s.damaged(fmt.Errorf("it has %d bytes instead of %d", is, want), key)
}

func (s *wholePack) unseal() error {
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
		if damage := s.finish(); damage != nil {
			return damage
		}
	}
	return s.src.orDamaged(s.from, err, s.key)
}

func (s *wholePack) readFrame(offset int64, dst []byte) error {
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

func (s *wholePack) finish() error {
	if _, err := io.Copy(io.Discard, s.r); err != nil {
		return s.src.orDamaged(s.from, err, s.key)
	}
	if Digest(s.hash.Sum(nil)) != s.want.SHA256 {
		return s.from.damaged(errors.New("its SHA-256 is not that of what was stored"), s.key)
	}
	return nil
}

func (s *wholePack) whole() bool { return true }

// Close gives up the transfer.
func (s *wholePack) Close() error { return s.body.Close() }
