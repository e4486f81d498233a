package verify

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"agent/internal/errs"
)

// seen remembers, for one place, which objects were found good and when. It is a
// file of the state directory: a head, 12 bytes for each object by rising hash,
// and a checksum. What it says can only save work, so that a file that is not
// whole counts as none. It is safe for concurrent use.
type seen struct {
	path   string
	now    time.Time
	maxAge time.Duration

	mu    sync.Mutex
	known []sighting // by hash
	added map[uint64]sighting
}

// sighting is an object that was found good.
type sighting struct {
	hash uint64 // of its key and what it must be; its complement if it was opened, too
	at   uint32 // seconds since 1970
}

const (
	seenMagic = "agentvf1"
	seenEntry = 12 // bytes
	// maxSeen bounds the file, and what it takes in memory to 16 bytes for each:
	// the oldest are forgotten.
	maxSeen = 2 << 20
	// keepSeen is how long anything is remembered, whatever a run asks for.
	keepSeen = 400 * 24 * time.Hour
)

// openSeen reads what is remembered of a place. What is older than maxAge counts
// as forgotten.
func openSeen(stateDir, place string, now time.Time, maxAge time.Duration) (*seen, error) {
	sum := sha256.Sum256([]byte(place))
	s := &seen{
		path: filepath.Join(stateDir, "verified", fmt.Sprintf("%x", sum[:8])),
		now:  now, maxAge: maxAge, added: make(map[uint64]sighting),
	}
	body, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, errs.State(err, "read what was verified before")
	}
	s.known = decodeSeen(body)
	return s, nil
}

func decodeSeen(body []byte) []sighting {
	rows, ok := bytes.CutPrefix(body, []byte(seenMagic))
	if !ok || len(rows) < 4 || (len(rows)-4)%seenEntry != 0 {
		return nil
	}
	rows, tail := rows[:len(rows)-4], rows[len(rows)-4:]
	if crc32.ChecksumIEEE(rows) != binary.LittleEndian.Uint32(tail) {
		return nil
	}
	all := make([]sighting, 0, len(rows)/seenEntry)
	for ; len(rows) > 0; rows = rows[seenEntry:] {
		all = append(all, sighting{hash: binary.LittleEndian.Uint64(rows), at: binary.LittleEndian.Uint32(rows[8:])})
	}
	return all
}

func encodeSeen(all []sighting) []byte {
	body := append(make([]byte, 0, len(seenMagic)+len(all)*seenEntry+4), seenMagic...)
	for _, e := range all {
		body = binary.LittleEndian.AppendUint64(body, e.hash)
		body = binary.LittleEndian.AppendUint32(body, e.at)
	}
	return binary.LittleEndian.AppendUint32(body, crc32.ChecksumIEEE(body[len(seenMagic):]))
}

// identity is the hash by which an object is remembered: other bytes below the
// same key are another one.
func identity(key string, pins ...any) uint64 {
	h := sha256.New()
	fmt.Fprintf(h, "%s %v", key, pins)
	return binary.LittleEndian.Uint64(h.Sum(nil))
}

// fresh reports whether an object was found good, as deeply as is asked for,
// within the age, and when.
func (s *seen) fresh(hash uint64, deep bool) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range []uint64{^hash, hash} {
		if e, ok := s.find(h); ok && s.within(e, s.maxAge) {
			return time.Unix(int64(e.at), 0), true
		}
		if deep {
			break
		}
	}
	return time.Time{}, false
}

func (s *seen) find(hash uint64) (sighting, bool) {
	if e, ok := s.added[hash]; ok {
		return e, true
	}
	i, ok := slices.BinarySearchFunc(s.known, hash, func(e sighting, h uint64) int { return cmp.Compare(e.hash, h) })
	if !ok {
		return sighting{}, false
	}
	return s.known[i], true
}

func (s *seen) within(e sighting, most time.Duration) bool {
	age := s.now.Sub(time.Unix(int64(e.at), 0))
	return age >= 0 && age < most
}

// add remembers that an object was found good at a time.
func (s *seen) add(hash uint64, deep bool, at time.Time) {
	if deep {
		hash = ^hash
	}
	s.put(sighting{hash: hash, at: uint32(at.Unix())})
}

// forget is for an object that was found bad.
func (s *seen) forget(hash uint64) {
	s.put(sighting{hash: hash})
	s.put(sighting{hash: ^hash})
}

func (s *seen) put(e sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.added[e.hash] = e
}

// save writes what is remembered. It may be called at any time.
func (s *seen) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.added) == 0 {
		return nil
	}
	all := make([]sighting, 0, len(s.known)+len(s.added))
	for _, e := range s.known {
		if _, again := s.added[e.hash]; !again {
			all = append(all, e)
		}
	}
	for _, e := range s.added {
		all = append(all, e)
	}
	all = slices.DeleteFunc(all, func(e sighting) bool { return !s.within(e, keepSeen) })
	if len(all) > maxSeen {
		slices.SortFunc(all, func(a, b sighting) int { return cmp.Compare(b.at, a.at) })
		all = all[:maxSeen]
	}
	slices.SortFunc(all, func(a, b sighting) int { return cmp.Compare(a.hash, b.hash) })
	if err := replace(s.path, encodeSeen(all)); err != nil {
		return errs.State(err, "remember what was verified")
	}
	s.known = all
	clear(s.added)
	return nil
}

// replace writes a file whole or not at all.
func replace(path string, body []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(body)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
