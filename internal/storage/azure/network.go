package azure

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// transporter sends requests as they are: no redirect is followed, and the
// errors do not repeat the URL, which may hold a SAS token. It marks every
// error as one of the network, for translate.
type transporter struct{ rt http.RoundTripper }

func (t transporter) Do(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodDelete || req.Method == http.MethodPost {
		// All that is posted are batches of deletes. Both may be sent again
		// when a kept connection turns out to be closed (http.Transport; a
		// header without values is not sent).
		req.Header["X-Idempotency-Key"] = nil
	}
	resp, err := t.rt.RoundTrip(req)
	if err != nil {
		return nil, &networkError{err}
	}
	resp.Body = markedBody{resp.Body}
	return resp, nil
}

// networkError is an error between us and the service.
type networkError struct{ err error }

func (e *networkError) Error() string { return e.err.Error() }
func (e *networkError) Unwrap() error { return e.err }

type markedBody struct{ io.ReadCloser }

func (b markedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &networkError{err}
	}
	return n, err
}

// credential marks the errors of getting a token, for translate.
type credential struct{ azcore.TokenCredential }

func (c credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := c.TokenCredential.GetToken(ctx, o)
	if err != nil {
		return token, &tokenError{err}
	}
	return token, nil
}

type tokenError struct{ err error }

func (e *tokenError) Error() string { return e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }
