package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"agent/internal/errs"
	"agent/internal/storage"
)

// answer is what the service said in place of doing what was asked.
type answer struct {
	code    string // its own, such as "AccessDenied"; empty if it gave none
	status  int    // of HTTP; 0 for one key of a batch
	message string // its own, for people
	request string // the id by which its operator finds the request
	region  string // in which it says the bucket is
	date    string // its clock, as HTTP writes it
}

// Error reads "AccessDenied (403): Access Denied, request 4442587FB7D0A2F9".
func (a *answer) Error() string {
	text := fmt.Sprintf("%s (%d)", a.code, a.status)
	switch {
	case a.code == "":
		text = fmt.Sprintf("HTTP status %d", a.status)
	case a.status == 0:
		text = a.code
	}
	if a.message != "" {
		text += ": " + a.message
	}
	if a.request != "" {
		text += ", request " + a.request
	}
	return text
}

const (
	maxMessage = 300 // bytes of a service's message that are shown
	maxRequest = 64  // bytes of a request's id
)

// plain is text of a service made fit to be shown: one line of bounded length.
func plain(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s[:min(len(s), most)])
	return strings.TrimSpace(strings.ToValidUTF8(s, ""))
}

// answerOf takes an answer out of the SDK's error; nil: the service gave none.
func answerOf(err error) *answer {
	var known *answer
	if errors.As(err, &known) {
		return known
	}
	var response *smithyhttp.ResponseError
	var api smithy.APIError
	isAPI := errors.As(err, &api)
	if !errors.As(err, &response) || response.Response == nil || response.HTTPStatusCode() == 0 {
		return nil
	}
	a := &answer{status: response.HTTPStatusCode()}
	h := response.Response.Header
	a.region, a.date = plain(h.Get("X-Amz-Bucket-Region"), maxRequest), plain(h.Get("Date"), maxRequest)
	a.request = plain(h.Get("X-Amz-Request-Id"), maxRequest)
	if isAPI {
		a.code, a.message = plain(api.ErrorCode(), maxRequest), plain(api.ErrorMessage(), maxMessage)
	}
	// The SDK's words for an answer without a code in it.
	if a.code == "UnknownError" || a.code == strings.ReplaceAll(http.StatusText(a.status), " ", "") && a.message == http.StatusText(a.status) {
		a.code, a.message = "", ""
	}
	if !isAPI && a.status < 300 {
		return nil // it broke off
	}
	return a
}

// isCode reports whether the service has answered so.
func isCode(err error, code string) bool {
	a := answerOf(err)
	return a != nil && a.code == code
}

// isStatus reports whether the service has answered so.
func isStatus(err error, status int) bool {
	a := answerOf(err)
	return a != nil && a.status == status
}

// fail names the operation and the object.
func (b *Bucket) fail(ctx context.Context, op, key string, err error) error {
	return &storage.Error{Op: op, Bucket: b.o.URL, Key: key, Err: b.classify(ctx, err)}
}

// classify gives an error of the SDK the class of storage that it belongs to,
// and advice where a person must act. An answer of the service comes before
// the end of the context: what was decided is told.
func (b *Bucket) classify(ctx context.Context, err error) error {
	var own *bodyError
	var login *credentialsError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own), classed(err):
		return err
	case errors.As(err, &login):
		return loginError(ctx, login)
	}
	if a := answerOf(err); a != nil {
		return b.answered(a)
	}
	if ctx.Err() != nil {
		return ended(ctx)
	}
	return sendError(err)
}

