package storage

import (
	"strings"
	"testing"

	"agent/internal/errs"
)

func TestParseURL(t *testing.T) {
	tests := []struct{ in, scheme, host, path string }{
		{"/backup", "file", "", "/backup"},
		{"/backup/a b%20c/../d/", "file", "", "/backup/d"},
		{"/a?b#c", "file", "", "/a?b#c"},
		{"file:///backup/x", "file", "", "/backup/x"},
		{"FILE:///backup", "file", "", "/backup"},
		{"file:/backup", "file", "", "/backup"},
		{"file://localhost/backup", "file", "", "/backup"},
		{"file:///with%20space", "file", "", "/with space"},
		{"s3://bucket", "s3", "bucket", ""},
		{"s3://bucket/", "s3", "bucket", ""},
		{"s3://bucket/pre/fix/", "s3", "bucket", "pre/fix"},
		{"gs://bucket/p", "gs", "bucket", "p"},
		{"azblob://container/p", "azblob", "container", "p"},
		{"sftp://host/srv/backup", "sftp", "host", "/srv/backup"},
		{"sftp://me@host:2222/srv//backup/", "sftp", "me@host:2222", "/srv/backup"},
		{"sftp://[::1]:22/b", "sftp", "[::1]:22", "/b"},
	}
	for _, tt := range tests {
		scheme, host, path, err := ParseURL(tt.in)
		if err != nil || scheme != tt.scheme || host != tt.host || path != tt.path {
			t.Errorf("ParseURL(%q) = %q, %q, %q, %v", tt.in, scheme, host, path, err)
		}
	}
}

func TestParseURLRefuses(t *testing.T) {
	const secret = "hunter2"
	tests := []struct{ in, want string }{
		{"", "neither an absolute path"},
		{"relative/hunter2", "neither an absolute path"},
		{"./hunter2", "neither an absolute path"},
		{"://hunter2", "neither an absolute path"},
		{"http://hunter2/x", "unknown scheme http"},
		{"hunter2!:x", "unknown scheme"},
		{"user@host:/hunter2", "neither an absolute path"},
		{"file://host/hunter2", "names a host"},
		{"file://relative-hunter2", "names a host"},
		{"file://", "no absolute path"},
		{"file:hunter2", "cannot be understood"},
		{"s3:hunter2", "cannot be understood"},
		{"s3:///hunter2", "names no bucket"},
		{"s3://bucket:80/hunter2", "has a port"},
		{"s3://bucket/a/../hunter2/..", "prefix that cannot be used"},
		{"s3://key:hunter2@bucket/x", "holds a password"},
		{"s3://key:hun%ter2-hunter2@bucket", "cannot be understood"},
		{"s3://hunter2@bucket/x", "has a user name"},
		{"s3://bucket/x?token=hunter2", "query"},
		{"s3://bucket/x?", "query"},
		{"s3://bucket/x#hunter2", "fragment"},
		{"s3://bucket/x#", "fragment"},
		{"sftp://me:hunter2@host/x", "holds a password"},
		{"sftp://me:@host/x", "holds a password"},
		{"sftp://host", "no absolute path"},
		{"sftp:///hunter2", "no host"},
		{"/a\x00hunter2", "zero byte"},
	}
	for _, tt := range tests {
		scheme, host, path, err := ParseURL(tt.in)
		if err == nil {
			t.Errorf("ParseURL(%q) = %q, %q, %q without an error", tt.in, scheme, host, path)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || errs.KindOf(err) != errs.Config {
			t.Errorf("ParseURL(%q): %v (kind %d), want %q", tt.in, err, errs.KindOf(err), tt.want)
		}
		if tt.want != "prefix that cannot be used" && strings.Contains(err.Error()+errs.HintOf(err), secret) {
			t.Errorf("ParseURL(%q) shows the secret: %v", tt.in, err)
		}
	}
}

func TestParseURLNamesWhatIsAllowed(t *testing.T) {
	_, _, _, err := ParseURL("ftp://x/y")
	for _, form := range schemeForms() {
		if !strings.Contains(errs.HintOf(err), form) {
			t.Errorf("hint %q does not name %s", errs.HintOf(err), form)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"/a", "file:///a", "s3://b/p", "sftp://u@h:1/p", "s3://u:p@b", "x:y", "s3://[::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		scheme, host, path, err := ParseURL(s)
		if err != nil {
			return
		}
		switch scheme {
		case SchemeFile, SchemeSFTP:
			if !strings.HasPrefix(path, "/") || strings.Contains(path+"/", "/../") {
				t.Fatalf("ParseURL(%q) gives the path %q", s, path)
			}
		default:
			if host == "" || path != "" && CheckKey(path) != nil {
				t.Fatalf("ParseURL(%q) gives host %q and prefix %q", s, host, path)
			}
		}
		if scheme == SchemeFile && host != "" {
			t.Fatalf("ParseURL(%q) gives the host %q", s, host)
		}
	})
}

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"/backup/":                 "file:///backup",
		"FILE:///a b/":             "file:///a%20b",
		"s3://bucket":              "s3://bucket",
		"S3://bucket/a/b/":         "s3://bucket/a/b",
		"sftp://u@host:2/x//y/":    "sftp://u@host:2/x/y",
		"no url":                   "no url",
		"azblob://container//pre/": "azblob://container/pre",
	} {
		if got := Canonical(in); got != want {
			t.Errorf("Canonical(%q) = %q, want %q", in, got, want)
		}
	}
}
