package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"agent/internal/errs"
	"agent/internal/storage"
	"agent/testing/stores"
)

// calls are all operations on one object; the prefix of the listing is its key.
func calls(ctx context.Context, b *Bucket) map[string]error {
	out := make(map[string]error)
	_, out["put"] = b.Put(ctx, "some/key", storage.Bytes("x"), storage.PutOptions{})
	_, out["put blocks"] = b.Put(ctx, "some/key", zeros{maxSingle + 1, false}, storage.PutOptions{})
	r, _, err := b.Get(ctx, "some/key")
	out["get"] = err
	if err == nil {
		r.Close()
	}
	_, _, out["get version"] = b.GetVersion(ctx, "some/key", "2026-11-20T00:00:00.0000000Z")
	_, out["get range"] = b.GetRange(ctx, "some/key", 3, 5)
	_, out["stat"] = b.Stat(ctx, "some/key")
	for _, err := range b.List(ctx, "some/key", "") {
		out["list"] = err
	}
	for _, err := range b.Folders(ctx, "some/key/") {
		out["folders"] = err
	}
	for _, err := range b.Versions(ctx, "some/key") {
		out["versions"] = err
	}
	out["delete"] = b.Delete(ctx, "some/key")
	out["delete many"] = b.Delete(ctx, "some/key", "other/key")
	_, out["probe"] = b.Probe(ctx)
	return out
}

// TestAnswers wants the class of each refusal, by every operation.
func TestAnswers(t *testing.T) {
	all := []string{"put", "put blocks", "get", "get version", "get range", "stat", "list", "folders", "versions", "delete", "delete many", "probe"}
	puts := []string{"put", "put blocks"}
	deletes := []string{"delete", "delete many"}
	reads := []string{"get", "get version", "get range", "stat"}
	for _, tt := range []struct {
		status int
		code   string
		ops    []string
		want   error // nil: none of the sentinels
		kind   errs.Kind
	}{
		{404, "BlobNotFound", reads, storage.ErrNotExist, errs.Other},
		{404, "ContainerNotFound", all, storage.ErrNoBucket, errs.Other},
		{409, "ContainerBeingDeleted", all, storage.ErrNoBucket, errs.Other},
		{404, "ResourceNotFound", all, nil, errs.Other},
		{404, "", all, nil, errs.Storage},
		{400, "InvalidResourceName", all, nil, errs.Config},
		{409, "BlobAlreadyExists", puts[:1], storage.ErrExists, errs.Other},
		{412, "ConditionNotMet", puts[:1], storage.ErrExists, errs.Other},
		{403, "UnauthorizedBlobOverwrite", puts[:1], storage.ErrExists, errs.Other},
		{409, "BlobImmutableDueToPolicy", puts[:1], storage.ErrExists, errs.Other},
		{409, "BlobImmutableDueToPolicy", deletes[:1], storage.ErrPermission, errs.Other},
		{412, "LeaseIdMissing", deletes[:1], storage.ErrPermission, errs.Other},
		{409, "SnapshotsPresent", deletes[:1], storage.ErrPermission, errs.Other},
		{403, "AuthenticationFailed", all, storage.ErrPermission, errs.Storage},
		{403, "AuthorizationFailure", all, storage.ErrPermission, errs.Storage},
		{403, "AuthorizationPermissionMismatch", all, storage.ErrPermission, errs.Storage},
		{403, "AccountIsDisabled", all, storage.ErrPermission, errs.Other},
		{403, "", all, storage.ErrPermission, errs.Other},
		{401, "InvalidAuthenticationInfo", all, storage.ErrPermission, errs.Other},
		{401, "NoAuthenticationInformation", all, storage.ErrPermission, errs.Other},
		{409, "PublicAccessNotPermitted", all, storage.ErrPermission, errs.Other},
		{416, "InvalidRange", []string{"get range"}, storage.ErrRange, errs.Other},
		{503, "ServerBusy", all, storage.ErrUnavailable, errs.Other},
		{500, "InternalError", all, storage.ErrUnavailable, errs.Other},
		{500, "OperationTimedOut", all, storage.ErrUnavailable, errs.Other},
		{500, "", all, storage.ErrUnavailable, errs.Other},
		{502, "", all, storage.ErrUnavailable, errs.Other},
		{504, "", all, storage.ErrUnavailable, errs.Other},
		{429, "", all, storage.ErrUnavailable, errs.Other},
		{408, "", all, storage.ErrUnavailable, errs.Other},
		{400, "Crc64Mismatch", puts[:1], storage.ErrUnavailable, errs.Other},
		{400, "InvalidBlockList", puts[:1], storage.ErrUnavailable, errs.Other},
		{507, "InsufficientStorage", puts, storage.ErrNoSpace, errs.Other},
		{409, "BlobArchived", reads, nil, errs.Storage},
		{404, "EncryptionScopeNotFound", puts, nil, errs.Config},
		{400, "InvalidHeaderValue", all, nil, errs.Other},
		{302, "", all, nil, errs.Storage},
	} {
		t.Run(fmt.Sprintf("%d-%s", tt.status, tt.code), func(t *testing.T) {
			b := answering(t, func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
				refuse(w, req, tt.status, tt.code)
			})
			got := calls(t.Context(), b)
			for _, op := range tt.ops {
				err := got[op]
				if err == nil {
					t.Errorf("%s: no error", op)
					continue
				}
				for _, class := range sentinels() {
					if errors.Is(err, class) != errors.Is(tt.want, class) {
						t.Errorf("%s: %v, want the class %v", op, err, tt.want)
					}
				}
				if kind := errs.KindOf(err); kind != tt.kind || (kind != errs.Other) != (errs.HintOf(err) != "") {
					t.Errorf("%s: %v has the kind %d and the hint %q", op, err, kind, errs.HintOf(err))
				}
				one := (*storage.Error)(nil)
				if !errors.As(err, &one) || one.Bucket != b.String() || op != "probe" && !strings.Contains(one.Key, "key") {
					t.Errorf("%s: %v names not the object", op, err)
				}
				if text := err.Error(); !strings.Contains(text, fmt.Sprintf("(%d)", tt.status)) || !strings.Contains(text, tt.code) {
					t.Errorf("%s: %v tells not code and status", op, err)
				}
				if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "secret-message") {
					t.Errorf("%s: %v tells too much", op, err)
				}
			}
		})
	}
}

