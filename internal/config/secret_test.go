package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMaskConnection(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "",
		"host=a user=b":                 "host=a user=b",
		"host=a password=geheim user=b": "host=a password=******** user=b",
		"password='ge heim' host=a":     "password=******** host=a",
		`password='ge\'heim' host=a`:    "password=******** host=a",
		`password=ge\ heim host=a`:      "password=******** host=a",
		"host=a\n  password =  geheim\tsslmode=x":          "host=a\n  password =  ********\tsslmode=x",
		"PASSWORD=geheim":                                  "PASSWORD=********",
		"sslpassword=geheim sslkey=/k":                     "sslpassword=******** sslkey=/k",
		"password= host=geheim":                            "password= ********",
		"password='' host=a":                               "password='' host=a",
		"passfile=/home/me/.pgpass":                        "passfile=/home/me/.pgpass",
		"application_name='a=b c' user=x":                  "application_name='a=b c' user=x",
		"dbname=postgres://u:geheim@h/db":                  "dbname=postgres://u:********@h/db",
		"password='geheim":                                 Mask,
		"geheim":                                           Mask,
		"password=a'geheim b c":                            Mask,
		"postgres://u:geheim@h/db":                         "postgres://u:********@h/db",
		"postgresql://u:geheim@h1:1,h2/db?sslmode=require": "postgresql://u:********@h1:1,h2/db?sslmode=require",
		"postgres://u:ge@heim@h/db":                        "postgres://u:********@h/db",
		"postgres://u:ge/heim@h/db":                        "postgres://u:********",
		"postgres://u@h/db?password=geheim&a=b":            "postgres://u@h/db?password=********&a=b",
		"postgres://h/db?sslpassword=geheim":               "postgres://h/db?sslpassword=********",
		"postgres://h/db?p%61ssword=geheim":                "postgres://h/db?p%61ssword=********",
		"postgres://u@h/db?application_name=a@b":           "postgres://u@h/db?application_name=a@b",
		"postgres://u:@h/db":                               "postgres://u:@h/db",
	} {
		got := MaskConnection(in)
		if got != want {
			t.Errorf("MaskConnection(%q) = %q; want %q", in, got, want)
		}
	}
}

