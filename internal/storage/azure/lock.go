package azure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"agent/internal/storage"
)

// policyOf is a lock in Azure's terms. The service keeps its time in whole
// seconds; it is rounded up.
func policyOf(lock storage.Lock) (*blob.ImmutabilityPolicySetting, *time.Time, error) {
	until := to.Ptr(lock.Until.Add(time.Second - 1).Truncate(time.Second))
	switch lock.Mode {
	case storage.Governance:
		return to.Ptr(blob.ImmutabilityPolicySettingUnlocked), until, nil
	case storage.Compliance:
		return to.Ptr(blob.ImmutabilityPolicySettingLocked), until, nil
	default:
		return nil, nil, fmt.Errorf("%w: lock mode %q", storage.ErrUnsupported, lock.Mode)
	}
}

// errNoLocks is for a container that cannot keep a lock. The service has several
// codes for it, none of its own.
func errNoLocks(answer *azcore.ResponseError) error {
	return fmt.Errorf("%w: with a lock the service answers %s (%d); version-level immutability must be enabled for the container",
		storage.ErrUnsupported, answer.ErrorCode, answer.StatusCode)
}

// ExtendLock sets a longer immutability policy on the blob, by two requests; see
// storage.Extender. A policy that is Locked is shortened by nobody. One that is
// Unlocked is compared here alone, since the service has no condition for it
// ("Set Blob Immutability Policy" changes no ETag): of two hosts that extend it
// at the same moment the later one decides.
func (b *Bucket) ExtendLock(ctx context.Context, key string, lock storage.Lock) error {
	if err := b.extendLock(ctx, key, lock); err != nil {
		return b.fail(ctx, "lock", key, err)
	}
	return nil
}

func (b *Bucket) extendLock(ctx context.Context, key string, want storage.Lock) error {
	info, err := b.stat(ctx, key)
	if err != nil || lasts(info, want) {
		return err
	}
	if info.Lock != nil {
		want.Mode = info.Lock.Mode
	}
	mode, until, err := policyOf(want)
	if err != nil {
		return err
	}
	_, err = b.container.NewBlobClient(b.name(key)).SetImmutabilityPolicy(ctx, *until, &blob.SetImmutabilityPolicyOptions{
		Mode: mode, ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfUnmodifiedSince: &info.ModTime},
	})
	var answer *azcore.ResponseError
	if err == nil || !errors.As(err, &answer) {
		return err
	}
	code := bloberror.Code(answer.ErrorCode)
	switch class := classOf("lock", code, answer.StatusCode); {
	case code == bloberror.ConditionNotMet:
		return fmt.Errorf("%w: the object was replaced meanwhile: %s (%d)", storage.ErrUnavailable, answer.ErrorCode, answer.StatusCode)
	case class == nil:
		return errNoLocks(answer)
	case errors.Is(class, storage.ErrPermission):
		// A right is missing, or somebody else has made it last longer meanwhile.
		if info, serr := b.stat(ctx, key); serr == nil && lasts(info, want) {
			return nil
		}
	}
	return err
}

// lasts reports whether a lock need not be extended.
func lasts(info storage.Info, want storage.Lock) bool {
	return info.Lock != nil && !info.Lock.Until.Before(want.Until)
}
