package storage

import (
	"context"
	"iter"
	"strings"
)

// SkipFolders implements Folders by listing from behind each name: for stores
// that cannot group keys, but begin a listing anywhere at no cost. A folder of
// a hundred thousand objects costs one step.
func SkipFolders(ctx context.Context, b Bucket, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		after := ""
		for {
			key, err := firstKey(ctx, b, prefix, after)
			if err != nil {
				yield("", err)
				return
			}
			if key == "" {
				return
			}
			name, _, below := strings.Cut(strings.TrimPrefix(key, prefix), "/")
			if !below {
				after = key
				continue
			}
			if !yield(name, nil) {
				return
			}
			// '0' is the byte after '/': behind everything below name.
			after = prefix + name + "0"
		}
	}
}

// firstKey returns the first key with the prefix behind after, or "".
func firstKey(ctx context.Context, b Bucket, prefix, after string) (string, error) {
	for info, err := range b.List(ctx, prefix, after) {
		return info.Key, err
	}
	return "", nil
}

// NoVersions implements Versions for stores that keep none.
func NoVersions() iter.Seq2[Info, error] { return func(func(Info, error) bool) {} }
