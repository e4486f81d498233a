package config

import (
	"cmp"
	"errors"
	"net/url"
	"strconv"
	"strings"

	"agent/internal/storage"
)

// none is the value that switches a setting off.
const none = "none"

// The keys that choose the repositories.
const (
	keyRepository   = "repository"
	keyRepositories = "repositories"
)

// repositoryOption is a setting of one repository. At the top level it holds
// for every repository, in an item of repositories for that one.
type repositoryOption struct {
	Option
	fallback string // as it would be written; "" if there is none
	mask     func(string) string
	// parse stores the value; see option.
	parse parser[Repository]
	// show writes the value as it would be set.
	show func(r Repository) string
}

// top is the row of the table for all repositories.
func (o repositoryOption) top() option {
	row := o.in("")
	if o.fallback != "" {
		row.fallback = fixed(o.fallback)
	}
	row.parse = func(c *Config, v value, home string) error { return o.parse(&c.shared, v, home) }
	row.show = func(c Config) string { return o.show(c.shared) }
	return row
}

// in is the setting as messages name it below a place such as
// "repositories[1].".
func (o repositoryOption) in(place string) option {
	row := option{Option: o.Option, mask: o.mask}
	row.Key = place + o.Key
	if o.Key == "immutable" {
		row.mapping = immutableText
	}
	return row
}

// itemTable lists what an item of repositories may hold.
func itemTable() []repositoryOption {
	return append([]repositoryOption{
		{
			Option: Option{
				Key: "name", Type: "NAME", Default: "repo1 for the first item, repo2 for the second, ...",
				Allowed: "1 to 64 letters, digits, - and _, of which the first is a letter or a digit; no two the same",
				Help:    "How commands and messages call this repository.",
			},
			parse: word(64, "_-")(func(r *Repository) *string { return &r.Name }),
			show:  func(r Repository) string { return r.Name },
		},
		{
			Option: Option{
				Key: "url", Type: "URL",
				Allowed: urlSyntax,
				Help:    "Where it is; the one key that an item must have.",
			},
			mask: maskRepository,
			parse: func(r *Repository, v value, home string) (err error) {
				r.URL, err = repositoryURL(v.text(), home)
				return err
			},
			show: func(r Repository) string { return maskRepository(r.URL) },
		},
		{
			Option: Option{
				Key: "required", Type: "BOOL", Default: "true",
				Allowed: "true, false",
				Help:    "Whether a WAL file or backup counts as stored only when it is in this repository; false is best effort, and what was missed is caught up later. At least one must be required.",
			},
			parse: storeBool(func(r *Repository) *bool { return &r.Required }),
			show:  func(r Repository) string { return strconv.FormatBool(r.Required) },
		},
	}, repositoryTable()...)
}

