package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"agent/internal/errs"
	"agent/internal/storage"
)

func TestErrors(t *testing.T) {
	const xml = "<Error><Code>%s</Code><Message>%s</Message><StringToSign>hunter2</StringToSign><Token-0>hunter2</Token-0></Error>"
	for _, tt := range []struct {
		status int
		code   string // "": body is the message as it is
		text   string
		class  error
		kind   errs.Kind
		hint   string
	}{
		{404, "NoSuchKey", "no", storage.ErrNotExist, 0, ""},
		{404, "NoSuchBucket", "no", storage.ErrNoBucket, errs.Storage, "bucket's name"},
		{404, "XAdminUserNotFound", "no", storage.ErrPermission, errs.Storage, "access key"},
		{404, "", "<html>not here</html>", nil, 0, ""},
		{404, "", "", nil, 0, ""},
		{404, "SomethingNew", "no", nil, 0, ""},
		{403, "AccessDenied", "Access Denied", storage.ErrPermission, errs.Storage, "least rights"},
		{403, "InvalidAccessKeyId", "no", storage.ErrPermission, errs.Storage, "access key"},
		{403, "SignatureDoesNotMatch", "no", storage.ErrPermission, errs.Storage, "secret key"},
		{403, "RequestTimeTooSkewed", "no", storage.ErrPermission, errs.Storage, "Set this host's clock"},
		{400, "ExpiredToken", "no", storage.ErrPermission, errs.Storage, "Renew"},
		{403, "SomethingNew", "no", storage.ErrPermission, errs.Storage, "least rights"},
		{403, "QuotaExceeded", "no", storage.ErrNoSpace, errs.Storage, "room"},
		{507, "XMinioStorageFull", "no", storage.ErrNoSpace, errs.Storage, "room"},
		{301, "PermanentRedirect", "no", nil, errs.Config, "AWS_REGION=ap-south-1"},
		{400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-3'", nil, errs.Config, "AWS_REGION=eu-west-3"},
		{416, "InvalidRange", "no", storage.ErrRange, 0, ""},
		{503, "SlowDown", "Reduce", storage.ErrUnavailable, 0, ""},
		{429, "TooManyRequests", "no", storage.ErrUnavailable, 0, ""},
		{500, "InternalError", "no", storage.ErrUnavailable, 0, ""},
		{502, "", "<html>bad gateway</html>", storage.ErrUnavailable, 0, ""},
		{400, "RequestTimeout", "no", storage.ErrUnavailable, 0, ""},
		{400, "BadDigest", "no", storage.ErrUnavailable, 0, ""},
		{409, "ConditionalRequestConflict", "no", storage.ErrUnavailable, 0, ""},
		{412, "PreconditionFailed", "no", storage.ErrExists, 0, ""},
		{501, "NotImplemented", "no", storage.ErrUnsupported, errs.Config, "conditionally"},
		{400, "InvalidStorageClass", "no", nil, errs.Config, "storage class"},
		{400, "KMS.DisabledException", "no", nil, errs.Config, "KMS key"},
	} {
		t.Run(fmt.Sprintf("%d%s", tt.status, tt.code), func(t *testing.T) {
			b := open(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("X-Amz-Bucket-Region", "ap-south-1")
				w.Header().Set("X-Amz-Request-Id", "REQ1")
				w.WriteHeader(tt.status)
				if tt.code != "" {
					fmt.Fprintf(w, xml, tt.code, tt.text)
				} else {
					fmt.Fprint(w, tt.text)
				}
			}), false))
			for op, err := range everyWay(t.Context(), b) {
				gone := errors.Is(tt.class, storage.ErrNotExist) && (strings.HasPrefix(op, "delete") || op == "discard")
				versions := op == "versions" && tt.status == http.StatusNotImplemented
				if (gone || versions) && err == nil {
					continue
				}
				onlyPut := errors.Is(tt.class, storage.ErrExists) || tt.status == http.StatusNotImplemented && op != "put"
				switch {
				case err == nil:
					t.Errorf("%s: no error", op)
					continue
				case onlyPut && op != "put":
					continue
				case tt.class == nil && classed(err), tt.class != nil && !errors.Is(err, tt.class):
					t.Errorf("%s: %v, want %v", op, err, tt.class)
				case errs.KindOf(err) != tt.kind, !strings.Contains(errs.HintOf(err), tt.hint):
					t.Errorf("%s: %v: kind %d, hint %q", op, err, errs.KindOf(err), errs.HintOf(err))
				}
				var known *storage.Error
				text := err.Error()
				if !errors.As(err, &known) || known.Bucket != "s3://bucket/pre" || strings.Contains(text, "hunter2") || strings.Contains(text, "operation error") {
					t.Errorf("%s: %q", op, text)
				}
				want := fmt.Sprintf("%s (%d)", tt.code, tt.status)
				if tt.code == "" || (op == "stat" || op == "extend") && tt.status >= 500 { // HEAD has no body, and is not asked again then
					want = fmt.Sprintf("HTTP status %d", tt.status)
				}
				if !strings.Contains(text, want) {
					t.Errorf("%s: %q does not say %q", op, text, want)
				}
			}
		})
	}
}

