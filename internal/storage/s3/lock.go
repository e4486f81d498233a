package s3

import (
	"time"

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
