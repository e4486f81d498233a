package azure

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"golang.org/x/sync/errgroup"

	"agent/internal/storage"
)

// batchSize is what the service takes in one request ("Blob Batch").
const batchSize = 256

// Delete removes objects; see storage.Bucket. Several go in batches of 256 to
// a request, a few requests at a time: retention removes tens of thousands, and
// over a distant network one request each would take hours. Where versions are
// kept, a deleted object stays as an older version.
func (b *Bucket) Delete(ctx context.Context, keys ...string) error {
	var mu sync.Mutex
	var failed []error
	fail := func(key string, err error) {
		err = b.fail(ctx, "delete", key, err)
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, err)
	}
	valid := make([]string, 0, len(keys))
	for _, key := range keys {
		if err := storage.CheckKey(key); err != nil {
			fail(key, err)
		} else {
			valid = append(valid, key)
		}
	}
	if len(valid) == 1 {
		if err := b.deleteOne(ctx, valid[0]); err != nil {
			fail(valid[0], err)
		}
		return errors.Join(failed...)
	}
	var group errgroup.Group
	group.SetLimit(b.parallel)
	for batch := range slices.Chunk(valid, batchSize) {
		group.Go(func() error {
			if err := b.deleteBatch(ctx, batch, fail); err != nil {
				for _, key := range batch {
					fail(key, err)
				}
			}
			return nil
		})
	}
	_ = group.Wait() // the functions give none
	return errors.Join(failed...)
}

func (b *Bucket) deleteOne(ctx context.Context, key string) error {
	_, err := b.container.NewBlobClient(b.name(key)).Delete(ctx, nil)
	return b.deleted(ctx, key, err)
}

// deleteBatch gives the error of the batch; those of keys go to fail.
func (b *Bucket) deleteBatch(ctx context.Context, keys []string, fail func(string, error)) error {
	batch, err := b.container.NewBatchBuilder()
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := batch.Delete(b.name(key), nil); err != nil {
			return err
		}
	}
	resp, err := b.container.SubmitBatch(ctx, batch, nil)
	if err != nil {
		return err
	}
	seen := make([]bool, len(keys))
	for _, item := range resp.Responses {
		if item == nil || item.ContentID == nil || *item.ContentID < 0 || *item.ContentID >= len(keys) {
			continue
		}
		seen[*item.ContentID] = true
		key := keys[*item.ContentID]
		if err := b.deleted(ctx, key, item.Error); err != nil {
			fail(key, err)
		}
	}
	for i, key := range keys {
		if !seen[i] {
			fail(key, fmt.Errorf("%w: the batch's answer leaves it out", storage.ErrUnavailable))
		}
	}
	return nil
}

// deleted is what became of one key. Of one that is locked it asks until when.
func (b *Bucket) deleted(ctx context.Context, key string, err error) error {
	var answer *azcore.ResponseError
	if err == nil || !errors.As(err, &answer) {
		return err
	}
	switch bloberror.Code(answer.ErrorCode) {
	case bloberror.BlobNotFound:
		return nil
	case bloberror.BlobImmutableDueToPolicy:
		text := fmt.Sprintf("%s (%d)", answer.ErrorCode, answer.StatusCode)
		info, serr := b.stat(ctx, key)
		if serr != nil || info.Lock == nil {
			return fmt.Errorf("%w: it is locked by the container's policy or a legal hold: %s", storage.ErrPermission, text)
		}
		return fmt.Errorf("%w: it is locked (%s) until %s: %s", storage.ErrPermission, info.Lock.Mode, info.Lock.Until.UTC().Format(time.RFC3339), text)
	}
	return err
}
