package s3

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/internal/storage"
)

// Versions yields the versions, a thousand by each request; see
// storage.Bucket. Markers of deletions that are not the newest have nothing to
// read either and are Hidden too. A service without versions yields nothing.
func (b *Bucket) Versions(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := errors.Join(storage.CheckPrefix(prefix), ctx.Err()); err != nil {
			yield(storage.Info{}, b.fail(ctx, "list", prefix, err))
			return
		}
		in := &s3.ListObjectVersionsInput{Bucket: b.bucket(), Prefix: b.name(prefix)}
		for {
			out, err := b.client.ListObjectVersions(ctx, in)
			if err = b.classify(ctx, err); errors.Is(err, storage.ErrUnsupported) {
				return
			}
			if err != nil {
				yield(storage.Info{}, b.fail(ctx, "list", prefix, err))
				return
			}
			for _, v := range b.versionsOf(out) {
				if !yield(v.Info, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) {
				return
			}
			key, version := aws.ToString(out.NextKeyMarker), aws.ToString(out.NextVersionIdMarker)
			if key == "" || key == aws.ToString(in.KeyMarker) && version == aws.ToString(in.VersionIdMarker) {
				yield(storage.Info{}, b.fail(ctx, "list", prefix, errNoNext()))
				return
			}
			in.KeyMarker, in.VersionIdMarker = &key, some(version)
		}
	}
}

// version is one of a page, with what orders it.
type version struct {
	storage.Info
	latest bool
}

// versionsOf brings a page, of which the SDK makes a list of versions and a
// list of markers, into its order: by key, newest first.
func (b *Bucket) versionsOf(out *s3.ListObjectVersionsOutput) []version {
	all := make([]version, 0, len(out.Versions)+len(out.DeleteMarkers))
	add := func(name, id *string, size int64, modified *time.Time, latest *bool, hidden bool) {
		if key, ours := b.keyOf(name); ours {
			info := storage.Info{Key: key, Size: size, ModTime: aws.ToTime(modified), Version: aws.ToString(id), Hidden: hidden}
			all = append(all, version{info, aws.ToBool(latest)})
		}
	}
	for _, m := range out.DeleteMarkers {
		add(m.Key, m.VersionId, 0, m.LastModified, m.IsLatest, true)
	}
	for _, v := range out.Versions {
		add(v.Key, v.VersionId, aws.ToInt64(v.Size), v.LastModified, v.IsLatest, false)
	}
	slices.SortStableFunc(all, func(x, y version) int {
		return cmp.Or(strings.Compare(x.Key, y.Key), last(y.latest)-last(x.latest), y.ModTime.Compare(x.ModTime))
	})
	return all
}

func last(latest bool) int {
	if latest {
		return 1
	}
	return 0
}
