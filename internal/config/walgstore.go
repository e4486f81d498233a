package config

import (
	"errors"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"agent/internal/storage"
)

// storeAliases are the variables of WAL-G (its documentation, STORAGES.md) for
// one kind of store. They count only for repositories of that kind: other
// tools use some of these names too.
func storeAliases() []alias {
	same := func(text string, _ lookup) (string, string, error) { return text, "", nil }
	return []alias{
		{
			env: "AWS_ENDPOINT", key: "s3_endpoint", only: storage.SchemeS3, form: endpointSyntax,
			yields:  []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"},
			becomes: "the same, with `https://` if it names a host alone",
			convert: func(text string, _ lookup) (string, string, error) {
				if !strings.Contains(text, "://") {
					text = "https://" + text
				}
				return text, "", nil
			},
		},
		{
			env: "AWS_S3_FORCE_PATH_STYLE", key: "s3_path_style", only: storage.SchemeS3, form: "true, false",
			becomes: "the same",
			convert: func(text string, _ lookup) (string, string, error) {
				b, err := strconv.ParseBool(text)
				if err != nil {
					return "", "", errNotAllowed
				}
				return strconv.FormatBool(b), "", nil
			},
		},
		{
			env: "WALG_S3_STORAGE_CLASS", key: "storage_class", only: storage.SchemeS3, form: "a storage class of S3",
			becomes: "the same", convert: same,
		},
		{
			env: "WALG_S3_SSE", key: "sse", only: storage.SchemeS3, form: "AES256, aws:kms",
			becomes: "the same", convert: same,
		},
		{
			env: "WALG_S3_SSE_KMS_ID", key: "kms_key", only: storage.SchemeS3, form: "an id or ARN of an AWS KMS key",
			becomes: "the same", convert: same,
		},
		{
			env: "WALG_S3_CA_CERT_FILE", key: "ca_file", only: storage.SchemeS3, form: "an absolute path",
			becomes: "the same", convert: same,
		},
		{
			env: "S3_RETENTION_PERIOD", key: "immutable", only: storage.SchemeS3, form: "a whole number of seconds, with S3_RETENTION_MODE governance or compliance",
			becomes: "the mode of `S3_RETENTION_MODE` and the period, in whole hours and at least `1d`", convert: retention,
		},
		{
			env: "SSH_PRIVATE_KEY_PATH", key: "sftp_identity_file", only: storage.SchemeSFTP, form: "an absolute path",
			becomes: "the same", convert: same,
		},
	}
}

// readStoreAliases adds to settings what WAL-G's variables say for the kinds
// of the chosen repositories.
func (l *loader) readStoreAliases(own func(key string) (origin, bool), chosen []item, settings layer) {
	for _, a := range storeAliases() {
		if slices.ContainsFunc(chosen, func(r item) bool { return spot(r.URL).scheme == a.only }) {
			if !l.outdone(a, own) {
				l.readAlias(a, settings)
			}
			continue
		}
		if _, set := l.variable(a.env); set && isWALG(a.env) {
			l.warn("%s is ignored: it has a meaning only for a repository with the scheme %s", a.env, a.only)
		}
	}
}

// sftpURL makes a URL of WALG_SSH_PREFIX and the variables that go with it.
func sftpURL(text string, variable lookup) (string, string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Opaque != "" {
		return "", "", errors.New("it is not a URL") // the cause repeats the value
	}
	if u.Scheme != "ssh" || u.Hostname() == "" {
		return "", "", errors.New("it does not begin with ssh:// and a host")
	}
	if name, set := variable("SSH_USERNAME"); set && u.User == nil {
		u.User = url.User(name)
	}
	if port, set := variable("SSH_PORT"); set && u.Port() == "" {
		if n, err := wholeNumber(port); err != nil || n < 1 || n > 65535 {
			return "", "", errors.New("SSH_PORT is not the number of a port")
		}
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	u.Scheme = storage.SchemeSFTP
	return u.String(), "", nil
}

// retention makes a lock of S3_RETENTION_PERIOD, which is in seconds, and
// S3_RETENTION_MODE. A negative period, as -1 by default, is none.
func retention(text string, variable lookup) (string, string, error) {
	if digits, negative := strings.CutPrefix(text, "-"); negative && strings.Trim(digits, "0123456789") == "" || text == "0" {
		return none, "", nil
	}
	n, err := wholeNumber(text)
	if err != nil {
		return "", "", err
	}
	mode, set := variable("S3_RETENTION_MODE")
	if !set {
		mode = string(storage.Governance)
	}
	mode = strings.ToLower(mode)
	if mode != string(storage.Governance) && mode != string(storage.Compliance) {
		return "", "", errors.New("S3_RETENTION_MODE is neither governance nor compliance")
	}
	const hour = int(time.Hour / time.Second)
	hours, note := n/hour, ""
	if n%hour != 0 {
		hours++
	}
	switch least, most := int(minLock/time.Hour), int(maxLock/time.Hour); {
	case hours < least:
		hours, note = least, "is raised to 1d, the least that is allowed"
	case hours > most:
		return "", "", errors.New("that is too long")
	}
	lock := Immutable{Mode: mode, For: time.Duration(hours) * time.Hour}
	return lock.String(), note, nil
}
