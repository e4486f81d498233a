package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

// maxSummary bounds the raw bytes of a summary: two pieces of records of at
// most 16 MiB, and the table.
const maxSummary = 64 << 20

// PutSummary stores the summary of a segment, which lies in the repository
// already. If there is one, it stays: it is the same, or was made by another
// version of the decoder.
func (r *Repository) PutSummary(ctx context.Context, cluster ClusterID, f postgres.WALFile, encoded []byte) error {
	key, err := cluster.summaryKey(f)
	if err != nil {
		return err
	}
	body, err := r.sealSummary(encoded)
	if err != nil {
		return fmt.Errorf("seal summary of %s: %w", f.Name, err)
	}
	return r.everywhere(ctx, key, func(ctx context.Context, p *place) error {
		_, err := p.Bucket.Put(ctx, key, storage.Bytes(body), storage.PutOptions{Unhashed: true, Lock: p.lock(r.now())})
		if errors.Is(err, storage.ErrExists) {
			r.log.Debug("there is a summary already", "wal", f.Name, "repository", p.Name)
			return nil
		}
		return err
	})
}

func (r *Repository) sealSummary(encoded []byte) ([]byte, error) {
	if len(encoded) > maxSummary {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(encoded), maxSummary)
	}
	w, err := r.workshop()
	if err != nil {
		return nil, err
	}
	defer r.workshops.Put(w)
	var body bytes.Buffer
	seal, err := hashedHead(&body, r.keys.Meta, sha256.Sum256(encoded))
	if err != nil {
		return nil, err
	}
	err = eachChunk(w.raw, bytes.NewReader(encoded), func(raw []byte) (err error) {
		if w.frames, err = w.enc.AppendFrame(w.frames[:0], raw); err == nil {
			_, err = seal.Write(w.frames)
		}
		return err
	})
	if err == nil {
		err = seal.Close()
	}
	return body.Bytes(), err
}

// ReadSummary reads the summary of a segment, proved by the hash that it
// carries. That there is none is storage.ErrNotExist: a caller goes on without.
func (r *Repository) ReadSummary(ctx context.Context, cluster ClusterID, f postgres.WALFile) (encoded []byte, err error) {
	key, err := cluster.summaryKey(f)
	if err != nil {
		return nil, err
	}
	err = r.read(ctx, key, probing, func(s source) error {
		o, err := s.openObject(ctx, key)
		if err != nil {
			return err
		}
		if o.want == nil {
			return errors.Join(s.damaged(errNoHash, key), o.Close())
		}
		encoded, err = io.ReadAll(io.LimitReader(o, maxSummary+1))
		if err == nil && len(encoded) > maxSummary {
			err = s.damaged(fmt.Errorf("it has more than %d raw bytes", maxSummary), key)
		}
		return errors.Join(err, o.Close())
	})
	if err != nil {
		return nil, err
	}
	return encoded, nil
}

// summaryKey names the summary of a segment; no other file has one.
func (c ClusterID) summaryKey(f postgres.WALFile) (string, error) {
	if f.Kind != postgres.WALSegment {
		return "", errs.New(errs.Usage, "Only whole segments have summaries.", "%s is no segment", f.Name)
	}
	return fmt.Sprintf("%ssummary/%08X%08X/%s", c.prefix(), uint32(f.Timeline), f.Log, f.Name), nil
}

// OpensSummaries tells whether this host can read what it stores of summaries
// and manifests: they are not sealed, or it has an identity.
func (r *Repository) OpensSummaries() bool { return r.keys.Meta.Empty() || r.keys.Identities.Given() }