// classed reports whether the error has a class of storage.
func classed(err error) bool {
	for _, known := range []error{
		storage.ErrNotExist, storage.ErrExists, storage.ErrRange, storage.ErrBadLength, storage.ErrBadDigest, storage.ErrKey,
		storage.ErrPermission, storage.ErrNoSpace, storage.ErrNoBucket, storage.ErrUnsupported, storage.ErrUnavailable,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// ended is why a context is done.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// sendError is of a request that got no whole answer.
func sendError(err error) error {
	var where *url.Error
	if errors.As(err, &where) {
		err = where.Err // without the URL
	}
	var (
		untrusted *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		noTLS     tls.RecordHeaderError
		send      *smithyhttp.RequestSendError
		response  *smithyhttp.ResponseError
		operation *smithy.OperationError
	)
	switch {
	case errors.As(err, &untrusted), errors.As(err, &authority), errors.As(err, &name), errors.As(err, &invalid):
		return errs.Wrap(err, errs.Config, "If the service has a certificate authority of its own, name its PEM file in ca_file; the endpoint must be called by a name in its certificate.",
			"the service's certificate is not trusted")
	case errors.As(err, &noTLS), errors.Is(err, http.ErrSchemeMismatch):
		return errs.Wrap(err, errs.Config, "Write the endpoint with http:// if it has no TLS.", "the endpoint does not speak TLS")
	case errors.As(err, &response):
		// It began well, and could not be understood to its end.
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, response.Err)
	case where != nil, errors.As(err, &send):
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	case errors.As(err, &operation):
		return operation.Err
	}
	return err
}

// readError is of a body that breaks off.
func (b *Bucket) readError(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil {
		err = ended(ctx)
	} else if !classed(err) {
		err = fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	}
	return &storage.Error{Op: "get", Bucket: b.o.URL, Key: key, Err: err}
}

const hintLogin = "Give credentials as the manual says, for example by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or a role of the host."

// loginError is of the credential chain. A service of it that is not at its
// best comes back; a host without a metadata service has no role.
func loginError(ctx context.Context, login *credentialsError) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	a := answerOf(login.err)
	var metadata *smithy.OperationError
	isMetadata := errors.As(login.err, &metadata) && metadata.Service() == "ec2imds"
	var send *smithyhttp.RequestSendError
	lost := errors.As(login.err, &send) && !isMetadata
	if lost || a != nil && (a.status >= 500 || a.status == http.StatusTooManyRequests) {
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, login)
	}
	return errs.Wrap(fmt.Errorf("%w: %w", storage.ErrPermission, login), errs.Storage, hintLogin, "")
}

// failPut is fail for what only a Put can meet.
func (b *Bucket) failPut(ctx context.Context, key string, opts storage.PutOptions, err error) error {
	if a := answerOf(err); a != nil && !classed(err) {
		switch {
		case a.code == "PreconditionFailed", a.status == http.StatusPreconditionFailed:
			err = fmt.Errorf("%w: %w", storage.ErrExists, a)
		case a.code == "NoSuchUpload", a.code == "InvalidPart":
			// Somebody has aborted it, or the service has given it up; versitygw may
			// find that out by the parts.
			err = fmt.Errorf("%w: %w", storage.ErrUnavailable, a)
		case opts.Lock != nil && lockRefused(a):
			err = errNoLocks(a)
		case a.status == http.StatusNotImplemented:
			err = errs.Wrap(fmt.Errorf("%w: %w", storage.ErrUnsupported, a), errs.Config,
				"This service cannot create objects conditionally, or does not know the checksum; agent check tells.", "the service does not know how to do this")
		}
	}
	return b.fail(ctx, "put", key, err)
}

// failLock is fail for the lock of an object that is there.
func (b *Bucket) failLock(ctx context.Context, key string, err error) error {
	if a := answerOf(err); a != nil && !classed(err) && lockRefused(a) {
		err = errNoLocks(a)
	}
	return b.fail(ctx, "lock", key, err)
}

func errNoLocks(a *answer) error {
	return errs.Wrap(fmt.Errorf("%w: %w", storage.ErrUnsupported, a), errs.Config,
		"Object Lock must be switched on for the bucket (docs/providers.md); or take the setting immutable away.", "the bucket does not lock objects")
}

// lockRefused reports whether an answer means that the bucket cannot lock.
func lockRefused(a *answer) bool {
	if a.status != http.StatusBadRequest && a.status != http.StatusNotFound && a.status != http.StatusNotImplemented {
		return false
	}
	text := strings.ReplaceAll(strings.ToLower(a.code+" "+a.message), " ", "")
	return strings.Contains(text, "objectlock")
}
