// Package chain keeps on the database's host what its next incremental backup
// must know of the last one: the manifest and the list of packs. In the
// repository the manifest is sealed, and this host may not be able to open it.
//
// A folder below the state directory for each backup:
//
//	chain/<system identifier>/<backup>/manifest     the root, in frames
//	chain/<system identifier>/<backup>/pack-<8 hex> frames of sections, where they lie in the opened pack
//	chain/<system identifier>/<backup>/packs        the list of packs, as it was stored
//	chain/<system identifier>/<backup>/backup.json  comes last: without it the backup was not finished
//	chain/<system identifier>/<backup>/progress     of one that was not finished: how far it is of use
//	chain/<system identifier>/<backup>/stored       and which of its packs are durable
//
// They hold names, sizes and places of files and pages, and none of their
// content. What is lost or damaged here is only missed: the repository has it
// for those who can open it, else the next backup is a full one.
package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"agent/internal/errs"
	"agent/internal/repo"
)

// The names of the files.
const (
	rootFile     = "manifest"
	packsFile    = "packs"
	backupFile   = "backup.json"
	progressFile = "progress"
)

// Store is what a state directory keeps of one cluster. One backup at a time
// writes; the lock on backups of a host sees to that.
type Store struct {
	dir  string
	repo *repo.Repository
	log  *slog.Logger
}

// New is the store of a cluster below a state directory, which need not exist.
func New(stateDir string, r *repo.Repository, cluster repo.ClusterID, log *slog.Logger) *Store {
	return &Store{dir: filepath.Join(stateDir, "chain", cluster.String()), repo: r, log: log}
}

func (s *Store) path(name repo.BackupName, file string) string {
	return filepath.Join(s.dir, string(name), file)
}

// names are the backups of which something is kept.
func (s *Store) names() ([]repo.BackupName, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.State(err, "look for kept manifests")
	}
	var names []repo.BackupName
	for _, e := range entries {
		if name, err := repo.ParseBackupName(e.Name()); err == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// Newest is the finished backup that goes furthest; empty: none is kept.
func (s *Store) Newest() (repo.BackupName, error) {
	names, err := s.names()
	if err != nil {
		return "", err
	}
	var newest *repo.Backup
	for _, name := range names {
		b, err := s.load(name)
		if err != nil {
			continue // not finished, or damaged
		}
		if newest == nil || b.StopLSN > newest.StopLSN || b.StopLSN == newest.StopLSN && b.Name > newest.Name {
			newest = b
		}
	}
	if newest == nil {
		return "", nil
	}
	return newest.Name, nil
}

func (s *Store) load(name repo.BackupName) (*repo.Backup, error) {
	body, err := os.ReadFile(s.path(name, backupFile))
	if err != nil {
		return nil, fmt.Errorf("read kept backup.json: %w", err)
	}
	b := new(repo.Backup)
	if err := json.Unmarshal(body, b); err != nil {
		return nil, fmt.Errorf("decode kept backup.json: %w", err)
	}
	if b.Name != name {
		return nil, fmt.Errorf("the kept backup.json is of %q", b.Name)
	}
	return b, nil
}

// Open opens the manifest of a backup, as the repository describes it, and its
// list of packs: what is kept here if it is of that very backup, else from the
// repository.
func (s *Store) Open(ctx context.Context, b *repo.Backup) (*repo.Manifest, map[repo.PackID]repo.Pack, error) {
	m, packs, err := s.openKept(ctx, b)
	if err == nil {
		return m, packs, nil
	}
	s.log.Debug("no manifest is kept", "backup", string(b.Name), "reason", err.Error())
	if packs, err = s.repo.LoadPacks(ctx, b); err != nil {
		return nil, nil, err
	}
	if m, err = s.repo.OpenManifest(ctx, b); err != nil {
		return nil, nil, err
	}
	// Whether this host can open it shows with the first byte.
	r, err := m.Read(nil)
	if err == nil {
		err = r.Close()
	}
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, packs, nil
}

func (s *Store) openKept(ctx context.Context, b *repo.Backup) (*repo.Manifest, map[repo.PackID]repo.Pack, error) {
	kept, err := s.load(b.Name)
	if err != nil {
		return nil, nil, err
	}
	if kept.Self != b.Self {
		return nil, nil, errors.New("the kept backup.json is not the repository's")
	}
	encoded, err := os.ReadFile(s.path(b.Name, packsFile))
	if err != nil {
		return nil, nil, fmt.Errorf("read kept list of packs: %w", err)
	}
	packs, err := s.repo.KeptPacks(b, encoded)
	if err != nil {
		return nil, nil, err
	}
	m, err := s.openRoot(b, nil)
	if err != nil {
		return nil, nil, err
	}
	if err := m.Prove(ctx); err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, packs, nil
}

func (s *Store) openRoot(b *repo.Backup, limit *repo.ManifestLimit) (*repo.Manifest, error) {
	root, err := os.Open(s.path(b.Name, rootFile))
	if err != nil {
		return nil, fmt.Errorf("open kept manifest: %w", err)
	}
	return s.repo.KeptManifest(b, root, limit, s.pack)
}

// pack opens what is kept of a pack of sections.
func (s *Store) pack(id repo.PackID) (*os.File, error) {
	return os.Open(s.path(id.Backup, packName(id.Number)))
}

func packName(number uint32) string { return fmt.Sprintf("pack-%08x", number) }

// Forget drops what is kept of a backup: it was found damaged.
func (s *Store) Forget(name repo.BackupName) error {
	if err := os.RemoveAll(s.path(name, "")); err != nil {
		return errs.State(err, "forget a kept manifest")
	}
	return nil
}

// prune drops what is kept of backups other than these.
func (s *Store) prune(needed map[repo.BackupName]bool, running func(repo.BackupName) bool) error {
	names, err := s.names()
	for _, name := range names {
		if !needed[name] && !running(name) {
			err = errors.Join(err, s.Forget(name))
		}
	}
	return err
}
