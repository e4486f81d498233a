package azure

import (
	"context"
	"errors"
	"iter"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"agent/internal/errs"
	"agent/internal/storage"
)

// errStop ends a listing whose consumer has seen enough.
var errStop = errors.New("stopped")

// List yields the objects; see storage.Bucket. A page of up to 5,000 is one
// request. Blobs whose names are no keys are passed over.
//
// The listing begins at startAfter by the parameter startFrom of service
// version 2026-02-06, which includes that name; a service that does not know
// it only sends more than is needed.
func (b *Bucket) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		err := b.list(ctx, prefix, startAfter, func(info storage.Info) bool { return yield(info, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(storage.Info{}, b.fail(ctx, "list", prefix, err))
		}
	}
}

func (b *Bucket) list(ctx context.Context, prefix, after string, yield func(storage.Info) bool) error {
	if err := errors.Join(storage.CheckPrefix(prefix), storage.CheckPrefix(after)); err != nil {
		return err
	}
	o := &container.ListBlobsFlatOptions{Prefix: some(b.name(prefix))}
	if after != "" && strings.HasPrefix(after, prefix) {
		o.StartFrom = some(b.name(after))
	}
	last := ""
	for pager := b.container.NewListBlobsFlatPager(o); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, item := range page.Segment.BlobItems {
			info, ok := b.listed(item)
			if !ok {
				continue
			}
			if info.Key <= last || directory(item) {
				return errHierarchical()
			}
			last = info.Key
			if info.Key > after && !yield(info) {
				return errStop
			}
		}
	}
	return nil
}

// some is nil for "": an empty parameter is not sent.
func some(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// listed says what a blob is of ours.
func (b *Bucket) listed(item *container.BlobItem) (storage.Info, bool) {
	if item == nil || item.Name == nil || item.Properties == nil {
		return storage.Info{}, false
	}
	key, ok := strings.CutPrefix(*item.Name, b.prefix)
	if !ok || storage.CheckKey(key) != nil {
		return storage.Info{}, false
	}
	return storage.Info{Key: key, Size: value(item.Properties.ContentLength), ModTime: value(item.Properties.LastModified)}, true
}

// directory says of a blob that it is a folder of a hierarchical namespace.
func directory(item *container.BlobItem) bool {
	return strings.EqualFold(value(item.Properties.ResourceType), "directory")
}

func errHierarchical() error {
	return errs.New(errs.Config, "Use an account without a hierarchical namespace (not Data Lake Storage Gen2).",
		"the container's listing has folders or another order than that of the names")
}

// Folders yields the names of folders; see storage.Bucket. The service groups
// the names.
func (b *Bucket) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		err := b.folders(ctx, prefix, func(name string) bool { return yield(name, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield("", b.fail(ctx, "list", prefix, err))
		}
	}
}

func (b *Bucket) folders(ctx context.Context, prefix string, yield func(string) bool) error {
	if err := storage.CheckPrefix(prefix); err != nil {
		return err
	}
	full := b.name(prefix)
	last := ""
	for pager := b.container.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: some(full)}); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, group := range page.Segment.BlobPrefixes {
			name, ok := strings.CutPrefix(value(group.Name), full)
			name, slash := strings.CutSuffix(name, "/")
			// A group may be repeated where a page ends.
			if !ok || !slash || !storage.ValidComponent(name) || name+"/" == last {
				continue
			}
			if name+"/" < last {
				return errHierarchical()
			}
			last = name + "/"
			if !yield(name) {
				return errStop
			}
		}
	}
	return nil
}
