package s3

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"agent/internal/errs"
	"agent/internal/storage"
)

// batch is how many keys one DeleteObjects takes.
const batch = 1000

// Delete removes objects, a thousand by each request; see storage.Bucket. In a
// versioned bucket it only hides them behind a marker.
func (b *Bucket) Delete(ctx context.Context, keys ...string) error {
	var failed []error
	fail := func(key string, err error) { failed = append(failed, b.fail(ctx, "delete", key, err)) }
	good := make([]string, 0, len(keys))
	for _, key := range keys {
		if err := storage.CheckKey(key); err != nil {
			fail(key, err)
			continue
		}
		good = append(good, key)
	}
	slices.Sort(good)
	for keys := range slices.Chunk(slices.Compact(good), batch) {
		if err := ctx.Err(); err != nil {
			for _, key := range keys {
				fail(key, err)
			}
			continue
		}
		b.deleteBatch(ctx, keys, fail)
	}
	return errors.Join(failed...)
}

func (b *Bucket) deleteBatch(ctx context.Context, keys []string, fail func(string, error)) {
	if len(keys) > 1 && !b.noBatch.Load() {
		ids := make([]types.ObjectIdentifier, len(keys))
		for i, key := range keys {
			ids[i].Key = b.name(key)
		}
		out, err := b.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{
			Bucket: b.bucket(), Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)},
		}, withMD5())
		switch err = b.classify(ctx, err); {
		case errors.Is(err, storage.ErrUnsupported):
			b.noBatch.Store(true)
		case err != nil:
			for _, key := range keys {
				fail(key, err)
			}
			return
		default:
			for _, e := range out.Errors {
				if key, ours := b.keyOf(e.Key); ours {
					b.failDelete(ctx, key, &answer{code: plain(aws.ToString(e.Code), maxRequest), message: plain(aws.ToString(e.Message), maxMessage)}, fail)
				}
			}
			return
		}
	}
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			fail(key, err)
			continue
		}
		_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: b.bucket(), Key: b.name(key)})
		b.failDelete(ctx, key, err, fail)
	}
}

// failDelete reports what keeps an object, if anything does: a missing one is
// gone, and of a locked one it is said until when.
func (b *Bucket) failDelete(ctx context.Context, key string, err error, fail func(string, error)) {
	if err = b.classify(ctx, err); err == nil || errors.Is(err, storage.ErrNotExist) {
		return
	}
	if errors.Is(err, storage.ErrPermission) {
		if info, serr := b.stat(ctx, key); serr == nil && info.Lock != nil {
			err = errs.Wrap(err, errs.Storage, "Wait until then; nobody else's rights help against a compliance lock.",
				"it has a %s lock and is kept until %s", info.Lock.Mode, info.Lock.Until.UTC().Format(time.RFC3339))
		}
	}
	fail(key, err)
}
