package gcs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	gstorage "cloud.google.com/go/storage"

	"agent/internal/storage"
)

const (
	// oneRequest is the largest body that goes in a single upload request.
	oneRequest = 64 << 20
	// chunk is what a resumable upload of a larger body sends at a time, and
	// buffers. It is a multiple of 256 KiB (Cloud Storage, "Perform resumable
	// uploads").
	chunk = 16 << 20
	// abortLimit bounds the request that gives up an upload.
	abortLimit = 10 * time.Second

	contentType = "application/octet-stream"
)

// Put creates the object; see storage.Bucket.
//
// A body of up to 64 MiB goes in one request, with its CRC32C ahead of it. For
// that it is read twice if it can seek, as bodies in memory and files can, and
// kept in memory if it cannot. A larger one goes in chunks of 16 MiB, of which
// one is in memory, with the CRC32C on the last one; it becomes visible only
// with that.
func (b *Bucket) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	info, err := b.put(ctx, key, src, opts)
	if err != nil {
		if opts.Lock != nil {
			err = noLocks(err)
		}
		return storage.Info{}, b.fail(ctx, opPut, key, err)
	}
	return info, nil
}

func (b *Bucket) put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	if err := storage.CheckKey(key); err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, err
	}
	if src.Size() < 0 {
		return storage.Info{}, fmt.Errorf("%w: %d bytes", storage.ErrBadLength, src.Size())
	}
	body, err := src.Open()
	if err != nil {
		return storage.Info{}, &bodyError{err}
	}
	defer body.Close()
	send := b.putWhole
	if src.Size() > oneRequest {
		send = b.putChunks
	}
	info, err := send(ctx, key, body, src.Size(), opts)
	info.Key = key
	return info, err
}

// putWhole measures the body, and then sends it in one request.
func (b *Bucket) putWhole(ctx context.Context, key string, body io.Reader, size int64, opts storage.PutOptions) (storage.Info, error) {
	measured := &meter{ctx: ctx, left: size, sha: sha256.New()}
	again, seeks := rewinder(body)
	if !seeks {
		held := bytes.NewBuffer(make([]byte, 0, size))
		measured.to = held
		again = func() (io.Reader, error) { return held, nil }
	}
	if err := measured.take(body); err != nil {
		return storage.Info{}, err
	}
	sum, err := measured.digest(opts)
	if err != nil {
		return storage.Info{}, err
	}
	if body, err = again(); err != nil {
		return storage.Info{}, &bodyError{err}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := b.writer(ctx, key, opts)
	w.ChunkSize = 0
	w.CRC32C, w.SendCRC32C = measured.crc, true
	return upload(cancel, w, &meter{ctx: ctx, left: size, to: w}, body, func() ([32]byte, error) { return sum, nil })
}

// putChunks sends the body in chunks as it comes.
func (b *Bucket) putChunks(ctx context.Context, key string, body io.Reader, size int64, opts storage.PutOptions) (storage.Info, error) {
	sending, seen := noting(ctx)
	sending, cancel := context.WithCancel(sending)
	defer cancel()
	w := b.writer(sending, key, opts)
	w.ChunkSize = chunk // the SDK sends the CRC32C by itself
	m := &meter{ctx: ctx, left: size, to: w, sha: sha256.New()}
	info, err := upload(cancel, w, m, body, func() ([32]byte, error) { return m.digest(opts) })
	if session, _ := seen.seen(); err != nil && session != "" && statusOf(err) != http.StatusPreconditionFailed {
		b.abort(ctx, key, session)
	}
	return info, err
}

// rewinder returns what takes a body back to where it is now, if it can.
func rewinder(body io.Reader) (again func() (io.Reader, error), ok bool) {
	s, ok := body.(io.Seeker)
	if !ok {
		return nil, false
	}
	start, err := s.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, false // a pipe
	}
	return func() (io.Reader, error) {
		_, err := s.Seek(start, io.SeekStart)
		return body, err
	}, true
}

