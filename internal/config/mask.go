package config

import (
	"net/url"
	"regexp"
	"strings"
)

// Mask stands for a secret wherever a setting is shown.
const Mask = "********"

// hide replaces a secret that is set.
func hide(s string) string {
	if s == "" {
		return ""
	}
	return Mask
}

// privateKey finds age identities (C2SP age, "AGE-SECRET-KEY-1") and plugin
// identities, which are case-insensitive (Bech32), and PEM private keys.
var privateKey = regexp.MustCompile(`(?i)AGE-SECRET-KEY-|AGE-PLUGIN-|PRIVATE KEY-----`)

func holdsPrivateKey(s string) bool { return privateKey.MatchString(s) }

// secretParameters are the connection parameters that hold a secret
// (PostgreSQL documentation, 34.1.2 Parameter Key Words).
func secretParameter(name string) bool {
	switch strings.ToLower(strings.TrimSpace(name)) {
	case "password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key":
		return true
	default:
		return false
	}
}

// MaskConnection returns a libpq connection string or URL with its passwords
// replaced by Mask and everything else as it was. What cannot be parsed is
// masked whole.
func MaskConnection(s string) string {
	if strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		return maskURL(s, secretParameter)
	}
	masked, ok := maskKeywords(s)
	if !ok {
		return Mask
	}
	return masked
}

// maskRepository masks, in what was given as a repository's URL, a password
// and all parameters: some stores put tokens there.
func maskRepository(s string) string {
	if !strings.Contains(s, "://") {
		if passwordLike.MatchString(s) {
			return Mask
		}
		return s
	}
	return maskURL(s, func(string) bool { return true })
}

var passwordLike = regexp.MustCompile(`:(?s:.*)@`)

// maskURL masks the password of the user, and the parameters whose names are
// secret. It works on the text, since net/url refuses the lists of hosts that
// libpq allows.
func maskURL(s string, secret func(name string) bool) string {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		return s
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	path, query, hasQuery := strings.Cut(tail, "?")
	if user, _, has := strings.Cut(authority, ":"); has && !strings.Contains(authority, "@") && strings.Contains(path, "@") {
		// A password with an unescaped slash: nothing behind the user is safe.
		return scheme + "://" + user + ":" + Mask
	}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		if user, password, has := strings.Cut(authority[:i], ":"); has && password != "" {
			authority = user + ":" + Mask + authority[i:]
		}
	}
	if !hasQuery {
		return scheme + "://" + authority + tail
	}
	parameters := strings.Split(query, "&")
	for i, p := range parameters {
		if name, v, has := strings.Cut(p, "="); has && v != "" && secret(unescape(name)) {
			parameters[i] = name + "=" + Mask
		}
	}
	return scheme + "://" + authority + path + "?" + strings.Join(parameters, "&")
}

// keyword matches one "name = value" of a connection string, whose value is
// quoted or has no blanks, with backslash escapes in both forms
// (PostgreSQL documentation, 34.1.1.1; fe-connect.c conninfo_parse).
var keyword = regexp.MustCompile(`^(\s*)([^=\s]+)(\s*=\s*)('(?:[^'\\]|\\(?s:.))*'|(?:[^\s\\']|\\(?s:.))(?:[^\s\\]|\\(?s:.))*|)`)

func maskKeywords(s string) (string, bool) {
	var b strings.Builder
	rest := s
	for strings.TrimSpace(rest) != "" {
		m := keyword.FindStringSubmatch(rest)
		if m == nil {
			return "", false
		}
		v := m[4]
		switch {
		case secretParameter(m[2]) && v != "" && v != "''":
			v = Mask
		case strings.Contains(v, "://"):
			v = maskURL(v, secretParameter)
		}
		b.WriteString(m[1] + m[2] + m[3] + v)
		rest = rest[len(m[0]):]
		if rest != "" && !strings.ContainsRune(" \t\n\r\f\v", rune(rest[0])) {
			return "", false
		}
	}
	b.WriteString(rest)
	return b.String(), true
}

// unescape undoes percent encoding; a name that cannot be decoded is kept.
func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// secretName says whether a name, of whatever spelling, may stand for a
// secret, so that a misspelt setting does not show it.
func secretName(name string) bool {
	name = normal(name)
	if strings.HasSuffix(name, "_file") || strings.HasSuffix(name, "_command") || strings.HasSuffix(name, "_path") {
		return false
	}
	for _, part := range []string{"pass", "secret", "token", "cred", "key", "ident", "pwd"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return distance(name, "identity") <= 3
}

// safe returns a value as errors may show it, for a setting of that name.
func safe(name, text string) string {
	if secretName(name) {
		return hide(text)
	}
	return shorten(maskAny(text))
}

var looksSecret = regexp.MustCompile(`(?i)(pass|secret|token|pwd|credential)[a-z_]*\s*[=:]`)

// maskAny hides what looks like a secret in a text of unknown meaning.
func maskAny(s string) string {
	switch {
	case holdsPrivateKey(s):
		return Mask
	case strings.Contains(s, "://"):
		return maskURL(s, func(string) bool { return true })
	case passwordLike.MatchString(s):
		return Mask
	case looksSecret.MatchString(s):
		return Mask
	default:
		return s
	}
}

// shorten keeps error texts readable.
func shorten(s string) string {
	const most = 120
	runes := []rune(s)
	if len(runes) <= most {
		return s
	}
	return string(runes[:most]) + "…"
}
