package chain

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"agent/internal/repo"
)

// storedFile lists the packs of a backup that is being made, as they become
// durable: a line of JSON for each.
const storedFile = "stored"

// Mark says how far a backup has come that is being made: up to there it is of
// use even if it is never finished.
type Mark struct {
	// Backup has what is known by now. Its stop LSN is how far the server's WAL
	// went when the mark was set: no page that was read has a later change.
	Backup repo.Backup `json:"backup"`
	Limit  repo.ManifestLimit
	Last   string // path of the last entry
	Part   *Part  // the beginning of the file behind it, if it is of use
	Packs  int    // lines of the list of packs that count
}

// Part is the beginning of a file.
type Part struct {
	Path  string
	Size  int64
	Parts []byte // repo.EncodeParts
}

// Mark notes that everything up to a mark is durable; packs are the own ones
// that have become so since the last mark.
func (c *Copy) Mark(m Mark, packs []repo.Pack) {
	if c.lost {
		return
	}
	c.fail(c.mark(m, packs))
}

func (c *Copy) mark(m Mark, packs []repo.Pack) error {
	if err := errors.Join(c.endPack(), c.root.Sync()); err != nil {
		return err
	}
	f, err := os.OpenFile(c.store.path(c.name, storedFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	for _, p := range packs {
		err = errors.Join(err, e.Encode(p))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	c.stored += len(packs)
	m.Packs = c.stored
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode mark: %w", err)
	}
	return c.write(progressFile, body)
}

// Interrupted is what is left of a backup that was not finished.
type Interrupted struct {
	Mark
	Manifest *repo.Manifest            // as far as the mark
	Packs    map[repo.PackID]repo.Pack // its own, and those of another that it went on with
}

// Interrupted is the newest backup that came to a mark and was not finished;
// nil: there is none.
func (s *Store) Interrupted() (*Interrupted, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var newest *Interrupted
	for _, name := range names {
		if _, err := s.load(name); err == nil {
			continue // finished
		}
		m, err := s.loadMark(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if newest == nil || m.Backup.StartLSN > newest.Backup.StartLSN {
			newest = &Interrupted{Mark: m}
		}
	}
	if newest == nil {
		return nil, nil
	}
	newest.Packs = make(map[repo.PackID]repo.Pack)
	for m, name := newest.Mark, newest.Backup.Name; ; {
		if err := s.storedPacks(name, m.Packs, newest.Packs); err != nil {
			return nil, err
		}
		if name = m.Backup.Resumed; name == "" {
			break
		}
		if m, err = s.loadMark(name); err != nil {
			return nil, err
		}
	}
	newest.Manifest, err = s.openRoot(&newest.Backup, &newest.Limit)
	return newest, err
}

func (s *Store) loadMark(name repo.BackupName) (m Mark, err error) {
	body, err := os.ReadFile(s.path(name, progressFile))
	if err != nil {
		return m, fmt.Errorf("read mark of an interrupted backup: %w", err)
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, fmt.Errorf("decode mark of an interrupted backup: %w", err)
	}
	if m.Backup.Name != name {
		return m, fmt.Errorf("decode mark of an interrupted backup: it is of %s", m.Backup.Name)
	}
	return m, nil
}

// storedPacks adds the packs of an interrupted backup.
func (s *Store) storedPacks(name repo.BackupName, lines int, to map[repo.PackID]repo.Pack) error {
	f, err := os.Open(s.path(name, storedFile))
	if err != nil {
		return fmt.Errorf("read packs of an interrupted backup: %w", err)
	}
	defer f.Close()
	d := json.NewDecoder(bufio.NewReader(f))
	for range lines {
		var p repo.Pack
		if err := d.Decode(&p); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read packs of an interrupted backup: %w", err)
		}
		to[repo.PackID{Backup: name, Number: p.Number}] = p
	}
	return nil
}
