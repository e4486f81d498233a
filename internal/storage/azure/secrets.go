package azure

import (
	"fmt"
	"io"
	"log/slog"
)

// The variables of the environment that the Azure tools know.
const (
	EnvAccount          = "AZURE_STORAGE_ACCOUNT"
	envConnectionString = "AZURE_STORAGE_CONNECTION_STRING"
	envAccountKey       = "AZURE_STORAGE_KEY"
	envSASToken         = "AZURE_STORAGE_SAS_TOKEN"
)

// Secrets are credentials for an account; the first of its fields that is not
// empty is used. They print as whether they are there, by every verb of fmt,
// by slog and as JSON.
type Secrets struct {
	ConnectionString string
	AccountKey       string // base64
	SASToken         string // with or without the leading question mark
}

// FromEnv reads AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY and
// AZURE_STORAGE_SAS_TOKEN by lookup, which is os.LookupEnv or like it.
func FromEnv(lookup func(string) (string, bool)) Secrets {
	get := func(name string) string {
		value, _ := lookup(name)
		return value
	}
	return Secrets{ConnectionString: get(envConnectionString), AccountKey: get(envAccountKey), SASToken: get(envSASToken)}
}

// String names the kind of credential, and nothing of it.
func (s Secrets) String() string {
	switch {
	case s.ConnectionString != "":
		return "connection string"
	case s.AccountKey != "":
		return "account key"
	case s.SASToken != "":
		return "SAS token"
	default:
		return "default chain"
	}
}

// Format prints String, whatever the verb.
func (s Secrets) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue is String.
func (s Secrets) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is String.
func (s Secrets) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
