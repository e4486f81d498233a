package repo

import (
	"context"
	"iter"

	"walagent/internal/storage"
)

// children yields the distinct names directly below prefix, in order, by
// listing from behind each one: a folder of a hundred thousand packs costs one
// step, not a hundred thousand keys.
func children(ctx context.Context, b storage.Bucket, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		after := ""
		for {
			name, err := firstKey(ctx, b, prefix, after)
			if err != nil {
				yield("", err)
				return
			}
			if name == "" {
				return
			}
			name = firstComponent(name, prefix)
			if !yield(name, nil) {
				return
			}
			// '0' is the byte after '/': behind everything below name.
			after = prefix + name + "0"
		}
	}
}

// firstKey returns the first key with the prefix behind after, or "".
func firstKey(ctx context.Context, b storage.Bucket, prefix, after string) (string, error) {
	for info, err := range b.List(ctx, prefix, after) {
		return info.Key, err
	}
	return "", nil
}
