package s3

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"agent/internal/storage"
)

const (
	minPart  = 16 << 20 // bytes; 5 MiB is the least that services take
	maxParts = 10_000   // "Amazon S3 multipart upload limits"
	// buffers is how many parts of one body are in memory: one that is being
	// read, the others on their way.
	buffers = 4
	// abortTimeout bounds the abort of an upload whose context is done.
	abortTimeout = 10 * time.Second
)

// partSize gives the size of the parts of a body: least, or whole MiB with
// which maxParts are enough.
func partSize(size, least int64) int64 {
	const mib = 1 << 20
	perPart := (size + maxParts - 1) / maxParts
	return max(least, (perPart+mib-1)/mib*mib)
}

// putParts creates an object by a multipart upload, which is aborted if
// anything fails. The object is looked for first only to save the upload; the
// condition on the completion decides.
func (b *Bucket) putParts(ctx context.Context, key string, src storage.Source, opts storage.PutOptions, s *sums) error {
	if _, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: b.bucket(), Key: b.name(key)}); err == nil {
		return storage.ErrExists
	}
	mode, until := lock(opts.Lock)
	in := &s3.CreateMultipartUploadInput{
		Bucket: b.bucket(), Key: b.name(key),
		Metadata: opts.Metadata, StorageClass: types.StorageClass(b.o.StorageClass),
		ServerSideEncryption: types.ServerSideEncryption(b.o.SSE), SSEKMSKeyId: some(b.o.KMSKeyID),
		ObjectLockMode: mode, ObjectLockRetainUntilDate: until,
	}
	if b.o.Checksum == ChecksumCRC32C {
		in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32c // of the parts; the type COMPOSITE is what all know
	}
	upload, err := b.client.CreateMultipartUpload(ctx, in)
	if err != nil {
		return err
	}
	parts, err := b.sendParts(ctx, key, upload.UploadId, src, s)
	if err == nil {
		err = s.check(src.Size(), opts.SHA256)
	}
	if err == nil {
		_, err = b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: b.bucket(), Key: b.name(key), UploadId: upload.UploadId, IfNoneMatch: aws.String(ifAbsent),
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		})
	}
	if err != nil {
		b.abort(ctx, key, upload.UploadId)
	}
	return err
}

// abort gives up an upload. It is done also where the completion may have
// succeeded and only its answer was lost: then there is nothing to abort. What
// it leaves behind shows in no listing; Unfinished finds it, or a life-cycle rule.
func (b *Bucket) abort(ctx context.Context, key string, id *string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	if err := b.Discard(ctx, storage.Unfinished{Key: key, ID: aws.ToString(id)}); err != nil {
		b.o.Log.WarnContext(ctx, "an unfinished upload could not be aborted", "bucket", b.o.URL, "key", key, "error", err.Error())
	}
}

// sendParts reads the body in order and sends its parts side by side.
func (b *Bucket) sendParts(ctx context.Context, key string, id *string, src storage.Source, s *sums) (parts []types.CompletedPart, err error) {
	r, err := src.Open()
	if err != nil {
		return nil, &bodyError{err}
	}
	defer func() {
		if cerr := r.Close(); err == nil && cerr != nil {
			err = &bodyError{cerr}
		}
	}()
	size := partSize(src.Size(), b.minPart)
	free := make(chan []byte, buffers)
	for range buffers {
		free <- nil // made when it is needed
	}
	// A failure ends the reading, not the other parts: one that is cut off may
	// still arrive, behind the abort.
	group, sending := errgroup.WithContext(ctx)
	parts = make([]types.CompletedPart, (src.Size()+size-1)/size)
	for i := range parts {
		buf, err := b.nextPart(sending, r, <-free, min(size, src.Size()-int64(i)*size), s)
		if err != nil {
			// The first failure is told: if it was a part's, reading stopped because of it.
			return nil, cmp.Or(group.Wait(), err)
		}
		group.Go(func() (err error) {
			parts[i], err = b.sendPart(ctx, key, id, int32(i+1), buf)
			free <- buf
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return parts, atEnd(r)
}

func (b *Bucket) nextPart(ctx context.Context, r io.Reader, buf []byte, n int64, s *sums) ([]byte, error) {
	buf = slices.Grow(buf[:0], int(n))[:n]
	return buf, fill(ctx, r, buf, s)
}

func (b *Bucket) sendPart(ctx context.Context, key string, id *string, number int32, data []byte) (types.CompletedPart, error) {
	s := newSums(b.o.Checksum, !b.tls)
	if _, err := s.Write(data); err != nil {
		return types.CompletedPart{}, err
	}
	out, err := b.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: b.bucket(), Key: b.name(key), UploadId: id, PartNumber: aws.Int32(number),
		Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data))),
		ChecksumCRC32C: s.crc32cHeader(), ContentMD5: s.md5Header(),
	}, signed(s.sha256Hex()))
	if err != nil {
		return types.CompletedPart{}, err
	}
	return types.CompletedPart{PartNumber: aws.Int32(number), ETag: out.ETag, ChecksumCRC32C: s.crc32cHeader()}, nil
}
