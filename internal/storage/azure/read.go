package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"agent/internal/errs"
	"agent/internal/storage"
)

// maxBlob is more bytes than any blob has: 50,000 blocks of 4,000 MiB.
const maxBlob = 50_000 * 4000 << 20

// Get opens the object; see storage.Bucket.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, storage.Info, error) {
	r, info, err := b.get(ctx, key, "")
	if err != nil {
		return nil, storage.Info{}, b.fail(ctx, "get", key, err)
	}
	return r, info, nil
}

// GetVersion is Get of one version; "" is the current one, as Versions calls
// objects of an account that keeps no versions.
func (b *Bucket) GetVersion(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	r, info, err := b.get(ctx, key, version)
	if err != nil {
		return nil, storage.Info{}, b.fail(ctx, "get", key, err)
	}
	info.Version = version
	return r, info, nil
}

// at is the client for a blob, or for one of its versions.
func (b *Bucket) at(key, version string) (*blob.Client, error) {
	c := b.container.NewBlobClient(b.name(key))
	if version == "" {
		return c, nil
	}
	v, err := c.WithVersionID(version)
	if err != nil {
		// The cause repeats the URL.
		return nil, errors.New("name a version of the blob")
	}
	return v, nil
}

func (b *Bucket) get(ctx context.Context, key, version string) (io.ReadCloser, storage.Info, error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, storage.Info{}, err
	}
	at, err := b.at(key, version)
	if err != nil {
		return nil, storage.Info{}, err
	}
	resp, err := at.DownloadStream(ctx, nil)
	if err != nil {
		return nil, storage.Info{}, err
	}
	if resp.ContentLength == nil {
		resp.Body.Close()
		return nil, storage.Info{}, errNotAzure("a body without a length")
	}
	info := storage.Info{Key: key, Size: *resp.ContentLength, ModTime: value(resp.LastModified), Metadata: metaIn(resp.Metadata)}
	return &reader{ctx: ctx, b: b, key: key, body: resp.Body, left: info.Size}, info, nil
}

// GetRange opens a part of the object; see storage.Bucket. A range beyond the
// end is ErrRange at once.
func (b *Bucket) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := b.getRange(ctx, key, off, n)
	if err != nil {
		return nil, b.fail(ctx, "get", key, err)
	}
	return r, nil
}

func (b *Bucket) getRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, err
	}
	if off < 0 || n < 0 || off > maxBlob || n > maxBlob {
		return nil, fmt.Errorf("%w: offset %d, length %d", storage.ErrRange, off, n)
	}
	if n == 0 {
		return storage.Bytes(nil).Open()
	}
	resp, err := b.container.NewBlobClient(b.name(key)).DownloadStream(ctx, &blob.DownloadStreamOptions{
		Range: blob.HTTPRange{Offset: off, Count: n},
	})
	if err != nil {
		return nil, err
	}
	if err := checkRange(resp, off, n); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return &reader{ctx: ctx, b: b, key: key, body: resp.Body, left: n}, nil
}

// checkRange wants that the answer is the part that was asked for: a server or
// a proxy may leave the range out, and the service cuts it at the blob's end.
func checkRange(resp blob.DownloadStreamResponse, off, n int64) error {
	if resp.ContentLength == nil {
		return errNotAzure("a body without a length")
	}
	if resp.ContentRange == nil {
		if off > 0 || *resp.ContentLength > n {
			return errNotAzure("the whole object for a range")
		}
	} else if !strings.HasPrefix(*resp.ContentRange, fmt.Sprintf("bytes %d-", off)) {
		return errNotAzure("another range")
	}
	switch size := *resp.ContentLength; {
	case size < n:
		return fmt.Errorf("%w: only %d of %d bytes are there", storage.ErrRange, size, n)
	case size > n:
		return errNotAzure("more than was asked for")
	}
	return nil
}

func errNotAzure(what string) error {
	return errs.New(errs.Storage, "Check the endpoint and proxies: this is not how Azure Blob Storage answers.", "the answer was %s", what)
}

// Stat describes the object; see storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, key string) (storage.Info, error) {
	info, err := b.stat(ctx, key)
	if err != nil {
		return storage.Info{}, b.fail(ctx, "stat", key, err)
	}
	return info, nil
}

func (b *Bucket) stat(ctx context.Context, key string) (storage.Info, error) {
	if err := storage.CheckKey(key); err != nil {
		return storage.Info{}, err
	}
	resp, err := b.container.NewBlobClient(b.name(key)).GetProperties(ctx, nil)
	if err != nil {
		return storage.Info{}, err
	}
	if resp.ContentLength == nil {
		return storage.Info{}, errNotAzure("an object without a length")
	}
	return storage.Info{
		Key: key, Size: *resp.ContentLength, ModTime: value(resp.LastModified), Metadata: metaIn(resp.Metadata),
		Lock: lockOf(resp.ImmutabilityPolicyMode, resp.ImmutabilityPolicyExpiresOn),
	}, nil
}

// lockOf reads a time-based policy. A legal hold has no end and is none.
func lockOf(mode *blob.ImmutabilityPolicyMode, until *time.Time) *storage.Lock {
	if mode == nil || until == nil {
		return nil
	}
	lock := &storage.Lock{Mode: storage.Governance, Until: *until}
	if strings.EqualFold(string(*mode), string(blob.ImmutabilityPolicyModeLocked)) {
		lock.Mode = storage.Compliance
	}
	return lock
}

func value[T any](p *T) T {
	if p == nil {
		var none T
		return none
	}
	return *p
}

// reader reads a body to its announced end.
type reader struct {
	ctx  context.Context
	b    *Bucket
	key  string
	body io.ReadCloser
	left int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if errors.Is(err, io.EOF) {
		if r.left == 0 {
			return n, io.EOF
		}
		err = &networkError{io.ErrUnexpectedEOF}
	}
	if err != nil {
		return n, r.b.fail(r.ctx, "get", r.key, err)
	}
	return n, nil
}

func (r *reader) Close() error { return r.body.Close() }
