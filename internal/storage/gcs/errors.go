package gcs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/compute/metadata"
	"google.golang.org/api/googleapi"

	"agent/internal/errs"
	"agent/internal/storage"
)

// The operations, as errors name them.
const (
	opPut    = "put"
	opGet    = "get"
	opStat   = "stat"
	opList   = "list"
	opDelete = "delete"
	opProbe  = "probe"
	opLock   = "lock"
)

// bodyError is an error of the source. It is kept from translation: a file
// that ends early says nothing of the store.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// answer is what the service said instead of doing what was asked, in either
// of its two APIs.
type answer struct {
	code   string // its own code, such as "NoSuchKey" or "conditionNotMet"
	status int    // of HTTP
	text   string
}

// Error reads "conditionNotMet (412): At least one of …".
func (a *answer) Error() string {
	code := a.code
	if code == "" {
		code = http.StatusText(a.status)
	}
	s := fmt.Sprintf("%s (%d)", code, a.status)
	if a.text != "" && a.text != code {
		s += ": " + a.text
	}
	return s
}

const maxAnswer = 64 << 10 // bytes of an error's body that are looked at

// xmlAnswer takes the error of an XML answer (XML API, "HTTP status and error
// codes"), whose body it reads and closes. A body of another form leaves the
// status alone.
func xmlAnswer(resp *http.Response) error {
	defer resp.Body.Close()
	var said struct{ Code, Message, Details string }
	a := &answer{status: resp.StatusCode}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil && xml.Unmarshal(body, &said) == nil {
		a.code, a.text = said.Code, said.Message
		if said.Details != "" {
			a.text = strings.TrimSpace(a.text + " " + said.Details)
		}
	}
	return a
}

// jsonAnswer takes the error of a JSON answer (JSON API, "HTTP status and
// error codes"). Its body is not shown as it is: a proxy's may hold anything.
func jsonAnswer(e *googleapi.Error) *answer {
	a := &answer{status: e.Code, text: e.Message}
	if len(e.Errors) > 0 {
		a.code = e.Errors[0].Reason
	}
	return a
}

// withClass gives an error one of the sentinels of package storage.
func withClass(class, err error) error { return fmt.Errorf("%w: %w", class, err) }

// errUnclear is a 404 that does not say what is missing.
var errUnclear = errors.New("not found")

// fail makes the error of an operation. A 404 that says neither that the
// object nor that the bucket is missing costs a listing to find out.
func (b *Bucket) fail(ctx context.Context, op, key string, err error) error {
	err = translate(ctx, err)
	if errors.Is(err, errUnclear) {
		err = b.clarify(ctx, op, key, err)
	}
	return &storage.Error{Op: op, Bucket: b.url, Key: key, Err: err}
}

func (b *Bucket) clarify(ctx context.Context, op, key string, err error) error {
	if op != opList && op != opProbe {
		if lerr := b.exists(ctx, b.root+key); lerr != nil {
			err = translate(ctx, lerr)
		} else if op == opPut {
			return withClass(storage.ErrUnavailable, err) // an upload session was lost
		} else {
			return withClass(storage.ErrNotExist, err)
		}
	}
	if errors.Is(err, errUnclear) {
		return withClass(storage.ErrNoBucket, err)
	}
	return err
}