// TestCutBodies wants that nothing cut looks whole.
func TestCutBodies(t *testing.T) {
	cut := func(w http.ResponseWriter, status int, announced, sent int) {
		w.Header().Set("Content-Length", fmt.Sprint(announced))
		w.WriteHeader(status)
		_, _ = w.Write([]byte(strings.Repeat("<", sent)))
		w.(http.Flusher).Flush()
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			c.Close()
		}
	}
	b := open(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", "bytes 10-19/100")
			cut(w, http.StatusPartialContent, 10, 5)
			return
		}
		cut(w, http.StatusOK, 100, 50)
	}), false))
	r, info, err := b.Get(t.Context(), "k")
	if err != nil || info.Size != 100 {
		t.Fatalf("get: %+v, %v", info, err)
	}
	got, err := io.ReadAll(r)
	r.Close()
	if len(got) != 50 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read: %d bytes, %v", len(got), err)
	}
	r, err = b.GetRange(t.Context(), "k", 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	got, err = io.ReadAll(r)
	r.Close()
	if len(got) != 5 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read of a range: %d bytes, %v", len(got), err)
	}
	for _, err := range b.List(t.Context(), "", "") {
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("list: %v, want ErrUnavailable", err)
		}
	}
}

// TestNoAnswer wants that every way of getting none is a passing one.
func TestNoAnswer(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	login(t, "key", "secret")
	for _, endpoint := range []string{"http://" + l.Addr().String(), "https://" + l.Addr().String(), "http://" + closed.Addr().String(), "http://no-such-host.invalid"} {
		b := open(t, Options{Bucket: "bucket", Endpoint: endpoint, PathStyle: true})
		for op, err := range everyWay(t.Context(), b) {
			if !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("%s of %s: %v, want ErrUnavailable", op, endpoint, err)
			}
		}
	}
}

func TestNoTLSHere(t *testing.T) {
	o := serve(t, &recorder{}, false)
	o.Endpoint = strings.Replace(o.Endpoint, "http:", "https:", 1)
	for op, err := range everyWay(t.Context(), open(t, o)) {
		if errs.KindOf(err) != errs.Config || !strings.Contains(errs.HintOf(err), "http://") {
			t.Errorf("%s: %v (hint %q)", op, err, errs.HintOf(err))
		}
	}
}

func TestNoCredentials(t *testing.T) {
	o := serve(t, &recorder{}, false)
	login(t, "", "")
	for op, err := range everyWay(t.Context(), open(t, o)) {
		if !errors.Is(err, storage.ErrPermission) || !strings.Contains(errs.HintOf(err), "AWS_ACCESS_KEY_ID") {
			t.Errorf("%s: %v (hint %q)", op, err, errs.HintOf(err))
		}
	}
}

