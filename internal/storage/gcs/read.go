package gcs

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	gstorage "cloud.google.com/go/storage"

	"agent/internal/storage"
)

// Headers of the XML API ("HTTP headers and query string parameters").
const (
	hashHeader     = "X-Goog-Hash"
	metaHeader     = "X-Goog-Meta-"
	lengthHeader   = "X-Goog-Stored-Content-Length"
	encodingHeader = "X-Goog-Stored-Content-Encoding"
	payerHeader    = "X-Goog-User-Project"
)

// Get opens the whole object; see storage.Bucket. The reader's last read gives
// storage.ErrBadDigest if what came does not have the CRC32C that the service
// names.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	body, info, err := b.get(ctx, key, "")
	if err != nil {
		return nil, storage.Info{}, b.fail(ctx, opGet, key, err)
	}
	return body, info, nil
}

// GetVersion opens one generation; see storage.Bucket.
func (b *Bucket) GetVersion(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	if n, err := strconv.ParseInt(version, 10, 64); err != nil || n <= 0 {
		return nil, storage.Info{}, b.fail(ctx, opGet, key, fmt.Errorf("%w: %q is not a generation", storage.ErrNotExist, version))
	}
	body, info, err := b.get(ctx, key, version)
	if err != nil {
		return nil, storage.Info{}, b.fail(ctx, opGet, key, err)
	}
	info.Version = version
	return body, info, nil
}

func (b *Bucket) get(ctx context.Context, key, generation string) (io.ReadCloser, storage.Info, error) {
	resp, err := b.request(ctx, key, generation, "")
	if err != nil {
		return nil, storage.Info{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, storage.Info{}, xmlAnswer(resp)
	}
	info, err := infoOf(key, resp)
	if err != nil {
		resp.Body.Close()
		return nil, storage.Info{}, err
	}
	r := &reader{ctx: ctx, b: b, key: key, body: resp.Body, left: info.Size}
	if resp.Header.Get(encodingHeader) != "gzip" { // then it is that of other bytes
		r.want, r.checked = crcOf(resp.Header)
	}
	return r, info, nil
}

// GetRange opens a part of the object; see storage.Bucket.
func (b *Bucket) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	body, err := b.getRange(ctx, key, off, n)
	if err != nil {
		return nil, b.fail(ctx, opGet, key, err)
	}
	return body, nil
}

func (b *Bucket) getRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, err
	}
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("%w: %d bytes from %d", storage.ErrRange, n, off)
	}
	if n == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	last := int64(math.MaxInt64)
	if off <= math.MaxInt64-n {
		last = off + n - 1
	}
	resp, err := b.request(ctx, key, "", fmt.Sprintf("bytes=%d-%d", off, last))
	if err != nil {
		return nil, err
	}
	size := int64(-1)
	switch resp.StatusCode {
	case http.StatusPartialContent:
		if from, of, ok := contentRange(resp.Header.Get("Content-Range")); ok && from == off {
			size = of
		}
	case http.StatusOK: // of a range that reaches far beyond the end
		size = resp.ContentLength
	default:
		return nil, xmlAnswer(resp)
	}
	switch {
	case size >= 0 && size-off < n:
		resp.Body.Close()
		return nil, fmt.Errorf("%w: %d bytes from %d of %d", storage.ErrRange, n, off, size)
	case size < 0, resp.StatusCode == http.StatusOK && off > 0:
		resp.Body.Close()
		return nil, errors.New("the server did not answer with the range that was asked for")
	}
	return &reader{ctx: ctx, b: b, key: key, body: resp.Body, left: n}, nil
}