func sentinels() []error {
	return []error{
		storage.ErrNotExist, storage.ErrExists, storage.ErrRange, storage.ErrBadLength, storage.ErrBadDigest, storage.ErrKey,
		storage.ErrPermission, storage.ErrNoSpace, storage.ErrNoBucket, storage.ErrUnsupported, storage.ErrUnavailable,
	}
}

// TestRealRefusals are those that the emulator gives itself.
func TestRealRefusals(t *testing.T) {
	server := stores.StartAzurite(t, stores.AzureOptions{})
	server.MakeContainer(t, "here")
	good := Options{Container: "here", Account: stores.AzuriteAccount, Endpoint: server.Endpoint(), Secrets: Secrets{AccountKey: stores.AzuriteKey}}
	try := func(o Options) map[string]error {
		b := open(t, o)
		defer b.Close()
		return calls(t.Context(), b)
	}
	other := good
	other.Container = "elsewhere"
	for op, err := range try(other) {
		if !errors.Is(err, storage.ErrNoBucket) || errors.Is(err, storage.ErrNotExist) {
			t.Errorf("%s in a container that is not there: %v", op, err)
		}
	}
	other = good
	other.Secrets.AccountKey = secret
	for op, err := range try(other) {
		if !errors.Is(err, storage.ErrPermission) || !strings.Contains(err.Error(), "(403)") {
			t.Errorf("%s with a wrong key: %v", op, err)
		}
	}
	other = good
	other.Secrets = Secrets{SASToken: "sv=2024-11-04&sp=rcl&sr=c&se=2030-01-01T00:00:00Z&sig=" + secret}
	for op, err := range try(other) {
		if !errors.Is(err, storage.ErrPermission) || strings.Contains(err.Error(), "sig") || strings.Contains(err.Error(), secret) {
			t.Errorf("%s with a wrong token: %v", op, err)
		}
	}
	server.Stop()
	other.Secrets = Secrets{SASToken: "sv=1&sig=" + secret}
	for _, o := range []Options{good, other} {
		for op, err := range try(o) {
			if !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "sig") {
				t.Errorf("%s with no server: %v", op, err)
			}
		}
	}
}

