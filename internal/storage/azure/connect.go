package azure

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"agent/internal/errs"
	"agent/internal/storage/transport"
)

const credentialHint = "Set AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or AZURE_STORAGE_CONNECTION_STRING, " +
	"or give the host an identity that azidentity's DefaultAzureCredential finds."

// connect makes the client of the container with the first credential there
// is, and gives the transports whose connections it will use.
func connect(o Options) (*container.Client, []*http.Transport, error) {
	rt, err := transport.New(transport.Options{CAFile: o.CAFile, Insecure: o.Insecure, Connections: o.Connections})
	if err != nil {
		return nil, nil, err
	}
	idle := []*http.Transport{rt}
	co := &container.ClientOptions{
		ClientOptions: azcore.ClientOptions{
			Transport: transporter{rt},
			// decorate.Retry repeats, by class of error.
			Retry:     policy.RetryOptions{MaxRetries: -1},
			Telemetry: policy.TelemetryOptions{Disabled: true},
		},
		ExpectContinueBehavior: azblob.ExpectContinueOptions{Mode: azblob.ExpectContinueModeOff},
	}
	o.Log.Debug("azure credentials", "container", o.Container, "kind", o.Secrets.String())
	if s := o.Secrets.ConnectionString; s != "" {
		c, err := container.NewClientFromConnectionString(s, o.Container, co)
		if err != nil || !usable(c.URL()) {
			// The cause is left out: it may repeat a part of the string.
			return nil, nil, errs.New(errs.Config, "Copy it again from the account's access keys, or use another credential.",
				"AZURE_STORAGE_CONNECTION_STRING cannot be understood")
		}
		return c, idle, nil
	}
	service, err := serviceURL(o)
	if err != nil {
		return nil, nil, err
	}
	at := service.JoinPath(o.Container)
	switch {
	case o.Secrets.AccountKey != "":
		c, err := withKey(o, at, co)
		return c, idle, err
	case o.Secrets.SASToken != "":
		query, err := url.ParseQuery(strings.TrimPrefix(o.Secrets.SASToken, "?"))
		if err != nil || query.Get("sig") == "" {
			return nil, nil, errs.New(errs.Config, "Give the whole token: sv=…&sp=…&sig=….", "AZURE_STORAGE_SAS_TOKEN cannot be understood")
		}
		at.RawQuery = query.Encode()
		c, err := container.NewClientWithNoCredential(at.String(), co)
		return c, idle, unusable(err)
	}
	if service.Scheme != "https" {
		return nil, nil, errs.New(errs.Config, "Use an https endpoint, or a key or SAS token.",
			"tokens of an identity are not sent to %s, which is not encrypted", service.Redacted())
	}
	token := o.Credential
	if token == nil {
		// Another transport: what Insecure allows is meant for the store alone.
		rt, err := transport.New(transport.Options{CAFile: o.CAFile})
		if err != nil {
			return nil, nil, err
		}
		idle = append(idle, rt)
		token, err = azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: azcore.ClientOptions{
			Transport: &http.Client{Transport: rt}, Telemetry: policy.TelemetryOptions{Disabled: true},
		}})
		if err != nil {
			return nil, nil, errs.Wrap(err, errs.Config, credentialHint, "find Azure credentials")
		}
	}
	c, err := container.NewClient(at.String(), credential{token}, co)
	return c, idle, unusable(err)
}

func withKey(o Options, at *url.URL, co *container.ClientOptions) (*container.Client, error) {
	if o.Account == "" {
		return nil, errs.New(errs.Config, "Set AZURE_STORAGE_ACCOUNT to the account that the key belongs to.", "an Azure account key is given, but no account")
	}
	key, err := blob.NewSharedKeyCredential(o.Account, o.Secrets.AccountKey)
	if err != nil {
		return nil, errs.New(errs.Config, "Copy it again from the account's access keys.", "AZURE_STORAGE_KEY is not valid base64")
	}
	c, err := container.NewClientWithSharedKeyCredential(at.String(), key, co)
	return c, unusable(err)
}

// unusable is an error of the SDK's constructors. Its text is left out, since
// it may hold the URL with a token.
func unusable(err error) error {
	if err == nil {
		return nil
	}
	return errs.New(errs.Config, "Check the endpoint and the credentials.", "make a client for Azure Blob Storage")
}

func serviceURL(o Options) (*url.URL, error) {
	if o.Endpoint == "" {
		if o.Account == "" {
			return nil, errs.New(errs.Config, credentialHint, "no Azure storage account is named")
		}
		if !accountName.MatchString(o.Account) {
			return nil, errs.New(errs.Config, "Give the name alone (3 to 24 lower-case letters and digits), or an endpoint.",
				"%q cannot be the name of an Azure storage account", o.Account)
		}
		return &url.URL{Scheme: "https", Host: o.Account + ".blob.core.windows.net"}, nil
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		// It is not repeated: it may hold a token.
		return nil, errs.New(errs.Config, "Write it as https://ACCOUNT.blob.core.windows.net; tokens are given by AZURE_STORAGE_SAS_TOKEN.",
			"endpoint of Azure Blob Storage cannot be understood")
	}
	return u, nil
}

func usable(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
}