// repositoryTable lists the settings that hold at the top level for every
// repository and in an item for one.
func repositoryTable() []repositoryOption {
	s3 := []string{storage.SchemeS3}
	gcs := []string{storage.SchemeGCS}
	azure := []string{storage.SchemeAzure}
	sftp := []string{storage.SchemeSFTP}
	clouds := []string{storage.SchemeS3, storage.SchemeGCS, storage.SchemeAzure}
	all := []string{storage.SchemeFile, storage.SchemeS3, storage.SchemeGCS, storage.SchemeAzure, storage.SchemeSFTP}
	return []repositoryOption{
		text(s3, "s3_endpoint", "s3-endpoint", "URL", endpointSyntax, storeEndpoint,
			"The endpoint of an S3-compatible service; without it the SDK decides (AWS_ENDPOINT_URL, AWS's own).",
			func(r *Repository) *string { return &r.S3Endpoint }),
		text(s3, "s3_region", "s3-region", "REGION", "letters, digits, - and _", word(64, "_-"),
			"The region of the bucket; without it the SDK decides (AWS_REGION, the profile); with an endpoint and no region it is us-east-1.",
			func(r *Repository) *string { return &r.S3Region }),
		text(s3, "s3_profile", "s3-profile", "NAME", "the name of a profile in the configuration files of AWS", storeText[Repository],
			"The profile from which credentials and region are taken; without it AWS_PROFILE.",
			func(r *Repository) *string { return &r.S3Profile }),
		truth(s3, "s3_path_style", "s3-path-style",
			"Whether the bucket is in the path (https://host/bucket/key) and not in the host name; many S3-compatible services need it.",
			func(r *Repository) *bool { return &r.S3PathStyle }),
		{
			Option: Option{
				Key: "s3_checksum", Env: "AGENT_S3_CHECKSUM", Flag: "s3-checksum", Type: "METHOD", Default: S3CRC32C, Schemes: s3,
				Allowed: "crc32c, md5, none", Values: []string{S3CRC32C, S3MD5, none},
				Help: "By which checksum the service refuses an object that was damaged on the way; md5 is for services that refuse x-amz-checksum-crc32c, none for those that know neither.",
			},
			fallback: S3CRC32C,
			parse:    storeChoice(func(r *Repository) *string { return &r.S3Checksum }, S3CRC32C, S3MD5, none),
			show:     func(r Repository) string { return cmp.Or(r.S3Checksum, S3CRC32C) },
		},
		text(clouds, "storage_class", "storage-class", "CLASS", "a class (on Azure an access tier) of the service from which objects can be read at once, such as STANDARD_IA, NEARLINE or Cool", word(64, "_-"),
			"The storage class of new objects; without it the default of the bucket.",
			func(r *Repository) *string { return &r.StorageClass }),
		{
			Option: Option{
				Key: "sse", Env: "AGENT_SSE", Flag: "sse", Type: "METHOD", Default: none, Schemes: s3,
				Allowed: "AES256, aws:kms, none", Values: []string{SSEAES256, SSEKMS, none},
				Help: "Which encryption on the server new objects ask for; none leaves it to the bucket. aws:kms is meant where kms_key is set.",
			},
			fallback: none,
			parse: func(r *Repository, v value, home string) error {
				if v.text() == none {
					r.SSE = ""
					return nil
				}
				return storeChoice(func(r *Repository) *string { return &r.SSE }, SSEAES256, SSEKMS)(r, v, home)
			},
			show: func(r Repository) string { return orNone(r.SSE) },
		},
		text(clouds, "kms_key", "kms-key", "KEY", "an id or ARN of an AWS KMS key, the full name of a Google Cloud KMS key, or an Azure encryption scope", word(2048, ":/._-"),
			"The key with which the service encrypts new objects.",
			func(r *Repository) *string { return &r.KMSKey }),
		text(gcs, "gcs_endpoint", "gcs-endpoint", "URL", endpointSyntax, storeEndpoint,
			"Another endpoint of Cloud Storage's JSON interface; an emulator is named by STORAGE_EMULATOR_HOST.",
			func(r *Repository) *string { return &r.GCSEndpoint }),
		text(gcs, "gcs_user_project", "gcs-user-project", "PROJECT", "the id of a project", word(128, ".:_-"),
			"The project that pays for requests, where the bucket has the requester pay.",
			func(r *Repository) *string { return &r.GCSUserProject }),
		text(azure, "azure_account", "azure-account", "NAME", "3 to 24 lower-case letters and digits", storeAccount,
			"The storage account of the container; without it AZURE_STORAGE_ACCOUNT or that of the connection string.",
			func(r *Repository) *string { return &r.AzureAccount }),
		text(azure, "azure_endpoint", "azure-endpoint", "URL", endpointSyntax, storeEndpoint,
			"The URL of the blob service, for emulators and other clouds; without it https://ACCOUNT.blob.core.windows.net.",
			func(r *Repository) *string { return &r.AzureEndpoint }),
		text(sftp, "sftp_known_hosts", "sftp-known-hosts", "PATH", pathSyntax, storeFile[Repository],
			"The file of known host keys, by which the server is always checked; without it ~/.ssh/known_hosts.",
			func(r *Repository) *string { return &r.SFTPKnownHosts }),
		text(sftp, "sftp_identity_file", "sftp-identity-file", "PATH", pathSyntax, storeFile[Repository],
			"A file with the private SSH key for logging in.",
			func(r *Repository) *string { return &r.SFTPIdentityFile }),
		text(clouds, "ca_file", "ca-file", "PATH", pathSyntax, storeFile[Repository],
			"A file with PEM certificates of authorities that are trusted for the connection to the service.",
			func(r *Repository) *string { return &r.CAFile }),
		truth(clouds, "insecure", "insecure",
			"Whether certificates are not checked, so that anybody between here and the service can read and change what is sent; every command warns.",
			func(r *Repository) *bool { return &r.Insecure }),
		{
			Option: Option{
				Key: "immutable", Env: "AGENT_IMMUTABLE", Flag: "immutable", Type: "MODE:DURATION", Default: none, Schemes: clouds,
				Allowed: "none, or governance or compliance with a duration in whole hours or days, 1d to 36500d, such as governance:30d; in YAML also {mode: governance, for: 30d}",
				Help:    "Lock every new object for so long, and for the longest chain (full_every) and 2 days besides: governance can be lifted by those who have a right of its own, compliance by nobody.",
			},
			fallback: none,
			parse: func(r *Repository, v value, _ string) (err error) {
				r.Immutable = nil
				if v.text() != none {
					r.Immutable, err = parseImmutable(v.text())
				}
				return err
			},
			show: func(r Repository) string {
				if r.Immutable == nil {
					return none
				}
				return r.Immutable.String()
			},
		},
		price(all, "price_storage_gb_month", "price-storage", "What the store takes for a gigabyte (10^9 bytes) for a month, for the costs that agent repo info shows.",
			func(r *Repository) *float64 { return &r.Prices.StorageGBMonth }),
		price(all, "price_put_1000", "price-put-1000", "What the store takes for 1,000 requests that write.",
			func(r *Repository) *float64 { return &r.Prices.Put1000 }),
		price(all, "price_get_1000", "price-get-1000", "What the store takes for 1,000 requests that read.",
			func(r *Repository) *float64 { return &r.Prices.Get1000 }),
		text(all, "price_currency", "price-currency", "TEXT", "1 to 8 letters and digits, such as EUR", word(8, ""),
			"In which currency the prices are; it is shown behind the costs.",
			func(r *Repository) *string { return &r.Prices.Currency }),
	}
}

