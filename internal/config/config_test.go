package config

import (
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
)

const testFile = "/c/agent.yaml"

// input makes an Input with a file (unless it is empty), variables and flags.
func input(file string, environ []string, flags map[string]string) Input {
	in := Input{
		Flags: flags, Environ: environ, NumCPU: 4, Home: "/home/me",
		ReadFile: func(path string) ([]byte, error) {
			if path == testFile && file != "" {
				return []byte(file), nil
			}
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		},
	}
	if file != "" {
		in.Config = testFile
	}
	return in
}

func mustLoad(t *testing.T, in Input) *Config {
	t.Helper()
	c, err := Load(in)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// setting returns value and source of one effective setting.
func setting(t *testing.T, c *Config, key string) Setting {
	t.Helper()
	for _, s := range c.Effective() {
		if s.Key == key {
			return s
		}
	}
	t.Fatalf("there is no setting %s", key)
	return Setting{}
}

func TestDefaults(t *testing.T) {
	c := mustLoad(t, input("", []string{"AGENT_REPOSITORY=/backup"}, nil))
	want := []Setting{
		{"repository", "/backup", "env AGENT_REPOSITORY"},
		{"repositories", "", "default"},
		{"data_directory", "", "default"},
		{"connection", "", "default"},
		{"primary_conninfo", "", "default"},
		{"state_dir", "", "default"},
		{"compression", "zstd", "default"},
		{"recipients", "", "default"},
		{"recipients_wal", "", "default"},
		{"recipients_meta", "", "default"},
		{"identity_file", "", "default"},
		{"identity_command", "", "default"},
		{"identity", "", "default"},
		{"sftp_password", "", "default"},
		{"sftp_passphrase", "", "default"},
		{"concurrency", "4", "default"},
		{"bandwidth", "0", "default"},
		{"read_rate", "0", "default"},
		{"checkpoint", "fast", "default"},
		{"wal_timeout", "10m", "default"},
		{"timeout", "auto", "default"},
		{"max_backlog", "0", "default"},
		{"standby_on_outage", "wait", "default"},
		{"max_incrementals", "30", "default"},
		{"full_every", "7d", "default"},
		{"keep_window", "0s", "default"},
		{"keep_full", "0", "default"},
		{"keep_daily", "0", "default"},
		{"keep_weekly", "0", "default"},
		{"keep_monthly", "0", "default"},
		{"keep_yearly", "0", "default"},
		{"min_backups", "0", "default"},
		{"label", "", "default"},
		{"log_level", "info", "default"},
		{"log_format", "text", "default"},
		{"s3_endpoint", "", "default"},
		{"s3_region", "", "default"},
		{"s3_profile", "", "default"},
		{"s3_path_style", "false", "default"},
		{"s3_checksum", "crc32c", "default"},
		{"storage_class", "", "default"},
		{"sse", "none", "default"},
		{"kms_key", "", "default"},
		{"gcs_endpoint", "", "default"},
		{"gcs_user_project", "", "default"},
		{"azure_account", "", "default"},
		{"azure_endpoint", "", "default"},
		{"sftp_known_hosts", "", "default"},
		{"sftp_identity_file", "", "default"},
		{"ca_file", "", "default"},
		{"insecure", "false", "default"},
		{"immutable", "none", "default"},
		{"price_storage_gb_month", "0", "default"},
		{"price_put_1000", "0", "default"},
		{"price_get_1000", "0", "default"},
		{"price_currency", "", "default"},
	}
	if diff := cmp.Diff(want, c.Effective()); diff != "" {
		t.Fatal(diff)
	}
	if c.FilePath != "" || len(c.Warnings()) != 0 {
		t.Fatalf("file %q, warnings %q", c.FilePath, c.Warnings())
	}
	if c.Timeout != 0 || c.FullEvery != 7*24*time.Hour {
		t.Fatalf("wrong typed defaults: %v", c)
	}
	if c.WALTimeout != 10*time.Minute || c.LogLevel != slog.LevelInfo || c.Checkpoint != CheckpointFast || c.StandbyOnOutage != OutageWait {
		t.Fatalf("wrong typed defaults: %v", c)
	}
	for cpus, want := range map[int]int{0: 2, 1: 2, 3: 3, 8: 8, 96: 8} {
		if c := mustLoad(t, Input{NumCPU: cpus}); c.Concurrency != want {
			t.Errorf("%d CPUs: concurrency %d, want %d", cpus, c.Concurrency, want)
		}
	}
}

// samples holds a valid value of each option, in the form in which it is shown.
func samples() map[string][3]string {
	return map[string][3]string{
		"repository":         {"file:///a", "/b", "s3://bucket/c"},
		"data_directory":     {"/a", "/b", "c"},
		"connection":         {"host=a", "host=b password=********", "postgres://u@c/db"},
		"primary_conninfo":   {"host=a,b", "host=b password=********", "postgres://u@c/db"},
		"state_dir":          {"/a", "/b", "/c"},
		"compression":        {"lz4", "zstd:22", "none"},
		"recipients":         {"age1a", "age1b,age1c", "/keys/pub"},
		"recipients_wal":     {"age1a", "ssh-ed25519 AAAA me@host", "age1c"},
		"recipients_meta":    {"age1a", "age1b", "age1c"},
		"identity_file":      {"/a", "/b", "c"},
		"identity_command":   {"a x", "b", "c"},
		"concurrency":        {"1", "2", "64"},
		"bandwidth":          {"50MB", "20MiB", "0"},
		"max_backlog":        {"64MiB", "50GB", "0"},
		"read_rate":          {"10kB", "1GB", "12345"},
		"checkpoint":         {"spread", "fast", "spread"},
		"wal_timeout":        {"1m30s", "1h30m", "2d"},
		"standby_on_outage":  {"notfound", "stop", "wait"},
		"max_incrementals":   {"0", "7", "1000"},
		"label":              {"a", "b b", "c"},
		"log_level":          {"debug", "warn", "error"},
		"log_format":         {"json", "text", "json"},
		"timeout":            {"1m30s", "auto", "1h30m"},
		"full_every":         {"1h", "1d12h", "3650d"},
		"keep_window":        {"1h", "7d", "0s"},
		"keep_full":          {"3", "10000", "0"},
		"keep_daily":         {"7", "1", "0"},
		"keep_weekly":        {"4", "1", "0"},
		"keep_monthly":       {"12", "1", "0"},
		"keep_yearly":        {"10", "1", "0"},
		"min_backups":        {"2", "1", "0"},
		"s3_endpoint":        {"https://minio:9000", "http://[::1]:9000/", "https://s3.example.com/x"},
		"s3_region":          {"eu-central-1", "us-east-1", "auto"},
		"s3_profile":         {"backup", "my profile", "c"},
		"s3_path_style":      {"true", "false", "true"},
		"s3_checksum":        {"md5", "none", "crc32c"},
		"storage_class":      {"STANDARD_IA", "NEARLINE", "Cool"},
		"sse":                {"AES256", "none", "aws:kms"},
		"kms_key":            {"arn:aws:kms:eu-west-1:1:key/a-b", "projects/p/locations/l/keyRings/r/cryptoKeys/k", "scope1"},
		"gcs_endpoint":       {"https://a/storage/v1/", "http://b", "https://c"},
		"gcs_user_project":   {"proj-1", "example.com:proj", "c"},
		"azure_account":      {"abc", "devstoreaccount1", "acc3"},
		"azure_endpoint":     {"https://a.blob.core.usgovcloudapi.net", "http://127.0.0.1:10000/devstoreaccount1", "https://c"},
		"sftp_known_hosts":   {"/a", "/b", "c"},
		"sftp_identity_file": {"/a", "/b", "c"},
		"ca_file":            {"/a", "/b", "c"},
		"insecure":           {"true", "false", "true"},
		"immutable":          {"governance:30d", "none", "compliance:1d12h"},

		"price_storage_gb_month": {"0.023", "0.02", "1"},
		"price_put_1000":         {"0.005", "0", "0.01"},
		"price_get_1000":         {"0.0004", "0", "12"},
		"price_currency":         {"EUR", "USD", "CHF"},
	}
}

// TestPrecedence sets every option in the file, the environment and a flag, in
// all combinations, and sees that the highest wins and is named. The list of
// repositories has tests of its own.
func TestPrecedence(t *testing.T) {
	for _, o := range Options() {
		if o.EnvOnly || o.Key == keyRepositories {
			continue
		}
		values, ok := samples()[o.Key]
		if !ok {
			t.Errorf("no samples for %s", o.Key)
			continue
		}
		for layers := range 8 {
			file, environ, flags := "", []string(nil), map[string]string{}
			want := setting(t, mustLoad(t, input("", nil, nil)), o.Key)
			if layers&1 != 0 {
				file = "# a comment\n" + o.Key + ": " + values[0] + "\n"
				want = Setting{o.Key, values[0], "file " + testFile + " line 2"}
			}
			if layers&2 != 0 {
				environ = []string{o.Env + "= " + strings.ReplaceAll(values[1], Mask, "geheim") + "\n"}
				want = Setting{o.Key, values[1], "env " + o.Env}
			}
			if layers&4 != 0 {
				flags[o.Flag] = values[2]
				want = Setting{o.Key, values[2], "flag --" + o.Flag}
			}
			c, err := Load(input(file, environ, flags))
			if err != nil {
				t.Errorf("%s, layers %03b: %v", o.Key, layers, err)
				continue
			}
			if diff := cmp.Diff(want, setting(t, c, o.Key)); diff != "" {
				t.Errorf("%s, layers %03b: %s", o.Key, layers, diff)
			}
		}
	}
}

func TestTypedValues(t *testing.T) {
	c := mustLoad(t, input(`
recipients: [age1a, /keys/b.pub]
recipients_wal: "age1w, age1x,"
bandwidth: 50MB
read_rate: 20MiB
wal_timeout: 1d
log_level: error
identity_command: |
  vault read \
    -field=key backup
label: 2026-01-01
identity_file: ~/key
state_dir: "~"
`, []string{"AGENT_IDENTITY=AGE-SECRET-KEY-1A\nAGE-SECRET-KEY-1B\n"}, map[string]string{"recipients-meta": "key.pub"}))
	type picked struct {
		R, W, M         []string
		Bandwidth, Read int64
		Wait            time.Duration
		Level           slog.Level
		Command, Label  string
		File, State, ID string
	}
	got := picked{
		c.Recipients, c.RecipientsWAL, c.RecipientsMeta, c.Bandwidth, c.ReadRate, c.WALTimeout, c.LogLevel,
		c.IdentityCommand, c.Label, c.IdentityFile, c.StateDir, c.Identity,
	}
	want := picked{
		[]string{"age1a", "/keys/b.pub"},
		[]string{"age1w", "age1x"},
		[]string{"key.pub"},
		50_000_000, 20 << 20, 24 * time.Hour, slog.LevelError,
		"vault read \\\n  -field=key backup", "2026-01-01", "/home/me/key", "/home/me",
		"AGE-SECRET-KEY-1A\nAGE-SECRET-KEY-1B",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if c.FilePath != testFile {
		t.Fatalf("FilePath is %q", c.FilePath)
	}
}

func TestRecipientClassesDefaultToRecipients(t *testing.T) {
	c := mustLoad(t, input("recipients: age1d\nrecipients_wal: age1w\n", nil, nil))
	got := [][]string{c.Recipients, c.RecipientsWAL, c.RecipientsMeta}
	if diff := cmp.Diff([][]string{{"age1d"}, {"age1w"}, {"age1d"}}, got); diff != "" {
		t.Fatal(diff)
	}
	if s := setting(t, c, "recipients_meta"); s.Value != "age1d" || s.Source != "default" {
		t.Fatalf("%+v", s)
	}
	c = mustLoad(t, input("recipients_wal: age1w\n", nil, nil))
	want := []string{"recipients is not set while recipients_wal or recipients_meta is: data files are stored unencrypted"}
	if diff := cmp.Diff(want, c.Warnings()); diff != "" {
		t.Fatal(diff)
	}
}

func TestWhichFile(t *testing.T) {
	files := map[string]string{"/flag": "label: flag", "/env": "label: env", DefaultFile: "label: default", "/home/me/c": "label: home"}
	load := func(config string, environ ...string) (*Config, error) {
		return Load(Input{
			Config: config, Environ: environ, Home: "/home/me",
			ReadFile: func(path string) ([]byte, error) {
				text, ok := files[path]
				if !ok {
					return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
				}
				return []byte(text), nil
			},
		})
	}
	for _, test := range []struct{ config, env, label, path string }{
		{"/flag", "/env", "flag", "/flag"},
		{"", "/env", "env", "/env"},
		{"", " ", "default", DefaultFile},
		{"~/c", "", "home", "/home/me/c"},
	} {
		c, err := load(test.config, "AGENT_CONFIG="+test.env)
		if err != nil || c.Label != test.label || c.FilePath != test.path {
			t.Errorf("%+v: %v, %v", test, c, err)
		}
	}
	delete(files, DefaultFile)
	if c, err := load(""); err != nil || c.FilePath != "" {
		t.Errorf("no file: %v, %v", c, err)
	}
}

func TestUnreadableFile(t *testing.T) {
	for _, test := range []struct {
		in   Input
		want string
	}{
		{Input{Config: "/x"}, "read configuration file /x (from --config): permission denied"},
		{Input{Environ: []string{"AGENT_CONFIG=/y"}}, "read configuration file /y (from AGENT_CONFIG): permission denied"},
		{Input{}, "read configuration file /etc/agent/agent.yaml (from the default): permission denied"},
		{Input{Config: "~/x"}, "read configuration file ~/x (from --config): ~ cannot be resolved, since HOME is not set"},
	} {
		test.in.ReadFile = func(path string) ([]byte, error) {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
		}
		wantError(t, test.in, test.want, "Make the file readable for the user that runs the agent, or name another one with --config or AGENT_CONFIG.")
	}
	wantError(t, Input{Config: "/gone"}, "read configuration file /gone (from --config): file does not exist", "Make the file readable for the user that runs the agent, or name another one with --config or AGENT_CONFIG.")
}

func TestNeedRepository(t *testing.T) {
	err := mustLoad(t, Input{}).NeedRepository()
	if errs.KindOf(err) != errs.Config || !strings.Contains(errs.HintOf(err), "AGENT_REPOSITORY") {
		t.Fatalf("%v, hint %q", err, errs.HintOf(err))
	}
	if err := mustLoad(t, Input{Environ: []string{"AGENT_REPOSITORY=/r"}}).NeedRepository(); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultStateDir(t *testing.T) {
	for _, test := range []struct {
		name    string
		environ []string
		exists  bool
		want    string
	}{
		{"system", []string{"XDG_STATE_HOME=/x", "HOME=/h"}, true, "/var/lib/agent"},
		{"xdg", []string{"XDG_STATE_HOME=/x", "HOME=/h"}, false, "/x/agent"},
		{"relative xdg", []string{"XDG_STATE_HOME=x", "HOME=/h"}, false, "/h/.local/state/agent"},
		{"home", []string{"HOME=/h"}, false, "/h/.local/state/agent"},
		{"nothing", []string{"HOME="}, false, ""},
	} {
		exists := func(path string) bool { return test.exists && path == "/var/lib/agent" }
		got, err := DefaultStateDir(lookupIn(test.environ), exists)
		if got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
		if err != nil && (errs.KindOf(err) != errs.Config || !strings.Contains(errs.HintOf(err), "AGENT_STATE_DIR")) {
			t.Errorf("%s: %v, hint %q", test.name, err, errs.HintOf(err))
		}
	}
}

// TestOptionsAreConsistent holds the table to its own rules.
func TestOptionsAreConsistent(t *testing.T) {
	seen := map[string]string{}
	for _, o := range Options() {
		for _, name := range []string{o.Key, o.Env, "--" + o.Flag} {
			if other, twice := seen[name]; twice && name != "--" {
				t.Errorf("%s and %s share the name %q", other, o.Key, name)
			}
			seen[name] = o.Key
		}
		if o.Type == "" || o.Allowed == "" || !strings.HasSuffix(o.Help, ".") {
			t.Errorf("%s lacks a type, what is allowed, or a sentence of help", o.Key)
		}
		if (o.Flag == "") != (o.EnvOnly || o.Key == keyRepositories) {
			t.Errorf("%s: flag %q does not fit EnvOnly %v", o.Key, o.Flag, o.EnvOnly)
		}
		for _, v := range o.Values {
			if _, err := Load(Input{Environ: []string{o.Env + "=" + v}}); err != nil {
				t.Errorf("%s: the value %q of its own list is refused: %v", o.Key, v, err)
			}
		}
	}
}
