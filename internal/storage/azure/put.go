package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"agent/internal/storage"
)

// Sizes of bodies, in bytes. The service takes 5,000 MiB by Put Blob and
// 50,000 blocks of up to 4,000 MiB ("Scalability and performance targets for
// Blob storage").
const (
	maxSingle = 64 << 20   // of what is sent by one Put Blob
	maxPut    = 5000 << 20 // of what the service takes by one
	blockSize = 16 << 20
	maxBlocks = 50_000
)

// Put creates the object; see storage.Bucket.
//
// A body that can seek (in memory, or a file) is read twice: for its digests,
// and to be sent. It needs no memory, and up to 64 MiB one request. Any other
// body is held in memory up to 16 MiB. Everything bigger goes in blocks of 16
// MiB, of which at most three are in memory. Blocks of a Put that failed are
// seen by nobody but Unfinished; the service drops them after a week or when the
// key is next written ("Put Block").
//
// Blocks need the right to overwrite. Where only creation is allowed, a body
// that can seek is sent by one request instead, up to 5,000 MiB.
//
// The service keeps a lock's time in whole seconds; it is rounded up.
func (b *Bucket) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	info, err := b.put(ctx, key, src, opts)
	if err != nil {
		return storage.Info{}, b.fail(ctx, "put", key, err)
	}
	return info, nil
}

func (b *Bucket) put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	if err := storage.CheckKey(key); err != nil {
		return storage.Info{}, err
	}
	if ctx.Err() != nil {
		return storage.Info{}, stopped(ctx)
	}
	size := src.Size()
	if size < 0 {
		return storage.Info{}, fmt.Errorf("%w: %d bytes", storage.ErrBadLength, size)
	}
	p := &upload{b: b, to: b.container.NewBlockBlobClient(b.name(key)), size: size, want: opts.SHA256}
	if err := p.set(opts); err != nil {
		return storage.Info{}, err
	}
	body, err := src.Open()
	if err != nil {
		return storage.Info{}, &bodyError{err}
	}
	defer body.Close()
	sum, err := p.send(ctx, body)
	if err != nil {
		return storage.Info{}, p.refused(ctx, err)
	}
	return storage.Info{Key: key, Size: size, SHA256: sum}, nil
}

// upload is one Put.
type upload struct {
	b    *Bucket
	to   *blockblob.Client
	size int64
	want *[32]byte

	meta  map[string]*string
	mode  *blob.ImmutabilityPolicySetting
	until *time.Time
}

func (p *upload) set(opts storage.PutOptions) error {
	var err error
	if p.meta, err = metaOut(opts.Metadata); err != nil {
		return err
	}
	if opts.Lock == nil {
		return nil
	}
	p.mode, p.until, err = policyOf(*opts.Lock)
	return err
}

// refused looks closer at two refusals. Credentials that may create and not
// overwrite are told of an object that is there by a code of its own
// (UnauthorizedBlobOverwrite) or by the same one as for a missing right; only
// the object itself tells which. And for a lock that a container cannot keep
// the service has several codes, none of its own.
func (p *upload) refused(ctx context.Context, err error) error {
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) {
		return err
	}
	if answer.ErrorCode == string(bloberror.AuthorizationPermissionMismatch) {
		if _, serr := p.to.GetProperties(ctx, nil); serr == nil {
			return fmt.Errorf("%w: %s (%d)", storage.ErrExists, answer.ErrorCode, answer.StatusCode)
		}
	}
	if p.mode != nil && classOf("put", bloberror.Code(answer.ErrorCode), answer.StatusCode) == nil {
		return errNoLocks(answer)
	}
	return err
}

// onlyNew is "If-None-Match: *".
func onlyNew() *blob.AccessConditions {
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}}
}

func (p *upload) send(ctx context.Context, body io.Reader) (sum [32]byte, err error) {
	seeker, seeks := body.(io.ReadSeeker)
	switch {
	case seeks && p.size <= maxSingle:
		return p.single(ctx, seeker)
	case p.size <= blockSize:
		buf := make([]byte, p.size)
		if err := fill(ctx, body, buf); err != nil {
			return sum, err
		}
		if err := atEnd(ctx, body); err != nil {
			return sum, err
		}
		return p.single(ctx, bytes.NewReader(buf))
	}
	sum, err = p.blocks(ctx, body)
	if seeks && p.size <= maxPut && errors.Is(err, errStaging) {
		if _, err := seeker.Seek(0, io.SeekStart); err != nil {
			return sum, &bodyError{err}
		}
		return p.single(ctx, seeker)
	}
	return sum, err
}

// check compares the digest with the one that the caller gave.
func (p *upload) check(sum [32]byte) error {
	if p.want != nil && *p.want != sum {
		return fmt.Errorf("%w: %x, not %x", storage.ErrBadDigest, sum, *p.want)
	}
	return nil
}

// single sends the body by one Put Blob.
func (p *upload) single(ctx context.Context, src io.ReadSeeker) (sum [32]byte, err error) {
	d, err := measure(ctx, src, p.size)
	if err != nil {
		return sum, err
	}
	if err := p.check(d.sha); err != nil {
		return sum, err
	}
	if ctx.Err() != nil {
		return sum, stopped(ctx)
	}
	o := &blockblob.UploadOptions{
		Metadata: p.meta, Tier: p.b.tier, CPKScopeInfo: p.b.scope, AccessConditions: onlyNew(),
		ImmutabilityPolicyMode: p.mode, ImmutabilityPolicyExpiryTime: p.until,
	}
	if p.size > 0 {
		o.TransactionalValidation = blob.TransferValidationTypeCRC64(d.crc)
	}
	body := &sending{src: src, size: p.size, real: -1}
	_, err = p.to.Upload(ctx, body, o)
	if berr := body.release(); berr != nil && err != nil {
		return sum, berr
	}
	if bloberror.HasCode(err, bloberror.BlobAlreadyExists) {
		// Azurite says this also of a key for which blocks were staged and no
		// blob was made of them. ErrExists is a promise that there is one.
		if _, err := src.Seek(0, io.SeekStart); err != nil {
			return sum, &bodyError{err}
		}
		return p.blocks(ctx, src)
	}
	return d.sha, err
}
