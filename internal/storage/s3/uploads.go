package s3

import (
	"context"
	"errors"
	"iter"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"agent/internal/storage"
)

// Unfinished yields the multipart uploads that were neither completed nor
// aborted, a thousand by each request; see storage.Cleaner.
//
// MinIO takes the prefix for a whole key, and lists everything only to those who
// give none (its issue 20989): where a prefix finds nothing, all uploads of the
// bucket are asked for. There are few of them.
func (b *Bucket) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	return func(yield func(storage.Unfinished, error) bool) {
		err := errors.Join(storage.CheckPrefix(prefix), ctx.Err())
		full := b.under + prefix
		found := false
		if err == nil {
			found, err = b.uploads(ctx, full, full, yield)
		}
		if err == nil && !found && full != "" {
			_, err = b.uploads(ctx, "", full, yield)
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(storage.Unfinished{}, b.fail(ctx, "list", prefix, err))
		}
	}
}

// errStop ends a listing whose consumer has seen enough.
var errStop = errors.New("stopped")

// uploads yields those of our uploads that the service lists below the name
// ask and that are below the name want. It reports whether it was told of any.
func (b *Bucket) uploads(ctx context.Context, ask, want string, yield func(storage.Unfinished, error) bool) (found bool, err error) {
	in := &s3.ListMultipartUploadsInput{Bucket: b.bucket(), Prefix: some(ask)}
	for {
		out, err := b.client.ListMultipartUploads(ctx, in)
		if err != nil {
			return found, err
		}
		for _, u := range out.Uploads {
			found = true
			if unfinished, ours := b.unfinishedOf(u, want); ours && !yield(unfinished, nil) {
				return found, errStop
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return found, nil
		}
		key, id := aws.ToString(out.NextKeyMarker), aws.ToString(out.NextUploadIdMarker)
		if key == "" || key == aws.ToString(in.KeyMarker) && id == aws.ToString(in.UploadIdMarker) {
			return found, errNoNext()
		}
		in.KeyMarker, in.UploadIdMarker = &key, some(id)
	}
}

// unfinishedOf says what an upload is of ours, if it is below the name want. One
// whose age is not told is left alone.
func (b *Bucket) unfinishedOf(u types.MultipartUpload, want string) (storage.Unfinished, bool) {
	key, ours := b.keyOf(u.Key)
	if !ours || !strings.HasPrefix(*u.Key, want) || aws.ToString(u.UploadId) == "" || u.Initiated == nil {
		return storage.Unfinished{}, false
	}
	return storage.Unfinished{Key: key, ID: *u.UploadId, Since: *u.Initiated}, true
}

// errNoUpload: without an id the request would be another one.
var errNoUpload = errors.New("it is not said which upload")

// Discard aborts an upload; see storage.Cleaner. One that was completed has
// left its id behind, so that no object can be meant.
func (b *Bucket) Discard(ctx context.Context, u storage.Unfinished) error {
	err := begin(ctx, u.Key)
	if err == nil && u.ID == "" {
		err = errNoUpload
	}
	if err == nil {
		_, err = b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: b.bucket(), Key: b.name(u.Key), UploadId: &u.ID})
	}
	if err == nil || isCode(err, "NoSuchUpload") {
		return nil
	}
	err = b.fail(ctx, "discard", u.Key, err)
	if errors.Is(err, storage.ErrNotExist) {
		return nil
	}
	return err
}
