package verify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"agent/internal/errs"
	"agent/internal/repo"
)

// plans say, for each pack, what the manifests expect of it: which frames it has
// and what their bytes are. They are gathered from all manifests before the first
// pack is read, so that each pack is read once, and lie in a nameless file of the
// state directory: in memory is one block for each pack, whatever the number of
// pages. add is for one goroutine, load for several.
type plans struct {
	dir   string
	mu    sync.Mutex
	file  *os.File
	size  int64
	packs map[repo.PackID]*block
}

// block is the newest part of what is known of a pack; the parts before it are in
// the file, each of which says where the one before lies.
type block struct {
	body   []byte
	before int64 // position of the part before, plus one; 0: there is none
}

const (
	blockSize = 256
	blockHead = 10 // position of the part before, length
)

// What is expected of a pack, by the first byte.
const (
	expectFrame = 'f'
	expectPages = 'p'
	expectSum   = 's'
)

func newPlans(dir string) *plans { return &plans{dir: dir, packs: make(map[repo.PackID]*block)} }

func (p *plans) close() error {
	if p.file == nil {
		return nil
	}
	if err := p.file.Close(); err != nil {
		return errs.State(err, "close the plan of the verification")
	}
	return nil
}

// add notes something that is expected of a pack.
func (p *plans) add(id repo.PackID, what []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.packs[id]
	if b == nil {
		b = new(block)
		p.packs[id] = b
	}
	if len(b.body)+len(what) > blockSize && len(b.body) > 0 {
		at, err := p.write(b)
		if err != nil {
			return err
		}
		b.body, b.before = b.body[:0], at+1
	}
	b.body = append(b.body, what...)
	return nil
}

// write appends a block to the file.
func (p *plans) write(b *block) (at int64, err error) {
	body := binary.LittleEndian.AppendUint64(make([]byte, 0, blockHead+len(b.body)), uint64(b.before))
	body = binary.LittleEndian.AppendUint16(body, uint16(len(b.body)))
	return p.append(append(body, b.body...))
}

// path keeps the path of a file, to be named later by its position.
func (p *plans) path(path string) (at int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.append(append(binary.LittleEndian.AppendUint16(nil, uint16(len(path))), path...))
}

func (p *plans) append(body []byte) (at int64, err error) {
	if p.file == nil {
		if p.file, err = nameless(p.dir); err != nil {
			return 0, errs.State(err, "plan the verification")
		}
	}
	at = p.size
	if _, err := p.file.WriteAt(body, at); err != nil {
		return 0, errs.State(err, "plan the verification")
	}
	p.size += int64(len(body))
	return at, nil
}

// nameless makes a file that is gone when it is closed.
func nameless(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, ".plan-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// named reads a path that was kept.
func (p *plans) named(at int64) string {
	var size [2]byte
	if _, err := p.file.ReadAt(size[:], at); err != nil {
		return "?"
	}
	path := make([]byte, binary.LittleEndian.Uint16(size[:]))
	if _, err := p.file.ReadAt(path, at+2); err != nil {
		return "?"
	}
	return string(path)
}

// addFrame notes a frame that the pack must have.
func (p *plans) addFrame(id repo.PackID, f repo.Frame) error {
	b := []byte{expectFrame}
	for _, v := range []int64{f.Offset, f.Length, f.RawOffset, f.RawLen} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	return p.add(id, append(b, f.Ending[:]...))
}

// addPages notes that raw bytes are pages in a row.
func (p *plans) addPages(id repo.PackID, raw, length int64, first uint32, path int64) error {
	b := []byte{expectPages}
	for _, v := range []int64{raw, length, int64(first), path} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	return p.add(id, b)
}

// addSum notes that raw bytes are a whole file with a known hash.
func (p *plans) addSum(id repo.PackID, raw, length int64, sum [16]byte, path int64) error {
	b := []byte{expectSum}
	for _, v := range []int64{raw, length, path} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	return p.add(id, append(b, sum[:]...))
}

// load gathers what is expected of a pack whose pages have that size.
func (p *plans) load(id repo.PackID, page int64) (*content, error) {
	c := newContent(page)
	c.named = p.named
	b := p.packs[id]
	if b == nil {
		return c, nil
	}
	if err := c.expect(b.body); err != nil {
		return nil, err
	}
	for before := b.before; before > 0; {
		var head [blockHead]byte
		if _, err := p.file.ReadAt(head[:], before-1); err != nil {
			return nil, errs.State(err, "read the plan of the verification")
		}
		body := make([]byte, binary.LittleEndian.Uint16(head[8:]))
		if _, err := p.file.ReadAt(body, before-1+blockHead); err != nil {
			return nil, errs.State(err, "read the plan of the verification")
		}
		if err := c.expect(body); err != nil {
			return nil, err
		}
		before = int64(binary.LittleEndian.Uint64(head[:]))
	}
	return c, nil
}

// errPlan is that what was written down cannot be read.
var errPlan error = errs.New(errs.Other, "Look at the kernel's log for disk errors where the state directory is.", "the plan of the verification is damaged")

// numbers reads n numbers.
func numbers(b []byte, n int) (all []int64, rest []byte, err error) {
	for range n {
		v, size := binary.Uvarint(b)
		if size <= 0 {
			return nil, nil, fmt.Errorf("%w: %w", errPlan, io.ErrUnexpectedEOF)
		}
		all, b = append(all, int64(v)), b[size:]
	}
	return all, b, nil
}