// TestClockSkew wants that the service's own clock is told.
func TestClockSkew(t *testing.T) {
	b := open(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", "Fri, 20 Nov 2026 10:00:00 GMT")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, "<Error><Code>RequestTimeTooSkewed</Code></Error>")
	}), false))
	for op, err := range everyWay(t.Context(), b) {
		if hint := errs.HintOf(err); !strings.Contains(hint, "clock says Fri, 20 Nov 2026 10:00:00 GMT") {
			t.Errorf("%s: %v (hint %q)", op, err, hint)
		}
	}
}

// TestCancelled wants the context's own cause, whatever the SDK makes of it.
func TestCancelled(t *testing.T) {
	arrived := make(chan struct{}, 16)
	release := make(chan struct{})
	b := open(t, serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-release
	}), false))
	defer close(release)
	cause := errors.New("the deadline of the command")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-arrived
		cancel(cause)
	}()
	_, err := b.Put(ctx, "k", storage.Bytes("x"), storage.PutOptions{})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	login(t, "key", "secret")
	for name, o := range map[string]Options{
		"no bucket":    {Region: "r"},
		"prefix":       {Bucket: "b", Prefix: "a//b", Region: "r"},
		"sse":          {Bucket: "b", SSE: "rot13", Region: "r"},
		"key":          {Bucket: "b", KMSKeyID: "x", SSE: "AES256", Region: "r"},
		"checksum":     {Bucket: "b", Checksum: "crc8", Region: "r"},
		"no region":    {Bucket: "b"},
		"no such file": {Bucket: "b", Region: "r", CAFile: "/nonexistent"},
		"no profile":   {Bucket: "b", Region: "r", Profile: "nobody"},
	} {
		if _, err := Open(t.Context(), o); errs.KindOf(err) != errs.Config || errs.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := open(t, Options{Bucket: "b", Endpoint: "http://127.0.0.1:1"})
	if b.region != "us-east-1" || b.String() != "s3://b" {
		t.Errorf("region %q of %s", b.region, b)
	}
}

// FuzzContentRange wants that no answer is taken for the range asked for
// unless it says so.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 10-19/100", "bytes 10-14/15", "bytes */100", "", "10", "bytes -10-19/1", "bytes 9-18/100"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, length int64) {
		err := inRange(&s3.GetObjectOutput{ContentRange: &header, ContentLength: &length}, 10, 10)
		if err == nil && (length != 10 || !strings.Contains(header, "10")) {
			t.Fatalf("%q of %d bytes is taken", header, length)
		}
	})
}

// TestLoginErrors wants that a service of the credential chain that is down is
// waited for, and that a host without one is told to give credentials.
func TestLoginErrors(t *testing.T) {
	b := open(t, serve(t, &recorder{}, false))
	status := func(code int) error {
		return &smithyhttp.ResponseError{Response: &smithyhttp.Response{Response: &http.Response{StatusCode: code}}, Err: errors.New("no")}
	}
	lost := &smithyhttp.RequestSendError{Err: errors.New("refused")}
	for _, tt := range []struct {
		service string
		err     error
		want    error
	}{
		{"STS", lost, storage.ErrUnavailable},
		{"STS", status(503), storage.ErrUnavailable},
		{"STS", status(429), storage.ErrUnavailable},
		{"STS", status(403), storage.ErrPermission},
		{"ec2imds", lost, storage.ErrPermission},
		{"ec2imds", status(500), storage.ErrUnavailable},
		{"ec2imds", status(404), storage.ErrPermission},
	} {
		err := b.classify(t.Context(), fmt.Errorf("sign: %w", &credentialsError{&smithy.OperationError{ServiceID: tt.service, OperationName: "Get", Err: tt.err}}))
		if !errors.Is(err, tt.want) {
			t.Errorf("%s, %v: %v, want %v", tt.service, tt.err, err, tt.want)
		}
	}
}
