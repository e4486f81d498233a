package azure

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"agent/internal/storage"
)

// Unfinished yields the blobs that have staged blocks alone; see
// storage.Cleaner. The service lists them among all the others, so that it
// costs as much as List, and two requests for each blob without a byte. Blocks
// that were staged for a key that has an object are not told: they go when it
// goes, or after a week.
func (b *Bucket) Unfinished(ctx context.Context, prefix string) iter.Seq2[storage.Unfinished, error] {
	return func(yield func(storage.Unfinished, error) bool) {
		err := b.unfinished(ctx, prefix, func(u storage.Unfinished) bool { return yield(u, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(storage.Unfinished{}, b.fail(ctx, "list", prefix, err))
		}
	}
}

func (b *Bucket) unfinished(ctx context.Context, prefix string, yield func(storage.Unfinished) bool) error {
	if err := storage.CheckPrefix(prefix); err != nil {
		return err
	}
	o := &container.ListBlobsFlatOptions{Prefix: some(b.name(prefix)), Include: container.ListBlobsInclude{UncommittedBlobs: true}}
	for pager := b.container.NewListBlobsFlatPager(o); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, item := range page.Segment.BlobItems {
			info, ok := b.listed(item)
			if info.ModTime.IsZero() && ok {
				info.ModTime = value(item.Properties.CreationTime)
			}
			// One whose age is not told is left alone.
			if !ok || info.Size > 0 || info.ModTime.IsZero() {
				continue
			}
			if _, committed, err := b.committed(ctx, info.Key); err != nil {
				return err
			} else if committed {
				continue
			}
			size, err := b.staged(ctx, info.Key)
			if err != nil {
				return err
			}
			if size > 0 && !yield(storage.Unfinished{Key: info.Key, ID: uncommitted, Size: size, Since: info.ModTime}) {
				return errStop
			}
		}
	}
	return nil
}

// uncommitted is the ID of what is unfinished: staged blocks belong to their
// key, which can have no others.
const uncommitted = "uncommitted"

// committed reports whether there is an object, and when the service said so.
func (b *Bucket) committed(ctx context.Context, key string) (at time.Time, yes bool, err error) {
	_, err = b.container.NewBlobClient(b.name(key)).GetProperties(ctx, nil)
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) || !bloberror.HasCode(err, bloberror.BlobNotFound) || answer.RawResponse == nil {
		return time.Time{}, err == nil, err
	}
	if at, err = http.ParseTime(answer.RawResponse.Header.Get("Date")); err != nil {
		return time.Time{}, false, errNotAzure("without its time")
	}
	return at, false, nil
}

// staged is the size of the staged blocks of a key, 0 if there are none.
func (b *Bucket) staged(ctx context.Context, key string) (int64, error) {
	list, err := b.container.NewBlockBlobClient(b.name(key)).GetBlockList(ctx, blockblob.BlockListTypeUncommitted, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var size int64
	for _, block := range list.UncommittedBlocks {
		size += value(block.Size)
	}
	return size, nil
}

// clockMargin is more than the clocks of a service's servers differ by.
const clockMargin = 10 * time.Second

// Discard removes the staged blocks of a key without an object; see
// storage.Cleaner. Delete Blob does that, and would remove an object as well: so
// it is asked first whether there is one, and the deletion has the condition
// that none was modified since a time before that answer. A Put that ends
// between the two has modified it.
func (b *Bucket) Discard(ctx context.Context, u storage.Unfinished) error {
	if err := b.discard(ctx, u); err != nil {
		return b.fail(ctx, "discard", u.Key, err)
	}
	return nil
}

func (b *Bucket) discard(ctx context.Context, u storage.Unfinished) error {
	if err := storage.CheckKey(u.Key); err != nil {
		return err
	}
	if u.ID != uncommitted || u.Since.IsZero() {
		return fmt.Errorf("%w: it is not what Unfinished gave", storage.ErrKey)
	}
	at, committed, err := b.committed(ctx, u.Key)
	if err != nil || committed {
		return err
	}
	since := at.Add(-clockMargin)
	if u.Since.Before(since) {
		since = u.Since // should the service compare with the time of the blocks
	}
	_, err = b.container.NewBlobClient(b.name(u.Key)).Delete(ctx, &blob.DeleteOptions{AccessConditions: &blob.AccessConditions{
		ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfUnmodifiedSince: &since},
	}})
	switch {
	case bloberror.HasCode(err, bloberror.BlobNotFound):
		return nil
	case bloberror.HasCode(err, bloberror.ConditionNotMet):
		if _, committed, err := b.committed(ctx, u.Key); err != nil || committed {
			return err
		}
		return fmt.Errorf("%w: it is still being written", storage.ErrUnavailable)
	}
	return err
}
