package s3

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"agent/internal/storage"
)

// singleMax is the largest body, in bytes, that is sent by one PutObject.
const singleMax = 64 << 20

// ifAbsent is the condition under which an object is created.
const ifAbsent = "*"

// Put creates the object; see storage.Bucket. A body of up to 64 MiB is one
// request, whose signature and checksum header are made of sums computed
// beforehand. One that has io.WriterTo and io.Seeker (memory, a file) is read
// twice, any other is held in memory as a whole. A larger body goes in parts,
// of which four are in memory: 64 MiB for bodies of up to 160 GB.
func (b *Bucket) Put(ctx context.Context, key string, src storage.Source, opts storage.PutOptions) (storage.Info, error) {
	s := newSums(b.o.Checksum, true)
	err := begin(ctx, key)
	switch {
	case err != nil:
	case src.Size() < 0:
		err = fmt.Errorf("%w: %d bytes", storage.ErrBadLength, src.Size())
	case src.Size() > b.singleMax:
		err = b.putParts(ctx, key, src, opts, s)
	default:
		err = b.putWhole(ctx, key, src, opts, s)
	}
	if err != nil {
		return storage.Info{}, b.failPut(ctx, key, opts, err)
	}
	return storage.Info{Key: key, Size: s.n, SHA256: s.sha256(), Metadata: opts.Metadata, Lock: opts.Lock}, nil
}

func (b *Bucket) putWhole(ctx context.Context, key string, src storage.Source, opts storage.PutOptions, s *sums) error {
	body, err := load(ctx, src, s)
	if err != nil {
		return err
	}
	if err = s.check(src.Size(), opts.SHA256); err == nil {
		mode, until := lock(opts.Lock)
		_, err = b.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: b.bucket(), Key: b.name(key), IfNoneMatch: aws.String(ifAbsent),
			Body: body, ContentLength: aws.Int64(s.n), ChecksumCRC32C: s.crc32cHeader(), ContentMD5: s.md5Header(),
			Metadata: opts.Metadata, StorageClass: types.StorageClass(b.o.StorageClass),
			ServerSideEncryption: types.ServerSideEncryption(b.o.SSE), SSEKMSKeyId: some(b.o.KMSKeyID),
			ObjectLockMode: mode, ObjectLockRetainUntilDate: until,
		}, signed(s.sha256Hex()))
	}
	// The HTTP client lets go of the body before PutObject returns.
	if body.err != nil && err != nil {
		err = body.err
	}
	return errors.Join(err, body.close())
}

// some is a header's value, nil if there is none.
func some(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
