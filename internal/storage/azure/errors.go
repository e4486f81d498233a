package azure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"agent/internal/errs"
	"agent/internal/storage"
)

// bodyError is an error of the source, kept from translation.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// translate gives an error the sentinel of its class. Those of bodies and
// those that are classified already stay as they are.
func translate(ctx context.Context, op string, err error) error {
	if body := (*bodyError)(nil); errors.As(err, &body) || classified(err) {
		return err
	}
	// The outer layers of the SDK's errors repeat the request; only what is
	// known to be free of secrets is passed on.
	var answer *azcore.ResponseError
	var token *tokenError
	var broken *networkError
	switch {
	case errors.As(err, &answer):
		return answered(op, answer)
	case errors.As(err, &token):
		return noToken(ctx, token.err)
	case errors.As(err, &broken):
		return network(ctx, broken.err)
	case ctx.Err() != nil:
		return stopped(ctx)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return network(ctx, err)
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	return err
}

func classified(err error) bool {
	for _, known := range []error{
		storage.ErrNotExist, storage.ErrExists, storage.ErrRange, storage.ErrBadLength, storage.ErrBadDigest, storage.ErrKey,
		storage.ErrPermission, storage.ErrNoSpace, storage.ErrNoBucket, storage.ErrUnsupported, storage.ErrUnavailable,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	e := (*errs.Error)(nil)
	return errors.As(err, &e)
}

// stopped is why ctx is done.
func stopped(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// network sorts what happened between us and the service. Whatever is not
// about trust passes: connections that are refused, reset or cut, names that
// are not found, timeouts.
func network(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return stopped(ctx)
	}
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		verify   *tls.CertificateVerificationError
		record   tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &unknown), errors.As(err, &hostname), errors.As(err, &invalid), errors.As(err, &verify):
		return errs.Wrap(err, errs.Config,
			"Name the certificate of its authority as ca_file, and check the endpoint's host name.", "the service's certificate is not trusted")
	case errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return errs.Wrap(err, errs.Config, "Write the endpoint with http:// if the server has no TLS.", "connect to the service")
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		// Timeouts of the dialer say that they are the deadline of a context
		// (package net); the caller's is not over.
		return fmt.Errorf("%w: %s", storage.ErrUnavailable, err.Error())
	}
	return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
}

// noToken sorts the failures of the identity service.
func noToken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return stopped(ctx)
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	var failed *azidentity.AuthenticationFailedError
	if errors.As(err, &failed) && failed.RawResponse != nil && passing(failed.RawResponse.StatusCode) {
		return fmt.Errorf("%w: get a token: %s", storage.ErrUnavailable, text)
	}
	var broken net.Error
	if errors.As(err, &broken) {
		return fmt.Errorf("%w: get a token: %s", storage.ErrUnavailable, text)
	}
	return errs.Wrap(fmt.Errorf("%w: %s", storage.ErrPermission, text), errs.Storage, credentialHint, "get a token")
}

// passing statuses may be gone the next time (REST reference, "Status and
// error codes").
func passing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	default:
		return false
	}
}

// answered sorts an answer of the service by its code, and by its status where
// the code is not known. The text is "CODE (STATUS)" and never the service's
// message, which for a wrong key holds what was signed.
func answered(op string, e *azcore.ResponseError) error {
	code := e.ErrorCode
	if code == "" {
		code = "answer without a code"
	}
	text := fmt.Sprintf("%s (%d)", code, e.StatusCode)
	class := classOf(op, bloberror.Code(e.ErrorCode), e.StatusCode)
	switch {
	case errors.Is(class, storage.ErrPermission):
		if hint := denied(e); hint != "" {
			return errs.Wrap(fmt.Errorf("%w: %s", class, text), errs.Storage, hint, "")
		}
	case class == nil:
		return misused(e, text)
	}
	return fmt.Errorf("%w: %s", class, text)
}

