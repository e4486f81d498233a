package s3

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"agent/internal/errs"
	"agent/internal/storage/transport"
)

// regionOfOthers is what S3-compatible services go by if nobody named a region.
const regionOfOthers = "us-east-1"

// connect makes the client.
func (b *Bucket) connect(ctx context.Context) error {
	tr, err := transport.New(transport.Options{CAFile: b.o.CAFile, Insecure: b.o.Insecure, Connections: b.o.Connections})
	if err != nil {
		return err
	}
	cfg, err := b.load(ctx, tr)
	if err != nil {
		return errs.Wrap(err, errs.Config, "Correct the AWS settings in the environment and in the shared files (~/.aws).", "AWS settings cannot be read")
	}
	b.http = tr
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.HTTPClient = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a redirect names a region; it is an error
		}}
		if b.o.Endpoint != "" {
			o.BaseEndpoint = aws.String(strings.TrimSuffix(b.o.Endpoint, "/"))
		}
		if o.Region == "" && o.BaseEndpoint != nil {
			o.Region = regionOfOthers
		}
		o.UsePathStyle = b.o.PathStyle
		o.Retryer = aws.NopRetryer{}
		// The SDK would learn the server's clock from a refusal and then differ
		// from the clock by which locks and expiry are computed.
		o.DisableClockSkewCorrection = true
		// What it adds by itself, many compatible services do not know.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
		o.ContinueHeaderThresholdBytes = -1 // "Expect: 100-continue" is one more round trip
		o.Logger = logging.Nop{}
		if o.Credentials != nil {
			o.Credentials = aws.NewCredentialsCache(credentials{o.Credentials})
		}
	})
	b.client, b.region = client, client.Options().Region
	b.tls = !strings.HasPrefix(strings.ToLower(aws.ToString(client.Options().BaseEndpoint)), "http:")
	if b.region == "" {
		return errs.New(errs.Config, "Name the region of the bucket, for example by AWS_REGION=eu-central-1.",
			"no region is known for bucket %s", b.o.Bucket)
	}
	return nil
}

// load reads the SDK's settings. No credentials are looked for yet.
func (b *Bucket) load(ctx context.Context, tr *http.Transport) (aws.Config, error) {
	// The clients of the credential chain have connections of their own. The
	// SDK puts the certificates of AWS_CA_BUNDLE into a client of this type
	// alone; ours takes them over.
	own := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.TLSClientConfig = tr.TLSClientConfig.Clone()
		if t.TLSClientConfig.RootCAs != nil {
			t.TLSClientConfig.RootCAs = t.TLSClientConfig.RootCAs.Clone()
		}
	})
	opts := []func(*config.LoadOptions) error{config.WithHTTPClient(own), config.WithLogger(logging.Nop{})}
	if b.o.Region != "" {
		opts = append(opts, config.WithRegion(b.o.Region))
	}
	if b.o.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(b.o.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return aws.Config{}, err
	}
	if c, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		tr.TLSClientConfig.RootCAs = c.GetTransport().TLSClientConfig.RootCAs
	}
	return cfg, nil
}

// credentials marks the errors of the credential chain, which are otherwise
// hard to tell from those of the store.
type credentials struct{ aws.CredentialsProvider }

// credentialsError says that no credentials could be had.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "get credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// Retrieve is that of the chain.
func (c credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	got, err := c.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, &credentialsError{err}
	}
	return got, nil
}

// unsignedPayload stands in the signature for a body that TLS protects ("Authenticating
// Requests (AWS Signature Version 4)", Amazon S3 API Reference).
const unsignedPayload = "UNSIGNED-PAYLOAD"

// signed gives the signature the body's digest, so that the SDK does not read
// the body to hash it: over TLS none, otherwise what we have computed.
func signed(sha256 string) func(*s3.Options) {
	sign := middleware.FinalizeMiddlewareFunc("agentPayloadHash", func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
		middleware.FinalizeOutput, middleware.Metadata, error,
	) {
		req, ok := in.Request.(*smithyhttp.Request)
		if !ok {
			return middleware.FinalizeOutput{}, middleware.Metadata{}, errors.New("request of an unknown type")
		}
		hash := sha256
		if req.IsHTTPS() {
			hash = unsignedPayload
		}
		return next.HandleFinalize(v4.SetPayloadHash(ctx, hash), in)
	})
	return s3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Finalize.Insert(sign, (&v4.ComputePayloadSHA256{}).ID(), middleware.Before)
	})
}

// withMD5 sends a Content-MD5 in place of the checksums that the SDK would
// choose for DeleteObjects and PutObjectRetention: it is what every service knows.
func withMD5() func(*s3.Options) {
	return s3.WithAPIOptions(func(stack *middleware.Stack) error {
		if _, err := stack.Initialize.Remove("AWSChecksum:SetupInputContext"); err != nil {
			return err
		}
		if _, err := stack.Finalize.Remove("AWSChecksum:ComputeInputPayloadChecksum"); err != nil {
			return err
		}
		return smithyhttp.AddContentChecksumMiddleware(stack)
	})
}
