package gcs

import (
	"context"
	"fmt"
	"net/http"

	gstorage "cloud.google.com/go/storage"

	"agent/internal/storage"
)

// ExtendLock makes the retention of the live object last longer, by two
// requests; see storage.Extender. Neither of them asks to override a retention,
// so that the service refuses to shorten one, or to change its mode (JSON API,
// "Objects: patch", overrideUnlockedRetention). A bucket's policy that keeps the
// object long enough is enough.
func (b *Bucket) ExtendLock(ctx context.Context, key string, lock storage.Lock) error {
	if err := b.extendLock(ctx, key, lock); err != nil {
		return b.fail(ctx, opLock, key, err)
	}
	return nil
}

func (b *Bucket) extendLock(ctx context.Context, key string, want storage.Lock) error {
	if err := storage.CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	attrs, err := b.object(key).Attrs(ctx)
	if err != nil {
		return err
	}
	if held := lockOf(attrs); held != nil && !held.Until.Before(want.Until) {
		return nil
	}
	own := retention(&want)
	has := attrs.Retention != nil && attrs.Retention.Mode != ""
	if has {
		own.Mode = attrs.Retention.Mode
	}
	_, err = b.object(key).If(gstorage.Conditions{GenerationMatch: attrs.Generation, MetagenerationMatch: attrs.Metageneration}).
		Update(ctx, gstorage.ObjectAttrsToUpdate{Retention: own})
	switch {
	case statusOf(err) == http.StatusPreconditionFailed:
		return fmt.Errorf("%w: the object was changed meanwhile: %w", storage.ErrUnavailable, answerOf(err))
	case !has:
		return noLocks(err)
	}
	return err
}
