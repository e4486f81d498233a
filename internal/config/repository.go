package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"agent/internal/errs"
	"agent/internal/storage"
)

// Repository is one place where WAL and backups are kept, with all that is set
// for it, by its own item or for all. It holds no secret. A field that is zero
// leaves the matter to the SDK, the service or the bucket.
type Repository struct {
	Name     string // unique among those of a Config
	URL      string // as storage.ParseURL takes it
	Required bool   // false: best effort; what it missed is caught up later

	S3Endpoint  string // http(s) URL
	S3Region    string
	S3Profile   string // of the AWS configuration files
	S3PathStyle bool   // http://host/bucket/key rather than http://bucket.host/key
	S3Checksum  string // S3CRC32C, S3MD5 or "none"; "" is S3CRC32C

	StorageClass string // as the service calls it; Azure: access tier
	SSE          string // SSEAES256, SSEKMS or "" for what the bucket does by itself; S3 alone
	KMSKey       string // S3: id or ARN of a KMS key; GCS: name of a CMEK key; Azure: encryption scope

	GCSEndpoint    string // http(s) URL
	GCSUserProject string // pays for requests, on "requester pays" buckets

	AzureAccount  string
	AzureEndpoint string // http(s) URL of the blob service

	SFTPKnownHosts   string // path
	SFTPIdentityFile string // path of a private SSH key

	CAFile    string     // path of PEM certificates that are trusted for this repository
	Insecure  bool       // certificates are not checked
	Immutable *Immutable // nil: objects are not locked
	Prices    Prices
}

// Prices are what the store takes, for the costs that are shown. A price of 0
// is not known.
type Prices struct {
	StorageGBMonth float64 // for 10^9 bytes for a month
	Put1000        float64 // for 1,000 requests that write
	Get1000        float64 // for 1,000 requests that read
	Currency       string  // "" if it is not said
}

// The values of Repository.S3Checksum but "none".
const (
	S3CRC32C = "crc32c"
	S3MD5    = "md5"
)

// The values of Repository.SSE but "".
const (
	SSEAES256 = "AES256"
	SSEKMS    = "aws:kms"
)

// Immutable says how every new object is locked.
type Immutable struct {
	Mode string        // "governance" or "compliance", as storage.LockMode
	For  time.Duration // whole hours, a day to 36500 days; the promise, to which the writer adds the longest chain
}

// String writes the lock as the setting immutable has it: "governance:30d".
func (i Immutable) String() string { return i.Mode + ":" + FormatDuration(i.For) }

// parseImmutable reads MODE:DURATION.
func parseImmutable(s string) (*Immutable, error) {
	mode, length, _ := strings.Cut(s, ":")
	if mode != string(storage.Governance) && mode != string(storage.Compliance) {
		return nil, errNotAllowed
	}
	d, err := ParseDuration(length)
	switch {
	case err != nil:
		return nil, err
	case d%time.Hour != 0:
		return nil, errors.New("it is not a number of whole hours or days")
	case d < minLock:
		return nil, errors.New("that is too short")
	case d > maxLock:
		return nil, errors.New("that is too long")
	}
	return &Immutable{Mode: mode, For: d}, nil
}

// immutableText writes the mapping form of immutable, {mode: M, for: D}, as
// the text M:D.
func immutableText(node *yaml.Node) (string, error) {
	parts := map[string]string{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, field := node.Content[i], resolve(node.Content[i+1])
		switch {
		case key.Kind != yaml.ScalarNode || key.Value != "mode" && key.Value != "for":
			return "", errs.New(errs.Config, "Write it as {mode: governance, for: 30d}.", "its key %q is neither mode nor for", shorten(maskAny(key.Value)))
		case field.Kind != yaml.ScalarNode:
			return "", fmt.Errorf("its %s is not a plain value", key.Value)
		case parts[key.Value] != "":
			return "", fmt.Errorf("its %s is set twice", key.Value)
		}
		text, err := scalar(field)
		if err != nil {
			return "", fmt.Errorf("its %s: %w", key.Value, err)
		}
		parts[key.Value] = text
	}
	for _, key := range []string{"mode", "for"} {
		if parts[key] == "" {
			return "", fmt.Errorf("its %s is missing", key)
		}
	}
	if parts["mode"] == none {
		return "", errors.New(`"none" stands alone, without a duration`)
	}
	return parts["mode"] + ":" + parts["for"], nil
}
