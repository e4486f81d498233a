package s3

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"agent/internal/errs"
	"agent/internal/storage"
)

// answered gives an answer its class, by its code and, where that says
// nothing, by its status. The codes are those of "Error responses" in the
// Amazon S3 API Reference, and those that MinIO, Ceph and versitygw add.
func (b *Bucket) answered(a *answer) error {
	if region := b.otherRegion(a); region != "" {
		return errs.Wrap(a, errs.Config, "Set the region of the bucket: AWS_REGION="+region+".", "the bucket is in another region than %s", b.region)
	}
	if hint, class := byCode(a.code); class != nil {
		return advised(a, class, hint)
	}
	if hint := settingOf(a.code); hint != "" {
		return errs.Wrap(a, errs.Config, hint, "the service refuses a setting")
	}
	hint, class := byStatus(a.status)
	if class == nil {
		return a
	}
	return advised(a, class, hint)
}

func advised(a *answer, class error, hint string) error {
	err := fmt.Errorf("%w: %w", class, a)
	if hint == "" {
		return err
	}
	if hint == hintClock && a.date != "" {
		hint += " The service's clock says " + a.date + "."
	}
	return errs.Wrap(err, errs.Storage, hint, "")
}

const (
	hintAllow      = "Compare the policy of these credentials and of the bucket with the least rights in docs/providers.md."
	hintKeys       = "Check the access key, the secret key and the endpoint they belong to."
	hintRenew      = "Renew the credentials; those in use have expired or were withdrawn."
	hintClock      = "Set this host's clock, for example with chrony or systemd-timesyncd."
	hintBucket     = "Correct the bucket's name, endpoint or region, or make the bucket."
	hintEncryption = "Correct the server-side encryption and the KMS key, which must be enabled, in the bucket's region, and open to these credentials."
	hintQuota      = "Make room in the store, or raise its quota."
)

func byCode(code string) (hint string, class error) {
	switch code {
	case "NoSuchKey", "NoSuchVersion":
		return "", storage.ErrNotExist
	case "NoSuchBucket":
		return hintBucket, storage.ErrNoBucket
	case "InvalidRange":
		return "", storage.ErrRange
	case "AccessDenied", "AccessDeniedException", "AccountProblem", "AllAccessDisabled", "NotSignedUp", "ObjectLocked", "UnauthorizedAccess":
		return hintAllow, storage.ErrPermission
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "MissingSecurityHeader", "XAdminUserNotFound", "InvalidClientTokenId":
		return hintKeys, storage.ErrPermission
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException":
		return hintRenew, storage.ErrPermission
	case "RequestTimeTooSkewed", "RequestExpired":
		return hintClock, storage.ErrPermission
	case "ConditionalRequestConflict", "OperationAborted", // two creators at a time: the next try sees who won
		"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody", // damaged on the way: our sums are of what we sent
		"SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "TooManyRequests", "TooManyRequestsException", "BandwidthLimitExceeded",
		"ExistingObjectIsDirectory", // versitygw, where a delete has just emptied the folder that it was about to use
		"RequestTimeout", "InternalError", "InternalFailure", "ServiceUnavailable", "Busy", "KMS.ThrottlingException", "KMS.KMSInternalException":
		return "", storage.ErrUnavailable
	case "QuotaExceeded", "StorageCapExceeded", "StorageFull", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "TooManyObjects":
		return hintQuota, storage.ErrNoSpace
	case "NotImplemented":
		return "", storage.ErrUnsupported
	case "ObjectParentIsFile", "XMinioParentIsObject", "XMinioObjectExistsAsDirectory", "KeyTooLongError":
		return "", storage.ErrKey
	default:
		return "", nil
	}
}

// settingOf gives the advice for a code that a setting causes.
func settingOf(code string) string {
	switch code {
	case "InvalidStorageClass":
		return "Give a storage class that the service has, or none."
	case "InvalidEncryptionAlgorithmError":
		return hintEncryption
	case "InvalidBucketName":
		return hintBucket
	}
	if strings.HasPrefix(strings.ToLower(code), "kms") { // "KMS.NotFoundException"; MinIO: "kms:KeyNotFound"
		return hintEncryption
	}
	return ""
}

func byStatus(status int) (hint string, class error) {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return hintAllow, storage.ErrPermission
	case http.StatusRequestedRangeNotSatisfiable:
		return "", storage.ErrRange
	case http.StatusNotImplemented:
		return "", storage.ErrUnsupported
	case http.StatusInsufficientStorage:
		return hintQuota, storage.ErrNoSpace
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusTemporaryRedirect:
		return "", storage.ErrUnavailable
	}
	if status >= 500 {
		return "", storage.ErrUnavailable
	}
	return "", nil
}

// expecting finds the region in the message of AuthorizationHeaderMalformed:
// "the region 'us-east-1' is wrong; expecting 'eu-central-1'".
var expecting = regexp.MustCompile(`expecting ['"]([a-z0-9-]+)['"]`)

// otherRegion is the region in which the service says the bucket is, if that
// is why it refuses ("Common errors": PermanentRedirect, 301 without a body).
func (b *Bucket) otherRegion(a *answer) string {
	switch {
	case a.status == http.StatusMovedPermanently, a.code == "PermanentRedirect", a.code == "AuthorizationHeaderMalformed",
		a.code == "IllegalLocationConstraintException", a.status == http.StatusBadRequest && a.code == "":
	default:
		return ""
	}
	region := a.region
	if found := expecting.FindStringSubmatch(a.message); found != nil {
		region = found[1]
	}
	if region == b.region {
		return ""
	}
	return region
}
