package azure

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"agent/internal/storage"
)

// Versions yields every version; see storage.Bucket. It holds the versions of
// one key in memory, since the service lists the oldest first.
//
// The service has no markers of deletions: of a key that was deleted it lists
// older versions and no current one ("Blob versioning"). For such a key a
// Hidden Info without a Version comes first. Blobs that were deleted softly
// are left out: they cannot be read until somebody undeletes them.
func (b *Bucket) Versions(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		err := b.versions(ctx, prefix, func(info storage.Info) bool { return yield(info, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(storage.Info{}, b.fail(ctx, "list", prefix, err))
		}
	}
}

// version is one of the versions of a key.
type version struct {
	storage.Info
	current bool
}

func (b *Bucket) versions(ctx context.Context, prefix string, yield func(storage.Info) bool) error {
	if err := storage.CheckPrefix(prefix); err != nil {
		return err
	}
	var group []version
	o := &container.ListBlobsFlatOptions{Prefix: some(b.name(prefix)), Include: container.ListBlobsInclude{Versions: true}}
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
			if len(group) > 0 && group[0].Key != info.Key {
				if !flush(group, yield) {
					return errStop
				}
				group = group[:0]
			}
			info.Version = value(item.VersionID)
			// Without versioning, or from before it, a blob has no version.
			group = append(group, version{info, value(item.IsCurrentVersion) || info.Version == ""})
		}
	}
	if !flush(group, yield) {
		return errStop
	}
	return nil
}

// flush yields the versions of one key, the newest first. A version's name is
// the time of its making.
func flush(group []version, yield func(storage.Info) bool) bool {
	if len(group) == 0 {
		return true
	}
	slices.SortStableFunc(group, func(a, b version) int {
		if a.current != b.current {
			if a.current {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.Version, a.Version)
	})
	if !group[0].current && !yield(storage.Info{Key: group[0].Key, Hidden: true}) {
		return false
	}
	for _, v := range group {
		if !yield(v.Info) {
			return false
		}
	}
	return true
}
