package gcs

import (
	"context"
	"fmt"
	"net/http"
	"time"

	gstorage "cloud.google.com/go/storage"

	"agent/internal/storage"
)

// Probe describes the bucket; see storage.Prober. That needs the right
// storage.buckets.get; without it a listing shows that the bucket can be used,
// and the time is all that is told.
func (b *Bucket) Probe(ctx context.Context) (storage.Facts, error) {
	asked, seen := noting(ctx)
	attrs, err := b.bucket.Attrs(asked)
	facts := storage.Facts{Notes: map[string]string{"endpoint": b.base.Host}}
	switch {
	case err == nil:
		describe(&facts, attrs)
	case statusOf(err) == http.StatusForbidden:
		err = b.exists(asked, b.root)
	}
	if err != nil {
		return storage.Facts{}, b.fail(ctx, opProbe, "", err)
	}
	if _, date := seen.seen(); date != "" {
		now, err := http.ParseTime(date)
		if err != nil {
			return storage.Facts{}, b.fail(ctx, opProbe, "", fmt.Errorf("read the service's time: %w", err))
		}
		facts.Time = now.UTC()
	}
	return facts, nil
}

func describe(facts *storage.Facts, attrs *gstorage.BucketAttrs) {
	facts.Versioned = attrs.VersioningEnabled
	facts.Lockable = attrs.ObjectRetentionMode != ""
	if policy := attrs.RetentionPolicy; policy != nil {
		mode := storage.Governance
		if policy.IsLocked {
			mode = storage.Compliance
		}
		facts.Retention = fmt.Sprintf("%s %s", mode, days(policy.RetentionPeriod))
	}
	note := func(name, value string) {
		if value != "" {
			facts.Notes[name] = value
		}
	}
	note("location", attrs.Location)
	note("location_type", attrs.LocationType)
	note("storage_class", attrs.StorageClass)
	if attrs.Encryption != nil {
		note("kms_key", attrs.Encryption.DefaultKMSKeyName)
	}
	if attrs.SoftDeletePolicy != nil && attrs.SoftDeletePolicy.RetentionDuration > 0 {
		note("soft_delete", days(attrs.SoftDeletePolicy.RetentionDuration))
	}
	if attrs.RequesterPays {
		note("requester_pays", "true")
	}
	if attrs.DefaultEventBasedHold {
		note("default_event_based_hold", "true")
	}
}

// days writes a duration as "30d", or as Go does if it is not of whole days.
func days(d time.Duration) string {
	const day = 24 * time.Hour
	if d%day != 0 {
		return d.String()
	}
	return fmt.Sprintf("%dd", d/day)
}
