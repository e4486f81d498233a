package storage

import (
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"agent/internal/errs"
)

// The schemes of repository URLs.
const (
	SchemeFile  = "file"
	SchemeS3    = "s3"
	SchemeGCS   = "gs"
	SchemeAzure = "azblob"
	SchemeSFTP  = "sftp"
)

// schemeForms says how a URL of each scheme looks, for messages.
func schemeForms() map[string]string {
	return map[string]string{
		SchemeFile:  "file:///folder",
		SchemeS3:    "s3://bucket/prefix",
		SchemeGCS:   "gs://bucket/prefix",
		SchemeAzure: "azblob://container/prefix",
		SchemeSFTP:  "sftp://user@host:port/folder",
	}
}

// ParseURL takes a repository's URL apart. An absolute path is a URL of the
// scheme "file", taken as it is, without percent decoding.
//
// For "file" host is empty and path is absolute and clean. For "sftp" host is
// [user@]host[:port] and path is absolute and clean. For the object stores
// host is the bucket or container and path the prefix within it, without a
// slash at either end, or empty.
//
// Errors have the kind Config. They never repeat the URL, since a URL with a
// mistake in it may hold a secret; for the same reason a URL with a password
// and one with a query (where some stores put tokens) are refused.
func ParseURL(s string) (scheme, host, path string, err error) {
	if strings.HasPrefix(s, "/") {
		p, err := cleanFolder(s)
		return SchemeFile, "", p, err
	}
	scheme, rest, found := strings.Cut(s, ":")
	if !found || scheme == "" || strings.ContainsAny(scheme, "/@?#%") {
		return "", "", "", errs.New(errs.Config, "Give an absolute path or a URL such as s3://bucket/prefix.",
			"repository URL is neither an absolute path nor a URL with a scheme")
	}
	forms := schemeForms()
	scheme = strings.ToLower(scheme)
	form, ok := forms[scheme]
	if !ok {
		return "", "", "", errs.New(errs.Config,
			"Use one of: an absolute path, "+strings.Join(slices.Sorted(maps.Values(forms)), ", ")+".",
			"repository URL has an unknown scheme%s", named(scheme))
	}
	u, err := url.Parse(scheme + ":" + rest)
	if err != nil || u.Opaque != "" {
		// The cause is left out: it repeats the URL.
		return "", "", "", badURL(scheme, form, "cannot be understood")
	}
	if _, has := u.User.Password(); has {
		return "", "", "", errs.New(errs.Config,
			"Take the password out of the URL; give credentials by the environment or a file as the manual says.",
			"repository URL with the scheme %s holds a password", scheme)
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(s, "#") {
		return "", "", "", badURL(scheme, form, "has a query or a fragment")
	}
	if u.User != nil && scheme != SchemeSFTP {
		return "", "", "", badURL(scheme, form, "has a user name")
	}
	switch scheme {
	case SchemeFile:
		path, err = fileURL(u, form)
	case SchemeSFTP:
		host, path, err = sftpURL(u, form)
	default:
		host, path, err = bucketURL(u, scheme, form)
	}
	if err != nil {
		return "", "", "", err
	}
	return scheme, host, path, nil
}

// named shows a scheme only if it is one by RFC 3986 section 3.1; anything
// else may be the beginning of a secret.
func named(scheme string) string {
	if len(scheme) > 16 || strings.ContainsFunc(scheme, func(r rune) bool {
		return (r < 'a' || 'z' < r) && (r < '0' || '9' < r) && r != '+' && r != '-' && r != '.'
	}) {
		return ""
	}
	return " " + scheme
}

func badURL(scheme, form, what string) error {
	return errs.New(errs.Config, "Write it as "+form+".", "repository URL with the scheme %s %s", scheme, what)
}

// fileURL follows RFC 8089: the host is empty or "localhost".
func fileURL(u *url.URL, form string) (path string, err error) {
	if u.Host != "" && u.Host != "localhost" {
		return "", badURL(SchemeFile, form, "names a host or is not an absolute path")
	}
	if !strings.HasPrefix(u.Path, "/") {
		return "", badURL(SchemeFile, form, "has no absolute path")
	}
	return cleanFolder(u.Path)
}

func sftpURL(u *url.URL, form string) (host, path string, err error) {
	if u.Hostname() == "" {
		return "", "", badURL(SchemeSFTP, form, "has no host")
	}
	if !strings.HasPrefix(u.Path, "/") {
		return "", "", badURL(SchemeSFTP, form, "has no absolute path")
	}
	host = u.Host
	if u.User != nil {
		host = u.User.Username() + "@" + host
	}
	path, err = cleanFolder(u.Path)
	return host, path, err
}

func bucketURL(u *url.URL, scheme, form string) (host, path string, err error) {
	if u.Host == "" {
		return "", "", badURL(scheme, form, "names no bucket")
	}
	if u.Port() != "" {
		return "", "", badURL(scheme, form, "has a port; an endpoint is a setting of its own")
	}
	path = strings.Trim(u.Path, "/")
	if path == "" {
		return u.Host, "", nil
	}
	if err := CheckKey(path); err != nil {
		return "", "", errs.Wrap(err, errs.Config, "Write it as "+form+".", "repository URL has a prefix that cannot be used")
	}
	return u.Host, path, nil
}

func cleanFolder(p string) (string, error) {
	if strings.ContainsRune(p, 0) {
		return "", errs.New(errs.Config, "", "repository path holds a zero byte")
	}
	return path.Clean(p), nil
}
