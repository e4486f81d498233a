package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"agent/internal/storage"
)

// spoolMemory is how much of a spool stays in memory.
const spoolMemory = 16 << 20

// spool takes an object that is sealed before its size is known, in memory
// while it is small and then in a file of the state directory, and gives it
// back as a storage.Source. Only sealed (or, without recipients, the very
// stored) bytes ever reach the file.
type spool struct {
	dir  string
	most int // bytes in memory; 0: spoolMemory
	mem  bytes.Buffer
	file *os.File
	size int64
}

func (s *spool) Write(p []byte) (int, error) {
	most := s.most
	if most == 0 {
		most = spoolMemory
	}
	if s.file == nil && s.mem.Len()+len(p) > most {
		if err := s.spill(); err != nil {
			return 0, err
		}
	}
	s.size += int64(len(p))
	if s.file != nil {
		n, err := s.file.Write(p)
		if err != nil {
			err = stateError(err)
		}
		return n, err
	}
	return s.mem.Write(p)
}

// spill moves what there is to a file, which loses its name at once: however
// the process ends, nothing is left behind.
func (s *spool) spill() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return stateError(err)
	}
	f, err := os.CreateTemp(s.dir, ".spool-*")
	if err != nil {
		return stateError(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return stateError(errors.Join(err, f.Close()))
	}
	if _, err := f.Write(s.mem.Bytes()); err != nil {
		return stateError(errors.Join(err, f.Close()))
	}
	s.file, s.mem = f, bytes.Buffer{}
	return nil
}

// Open reads the spool from its start.
func (s *spool) Open() (io.ReadCloser, error) {
	if s.file == nil {
		return storage.Bytes(s.mem.Bytes()).Open()
	}
	return spoolReader{io.NewSectionReader(s.file, 0, s.size)}, nil
}

// spoolReader can go back and write itself, so that a store's client hashes the
// bytes and then sends them without keeping them in memory.
type spoolReader struct{ *io.SectionReader }

// WriteTo copies what is left.
func (s spoolReader) WriteTo(w io.Writer) (int64, error) {
	n, err := io.CopyBuffer(w, struct{ io.Reader }{s.SectionReader}, make([]byte, 256<<10))
	if err != nil {
		return n, fmt.Errorf("copy spool: %w", err)
	}
	return n, nil
}

// Close leaves the file open; it is the spool's.
func (spoolReader) Close() error { return nil }

// readerAt gives what was written in any order.
func (s *spool) readerAt() io.ReaderAt {
	if s.file == nil {
		return bytes.NewReader(s.mem.Bytes())
	}
	return s.file
}

// Size is the number of bytes written.
func (s *spool) Size() int64 { return s.size }

// Close frees the file.
func (s *spool) Close() error {
	if s.file == nil {
		return nil
	}
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}