// translate gives an error the sentinel of its class, or makes it an
// *errs.Error where the user has to do something. Nothing of its text is a
// secret: addresses, which hold the keys of uploads, are left out.
func translate(ctx context.Context, err error) error {
	if body := (*bodyError)(nil); errors.As(err, &body) {
		return err
	}
	if done := ctx.Err(); done != nil {
		return done
	}
	for _, known := range []error{
		storage.ErrNotExist, storage.ErrExists, storage.ErrRange, storage.ErrBadLength, storage.ErrBadDigest, storage.ErrKey,
		storage.ErrPermission, storage.ErrUnsupported, storage.ErrUnavailable,
		context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	if said := answerOf(err); said != nil {
		return said.translate()
	}
	var sent *url.Error
	onTheWay := errors.As(err, &sent)
	err = withoutURL(err)
	var fromNet net.Error
	switch {
	case !onTheWay && !errors.As(err, &fromNet) && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	default:
		return translateTransport(err)
	}
}

// answerOf is what the service said, or nil.
func answerOf(err error) *answer {
	var said *answer
	var api *googleapi.Error
	switch {
	case errors.As(err, &said):
		return said
	case errors.As(err, &api):
		return jsonAnswer(api)
	default:
		return nil
	}
}

// statusOf is the HTTP status of an answer that is an error, or 0.
func statusOf(err error) int {
	if said := answerOf(err); said != nil {
		return said.status
	}
	return 0
}

// withoutURL takes off what net/http puts around an error: its text has the
// address of the request.
func withoutURL(err error) error {
	for {
		var sent *url.Error
		if !errors.As(err, &sent) {
			return err
		}
		err = sent.Err
	}
}

func (a *answer) translate() error {
	switch a.status {
	case http.StatusNotFound:
		return a.missing()
	case http.StatusPreconditionFailed:
		return withClass(storage.ErrExists, a)
	case http.StatusRequestedRangeNotSatisfiable:
		return withClass(storage.ErrRange, a)
	case http.StatusInsufficientStorage:
		return withClass(storage.ErrNoSpace, a)
	case http.StatusUnauthorized:
		return withClass(storage.ErrPermission, a)
	case http.StatusForbidden:
		switch a.code {
		case "rateLimitExceeded", "userRateLimitExceeded", "dailyLimitExceeded":
			return withClass(storage.ErrUnavailable, a)
		case "quotaExceeded":
			return withClass(storage.ErrNoSpace, a)
		}
		return withClass(storage.ErrPermission, a)
	case http.StatusBadRequest:
		return a.refused()
	case http.StatusRequestTimeout, http.StatusTooManyRequests,
		http.StatusConflict, // of requests that ran at the same time
		http.StatusGone,     // an upload that has to begin anew ("Resumable uploads")
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return withClass(storage.ErrUnavailable, a)
	}
	return a
}

// missing tells a missing bucket from a missing object. The XML API has codes;
// the JSON API has "notFound" for both and tells by its text.
func (a *answer) missing() error {
	switch {
	case a.code == "NoSuchBucket", strings.Contains(a.text, "bucket does not exist"):
		return withClass(storage.ErrNoBucket, a)
	case a.code == "NoSuchKey", a.code == "NoSuchVersion", strings.HasPrefix(a.text, "No such object"):
		return withClass(storage.ErrNotExist, a)
	default:
		return withClass(errUnclear, a)
	}
}

// refused explains an answer of 400.
func (a *answer) refused() error {
	text := strings.ToLower(a.text)
	switch {
	case strings.Contains(text, "crc32c"), strings.Contains(text, "md5"):
		// What arrived is not what was sent.
		return withClass(storage.ErrUnavailable, a)
	case a.code == "UserProjectMissing", strings.Contains(text, "requester pays"):
		return errs.Wrap(withClass(storage.ErrPermission, a), errs.Config,
			"Name the project that pays for the requests (gcs_user_project).", "the bucket is one whose requester pays")
	default:
		return a
	}
}

// noLocks makes the answer to a lock that the bucket does not take ErrUnsupported.
func noLocks(err error) error {
	said := answerOf(err)
	if said == nil || said.status != http.StatusBadRequest || !strings.Contains(strings.ToLower(said.Error()), "retention") {
		return err
	}
	return errs.Wrap(withClass(storage.ErrUnsupported, said), errs.Config,
		"Use a bucket with object retention: gcloud storage buckets create gs://BUCKET --enable-per-object-retention.",
		"the bucket does not take the lock")
}

// translateTransport classes what went wrong before there was an answer. Most
// of it passes: what remains of TLS, of the settings and of the credentials
// does not.
func translateTransport(err error) error {
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &cert), errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid):
		return errs.Wrap(err, errs.Config,
			"Name the certificate of the server's authority in ca_file, or correct the endpoint.", "the server's certificate is not trusted")
	case errors.Is(err, http.ErrSchemeMismatch):
		return errs.Wrap(err, errs.Config, "Correct the endpoint.", "the server does not speak TLS")
	}
	var token *auth.Error
	if errors.As(err, &token) {
		return translateToken(token)
	}
	var undefined metadata.NotDefinedError
	if errors.As(err, &undefined) {
		return errs.Wrap(withClass(storage.ErrPermission, err), errs.Storage,
			"Give the instance a service account, or name a file of credentials in GOOGLE_APPLICATION_CREDENTIALS.",
			"the instance has no service account")
	}
	if errors.Is(err, syscall.EACCES) && !errors.As(err, new(net.Error)) {
		return withClass(storage.ErrPermission, err) // a file that the credentials name
	}
	return withClass(storage.ErrUnavailable, err)
}

// translateToken classes the refusal of a token (RFC 6749 section 5.2). Of the
// body nothing but those two fields is shown: a proxy's may hold anything.
func translateToken(e *auth.Error) error {
	if e.Response == nil {
		return withClass(storage.ErrUnavailable, errors.New("no access token"))
	}
	said := &answer{status: e.Response.StatusCode}
	var body struct {
		Code string `json:"error"`
		Text string `json:"error_description"`
	}
	if json.Unmarshal(e.Body, &body) == nil {
		said.code, said.text = body.Code, body.Text
	}
	if said.status >= 500 || said.status == http.StatusTooManyRequests || said.status == http.StatusRequestTimeout {
		return fmt.Errorf("%w: no access token: %w", storage.ErrUnavailable, said)
	}
	hint := "Renew the credentials that GOOGLE_APPLICATION_CREDENTIALS names, or those of gcloud auth application-default login."
	if strings.Contains(said.text, "reasonable timeframe") || strings.Contains(said.text, "iat and exp") {
		hint = "Set this host's clock: Google refuses credentials signed with a time that is off."
	}
	return errs.Wrap(withClass(storage.ErrPermission, said), errs.Storage, hint, "no access token")
}
