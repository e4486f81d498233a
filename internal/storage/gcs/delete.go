package gcs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/storage"
)

// Delete removes objects, one request for each, several at a time; see
// storage.Bucket. In a versioned bucket it makes them noncurrent.
func (b *Bucket) Delete(ctx context.Context, keys ...string) error {
	keys = slices.Compact(slices.Sorted(slices.Values(keys)))
	failed := make([]error, len(keys))
	var group errgroup.Group
	group.SetLimit(min(max(b.o.Connections, 4), 32))
	for i, key := range keys {
		group.Go(func() error {
			failed[i] = b.remove(ctx, key)
			return nil
		})
	}
	return errors.Join(group.Wait(), errors.Join(failed...))
}

func (b *Bucket) remove(ctx context.Context, key string) error {
	err := storage.CheckKey(key)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = b.object(key).Delete(ctx)
	}
	if err == nil {
		return nil
	}
	if statusOf(err) == http.StatusForbidden {
		err = b.kept(ctx, key, err)
	}
	err = b.fail(ctx, opDelete, key, err)
	if errors.Is(err, storage.ErrNotExist) {
		return nil
	}
	return err
}

// kept adds to a refusal until when the object is locked, if that is why. The
// service's text says so of a bucket's retention policy ("… until 2026-…").
func (b *Bucket) kept(ctx context.Context, key string, err error) error {
	if said := answerOf(err); strings.Contains(said.text, " until ") {
		return err
	}
	info, serr := b.stat(ctx, key)
	if serr != nil || info.Lock == nil {
		return err // the first error says more
	}
	return fmt.Errorf("%w: it is locked (%s) until %s: %w", storage.ErrPermission, info.Lock.Mode,
		info.Lock.Until.Format(time.RFC3339), answerOf(err))
}
