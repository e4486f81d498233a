package storage

import "net/url"

// Canonical writes a repository's URL in one way, so that what a host remembers
// of it is found again: without a slash at its end, with the scheme in lower
// case. A URL that cannot be understood is returned as it is.
func Canonical(repository string) string {
	scheme, host, path, err := ParseURL(repository)
	switch {
	case err != nil:
		return repository
	case scheme == SchemeFile, scheme == SchemeSFTP:
		return scheme + "://" + host + (&url.URL{Path: path}).EscapedPath()
	case path == "":
		return scheme + "://" + host
	default:
		return scheme + "://" + host + "/" + path
	}
}