func classOf(op string, code bloberror.Code, status int) error {
	switch code {
	case bloberror.BlobNotFound:
		return storage.ErrNotExist
	case bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted, bloberror.ContainerDisabled:
		return storage.ErrNoBucket
	case bloberror.BlobAlreadyExists, bloberror.ResourceAlreadyExists,
		// With a right to create and none to overwrite the service refuses
		// before it looks at the condition ("Create a service SAS").
		bloberror.UnauthorizedBlobOverwrite:
		return storage.ErrExists
	case bloberror.BlobImmutableDueToPolicy, bloberror.LeaseIDMissing, bloberror.SnapshotsPresent:
		if op == "put" {
			return storage.ErrExists // it is there, and kept
		}
		return storage.ErrPermission
	case bloberror.InvalidRange:
		return storage.ErrRange
	case bloberror.MD5Mismatch, bloberror.CRC64Mismatch,
		// Another Put of this key was finished while our blocks were staged,
		// and threw them away; the next try gets its answer.
		bloberror.InvalidBlockList,
		bloberror.ServerBusy, bloberror.OperationTimedOut, bloberror.InternalError, bloberror.AccountBeingCreated:
		return storage.ErrUnavailable
	case bloberror.AuthenticationFailed, bloberror.NoAuthenticationInformation, bloberror.InvalidAuthenticationInfo,
		bloberror.AccountIsDisabled, bloberror.InsufficientAccountPermissions, "PublicAccessNotPermitted", "KeyBasedAuthenticationNotPermitted":
		return storage.ErrPermission
	case "InsufficientStorage", "AccountLimitExceeded", "ResourceQuotaExceeded":
		return storage.ErrNoSpace
	}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return storage.ErrPermission
	case status == http.StatusPreconditionFailed && op == "put":
		return storage.ErrExists
	case status == http.StatusRequestedRangeNotSatisfiable:
		return storage.ErrRange
	case status == http.StatusInsufficientStorage:
		return storage.ErrNoSpace
	case passing(status):
		return storage.ErrUnavailable
	default:
		return nil
	}
}

// maxSkew is a little less than the 15 minutes that the service allows for
// requests signed with a key ("Authorize with Shared Key").
const maxSkew = 14 * time.Minute

// denied says what to do about a refusal, where that is known.
func denied(e *azcore.ResponseError) string {
	if r := e.RawResponse; r != nil && r.Request != nil {
		sent, err := http.ParseTime(r.Request.Header.Get("x-ms-date"))
		got, err2 := http.ParseTime(r.Header.Get("Date"))
		if err == nil && err2 == nil && sent.Sub(got).Abs() > maxSkew {
			return fmt.Sprintf("Set this host's clock: it is %s, the service's is %s.", sent.Format(time.RFC3339), got.Format(time.RFC3339))
		}
	}
	switch bloberror.Code(e.ErrorCode) {
	case bloberror.AuthenticationFailed:
		return "Check that the key or SAS token belongs to this account, is whole and has not expired."
	case bloberror.AuthorizationFailure, bloberror.AuthorizationSourceIPMismatch:
		return "Check the account's firewall and the SAS token's addresses and services."
	case bloberror.AuthorizationPermissionMismatch:
		return "Give the identity or SAS token the rights to create, read and list blobs in this container."
	default:
		return ""
	}
}

// misused are answers that another try does not change.
func misused(e *azcore.ResponseError, text string) error {
	err := errors.New(text)
	switch {
	case e.ErrorCode == "":
		return errs.Wrap(err, errs.Storage, "Check the endpoint and proxies: this is not how Azure Blob Storage answers.", "")
	case e.ErrorCode == string(bloberror.BlobArchived), e.ErrorCode == string(bloberror.BlobBeingRehydrated):
		return errs.Wrap(err, errs.Storage, "Set the blob's access tier to Hot, Cool or Cold and wait until it can be read; keep life-cycle rules from archiving the repository.", "")
	case strings.Contains(e.ErrorCode, "EncryptionScope"):
		return errs.Wrap(err, errs.Config, "Check kms_key, the encryption scope: the account must have it, and the container must allow it.", "")
	case e.ErrorCode == string(bloberror.InvalidResourceName), e.ErrorCode == string(bloberror.InvalidURI):
		return errs.Wrap(err, errs.Config, "Check the names of account, container and prefix, and the endpoint.", "")
	}
	return err
}