const (
	urlSyntax      = "a URL such as file:///backup/main or s3://bucket/prefix, or an absolute path; no password in it"
	endpointSyntax = "a URL that begins with https:// or http://, without user, password and query"
	pathSyntax     = "the path of a file; absolute unless it is given as a flag"
)

// text is a row whose value is kept as a text.
func text(
	schemes []string, key, flag, kind, allowed string, store func(func(*Repository) *string) parser[Repository],
	help string, field func(*Repository) *string,
) repositoryOption {
	return repositoryOption{
		Option: Option{Key: key, Env: envPrefix + strings.ToUpper(key), Flag: flag, Type: kind, Allowed: allowed, Help: help, Schemes: schemes},
		parse:  store(field),
		show:   func(r Repository) string { return *field(&r) },
	}
}

// truth is a row whose value is true or false, and false by default.
func truth(schemes []string, key, flag, help string, field func(*Repository) *bool) repositoryOption {
	return repositoryOption{
		Option: Option{
			Key: key, Env: envPrefix + strings.ToUpper(key), Flag: flag, Type: "BOOL", Default: "false",
			Allowed: "true, false", Values: []string{"true", "false"}, Help: help, Schemes: schemes,
		},
		fallback: "false",
		parse:    storeBool(field),
		show:     func(r Repository) string { return strconv.FormatBool(*field(&r)) },
	}
}

// price is a row whose value is an amount of money; 0: it is not known.
func price(schemes []string, key, flag, help string, field func(*Repository) *float64) repositoryOption {
	return repositoryOption{
		Option: Option{
			Key: key, Env: envPrefix + strings.ToUpper(key), Flag: flag, Type: "PRICE", Default: "0",
			Allowed: "0 (not known), or a decimal number such as 0.023", Help: help, Schemes: schemes,
		},
		fallback: "0",
		parse:    storePrice(field),
		show:     func(r Repository) string { return strconv.FormatFloat(*field(&r), 'f', -1, 64) },
	}
}

// maxPrice keeps costs within what can be shown.
const maxPrice = 1_000_000

func storePrice(field func(*Repository) *float64) parser[Repository] {
	return func(r *Repository, v value, _ string) error {
		s := v.text()
		n, err := strconv.ParseFloat(s, 64)
		// ParseFloat takes more than decimal digits with a point.
		if err != nil || strings.Trim(s, "0123456789.") != "" {
			return errors.New("it is not a decimal number")
		}
		if n > maxPrice {
			return errors.New("it is out of range")
		}
		*field(r) = n
		return nil
	}
}

func storeBool(field func(*Repository) *bool) parser[Repository] {
	return func(r *Repository, v value, _ string) error {
		switch v.text() {
		case "true":
			*field(r) = true
		case "false":
			*field(r) = false
		default:
			return errNotAllowed
		}
		return nil
	}
}

// word makes a parser of texts of at most so many bytes: a letter or a digit,
// and then letters, digits and the other characters.
func word(most int, others string) func(func(*Repository) *string) parser[Repository] {
	return func(field func(*Repository) *string) parser[Repository] {
		return func(r *Repository, v value, _ string) error {
			s := v.text()
			if !isAlphanumeric(rune(s[0])) {
				return errNotAllowed
			}
			if strings.ContainsFunc(s, func(c rune) bool { return !isAlphanumeric(c) && !strings.ContainsRune(others, c) }) {
				return errNotAllowed
			}
			if len(s) > most {
				return errors.New("it is too long")
			}
			*field(r) = s
			return nil
		}
	}
}

func isAlphanumeric(c rune) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// storeAccount takes the name of an Azure storage account (Azure Storage
// documentation, "Storage account name").
func storeAccount(field func(*Repository) *string) parser[Repository] {
	return func(r *Repository, v value, home string) error {
		if s := v.text(); len(s) < 3 || s != strings.ToLower(s) {
			return errNotAllowed
		}
		return word(24, "")(field)(r, v, home)
	}
}

// storeEndpoint takes the URL of a service. What else a URL may hold could be
// a secret, and would be sent with every request.
func storeEndpoint(field func(*Repository) *string) parser[Repository] {
	return func(r *Repository, v value, _ string) error {
		u, err := url.Parse(v.text())
		switch {
		case err != nil:
			return errors.New("it is not a URL") // the cause repeats the value
		case u.Scheme != "https" && u.Scheme != "http":
			return errors.New("it does not begin with https:// or http://")
		case u.Hostname() == "":
			return errors.New("it has no host")
		case u.User != nil:
			return errors.New("it holds a user or a password")
		case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "":
			return errors.New("it has a query or a fragment")
		}
		*field(r) = v.text()
		return nil
	}
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}
