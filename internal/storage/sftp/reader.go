package sftp

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"

	"agent/internal/storage"
)

// ahead is how many bytes of a file are asked for before they are needed:
// twice the window of an SSH channel, so that it never runs empty.
const ahead = 4 << 20

// reader reads a stretch of a file, asking for several pieces at a time.
type reader struct {
	ctx     context.Context
	b       *Bucket
	c       *conn
	f       *sftp.File
	key     string
	release func()

	next  int64 // offset of the next piece to ask for
	end   int64 // of what is asked for
	left  int64 // bytes still to give
	whole bool  // the file must end where the stretch does
	short error // when the file ends before the stretch does
	err   error // for good

	queue []chan piece
	cur   []byte // of the first piece, not yet given
	buf   *[]byte
}

type piece struct {
	buf  *[]byte
	n    int
	want int
	err  error
}

// fill asks for pieces until enough of them are under way.
func (r *reader) fill() {
	size := r.c.packet
	for r.next < r.end && len(r.queue) < ahead/size {
		want := int(min(int64(size), r.end-r.next))
		off := r.next
		ch := make(chan piece, 1)
		r.queue = append(r.queue, ch)
		r.next += int64(want)
		r.b.tasks.Go(func() {
			buf := r.b.buffer(size)
			n, err := r.f.ReadAt((*buf)[:want], off)
			ch <- piece{buf, n, want, err}
		})
	}
}

// buffer returns one of at least the given size.
func (b *Bucket) buffer(size int) *[]byte {
	if buf, ok := b.buffers.Get().(*[]byte); ok && len(*buf) >= size {
		return buf
	}
	buf := make([]byte, size)
	return &buf
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err == nil && len(r.cur) == 0 {
		r.err = r.advance()
	}
	if err := r.ctx.Err(); err != nil {
		return 0, r.b.fail("get", r.key, err)
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	return n, nil
}

// advance takes the next piece that has bytes.
func (r *reader) advance() error {
	for {
		r.drop()
		if len(r.queue) == 0 {
			return io.EOF
		}
		var got piece
		select {
		case got = <-r.queue[0]:
		case <-r.ctx.Done():
			return r.b.fail("get", r.key, r.ctx.Err())
		}
		r.queue = r.queue[1:]
		r.buf = got.buf
		r.fill()
		given := min(int64(got.n), r.left)
		r.cur = (*got.buf)[:given]
		r.left -= given
		if err := r.judge(got, int64(got.n) > given); err != nil {
			r.cur = nil
			return r.b.fail("get", r.key, err)
		}
		if given > 0 {
			return nil
		}
	}
}

// judge looks at how a piece ended.
func (r *reader) judge(got piece, more bool) error {
	ended := endOfFile(got.err)
	switch {
	case got.err != nil && !ended:
		return got.err
	case r.whole && more:
		return fmt.Errorf("%w: the object was replaced while it was opened", storage.ErrUnavailable)
	case ended && r.left > 0, got.n < got.want && r.left > 0:
		return fmt.Errorf("%w: the file has lost %d bytes", r.short, r.left)
	}
	return nil
}

func (r *reader) drop() {
	r.cur = nil
	if r.buf != nil {
		r.b.buffers.Put(r.buf)
		r.buf = nil
	}
}

// Close lets go of the file. Pieces that are still under way are waited for
// beside the caller.
func (r *reader) Close() error {
	if r.release == nil {
		return nil
	}
	r.drop()
	r.err = os.ErrClosed
	queue, release := r.queue, r.release
	r.queue, r.release = nil, nil
	r.b.tasks.Go(func() {
		for _, ch := range queue {
			r.b.buffers.Put((<-ch).buf)
		}
		_ = r.f.Close() // it was only read
		release()
	})
	return nil
}
