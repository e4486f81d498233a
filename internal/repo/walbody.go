package repo

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/postgres"
	"agent/internal/storage"
)

// walInMemory is the largest WAL file whose object is built in memory, from
// one read. A larger one (segments of 128 MiB to 1 GiB) is read twice, since
// its hash must stand before its bytes, and spooled sealed on disk.
const walInMemory = 64 << 20

// walBody is the sealed object of a WAL file.
type walBody struct {
	storage.Source
	sum  *[32]byte // of the stored bytes, where it is known
	kept bool      // it is one that an earlier call has kept
	io.Closer
}

// closing is what ends the use of an object.
type closing func()

func (c closing) Close() error { c(); return nil }

// walBuilder turns raw bytes into frames, hashing and checking each once.
type walBuilder struct {
	repo    *Repository
	cluster ClusterID
	file    postgres.WALFile
	check   WALCheck
	sum     [32]byte
}

func (r *Repository) newWALBuilder(cluster ClusterID, f postgres.WALFile, check WALCheck) *walBuilder {
	return &walBuilder{repo: r, cluster: cluster, file: f, check: check}
}

// build makes the object, or takes the one that an earlier call has kept.
func (b *walBuilder) build(src io.ReadSeeker, size int64) (*walBody, error) {
	check := b.check
	body, err := b.made(src, size)
	if err != nil {
		return nil, err
	}
	if h, ok := check.(HashedWALCheck); ok {
		h.Hashed(b.sum)
	}
	return body, nil
}

func (b *walBuilder) made(src io.ReadSeeker, size int64) (*walBody, error) {
	if kept := b.keptFiles(); len(kept) > 0 {
		if err := b.hash(src); err != nil {
			return nil, err
		}
		if body := b.reuse(kept); body != nil {
			return body, nil
		}
		if err := rewind(src, b.file); err != nil {
			return nil, err
		}
		b.check = passed{}
	}
	return b.fresh(src, size)
}

// fresh makes the object.
func (b *walBuilder) fresh(src io.ReadSeeker, size int64) (*walBody, error) {
	w, err := b.repo.workshop()
	if err != nil {
		return nil, err
	}
	if size <= walInMemory {
		object, err := b.inMemory(w, src, size)
		if err != nil {
			return nil, err
		}
		return &walBody{Source: storage.Bytes(object), Closer: closing(func() { b.repo.workshops.Put(w) })}, nil
	}
	defer b.repo.workshops.Put(w)
	s := &spool{dir: b.repo.spoolDir}
	if err := b.spooled(w, src, s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &walBody{Source: s, Closer: s}, nil
}

// passed is the check of bytes that have passed it already.
type passed struct{}

func (passed) Write(p []byte) (int, error) { return len(p), nil }
func (passed) Close() error                { return nil }

func rewind(src io.Seeker, f postgres.WALFile) error {
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read %s again: %w", f.Name, err)
	}
	return nil
}

// hash checks the file and takes the hash of its raw bytes.
func (b *walBuilder) hash(src io.Reader) error {
	sum := sha256.New()
	err := EachChunk(src, func(raw []byte) error {
		sum.Write(raw)
		_, err := b.check.Write(raw)
		return err
	})
	if err == nil {
		err = b.check.Close()
	}
	if err != nil {
		return err
	}
	b.sum = [32]byte(sum.Sum(nil))
	return nil
}

// inMemory makes the object of buffers of the workshop, which it is valid with.
func (b *walBuilder) inMemory(w *workshop, src io.Reader, size int64) ([]byte, error) {
	sum := sha256.New()
	to := b.recipients()
	// An object that is not sealed is built where it stays, behind room for its
	// head, which has the hash of all that follows.
	var head [32]byte
	object := compress.AppendSkippable(w.frames[:0], head[:])
	reserved := len(object)
	err := eachChunk(w.raw, src, func(raw []byte) (err error) {
		sum.Write(raw)
		if _, err := b.check.Write(raw); err != nil {
			return err
		}
		first := len(object) == reserved
		object, err = w.enc.AppendFrame(object, raw)
		if first && err == nil {
			// As much for each piece to come, so that it is not copied often.
			pieces := (size - 1) / int64(len(raw))
			object = slices.Grow(object, int(min(size, pieces*int64(len(object))*5/4)))
		}
		return err
	})
	if err == nil {
		err = b.check.Close()
	}
	if err != nil {
		return nil, err
	}
	w.frames = object
	b.sum = [32]byte(sum.Sum(nil))
	if to.Empty() {
		compress.AppendSkippable(object[:0], b.sum[:])
		return object, nil
	}
	frames := object[reserved:]
	body := bytes.NewBuffer(w.sealed[:0])
	body.Grow(len(frames) + len(frames)>>11 + headSize)
	seal, err := hashedHead(body, to, b.sum)
	if err == nil {
		_, err = seal.Write(frames)
	}
	if err == nil {
		err = seal.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", b.file.Name, err)
	}
	w.sealed = body.Bytes()
	return w.sealed, nil
}