// TestNoSecretIsShown puts one secret into every place where a user may put
// it, rightly or by mistake, and looks for it in all that comes out.
func TestNoSecretIsShown(t *testing.T) {
	const secret = "hunter2hunter2"
	key := "AGE-SECRET-KEY-1" + secret
	environ := func(s ...string) Input { return input("", s, nil) }
	for name, in := range map[string]Input{
		"identity":            environ("AGENT_IDENTITY=" + key),
		"identity, control":   environ("AGENT_IDENTITY=" + key + "\x00"),
		"password":            environ("AGENT_CONNECTION=host=a password=" + secret),
		"password in URL":     environ("AGENT_CONNECTION=postgres://u:" + secret + "@h/db"),
		"password, flag":      input("", nil, map[string]string{"connection": "password=" + secret}),
		"password, control":   environ("AGENT_CONNECTION=password=" + secret + "\x01"),
		"key in connection":   environ("AGENT_CONNECTION=" + key),
		"repository user":     environ("AGENT_REPOSITORY=sftp://u:" + secret + "@h/x"),
		"repository query":    environ("AGENT_REPOSITORY=s3://b/x?sig=" + secret),
		"repository no slash": environ("AGENT_REPOSITORY=s3:/id:" + secret + "@b/x"),
		"WAL-G repository":    environ("WALG_S3_PREFIX=s3://id:" + secret + "@b/x"),
		"WAL-G bad prefix":    environ("WALG_S3_PREFIX=http://id:" + secret + "@b/x"),
		"WAL-G key":           environ("WALG_PGP_KEY="+secret, "WALG_LIBSODIUM_KEY="+secret),
		"WAL-G key, sealed":   environ("WALG_PGP_KEY="+secret, "AGENT_RECIPIENTS=age1a"),
		"WAL-G other":         environ("WALG_SWIFT_PASSWORD=" + secret),
		"AWS":                 environ("AWS_SECRET_ACCESS_KEY="+secret, "AWS_SESSION_TOKEN="+secret, "PGPASSWORD="+secret),
		"recipients":          environ("AGENT_RECIPIENTS=age1a," + key),
		"recipients list":     input("recipients: [age1a, "+key+"]", nil, nil),
		"identity_file":       environ("AGENT_IDENTITY_FILE=" + key),
		"identity_command":    environ("AGENT_IDENTITY_COMMAND=echo " + key),
		"label":               environ("AGENT_LABEL=" + strings.ToLower(key)),
		"identity in file":    input("identity: "+secret, nil, nil),
		"misspelt in file":    input("idnetity: "+secret, nil, nil),
		"password key":        input("pgpassword: "+secret, nil, nil),
		"s3 in file":          input("s3_secret_access_key: "+secret, nil, nil),
		"key as a key":        input(key+": x", nil, nil),
		"no colon":            input(key, nil, nil),
		"unknown variable":    environ("AGENT_S3_SECRET=" + secret),
		"unknown conninfo":    environ("AGENT_DSN=host=x password=" + secret),
		"unknown URL":         environ("AGENT_URL=postgres://u:" + secret + "@h"),
		"unknown, key":        environ("AGENT_FOO=" + key),
		"flag":                input("", nil, map[string]string{"identity": key}),
		"unknown flag":        input("", nil, map[string]string{"password": secret}),
		"identity in wrong":   environ("AGENT_CONCURRENCY=" + key),
	} {
		c, err := Load(in)
		var out strings.Builder
		if err != nil {
			fmt.Fprintf(&out, "%v %+v", err, err)
			wantNoLeak(t, name+" (error)", out.String(), secret)
			continue
		}
		data, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var logged bytes.Buffer
		slog.New(slog.NewTextHandler(&logged, nil)).Info("configuration", "config", c)
		fmt.Fprintf(&out, "%v %+v %#v %s %v %+v %s %s %s", c, c, c, c, *c, c.Effective(), data, logged.String(), c.Warnings())
		wantNoLeak(t, name, out.String(), secret)
	}
}

func wantNoLeak(t *testing.T, name, out, secret string) {
	t.Helper()
	if strings.Contains(strings.ToLower(out), secret) {
		t.Errorf("%s: the secret is shown in %s", name, out)
	}
}

func TestSecretsAreMarked(t *testing.T) {
	c := mustLoad(t, input("", []string{"AGENT_IDENTITY=AGE-SECRET-KEY-1Q", "AGENT_CONNECTION=password=x host=a"}, nil))
	if s := setting(t, c, "identity"); s.Value != "********" || s.Source != "env AGENT_IDENTITY" {
		t.Errorf("%+v", s)
	}
	if s := setting(t, c, "connection"); s.Value != "password=******** host=a" {
		t.Errorf("%+v", s)
	}
	if c.Identity != "AGE-SECRET-KEY-1Q" || c.Connection != "password=x host=a" {
		t.Error("the configuration itself lost its secrets")
	}
	if len(c.Warnings()) != 0 {
		t.Errorf("warnings %q", c.Warnings())
	}
	c = mustLoad(t, input("", nil, map[string]string{"connection": "password=x", "primary": "password=y"}))
	want := []string{
		"the password in --connection can be read in the process list: use AGENT_CONNECTION, a .pgpass file or a service file",
		"the password in --primary can be read in the process list: use AGENT_PRIMARY_CONNINFO, a .pgpass file or a service file",
	}
	if diff := cmp.Diff(want, c.Warnings()); diff != "" {
		t.Error(diff)
	}
}

func TestJSON(t *testing.T) {
	c := mustLoad(t, input("label: x\n", []string{"WALG_TAR_SIZE_THRESHOLD=1"}, nil))
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		File     string
		Settings []Setting
		Warnings []string
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.Effective(), got.Settings); diff != "" {
		t.Error(diff)
	}
	if got.File != testFile || len(got.Warnings) != 1 {
		t.Errorf("file %q, warnings %q", got.File, got.Warnings)
	}
	if !strings.Contains(string(data), `{"key":"label","value":"x","source":"file /c/agent.yaml line 1"}`) {
		t.Errorf("%s", data)
	}
}
