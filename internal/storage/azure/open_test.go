package azure

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
	"agent/internal/storage"
)

const secret = "aHVudGVyMg==" // base64, as keys are

func TestOpenRefuses(t *testing.T) {
	key, sas := Secrets{AccountKey: secret}, Secrets{SASToken: "sv=1&sig=" + secret}
	tests := []struct {
		name string
		o    Options
		want string
	}{
		{"no container", Options{Account: "account", Secrets: key}, "cannot be the name of an Azure container"},
		{"short container", Options{Container: "ab", Account: "account", Secrets: key}, "container"},
		{"double hyphen", Options{Container: "a--b", Account: "account", Secrets: key}, "container"},
		{"upper-case container", Options{Container: "Backup", Account: "account", Secrets: key}, "container"},
		{"long container", Options{Container: strings.Repeat("a-", 32) + "a", Account: "account", Secrets: key}, "container"},
		{"prefix", Options{Container: "backup", Prefix: "a//b", Account: "account", Secrets: key}, "prefix"},
		{"no account", Options{Container: "backup", Secrets: sas}, "no Azure storage account"},
		{"account", Options{Container: "backup", Account: "a.b/c", Secrets: key}, "cannot be the name of an Azure storage account"},
		{"endpoint with a token", Options{Container: "backup", Endpoint: "https://host/?sig=" + secret, Secrets: sas}, "endpoint"},
		{"endpoint with a password", Options{Container: "backup", Endpoint: "https://u:" + secret + "@host/", Secrets: sas}, "endpoint"},
		{"endpoint without a scheme", Options{Container: "backup", Endpoint: "host:1/" + secret, Secrets: sas}, "endpoint"},
		{"key without account", Options{Container: "backup", Endpoint: "https://host", Secrets: key}, "no account"},
		{"key", Options{Container: "backup", Account: "account", Secrets: Secrets{AccountKey: secret + "!"}}, "base64"},
		{"SAS", Options{Container: "backup", Account: "account", Secrets: Secrets{SASToken: secret}}, "SAS_TOKEN"},
		{"SAS escapes", Options{Container: "backup", Account: "account", Secrets: Secrets{SASToken: "sig=%zz" + secret}}, "SAS_TOKEN"},
		{"connection string", Options{Container: "backup", Secrets: Secrets{ConnectionString: secret}}, "CONNECTION_STRING"},
		{"connection string's key", Options{Container: "backup", Secrets: Secrets{ConnectionString: "AccountName=a;AccountKey=!" + secret}}, "CONNECTION_STRING"},
		{"connection string's endpoint", Options{Container: "backup", Secrets: Secrets{ConnectionString: "BlobEndpoint=" + secret + ";SharedAccessSignature=sig=1"}}, "CONNECTION_STRING"},
		{"token in the clear", Options{Container: "backup", Endpoint: "http://host/account"}, "not encrypted"},
		{"archive", Options{Container: "backup", Account: "account", Secrets: key, StorageClass: "Archive"}, "access tier"},
		{"CA", Options{Container: "backup", Account: "account", Secrets: key, CAFile: "/does/not/exist"}, "ca_file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(t.Context(), tt.o)
			if err == nil || errs.KindOf(err) != errs.Config || errs.HintOf(err) == "" || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("open: %v (kind %d, hint %q), want %q", err, errs.KindOf(err), errs.HintOf(err), tt.want)
			}
			if strings.Contains(err.Error()+errs.HintOf(err), secret) {
				t.Fatalf("the error shows the secret: %v", err)
			}
		})
	}
}

