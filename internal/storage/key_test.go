package storage

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestCheckKey(t *testing.T) {
	tests := []struct {
		key string
		ok  bool
	}{
		{"repository.json", true},
		{"cluster/07300000000000000001/wal/0000000100000000/000000010000000000000001", true},
		{"wal/000000010000000000000001.partial.0123456789abcdef", true},
		{"mark/20261120T101530Z-k3v9qa/1.json", true},
		{"a_b+c=d@e,f-g.h", true},
		{".hidden", true},
		{"..a", true},
		{"-", true},
		{"lost+found2", true},
		{strings.Repeat("c", MaxComponent), true},
		{strings.Repeat("a/", (MaxKey-2)/2) + "bb", true},
		{"", false},
		{"/", false},
		{"/a", false},
		{"a/", false},
		{"a//b", false},
		{".", false},
		{"..", false},
		{"a/./b", false},
		{"a/../b", false},
		{"../a", false},
		{"a.", false},
		{"...", false},
		{".tmp-1", false},
		{"a/.tmp-", false},
		{"a/.tmp-x/b", false},
		{".nfs0000000000000001", false},
		{"lost+found", false},
		{"lost+found/a", false},
		{"a b", false},
		{"a\\b", false},
		{"a\x00b", false},
		{"a\nb", false},
		{"a~b", false},
		{"a:b", false},
		{"a%2fb", false},
		{"ä", false},
		{"a\xff", false},
		{strings.Repeat("c", MaxComponent+1), false},
		{strings.Repeat("a/", MaxKey/2) + "b", false},
	}
	for _, tt := range tests {
		err := CheckKey(tt.key)
		if (err == nil) != tt.ok {
			t.Errorf("CheckKey(%q) = %v, want ok %v", tt.key, err, tt.ok)
		}
		if err != nil && !errors.Is(err, ErrKey) {
			t.Errorf("CheckKey(%q) = %v, which is not ErrKey", tt.key, err)
		}
		if want := tt.ok && !strings.Contains(tt.key, "/"); want != ValidComponent(tt.key) {
			t.Errorf("ValidComponent(%q) = %v", tt.key, !want)
		}
	}
}

func TestCheckPrefix(t *testing.T) {
	tests := []struct {
		prefix string
		ok     bool
	}{
		{"", true},
		{"a", true},
		{"a/", true},
		{"a/b", true},
		{"a/.", true},
		{"a/..", true},
		{".tm", true},
		{"lost+found", true},
		{"lost+found/", false},
		{"/", false},
		{"a//", false},
		{"../", false},
		{"a/./", false},
		{".tmp-", false},
		{".nfs1", false},
		{"a b", false},
		{strings.Repeat("c", MaxComponent+1), false},
		{strings.Repeat("a/", MaxKey), false},
	}
	for _, tt := range tests {
		err := CheckPrefix(tt.prefix)
		if (err == nil) != tt.ok {
			t.Errorf("CheckPrefix(%q) = %v, want ok %v", tt.prefix, err, tt.ok)
		}
		if err != nil && !errors.Is(err, ErrKey) {
			t.Errorf("CheckPrefix(%q) = %v, which is not ErrKey", tt.prefix, err)
		}
	}
}

// Every beginning of a key is a prefix, and a key never leads out of where it
// is put.
func TestKeyProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringMatching(`[a.]{0,4}(/[a-c.+-]{0,6}){0,4}`).Draw(t, "key")
		if CheckKey(key) != nil {
			return
		}
		for i := range len(key) + 1 {
			if err := CheckPrefix(key[:i]); err != nil {
				t.Fatalf("key %q is valid, but its beginning is not: %v", key, err)
			}
		}
		for part := range strings.SplitSeq(key, "/") {
			if part == "" || part == "." || part == ".." {
				t.Fatalf("key %q with the component %q is taken", key, part)
			}
		}
	})
}

func TestErrorText(t *testing.T) {
	for want, e := range map[string]*Error{
		"get a/b of file:///x: object does not exist": {Op: "get", Bucket: "file:///x", Key: "a/b", Err: ErrNotExist},
		"list file:///x: store unavailable":           {Op: "list", Bucket: "file:///x", Err: ErrUnavailable},
	} {
		if got := e.Error(); got != want || !errors.Is(e, e.Err) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