func TestClockSkew(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		b := answering(t, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
			refuse(w, req, 403, "AuthenticationFailed")
		})
		for op, err := range calls(t.Context(), b) {
			if !errors.Is(err, storage.ErrPermission) || op != "delete many" && !strings.HasPrefix(errs.HintOf(err), "Set this host's clock") {
				t.Errorf("%s, %v late: %v, hint %q", op, off, err, errs.HintOf(err))
			}
		}
	}
}

// TestCertificates trusts the server by its certificate or not at all.
func TestCertificates(t *testing.T) {
	server := stores.StartAzurite(t, stores.AzureOptions{TLS: true})
	server.MakeContainer(t, "tls")
	o := Options{Container: "tls", Account: stores.AzuriteAccount, Endpoint: server.Endpoint(), Secrets: Secrets{AccountKey: stores.AzuriteKey}}
	unknown := open(t, o)
	defer unknown.Close()
	for op, err := range calls(t.Context(), unknown) {
		if errs.KindOf(err) != errs.Config || !strings.Contains(errs.HintOf(err), "ca_file") || errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s of a server that is not trusted: %v, hint %q", op, err, errs.HintOf(err))
		}
	}
	o.Insecure = true
	insecure := open(t, o)
	defer insecure.Close()
	if _, err := insecure.Stat(t.Context(), "some/key"); !errors.Is(err, storage.ErrNotExist) {
		t.Errorf("without a check: %v", err)
	}
	o.Insecure = false
	o.Endpoint = strings.Replace(o.Endpoint, "https:", "http:", 1)
	unsealed := open(t, o)
	defer unsealed.Close()
	if _, err := unsealed.Stat(t.Context(), "some/key"); err == nil || errors.Is(err, storage.ErrNotExist) {
		t.Errorf("http to an https server: %v", err)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	o.Endpoint = strings.Replace(plain.URL, "http:", "https:", 1)
	wrong := open(t, o)
	defer wrong.Close()
	if _, err := wrong.Stat(t.Context(), "some/key"); errs.KindOf(err) != errs.Config {
		t.Errorf("https to an http server: %v", err)
	}
}

// TestTokens has a credential that fails.
func TestTokens(t *testing.T) {
	status := func(code int) error {
		return &azidentity.AuthenticationFailedError{RawResponse: &http.Response{
			StatusCode: code, Body: io.NopCloser(strings.NewReader("{}")), Request: httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://login/", nil),
		}}
	}
	for _, tt := range []struct {
		err  error
		want error
	}{
		{errors.New("no credential"), storage.ErrPermission},
		{status(400), storage.ErrPermission},
		{status(503), storage.ErrUnavailable},
		{status(429), storage.ErrUnavailable},
		{&timeout{}, storage.ErrUnavailable},
	} {
		b := open(t, Options{Container: "backup", Endpoint: "https://127.0.0.1:1/", Credential: failingToken{tt.err}})
		for op, err := range calls(t.Context(), b) {
			if !errors.Is(err, tt.want) || strings.Contains(err.Error(), "\n") && !strings.Contains(op, "many") {
				t.Errorf("%s with a token that fails by %T: %v, want %v", op, tt.err, err, tt.want)
			}
		}
		b.Close()
	}
}

type failingToken struct{ err error }

func (f failingToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{}, f.err
}

type timeout struct{}

func (*timeout) Error() string   { return "i/o timeout" }
func (*timeout) Timeout() bool   { return true }
func (*timeout) Temporary() bool { return true }

// TestCause wants the reason of a context that ended.
func TestCause(t *testing.T) {
	reason := errors.New("the deadline of the command")
	b := answering(t, func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := b.Stat(ctx, "some/key")
		done <- err
	}()
	cancel(reason)
	if err := <-done; !errors.Is(err, context.Canceled) || !errors.Is(err, reason) || errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("cancelled: %v", err)
	}
}
