package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"agent/internal/errs"
	"agent/internal/repo"
)

// Copy takes the manifest of a backup while it is written (repo.ManifestCopy).
// It is used by one goroutine. An error of the disk does not end the backup:
// then nothing is kept, and the next one asks the repository.
type Copy struct {
	store  *Store
	name   repo.BackupName
	root   *os.File
	size   int64
	pack   *os.File // of the sections that are being written
	open   uint32
	stored int  // packs that are noted as durable
	lost   bool // the disk has failed; nothing is kept any more
}

// Begin makes the folder of a backup that begins.
func (s *Store) Begin(name repo.BackupName) *Copy {
	c := &Copy{store: s, name: name}
	if err := os.MkdirAll(s.path(name, ""), 0o700); err != nil {
		c.fail(err)
		return c
	}
	var err error
	if c.root, err = create(s.path(name, rootFile)); err != nil {
		c.fail(err)
	}
	return c
}

func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

// fail gives the copy up.
func (c *Copy) fail(err error) {
	if !c.lost && err != nil {
		c.lost = true
		c.store.log.Warn("nothing of this backup is kept for the next one", "error", errs.State(err, "keep the manifest").Error())
	}
}

// Root writes a frame of the root.
func (c *Copy) Root(frame []byte) error {
	if c.lost {
		return nil
	}
	n, err := c.root.Write(frame)
	c.size += int64(n)
	c.fail(err)
	return nil
}

// Section writes a frame of a section to where it lies in its pack.
func (c *Copy) Section(ref repo.FrameRef, frame []byte) error {
	if c.lost {
		return nil
	}
	if c.pack == nil || c.open != ref.Pack {
		c.fail(c.endPack())
		var err error
		if c.pack, err = create(c.store.path(c.name, packName(ref.Pack))); err != nil {
			c.fail(err)
			return nil
		}
		c.open = ref.Pack
	}
	_, err := c.pack.WriteAt(frame, ref.Offset)
	c.fail(err)
	return nil
}

func (c *Copy) endPack() error {
	if c.pack == nil {
		return nil
	}
	err := errors.Join(c.pack.Sync(), c.pack.Close())
	c.pack = nil
	return err
}

// Commit makes the copy count, now that the backup exists, and drops those that
// it does not build on. packs is the list as it was stored; borrowed are the
// packs of others that the manifest needs. What a backup keeps that is running
// beside this one stays.
func (c *Copy) Commit(b *repo.Backup, packs []byte, borrowed []repo.Pack, running func(repo.BackupName) bool) error {
	if c.fail(c.finish(b, packs)); c.lost {
		return nil // was said
	}
	needed := map[repo.BackupName]bool{b.Name: true}
	for _, p := range borrowed {
		if p.Kind == repo.PackMeta {
			needed[p.Lender] = true
		}
	}
	return c.store.prune(needed, running)
}

func (c *Copy) finish(b *repo.Backup, packs []byte) error {
	if c.lost {
		return nil
	}
	body, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("encode backup.json: %w", err)
	}
	err = errors.Join(c.endPack(), c.root.Sync())
	if err == nil {
		err = c.write(packsFile, packs)
	}
	if err == nil {
		err = c.write(backupFile, body)
	}
	if err == nil {
		err = errors.Join(os.RemoveAll(c.store.path(c.name, progressFile)), os.RemoveAll(c.store.path(c.name, storedFile)))
	}
	return err
}

// write puts a small file in its place, durable.
func (c *Copy) write(name string, body []byte) error {
	path := c.store.path(c.name, name)
	f, err := create(path + ".tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Close frees the files. Of a backup that was not finished, and has not come to
// a mark, nothing is kept.
func (c *Copy) Close() error {
	var err error
	if c.pack != nil {
		err = c.pack.Close()
	}
	if c.root != nil {
		err = errors.Join(err, c.root.Close())
	}
	for _, file := range []string{backupFile, progressFile} {
		if _, serr := os.Stat(c.store.path(c.name, file)); serr == nil && !c.lost {
			return err
		}
	}
	return errors.Join(err, c.store.Forget(c.name))
}
