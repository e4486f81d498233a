package gcs

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strconv"
	"strings"

	gstorage "cloud.google.com/go/storage"
	"google.golang.org/api/iterator"

	"agent/internal/storage"
)

// List yields objects; see storage.Bucket. Google lists strongly consistently
// and by UTF-8 bytes (Cloud Storage, "List objects"). Objects whose names are
// no keys, such as the "folders" that its console makes, are passed over.
func (b *Bucket) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		query := &gstorage.Query{Prefix: b.root + prefix, Projection: gstorage.ProjectionNoACL}
		if startAfter > prefix {
			query.StartOffset = b.root + startAfter // inclusive
		}
		err := errors.Join(storage.CheckPrefix(prefix), storage.CheckPrefix(startAfter))
		err = b.each(ctx, err, query, []string{"Name", "Size", "Created"}, func(attrs *gstorage.ObjectAttrs) bool {
			key, ours := b.key(attrs.Name)
			if !ours || key <= startAfter {
				return true
			}
			return yield(storage.Info{Key: key, Size: attrs.Size, ModTime: modTime(attrs)}, nil)
		})
		if err != nil {
			yield(storage.Info{}, b.fail(ctx, opList, prefix, err))
		}
	}
}

// Folders yields names; see storage.Bucket. The service groups the keys.
func (b *Bucket) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		query := &gstorage.Query{Prefix: b.root + prefix, Delimiter: "/", Projection: gstorage.ProjectionNoACL}
		last := ""
		err := b.each(ctx, storage.CheckPrefix(prefix), query, []string{"Name"}, func(attrs *gstorage.ObjectAttrs) bool {
			name, ours := strings.CutPrefix(attrs.Prefix, query.Prefix)
			name = strings.TrimSuffix(name, "/")
			if attrs.Prefix == "" || !ours || attrs.Prefix <= last || !storage.ValidComponent(name) {
				return true
			}
			last = attrs.Prefix
			return yield(name, nil)
		})
		if err != nil {
			yield("", b.fail(ctx, opList, prefix, err))
		}
	}
}

// Versions yields generations; see storage.Bucket and the package's comment.
// The generations of one key are held in memory, since Google lists the oldest
// first. In a bucket without versions there are the live objects alone.
func (b *Bucket) Versions(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		query := &gstorage.Query{Prefix: b.root + prefix, Versions: true, Projection: gstorage.ProjectionNoACL}
		attributes := []string{"Name", "Size", "Created", "Generation", "Deleted"}
		var same []*gstorage.ObjectAttrs // of one key
		stopped := false
		flush := func() bool {
			for _, info := range b.versions(same) {
				if !yield(info, nil) {
					stopped = true
					return false
				}
			}
			same = same[:0]
			return true
		}
		err := b.each(ctx, storage.CheckPrefix(prefix), query, attributes, func(attrs *gstorage.ObjectAttrs) bool {
			if _, ours := b.key(attrs.Name); !ours {
				return true
			}
			if len(same) > 0 && same[0].Name != attrs.Name && !flush() {
				return false
			}
			same = append(same, attrs)
			return true
		})
		if err == nil && !stopped {
			flush()
		}
		if err != nil {
			yield(storage.Info{}, b.fail(ctx, opList, prefix, err))
		}
	}
}

// versions sorts the generations of one key, newest first, behind a Hidden
// entry if none of them is live. A live generation has no time of deletion
// (JSON API, "Objects", timeDeleted).
func (b *Bucket) versions(same []*gstorage.ObjectAttrs) []storage.Info {
	if len(same) == 0 {
		return nil
	}
	slices.SortFunc(same, func(x, y *gstorage.ObjectAttrs) int {
		// A live generation is the newest, whatever its number.
		switch {
		case x.Deleted.IsZero() && !y.Deleted.IsZero():
			return -1
		case y.Deleted.IsZero() && !x.Deleted.IsZero():
			return 1
		case x.Generation > y.Generation:
			return -1
		default:
			return 1
		}
	})
	key, _ := b.key(same[0].Name)
	var infos []storage.Info
	if deleted := same[0].Deleted; !deleted.IsZero() {
		infos = append(infos, storage.Info{Key: key, ModTime: deleted.UTC(), Hidden: true})
	}
	for _, attrs := range same {
		infos = append(infos, storage.Info{
			Key: key, Size: attrs.Size, ModTime: modTime(attrs), Version: strconv.FormatInt(attrs.Generation, 10),
		})
	}
	return infos
}

// each calls f for what a query finds until f returns false. bad is the error
// of its arguments.
func (b *Bucket) each(ctx context.Context, bad error, query *gstorage.Query, attributes []string, f func(*gstorage.ObjectAttrs) bool) error {
	if bad != nil {
		return bad
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := query.SetAttrSelection(attributes); err != nil {
		return err
	}
	found := b.bucket.Objects(ctx, query)
	for {
		attrs, err := found.Next()
		if errors.Is(err, iterator.Done) {
			return nil
		}
		if err != nil {
			return err
		}
		if !f(attrs) {
			return nil
		}
	}
}

// exists asks by the smallest listing whether the bucket is there.
func (b *Bucket) exists(ctx context.Context, name string) error {
	found := b.bucket.Objects(ctx, &gstorage.Query{Prefix: name, Projection: gstorage.ProjectionNoACL})
	found.PageInfo().MaxSize = 1
	_, err := found.Next()
	if errors.Is(err, iterator.Done) {
		return nil
	}
	return err
}
