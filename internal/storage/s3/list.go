package s3

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/internal/storage"
)

// List yields the objects, a thousand by each request; see storage.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := errors.Join(storage.CheckPrefix(prefix), storage.CheckPrefix(startAfter), ctx.Err()); err != nil {
			yield(storage.Info{}, b.fail(ctx, "list", prefix, err))
			return
		}
		in := &s3.ListObjectsV2Input{Bucket: b.bucket(), Prefix: b.name(prefix)}
		if startAfter != "" {
			in.StartAfter = b.name(startAfter)
		}
		last := startAfter
		for page, err := range b.pages(ctx, in) {
			if err != nil {
				yield(storage.Info{}, b.fail(ctx, "list", prefix, err))
				return
			}
			for _, o := range page.Contents {
				key, ours := b.keyOf(o.Key)
				if !ours || key <= startAfter {
					continue
				}
				if key <= last {
					yield(storage.Info{}, b.fail(ctx, "list", prefix, errOrder()))
					return
				}
				last = key
				if !yield(storage.Info{Key: key, Size: aws.ToInt64(o.Size), ModTime: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
		}
	}
}

// errOrder: directory buckets (S3 Express One Zone), for one, list in no order.
func errOrder() error {
	return fmt.Errorf("%w: the service does not list keys in the order of their bytes", storage.ErrUnsupported)
}

// Folders yields the names by the service's own grouping, a thousand by each
// request; see storage.Bucket.
func (b *Bucket) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := errors.Join(storage.CheckPrefix(prefix), ctx.Err()); err != nil {
			yield("", b.fail(ctx, "list", prefix, err))
			return
		}
		in := &s3.ListObjectsV2Input{Bucket: b.bucket(), Prefix: b.name(prefix), Delimiter: aws.String("/")}
		last := ""
		for page, err := range b.pages(ctx, in) {
			if err != nil {
				yield("", b.fail(ctx, "list", prefix, err))
				return
			}
			for _, p := range page.CommonPrefixes {
				name, ours := strings.CutPrefix(aws.ToString(p.Prefix), *in.Prefix)
				if !ours || name == last || !storage.ValidComponent(strings.TrimSuffix(name, "/")) {
					continue
				}
				if name < last {
					yield("", b.fail(ctx, "list", prefix, errOrder()))
					return
				}
				last = name
				if !yield(strings.TrimSuffix(name, "/"), nil) {
					return
				}
			}
		}
	}
}

// pages asks for page after page.
func (b *Bucket) pages(ctx context.Context, first *s3.ListObjectsV2Input) iter.Seq2[*s3.ListObjectsV2Output, error] {
	return func(yield func(*s3.ListObjectsV2Output, error) bool) {
		in := *first
		for {
			out, err := b.client.ListObjectsV2(ctx, &in)
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(out, nil) || !aws.ToBool(out.IsTruncated) {
				return
			}
			token := aws.ToString(out.NextContinuationToken)
			if token == "" || token == aws.ToString(in.ContinuationToken) {
				yield(nil, errNoNext())
				return
			}
			in.ContinuationToken = &token
		}
	}
}

// errNoNext: a listing that is not whole must not look so.
func errNoNext() error {
	return fmt.Errorf("%w: the service says that its list goes on, but not where", storage.ErrUnavailable)
}
