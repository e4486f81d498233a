package s3

import (
	"context"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"agent/internal/storage"
)

// lock gives the headers that lock an object as it is created
// ("PutObject": x-amz-object-lock-mode, x-amz-object-lock-retain-until-date).
func lock(l *storage.Lock) (types.ObjectLockMode, *time.Time) {
	if l == nil {
		return "", nil
	}
	mode := types.ObjectLockModeGovernance
	if l.Mode == storage.Compliance {
		mode = types.ObjectLockModeCompliance
	}
	// Services keep whole seconds; a lock is never shorter than was promised.
	until := l.Until.UTC().Add(time.Second - 1).Truncate(time.Second)
	return mode, &until
}

// lockOf is what the service tells of an object's lock, nil if nothing.
func lockOf(mode types.ObjectLockMode, until *time.Time) *storage.Lock {
	if until == nil {
		return nil
	}
	switch mode {
	case types.ObjectLockModeGovernance:
		return &storage.Lock{Mode: storage.Governance, Until: *until}
	case types.ObjectLockModeCompliance:
		return &storage.Lock{Mode: storage.Compliance, Until: *until}
	default:
		return nil
	}
}

// ExtendLock makes the lock of the object's current version last longer; see
// storage.Extender. An object whose lock lasts long enough costs one request,
// another two. The service itself refuses to shorten a lock for those who do not
// ask to bypass it, which is never done.
func (b *Bucket) ExtendLock(ctx context.Context, key string, lock storage.Lock) error {
	if err := b.extendLock(ctx, key, lock); err != nil {
		return b.failLock(ctx, key, err)
	}
	return nil
}

func (b *Bucket) extendLock(ctx context.Context, key string, want storage.Lock) error {
	held, version, err := b.held(ctx, key)
	if err != nil || lasts(held, want) {
		return err
	}
	if held != nil {
		want.Mode = held.Mode
	}
	mode, until := lock(&want)
	_, err = b.client.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
		Bucket: b.bucket(), Key: b.name(key), VersionId: version,
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionMode(mode), RetainUntilDate: until},
	}, withMD5())
	if a := answerOf(err); a == nil || a.status >= http.StatusInternalServerError {
		return err
	}
	// A right is missing, or somebody else has made it last longer meanwhile: that
	// is 403 on Amazon and 400 on MinIO.
	if held, _, herr := b.held(ctx, key); herr == nil && lasts(held, want) {
		return nil
	}
	return err
}

// lasts reports whether a lock need not be extended.
func lasts(held *storage.Lock, want storage.Lock) bool {
	return held != nil && !held.Until.Before(want.Until)
}

// held is the lock of the current version, and which one that is. Those who may
// not read retentions see no lock in the answer to a HEAD: so that none is
// believed only where the service says it.
func (b *Bucket) held(ctx context.Context, key string) (*storage.Lock, *string, error) {
	out, err := b.head(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	if held := lockOf(out.ObjectLockMode, out.ObjectLockRetainUntilDate); held != nil {
		return held, out.VersionId, nil
	}
	told, err := b.client.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: b.bucket(), Key: b.name(key), VersionId: out.VersionId})
	switch {
	case isCode(err, "NoSuchObjectLockConfiguration"):
		return nil, out.VersionId, nil
	case err != nil:
		return nil, nil, err
	case told.Retention == nil:
		return nil, out.VersionId, nil
	}
	return lockOf(types.ObjectLockMode(told.Retention.Mode), told.Retention.RetainUntilDate), out.VersionId, nil
}
