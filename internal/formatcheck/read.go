package formatcheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/summary"
)

// read reads an object and says of which format it is and whether it could be
// opened.
func (c *checker) read(ctx context.Context, o repo.Object) (opened bool, format int, err error) {
	switch o.Kind {
	case repo.KindRepository:
		return c.json(ctx, o, new(repo.Marker))
	case repo.KindCluster:
		opened, format, err = c.json(ctx, o, new(repo.Cluster))
		if err == nil && format == repo.Format {
			_, err = c.repo.Cluster(ctx, o.Cluster)
		}
		return opened, format, err
	case repo.KindGap:
		return c.json(ctx, o, new(repo.Dropped))
	case repo.KindHorizon:
		return c.json(ctx, o, new(repo.Horizon))
	case repo.KindClaim:
		return c.json(ctx, o, new(repo.Claim))
	case repo.KindTomb:
		return c.json(ctx, o, new(repo.Tomb))
	case repo.KindMark:
		return c.mark(ctx, o)
	case repo.KindHistory:
		return c.framed(ctx, o, c.history)
	case repo.KindSummary:
		return c.framed(ctx, o, c.summary)
	default:
		return c.framed(ctx, o, func(_ repo.Object, raw io.Reader) error {
			_, err := io.Copy(io.Discard, raw)
			return err
		})
	}
}

// mark reads a mark, and notes one of a kind that is not known: a reader passes
// over it.
func (c *checker) mark(ctx context.Context, o repo.Object) (opened bool, format int, err error) {
	var m repo.Mark
	opened, format, err = c.json(ctx, o, &m)
	if err != nil || format > repo.Format {
		return opened, format, err
	}
	switch m.Kind {
	case repo.MarkKeep, repo.MarkRelease, repo.MarkNote, repo.MarkVerified:
	default:
		c.note(fmt.Sprintf("%s: kind %q is unknown (passed over)", o.Kind, m.Kind))
	}
	return opened, format, nil
}

// json reads a JSON object; known has the fields that this agent knows.
func (c *checker) json(ctx context.Context, o repo.Object, known any) (opened bool, format int, err error) {
	body, err := c.repo.ReadSmall(ctx, o.Key)
	if err != nil {
		return false, 0, err
	}
	// What has no format of its own, such as a claim, has that of the repository.
	version := struct {
		Format int `json:"format"`
	}{repo.Format}
	if err := json.Unmarshal(body, &version); err != nil {
		return false, 0, damaged(o, fmt.Errorf("decode: %w", err))
	}
	if version.Format > repo.Format {
		return true, version.Format, nil
	}
	if err := json.Unmarshal(body, known); err != nil {
		return false, 0, damaged(o, fmt.Errorf("decode: %w", err))
	}
	c.fields(o, body, known)
	return true, version.Format, nil
}

// fields notes a field of a JSON object that is not among the known ones: a
// reader passes over it, which a later version may rely on.
func (c *checker) fields(o repo.Object, body []byte, known any) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(known); err != nil {
		c.note(fmt.Sprintf("%s: %s (passed over)", o.Kind, err))
	}
}

func damaged(o repo.Object, err error) error {
	return errs.Wrap(err, errs.Damaged, "The object was changed after it was stored, or no agent has written it.", "object %s cannot be understood", o.Key)
}

// framed reads an object whose raw bytes carry their hash. One that is sealed
// for others is read as far as that hash.
func (c *checker) framed(ctx context.Context, o repo.Object, use func(repo.Object, io.Reader) error) (opened bool, format int, err error) {
	err = c.repo.ReadWALObject(ctx, c.place, o.Key, func(raw io.Reader) error { return use(o, raw) })
	if errs.KindOf(err) == errs.Identity {
		_, err = c.repo.CarriedHash(ctx, o.Key)
		return false, repo.Format, err
	}
	return err == nil, repo.Format, err
}

// maxRaw bounds what is read of a history or a summary, in raw bytes.
const maxRaw = 64 << 20

