package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/internal/storage"
)

// Get opens the whole object by one request; see storage.Bucket.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	return b.get(ctx, key, "")
}

// GetVersion opens one version; see storage.Bucket.
func (b *Bucket) GetVersion(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	return b.get(ctx, key, version)
}

func (b *Bucket) get(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	r, info, err := b.open(ctx, key, version)
	if err != nil {
		return nil, storage.Info{}, b.fail(ctx, "get", key, err)
	}
	return r, info, nil
}

func (b *Bucket) open(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	if err := begin(ctx, key); err != nil {
		return nil, storage.Info{}, err
	}
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: b.bucket(), Key: b.name(key), VersionId: some(version)})
	if err != nil {
		return nil, storage.Info{}, err
	}
	if out.ContentLength == nil {
		out.Body.Close()
		return nil, storage.Info{}, errNoLength()
	}
	info := storage.Info{
		Key: key, Size: *out.ContentLength, ModTime: aws.ToTime(out.LastModified), Metadata: out.Metadata, Version: version,
		Lock: lockOf(out.ObjectLockMode, out.ObjectLockRetainUntilDate),
	}
	return &reader{ctx: ctx, b: b, key: key, body: out.Body, left: info.Size}, info, nil
}

// errNoLength: without a length nothing would tell a short answer.
func errNoLength() error {
	return fmt.Errorf("%w: the answer does not say how long it is", storage.ErrUnavailable)
}

// GetRange opens a part of the object by one request; see storage.Bucket. A
// range that no object can have is ErrRange without a request.
func (b *Bucket) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := b.openRange(ctx, key, off, n)
	if err != nil {
		return nil, b.fail(ctx, "get", key, err)
	}
	return r, nil
}

func (b *Bucket) openRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := begin(ctx, key); err != nil {
		return nil, err
	}
	if off < 0 || n < 0 || n > math.MaxInt64-off {
		return nil, fmt.Errorf("%w: %d bytes from %d", storage.ErrRange, n, off)
	}
	if n == 0 {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: b.bucket(), Key: b.name(key), Range: aws.String(fmt.Sprintf("bytes=%d-%d", off, off+n-1)),
	})
	if err != nil {
		return nil, err
	}
	if err := inRange(out, off, n); err != nil {
		out.Body.Close()
		return nil, err
	}
	return &reader{ctx: ctx, b: b, key: key, body: out.Body, left: n}, nil
}

// inRange wants that the answer is the range that was asked for, whole (RFC
// 9110 section 14.4: a server answers with what there is of it).
func inRange(out *s3.GetObjectOutput, off, n int64) error {
	if out.ContentLength == nil {
		return errNoLength()
	}
	span, _, _ := strings.Cut(strings.TrimPrefix(aws.ToString(out.ContentRange), "bytes "), "/")
	from, _, _ := strings.Cut(span, "-")
	start, err := strconv.ParseInt(from, 10, 64)
	switch {
	case err != nil || start != off:
		return fmt.Errorf("%w: the service answers a ranged read with %q", storage.ErrUnsupported, plain(aws.ToString(out.ContentRange), maxRequest))
	case *out.ContentLength < n:
		return fmt.Errorf("%w: there are %d bytes from %d, not %d", storage.ErrRange, *out.ContentLength, off, n)
	case *out.ContentLength > n:
		return fmt.Errorf("%w: the service answers a read of %d bytes with %d", storage.ErrUnsupported, n, *out.ContentLength)
	}
	return nil
}

// Stat describes the object; see storage.Bucket. The lock is told to those who
// may read retentions.
func (b *Bucket) Stat(ctx context.Context, key string) (storage.Info, error) {
	info, err := b.stat(ctx, key)
	if err != nil {
		return storage.Info{}, b.fail(ctx, "stat", key, err)
	}
	return info, nil
}

func (b *Bucket) stat(ctx context.Context, key string) (storage.Info, error) {
	out, err := b.head(ctx, key)
	if err != nil {
		return storage.Info{}, err
	}
	if out.ContentLength == nil {
		return storage.Info{}, errNoLength()
	}
	return storage.Info{
		Key: key, Size: *out.ContentLength, ModTime: aws.ToTime(out.LastModified), Metadata: out.Metadata,
		Lock: lockOf(out.ObjectLockMode, out.ObjectLockRetainUntilDate),
	}, nil
}

func (b *Bucket) head(ctx context.Context, key string) (*s3.HeadObjectOutput, error) {
	if err := begin(ctx, key); err != nil {
		return nil, err
	}
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: b.bucket(), Key: b.name(key)})
	if err != nil {
		return nil, b.why(ctx, key, err)
	}
	return out, nil
}

// why asks again by GET where the answer to a HEAD, which has no body, may mean
// more than one thing: 404 is a missing object or a missing bucket, 403 a
// missing right or a wrong clock.
func (b *Bucket) why(ctx context.Context, key string, err error) error {
	if a := answerOf(err); a == nil || a.status >= 500 {
		return err
	}
	r, _, got := b.open(ctx, key, "")
	switch {
	case got == nil:
		r.Close()
		return fmt.Errorf("%w: the object was created meanwhile, or the service answers HEAD and GET differently: %w", storage.ErrUnavailable, answerOf(err))
	case errors.Is(got, storage.ErrUnavailable):
		return err
	}
	return got
}

// reader is the body of an answer.
type reader struct {
	ctx  context.Context
	b    *Bucket
	key  string
	body io.ReadCloser
	left int64
}

// Read never ends cleanly before the announced length.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.left -= int64(n)
	if errors.Is(err, io.EOF) && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.b.readError(r.ctx, r.key, err)
	}
	return n, err
}

// Close gives the connection back, or closes it where the body was not read to
// its end.
func (r *reader) Close() error { return r.body.Close() }