// writer is the SDK's writer, with everything set that does not depend on the body.
func (b *Bucket) writer(ctx context.Context, key string, opts storage.PutOptions) *gstorage.Writer {
	w := b.object(key).If(gstorage.Conditions{DoesNotExist: true}).NewWriter(ctx)
	w.ContentType = contentType
	w.Metadata = opts.Metadata
	w.StorageClass = b.o.StorageClass
	w.KMSKeyName = b.o.KMSKey
	w.Retention = retention(opts.Lock)
	return w
}

// upload sends the body. sum is asked once the whole body was taken and before
// the object is made visible; if it has an error, no object is made. The
// writer's goroutines have ended when it returns.
func upload(cancel func(), w *gstorage.Writer, m *meter, body io.Reader, sum func() ([32]byte, error)) (storage.Info, error) {
	err := m.take(body)
	var digest [32]byte
	if err == nil {
		digest, err = sum()
	}
	if err != nil {
		// A writer that is closed makes an object; one whose context has ended
		// does not.
		cancel()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return storage.Info{}, err
	}
	attrs := w.Attrs()
	return storage.Info{Size: attrs.Size, ModTime: modTime(attrs), SHA256: digest}, nil
}

// abort gives up a resumable upload, so that the service does not keep its
// chunks for a week (Cloud Storage, "Resumable uploads": cancelling). It is
// done also after the context has ended.
func (b *Bucket) abort(ctx context.Context, key, session string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, session, http.NoBody)
	if err == nil {
		var resp *http.Response
		if resp, err = b.http.Do(req); err == nil {
			resp.Body.Close()
			return
		}
	}
	b.log.DebugContext(ctx, "cannot give up an upload, which the service will forget in a week",
		"bucket", b.url, "key", key, "error", withoutURL(err))
}

// meter takes a body of an announced length, measures it and hands it on.
type meter struct {
	ctx  context.Context
	left int64     // bytes still to come
	sha  hash.Hash // nil: not wanted
	crc  uint32    // CRC32C
	to   io.Writer // nil: nowhere
	err  error     // what went wrong here or in to, not in the body
}

const (
	piece      = 1 << 20   // bytes between two looks at the context
	bufferSize = 256 << 10 // for bodies that cannot write themselves
)

// take takes the whole body.
func (m *meter) take(body io.Reader) error {
	var err error
	if own, ok := body.(io.WriterTo); ok {
		_, err = own.WriteTo(m)
	} else {
		// One byte more than announced shows a body that is too long.
		_, err = io.CopyBuffer(struct{ io.Writer }{m}, body, make([]byte, min(bufferSize, m.left+1)))
	}
	switch {
	case m.err != nil:
		return m.err
	case err != nil:
		return &bodyError{err}
	case m.left > 0:
		return fmt.Errorf("%w: it is %d bytes short", storage.ErrBadLength, m.left)
	}
	return m.ctx.Err()
}

// Write measures each piece while it is in the cache, and hands it on.
func (m *meter) Write(p []byte) (done int, err error) {
	for len(p) > 0 && m.err == nil {
		part := p[:min(len(p), piece)]
		if m.err = m.ctx.Err(); m.err != nil {
			break
		}
		if int64(len(part)) > m.left {
			m.err = fmt.Errorf("%w: it is longer", storage.ErrBadLength)
			break
		}
		m.left -= int64(len(part))
		if m.sha != nil {
			m.sha.Write(part)
			m.crc = addCRC(m.crc, part)
		}
		if m.to != nil {
			if _, m.err = m.to.Write(part); m.err != nil {
				break
			}
		}
		done += len(part)
		p = p[len(part):]
	}
	return done, m.err
}

// digest is the SHA-256 of what was taken, or ErrBadDigest.
func (m *meter) digest(opts storage.PutOptions) (sum [32]byte, err error) {
	m.sha.Sum(sum[:0])
	if opts.SHA256 != nil && *opts.SHA256 != sum {
		return sum, fmt.Errorf("%w: %x, not %x", storage.ErrBadDigest, sum, *opts.SHA256)
	}
	return sum, nil
}