func (c *checker) history(o repo.Object, raw io.Reader) error {
	body, err := io.ReadAll(io.LimitReader(raw, maxRaw))
	if err != nil {
		return err
	}
	f, err := postgres.ParseWALFile(o.Key[len(o.Key)-len("00000001.history"):])
	if err == nil {
		_, err = postgres.ParseHistory(f.Timeline, body)
	}
	if err != nil {
		return damaged(o, err)
	}
	return nil
}

func (c *checker) summary(o repo.Object, raw io.Reader) error {
	body, err := io.ReadAll(io.LimitReader(raw, maxRaw))
	if err != nil {
		return err
	}
	_, err = summary.Decode(body)
	switch {
	case errors.Is(err, summary.ErrNewer):
		return fmt.Errorf("%w: %w", errNewer, err)
	case err != nil:
		return damaged(o, err)
	default:
		return nil
	}
}

// backups reads backup.json, the list of packs and the manifest of every
// backup.
func (c *checker) backups(ctx context.Context, id repo.ClusterID, in *contents) error {
	var packs []repo.Object
	if s := in.samples[repo.KindPack]; s != nil {
		packs = s.objects()
	}
	for _, name := range in.backups {
		if err := c.backup(ctx, id, name, in, packs); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) backup(ctx context.Context, id repo.ClusterID, name repo.BackupName, in *contents, sampled []repo.Object) error {
	at := func(kind repo.ObjectKind, file string) repo.Object {
		return repo.Object{Key: fmt.Sprintf("cluster/%020d/backup/%s/%s", uint64(id), name, file), Kind: kind, Cluster: id, Backup: name}
	}
	o := at(repo.KindBackup, "backup.json")
	b, err := c.repo.LoadBackup(ctx, id, name)
	if err != nil {
		return c.done(ctx, o, false, 0, err)
	}
	body, err := c.repo.ReadSmall(ctx, o.Key)
	if err == nil {
		c.fields(o, body, new(repo.Backup))
	}
	if err := c.done(ctx, o, true, b.Format, err); err != nil {
		return err
	}
	packs, err := c.repo.LoadPacks(ctx, b)
	if errors.Is(err, storage.ErrNotExist) && c.deleted(ctx, b) {
		return nil
	}
	if err := c.done(ctx, at(repo.KindPacks, "packs"), true, repo.Format, err); err != nil {
		return err
	}
	for _, s := range sampled {
		p := repo.PackID{Backup: s.Backup, Number: s.Pack}
		if want, ok := packs[p]; ok && in.wanted[p] == nil {
			in.wanted[p] = &want
		}
	}
	if packs == nil {
		return nil // the manifest cannot be read without it
	}
	opened, err := c.manifest(ctx, b, packs)
	if errors.Is(err, storage.ErrNotExist) && c.deleted(ctx, b) {
		return nil
	}
	return c.done(ctx, at(repo.KindManifest, "manifest"), opened, repo.Format, err)
}

// deleted reports whether a backup has been deleted since it was listed.
func (c *checker) deleted(ctx context.Context, b *repo.Backup) bool {
	_, err := c.repo.LoadBackup(ctx, b.Cluster, b.Name)
	return errs.KindOf(err) == errs.NotFound
}

// manifest reads a manifest with all its sections. One that is sealed for
// others is compared with its hash.
func (c *checker) manifest(ctx context.Context, b *repo.Backup, packs map[repo.PackID]repo.Pack) (opened bool, err error) {
	root, err := c.repo.OpenManifest(ctx, b)
	if err != nil {
		return false, err
	}
	defer root.Close()
	m, err := root.Read(packs)
	if err == nil {
		defer m.Close()
	}
	for err == nil {
		_, _, err = m.Next(ctx)
	}
	switch {
	case errors.Is(err, io.EOF):
		return true, nil
	case errs.KindOf(err) == errs.Identity:
		return false, nil
	default:
		return false, err
	}
}
