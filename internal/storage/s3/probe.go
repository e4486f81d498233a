package s3

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"agent/internal/storage"
)

// Probe asks what the bucket is; see storage.Prober. It lists one object,
// which every user of a repository must be able to do and whose refusal says
// why, and asks for versioning and Object Lock.
func (b *Bucket) Probe(ctx context.Context) (storage.Facts, error) {
	if err := ctx.Err(); err != nil {
		return storage.Facts{}, b.fail(ctx, "probe", "", err)
	}
	listed, err := b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: b.bucket(), Prefix: aws.String(b.under), MaxKeys: aws.Int32(1)})
	if err != nil {
		return storage.Facts{}, b.fail(ctx, "probe", "", err)
	}
	facts := storage.Facts{Free: -1, Notes: map[string]string{"region": b.region}}
	if endpoint := b.client.Options().BaseEndpoint; endpoint != nil {
		facts.Notes["endpoint"] = *endpoint
	}
	if at, ok := awsmiddleware.GetServerTime(listed.ResultMetadata); ok {
		facts.Time = at
	}
	versioning, err := b.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: b.bucket()})
	switch {
	case err == nil:
		facts.Versioned = versioning.Status == types.BucketVersioningStatusEnabled
	case b.fatal(ctx, err):
		return storage.Facts{}, b.fail(ctx, "probe", "", err)
	default:
		facts.Notes["versioning"] = "not told: " + answerOf(err).Error()
	}
	locking, err := b.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: b.bucket()})
	switch {
	case err == nil:
		facts.Lockable, facts.Retention = lockingOf(locking.ObjectLockConfiguration)
	case isStatus(err, http.StatusNotFound) && !isCode(err, "NoSuchBucket"):
		// ObjectLockConfigurationNotFoundError: the bucket was made without.
	case b.fatal(ctx, err):
		return storage.Facts{}, b.fail(ctx, "probe", "", err)
	default:
		facts.Notes["locks"] = "not told: " + answerOf(err).Error()
	}
	return facts, nil
}

// fatal reports whether an error is more than the refusal to tell a fact.
func (b *Bucket) fatal(ctx context.Context, err error) bool {
	a := answerOf(err)
	return a == nil || ctx.Err() != nil || a.status >= 500 && a.status != http.StatusNotImplemented || a.code == "NoSuchBucket"
}

// lockingOf reads "governance 30d" out of a bucket's configuration.
func lockingOf(c *types.ObjectLockConfiguration) (lockable bool, retention string) {
	if c == nil || c.ObjectLockEnabled != types.ObjectLockEnabledEnabled {
		return false, ""
	}
	if c.Rule == nil || c.Rule.DefaultRetention == nil {
		return true, ""
	}
	r := c.Rule.DefaultRetention
	mode := strings.ToLower(string(r.Mode))
	if years := aws.ToInt32(r.Years); years > 0 {
		return true, fmt.Sprintf("%s %dy", mode, years)
	}
	return true, fmt.Sprintf("%s %dd", mode, aws.ToInt32(r.Days))
}