func TestOpenTakes(t *testing.T) {
	key := Secrets{AccountKey: secret}
	tests := []struct {
		o    Options
		host string
		name string
	}{
		{
			Options{Container: "backup", Prefix: "a/b", Account: "account", Secrets: key},
			"https://account.blob.core.windows.net/backup", "azblob://backup/a/b",
		},
		{
			Options{Container: "backup", Account: "account", Endpoint: "https://account.blob.core.chinacloudapi.cn/", Secrets: key, URL: "azblob://x"},
			"https://account.blob.core.chinacloudapi.cn/backup", "azblob://x",
		},
		{
			Options{Container: "a-b", Account: "account-secondary", Secrets: Secrets{SASToken: "?sv=1&sp=rl&sig=" + secret}, StorageClass: "cOOl"},
			"https://account-secondary.blob.core.windows.net/a-b", "azblob://a-b",
		},
		{
			Options{Container: "backup", Secrets: Secrets{ConnectionString: "AccountName=one;AccountKey=" + secret + ";EndpointSuffix=core.usgovcloudapi.net", AccountKey: "!"}},
			"https://one.blob.core.usgovcloudapi.net/backup", "azblob://backup",
		},
		{
			Options{Container: "$root", Secrets: Secrets{ConnectionString: "BlobEndpoint=https://host;SharedAccessSignature=sv=1&sig=" + secret}},
			"https://host/$root", "azblob://$root",
		},
		{
			Options{Container: "backup", Account: "account"}, // the default chain
			"https://account.blob.core.windows.net/backup", "azblob://backup",
		},
	}
	for _, tt := range tests {
		var log bytes.Buffer
		tt.o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		b := open(t, tt.o)
		if b.host() != tt.host || b.String() != tt.name {
			t.Errorf("opened %s at %s, want %s at %s", b, b.host(), tt.name, tt.host)
		}
		if strings.Contains(log.String(), secret) || log.Len() == 0 {
			t.Errorf("logged: %s", log.String())
		}
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

func TestFromEnv(t *testing.T) {
	env := map[string]string{
		"AZURE_STORAGE_CONNECTION_STRING": "a", "AZURE_STORAGE_KEY": "b", "AZURE_STORAGE_SAS_TOKEN": "c", "AZURE_STORAGE_ACCOUNT": "d",
	}
	got := FromEnv(func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	if want := (Secrets{"a", "b", "c"}); got != want {
		t.Fatalf("from the environment: %q, %q, %q", got.ConnectionString, got.AccountKey, got.SASToken)
	}
	if got := FromEnv(func(string) (string, bool) { return "", false }); got != (Secrets{}) {
		t.Fatal("there is something in an empty environment")
	}
}

// TestSecretsArePrintedByNothing uses every way in which a value may end in a
// log.
func TestSecretsArePrintedByNothing(t *testing.T) {
	for _, s := range []Secrets{{ConnectionString: secret}, {AccountKey: secret}, {SASToken: secret}, {secret, secret, secret}} {
		o := Options{Container: "backup", Secrets: s}
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+verb+verb+"\n", s, &s, o)
		}
		for _, v := range []any{s, o, &o} {
			text, err := json.Marshal(v)
			if err == nil {
				out.Write(text)
			}
			slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "secrets", v)
			slog.New(slog.NewTextHandler(&out, nil)).Info("x", "secrets", v)
		}
		hexed := fmt.Sprintf("%x", secret)
		if text := out.String(); strings.Contains(text, secret) || strings.Contains(text, hexed) || !strings.Contains(text, s.String()) {
			t.Errorf("printed: %s", text)
		}
	}
}

func TestMetadataNames(t *testing.T) {
	tests := []struct{ name, want string }{
		{"origin", "origin"},
		{"case-kept", "case_x2d_kept"},
		{"a_b", "a_x5f_b"},
		{"1st", "_x31_st"},
		{"A.Ü", "a_x2e__xc3__x9c_"},
		{"_x2d_", "_x5f_x2d_x5f_"},
	}
	for _, tt := range tests {
		got := metaName(tt.name)
		if got != tt.want || unmetaName(got) != strings.Map(lowerASCII, tt.name) {
			t.Errorf("%q becomes %q (want %q) and then %q", tt.name, got, tt.want, unmetaName(got))
		}
	}
	out, err := metaOut(map[string]string{"case-kept": "Mixed Case", "origin": "x"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"case-kept": "Mixed Case", "origin": "x"}, metaIn(out)); diff != "" {
		t.Error(diff)
	}
	for _, value := range []string{"", " x", "x ", "a\nb", "ü", "\x7f"} {
		if _, err := metaOut(map[string]string{"name": value}); err == nil {
			t.Errorf("the value %q is taken", value)
		}
	}
	if _, err := metaOut(map[string]string{"": "x"}); err == nil {
		t.Error("a value without a name is taken")
	}
}

func lowerASCII(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

func FuzzMetadataName(f *testing.F) {
	f.Add("_x2d_")
	f.Add("a_x5")
	f.Fuzz(func(t *testing.T, name string) {
		unmetaName(name) // of a foreign blob: anything may come
		out := metaName(name)
		for i, c := range []byte(out) {
			if (c < 'a' || 'z' < c) && c != '_' && (i == 0 || c < '0' || '9' < c) {
				t.Fatalf("%q becomes %q, which is no identifier", name, out)
			}
		}
		if got := unmetaName(out); got != strings.Map(lowerASCII, name) && strings.ToValidUTF8(name, "") == name {
			t.Fatalf("%q becomes %q and then %q", name, out, got)
		}
	})
}

func TestCapabilities(t *testing.T) {
	b := open(t, Options{Container: "backup", Account: "account", Secrets: Secrets{AccountKey: secret}})
	if want := (storage.Capabilities{Metadata: true, Locks: true, Versions: true}); b.Capabilities() != want {
		t.Errorf("capabilities: %+v", b.Capabilities())
	}
}