// request sends a GET of the XML API.
func (b *Bucket) request(ctx context.Context, key, generation, byteRange string) (*http.Response, error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	u := *b.base
	name := "/" + b.o.Bucket + "/" + b.root + key
	u.Path = name
	// "+" and others that need no escape by RFC 3986 are escaped all the same,
	// as Google asks ("Request endpoints", encoding URI path parts); slashes stay.
	u.RawPath = strings.ReplaceAll(url.PathEscape(name), "%2F", "/")
	u.RawPath = strings.NewReplacer("+", "%2B", "=", "%3D", "@", "%40").Replace(u.RawPath)
	if generation != "" {
		u.RawQuery = url.Values{"generation": {generation}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	if b.o.UserProject != "" {
		req.Header.Set(payerHeader, b.o.UserProject)
	}
	return b.http.Do(req)
}

// infoOf describes an object by the headers that come with it.
func infoOf(key string, resp *http.Response) (storage.Info, error) {
	info := storage.Info{Key: key, Size: resp.ContentLength}
	if info.Size < 0 {
		size, err := strconv.ParseInt(resp.Header.Get(lengthHeader), 10, 64)
		if err != nil || size < 0 {
			return storage.Info{}, errors.New("the server does not say how long the object is")
		}
		info.Size = size
	}
	changed, err := http.ParseTime(resp.Header.Get("Last-Modified"))
	if err != nil {
		return storage.Info{}, fmt.Errorf("read the object's time: %w", err)
	}
	info.ModTime = changed.UTC()
	for name, values := range resp.Header {
		if name, ok := strings.CutPrefix(name, metaHeader); ok && len(values) > 0 {
			if info.Metadata == nil {
				info.Metadata = make(map[string]string)
			}
			info.Metadata[strings.ToLower(name)] = values[0]
		}
	}
	return info, nil
}

// contentRange reads "bytes 5-9/20" (RFC 9110 section 14.4).
func contentRange(s string) (from, size int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	stretch, of, found := strings.Cut(s, "/")
	first, _, dash := strings.Cut(stretch, "-")
	from, ferr := strconv.ParseInt(first, 10, 64)
	size, serr := strconv.ParseInt(of, 10, 64)
	return from, size, ok && found && dash && ferr == nil && serr == nil && from >= 0 && size >= 0
}

// crcOf finds the CRC32C in "crc32c=AAAAAA==,md5=…", whether it is one header
// or two.
func crcOf(h http.Header) (crc uint32, ok bool) {
	for _, line := range h.Values(hashHeader) {
		for part := range strings.SplitSeq(line, ",") {
			if code, found := strings.CutPrefix(strings.TrimSpace(part), "crc32c="); found {
				raw, err := base64.StdEncoding.DecodeString(code)
				if err == nil && len(raw) == 4 {
					return binary.BigEndian.Uint32(raw), true
				}
			}
		}
	}
	return 0, false
}

// addCRC adds bytes to a CRC32C.
func addCRC(crc uint32, p []byte) uint32 {
	// MakeTable gives the same table each time.
	return crc32.Update(crc, crc32.MakeTable(crc32.Castagnoli), p)
}

// reader gives a body of known length.
type reader struct {
	ctx     context.Context
	b       *Bucket
	key     string
	body    io.ReadCloser
	left    int64
	crc     uint32
	want    uint32
	checked bool // want is known
}

// Read gives io.ErrUnexpectedEOF if the body ends early.
func (r *reader) Read(p []byte) (int, error) {
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	if r.left == 0 {
		return 0, r.end()
	}
	n, err := r.body.Read(p)
	r.left -= int64(n)
	if r.checked {
		r.crc = addCRC(r.crc, p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case r.left == 0:
		return n, r.end()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = io.ErrUnexpectedEOF
	default:
		err = withClass(io.ErrUnexpectedEOF, err)
	}
	return n, r.b.fail(r.ctx, opGet, r.key, err)
}

func (r *reader) end() error {
	if r.checked && r.crc != r.want {
		return r.b.fail(r.ctx, opGet, r.key, fmt.Errorf("%w: CRC32C %08x, not %08x", storage.ErrBadDigest, r.crc, r.want))
	}
	return io.EOF
}

// Close gives the connection back, or closes it if there is more to come.
func (r *reader) Close() error { return r.body.Close() }

// Stat describes the object; see storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, key string) (storage.Info, error) {
	info, err := b.stat(ctx, key)
	if err != nil {
		return storage.Info{}, b.fail(ctx, opStat, key, err)
	}
	return info, nil
}

func (b *Bucket) stat(ctx context.Context, key string) (storage.Info, error) {
	if err := storage.CheckKey(key); err != nil {
		return storage.Info{}, err
	}
	attrs, err := b.object(key).Attrs(ctx)
	if err != nil {
		return storage.Info{}, err
	}
	return storage.Info{Key: key, Size: attrs.Size, ModTime: modTime(attrs), Metadata: attrs.Metadata, Lock: lockOf(attrs)}, nil
}

// modTime is when the object was made, in whole seconds, since the readers'
// header has no more.
func modTime(attrs *gstorage.ObjectAttrs) time.Time { return attrs.Created.UTC().Truncate(time.Second) }

// retention is a lock in Google's terms: "Unlocked" is GOVERNANCE and "Locked"
// COMPLIANCE (Cloud Storage, "Object Retention Lock"). The time is sent in
// whole seconds, and must not come out shorter.
func retention(lock *storage.Lock) *gstorage.ObjectRetention {
	if lock == nil {
		return nil
	}
	r := &gstorage.ObjectRetention{Mode: unlocked, RetainUntil: lock.Until.UTC().Truncate(time.Second)}
	if r.RetainUntil.Before(lock.Until) {
		r.RetainUntil = r.RetainUntil.Add(time.Second)
	}
	if lock.Mode == storage.Compliance {
		r.Mode = locked
	}
	return r
}

// Modes of a retention (JSON API, "Objects").
const (
	unlocked = "Unlocked"
	locked   = "Locked"
)

// lockOf is the lock of an object: its own retention or that of the bucket's
// policy, whichever lasts longer. The latter is called compliance, since no
// right on objects lifts it. Holds have no end and are not locks.
func lockOf(attrs *gstorage.ObjectAttrs) *storage.Lock {
	var lock *storage.Lock
	if r := attrs.Retention; r != nil && r.Mode != "" {
		lock = &storage.Lock{Mode: storage.Governance, Until: r.RetainUntil.UTC()}
		if r.Mode == locked {
			lock.Mode = storage.Compliance
		}
	}
	if until := attrs.RetentionExpirationTime; !until.IsZero() && (lock == nil || until.After(lock.Until)) {
		lock = &storage.Lock{Mode: storage.Compliance, Until: until.UTC()}
	}
	return lock
}