func (b *walBuilder) spooled(w *workshop, src io.ReadSeeker, s *spool) error {
	if err := b.hash(src); err != nil {
		return err
	}
	if err := rewind(src, b.file); err != nil {
		return err
	}
	seal, err := hashedHead(s, b.recipients(), b.sum)
	if err != nil {
		return fmt.Errorf("seal %s: %w", b.file.Name, err)
	}
	again := sha256.New()
	err = eachChunk(w.raw, src, func(raw []byte) (err error) {
		again.Write(raw)
		if w.frames, err = w.enc.AppendFrame(w.frames[:0], raw); err == nil {
			_, err = seal.Write(w.frames)
		}
		return err
	})
	if err == nil {
		err = seal.Close()
	}
	if err == nil && [32]byte(again.Sum(nil)) != b.sum {
		err = errors.New("it changed while it was read")
	}
	if err != nil {
		return fmt.Errorf("seal %s: %w", b.file.Name, err)
	}
	return nil
}

// recipients: history files are small, not secret, and needed by everybody
// who plans a recovery, so they are never sealed.
func (b *walBuilder) recipients() (to crypto.Recipients) {
	if b.file.Kind == postgres.WALHistory {
		return to
	}
	return b.repo.keys.WAL
}

// Kept objects are files "wal-KEY-RAW-STORED" of the spool directory: hashes of
// the object's key; of its raw bytes with how they are compressed and to whom
// sealed; and of the stored bytes, by which the store finds a torn file out.
const (
	keptPrefix = "wal-"
	// keptFiles bounds how many there are: PostgreSQL asks for the same file
	// again until it is archived.
	maxKept = 4
)

// keptName is the name of a kept object without the last hash.
func (b *walBuilder) keptName() string {
	h := sha256.New()
	fmt.Fprintf(h, "%x %s %v", b.sum, b.recipients().Fingerprint(), b.repo.codec)
	return b.keptStem() + hex.EncodeToString(h.Sum(nil)[:16]) + "-"
}

func (b *walBuilder) keptStem() string {
	h := sha256.Sum256([]byte(b.cluster.WALKey(b.file, [32]byte{})))
	return keptPrefix + hex.EncodeToString(h[:8]) + "-"
}

// keptFiles are the names of kept objects of this WAL file.
func (b *walBuilder) keptFiles() []string {
	entries, err := os.ReadDir(b.repo.spoolDir)
	if err != nil {
		return nil // there is none to take
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), b.keptStem()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// reuse opens the kept object of just these bytes, or returns nil.
func (b *walBuilder) reuse(names []string) *walBody {
	for _, name := range names {
		digits, ours := strings.CutPrefix(name, b.keptName())
		sum, err := hex.DecodeString(digits)
		if !ours || err != nil || len(sum) != sha256.Size {
			continue
		}
		f, err := os.Open(filepath.Join(b.repo.spoolDir, name))
		if err != nil {
			continue
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			continue
		}
		return &walBody{Source: &spool{file: f, size: info.Size()}, sum: (*[32]byte)(sum), kept: true, Closer: f}
	}
	return nil
}

// keep saves the object for the next call, so that it is not compressed and
// sealed again. That it cannot is no error of its own: there is one already.
func (b *walBuilder) keep(body *walBody) {
	if body.kept || b.repo.spoolDir == "" {
		return
	}
	if err := b.save(body); err != nil {
		b.repo.log.Debug("keep the sealed file for the next attempt", "wal", b.file.Name, "error", err.Error())
	}
}

func (b *walBuilder) save(body *walBody) (err error) {
	if err := os.MkdirAll(b.repo.spoolDir, 0o700); err != nil {
		return stateError(err)
	}
	b.makeRoom()
	src, err := body.Open()
	if err != nil {
		return err
	}
	defer src.Close()
	tmp, err := os.CreateTemp(b.repo.spoolDir, ".spool-*")
	if err != nil {
		return stateError(err)
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(tmp, sum), src)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(b.repo.spoolDir, b.keptName()+hex.EncodeToString(sum.Sum(nil))))
	}
	if err != nil {
		return stateError(errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}

// makeRoom removes the oldest kept objects.
func (b *walBuilder) makeRoom() {
	paths, err := filepath.Glob(filepath.Join(b.repo.spoolDir, keptPrefix+"*"))
	if err != nil || len(paths) < maxKept {
		return
	}
	age := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(paths, func(a, c string) int { return cmp.Compare(age(a), age(c)) })
	for _, p := range paths[:len(paths)-maxKept+1] {
		_ = os.Remove(p) // another process may have done so
	}
}

// forget removes what was kept of this file, now that it is archived.
func (b *walBuilder) forget() {
	for _, name := range b.keptFiles() {
		_ = os.Remove(filepath.Join(b.repo.spoolDir, name)) // or the next success does
	}
}
