package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
)

// wantError loads and compares kind, text and hint. A want that ends in "…"
// is the beginning.
func wantError(t *testing.T, in Input, text, hint string) {
	t.Helper()
	c, err := Load(in)
	if err == nil {
		t.Errorf("no error, but %v; want %s", c, text)
		return
	}
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Config {
		t.Errorf("not an *errs.Error of kind Config: %#v", err)
	}
	same := func(what, want, got string) {
		t.Helper()
		if begin, ok := strings.CutSuffix(want, "…"); ok && strings.HasPrefix(got, begin) {
			return
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	same("error", text, err.Error())
	same("hint", hint, errs.HintOf(err))
}

func TestBadValues(t *testing.T) {
	const (
		sizes   = "allowed: 0 (unlimited), or at least 10kB: a whole number of bytes, or with a unit kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024)"
		durable = "allowed: a duration of at least 1s, such as 90s, 10m, 1h30m, 2d"
		keys    = "allowed: age recipients (age1..., age1pq1..., ssh-ed25519 ..., ssh-rsa ...) separated by commas, or an absolute path of a file with one per line; in YAML also a list"
		codecs  = "it is not one of the allowed values; allowed: zstd, zstd:1 to zstd:22, lz4, lz4:1 to lz4:12, none"
		secret  = "it is a private key, which belongs in AGENT_IDENTITY or in a file that identity_file names; recipients are the public keys (age1...)"
	)
	for _, test := range []struct{ key, bad, want string }{
		{"state_dir", "state", `"state" (%s): it is not an absolute path; allowed: an absolute path`},
		{"data_directory", "file:///pg", `"file:///pg" (%s): it is a URL, and the data directory is on this host; allowed: the path of a directory`},
		{"compression", "gzip", `"gzip" (%s): ` + codecs},
		{"compression", "ZSTD", `"ZSTD" (%s): ` + codecs},
		{"compression", "zstd:0", `"zstd:0" (%s): ` + codecs},
		{"compression", "zstd:23", `"zstd:23" (%s): ` + codecs},
		{"compression", "lz4:13", `"lz4:13" (%s): ` + codecs},
		{"compression", "none:1", `"none:1" (%s): ` + codecs},
		{"recipients", "AGE-SECRET-KEY-1QQQ", `"********" (%s): ` + secret + "; " + keys},
		{"recipients", "age1a, age-secret-key-pq-1qqq", `"********" (%s): ` + secret + "; " + keys},
		{"recipients_wal", "age1a,keys.txt", `"age1a,keys.txt" (%s): "keys.txt" is neither a recipient nor an absolute path; ` + keys},
		{"recipients_meta", ",", `"," (%s): it is empty; ` + keys},
		{"identity_file", "-----BEGIN OPENSSH PRIVATE KEY-----", `"********" (%s): ` + secret + "; allowed: the path of a file; absolute unless it is given as a flag"},
		{"concurrency", "0", `"0" (%s): it is out of range; allowed: 1 to 64`},
		{"concurrency", "65", `"65" (%s): it is out of range; allowed: 1 to 64`},
		{"concurrency", "99999999999999999999", `"99999999999999999999" (%s): it is out of range; allowed: 1 to 64`},
		{"concurrency", "-1", `"-1" (%s): it is not a whole number; allowed: 1 to 64`},
		{"concurrency", "0x8", `"0x8" (%s): it is not a whole number; allowed: 1 to 64`},
		{"concurrency", "many", `"many" (%s): it is not a whole number; allowed: 1 to 64`},
		{"bandwidth", "50mb", `"50mb" (%s): "mb" is not a unit (did you mean MB?); ` + sizes},
		{"bandwidth", "50", `"50" (%s): that is too slow to work with (is a unit missing?); ` + sizes},
		{"max_backlog", "50", `"50" (%s): that is too little to tell an outage by (is a unit missing?); ` + strings.Replace(sizes, "0 (unlimited), or at least 10kB", "0 (never), or at least 64MiB", 1)},
		{"read_rate", "unlimited", `"unlimited" (%s): a size begins with digits; ` + sizes},
		{"checkpoint", "slow", `"slow" (%s): it is not one of the allowed values; allowed: fast, spread`},
		{"wal_timeout", "10", `"10" (%s): the unit is missing (did you mean 10s?); ` + durable},
		{"wal_timeout", "0s", `"0s" (%s): that is too short; ` + durable},
		{"wal_timeout", "1 hour", `"1 hour" (%s): this is not a duration; ` + durable},
		{"standby_on_outage", "WAIT", `"WAIT" (%s): it is not one of the allowed values; allowed: wait, notfound, stop`},
		{"max_incrementals", "1001", `"1001" (%s): it is out of range; allowed: 0 to 1000`},
		{"label", strings.Repeat("x", 1025), `"` + strings.Repeat("x", 120) + `…" (%s): it has 1025 bytes; allowed: one line of at most 1024 bytes`},
		{"log_level", "verbose", `"verbose" (%s): it is not one of the allowed values; allowed: debug, info, warn, error`},
		{"log_format", "xml", `"xml" (%s): it is not one of the allowed values; allowed: text, json`},
	} {
		o, _ := find(table(), func(o option) bool { return o.Key == test.key })
		want := func(source string) string {
			return test.key + ": bad value " + strings.ReplaceAll(test.want, "%s", source)
		}
		hint := "The setting " + o.Key + ": " + o.Help
		wantError(t, input("# one\n"+o.Key+": \""+test.bad+"\"\n", nil, nil), want("file "+testFile+" line 2"), hint)
		wantError(t, input("", []string{o.Env + "=" + test.bad}, nil), want("env "+o.Env), hint)
		if !strings.Contains(test.bad, "keys.txt") { // a flag may be relative
			wantError(t, input("", nil, map[string]string{o.Flag: test.bad}), want("flag --"+o.Flag), hint)
		}
	}
}

func TestBadValueIsAnErrorThoughItLoses(t *testing.T) {
	in := input("checkpoint: slow\n", []string{"AGENT_CHECKPOINT=spread"}, nil)
	wantError(t, in, `checkpoint: bad value "slow" (file /c/agent.yaml line 1): it is not one of the allowed values; allowed: fast, spread`,
		"The setting checkpoint: Whether the checkpoint with which a backup begins runs at once, or is spread like the server's own.")
}

func TestRepositoryRulesAreThoseOfStorage(t *testing.T) {
	const urls = "allowed: a URL such as file:///backup/main or s3://bucket/prefix, or an absolute path; no password in it; or a name of the list repositories of a lower layer"
	wantError(t, input("", []string{"AGENT_REPOSITORY=ftp://host/x"}, nil),
		`repository: bad value "ftp://host/x" (env AGENT_REPOSITORY): repository URL has an unknown scheme ftp; `+urls,
		"Use one of: …")
	wantError(t, input("repository: backup/main", nil, nil),
		`repository: bad value "backup/main" (file /c/agent.yaml line 1): repository URL is neither an absolute path nor a URL with a scheme; `+urls,
		"Give an absolute path or a URL …")
	wantError(t, input("", []string{"AGENT_REPOSITORY=sftp://u:geheim@host/x"}, nil),
		`repository: bad value "sftp://u:********@host/x" (env AGENT_REPOSITORY): repository URL with the scheme sftp holds a password; …`,
		"Take the password out of the URL; …")
}

func TestBadFiles(t *testing.T) {
	const (
		place   = "/c/agent.yaml"
		allowed = "Allowed are: repository, repositories, data_directory, connection, primary_conninfo, state_dir, compression, recipients, recipients_wal, recipients_meta, identity_file, identity_command, concurrency, bandwidth, read_rate, checkpoint, wal_timeout, timeout, max_backlog, standby_on_outage, max_incrementals, full_every, keep_window, keep_full, keep_daily, keep_weekly, keep_monthly, keep_yearly, min_backups, label, log_level, log_format, s3_endpoint, s3_region, s3_profile, s3_path_style, s3_checksum, storage_class, sse, kms_key, gcs_endpoint, gcs_user_project, azure_account, azure_endpoint, sftp_known_hosts, sftp_identity_file, ca_file, insecure, immutable, price_storage_gb_month, price_put_1000, price_get_1000, price_currency."
	)
	for _, test := range []struct{ file, text, hint string }{
		{"label: a\nrepositroy: /b\n", `unknown key repositroy with value "/b" (file ` + place + ` line 2)`, "Did you mean repository? " + allowed},
		{"pgdata: /b", `unknown key pgdata with value "/b" (file ` + place + ` line 1)`, "Did you mean data_directory? " + allowed},
		{"PGDATA: /b", `unknown key PGDATA with value "/b" (file ` + place + ` line 1)`, "Did you mean data_directory? " + allowed},
		{"AGENT_LOG_LEVEL: info", `unknown key AGENT_LOG_LEVEL with value "info" (file ` + place + ` line 1)`, "Did you mean log_level? " + allowed},
		{"log-level: info", `unknown key log-level with value "info" (file ` + place + ` line 1)`, "Did you mean log_level? " + allowed},
		{"WALG_S3_PREFIX: s3://b", `unknown key WALG_S3_PREFIX with value "s3://b" (file ` + place + ` line 1)`, "Did you mean repository? " + allowed},
		{"region: eu", `unknown key region with value "eu" (file ` + place + ` line 1)`, "Did you mean s3_region? " + allowed},
		{"endpoint: http://x", `unknown key endpoint with value "http://x" (file ` + place + ` line 1)`, allowed},
		{"config: /x", `unknown key config with value "/x" (file ` + place + ` line 1)`, allowed},
		{"s3: {path_style: true}", `unknown key s3 with value "(a mapping)" (file ` + place + ` line 1)`, allowed},
		{"retries: [1]", `unknown key retries with value "(a list)" (file ` + place + ` line 1)`, allowed},
		{"<<: {label: a}", `unknown key << with value "(a mapping)" (file ` + place + ` line 1)`, allowed},
		{"? [label]\n: a", `unknown key (not a word) with value "a" (file ` + place + ` line 1)`, allowed},
		{"label: a\n\nlabel: b\n", "label is set twice (file " + place + " line 3, and line 1 before)", "Keep one of the two lines."},
		{"label:\n", `label: bad value "" (file ` + place + ` line 1): it is empty; allowed: one line of at most 1024 bytes`, "The setting label: …"},
		{"label: null\n", `label: bad value "" (file ` + place + ` line 1): it is empty; …`, "The setting label: …"},
		{"label: ' '\n", `label: bad value "" (file ` + place + ` line 1): it is empty; …`, "The setting label: …"},
		{"recipients: []\n", `recipients: bad value "[]" (file ` + place + ` line 1): it is empty; …`, "The setting recipients: …"},
		{"recipients: [age1a, '']\n", `recipients: bad value "[age1a, ]" (file ` + place + ` line 1): it is empty; …`, "The setting recipients: …"},
		{"recipients: [age1a, [b]]\n", `recipients: bad value "(a list)" (file ` + place + ` line 1): its items are not all plain values; …`, "The setting recipients: …"},
		{"recipients: [AGE-SECRET-KEY-1Q]\n", `recipients: bad value "********" (file ` + place + ` line 1): it is a private key, …`, "The setting recipients: …"},
		{"label: [a]\n", `label: bad value "(a list)" (file ` + place + ` line 1): it is not a plain value; …`, "The setting label: …"},
		{"label: {a: b}\n", `label: bad value "(a mapping)" (file ` + place + ` line 1): it is not a plain value; …`, "The setting label: …"},
		{"label: !secret a\n", `label: bad value "" (file ` + place + ` line 1): it has a YAML tag; …`, "The setting label: …"},
		{"label: \"a\\nb\"\n", `label: bad value "a\nb" (file ` + place + ` line 1): it holds a control character; …`, "The setting label: …"},
		{"identity: AGE-SECRET-KEY-1Q\n", "identity may not be in a file (file " + place + " line 1)", "Set AGENT_IDENTITY in the environment, or use identity_file (--identity-file) or identity_command (--identity-command)."},
		{"label: a\n---\nlabel: b\n", "file " + place + " line 2: a second YAML document begins", `Keep one document; remove the line "---" between them.`},
		{"just words", "file " + place + " line 1: the file is not a list of keys and values", `Write one "key: value" per line.`},
		{"- a\n- b\n", "file " + place + " line 1: the file is not a list of keys and values", `Write one "key: value" per line.`},
		{"label: a\n\tb: c\n", "file " + place + " is not valid YAML: …", `Write one "key: value" per line, without tabs at its beginning.`},
		{"label: *missing\n", "file " + place + " is not valid YAML: …", `Write one "key: value" per line, without tabs at its beginning.`},
		{strings.Repeat("# padding\n", 200_000), "configuration file " + place + " has 2000000 bytes, more than 1048576", "Check that this is the right file."},
	} {
		wantError(t, input(test.file, nil, nil), test.text, test.hint)
	}
}

func TestHarmlessFiles(t *testing.T) {
	for _, file := range []string{"\n", "# nothing\n", "---\n", "{}\n", "null\n", "\ufefflabel: a\r\n", "label: &x a\n", "--- \nlabel: a\n...\n"} {
		if _, err := Load(input(file, nil, nil)); err != nil {
			t.Errorf("%q: %v", file, err)
		}
	}
	c := mustLoad(t, input("label: &x age1a\nrecipients: *x\nrecipients_wal: [*x]\n", nil, nil))
	if len(c.Recipients) != 1 || c.Recipients[0] != "age1a" || c.RecipientsWAL[0] != "age1a" {
		t.Fatalf("aliases were read as %v", c)
	}
}

func TestUnknownVariables(t *testing.T) {
	const allowed = "Allowed are: AGENT_REPOSITORY, AGENT_REPOSITORIES, PGDATA, AGENT_CONNECTION, AGENT_PRIMARY_CONNINFO, AGENT_STATE_DIR, AGENT_COMPRESSION, AGENT_RECIPIENTS, AGENT_RECIPIENTS_WAL, AGENT_RECIPIENTS_META, AGENT_IDENTITY_FILE, AGENT_IDENTITY_COMMAND, AGENT_IDENTITY, AGENT_SFTP_PASSWORD, AGENT_SFTP_PASSPHRASE, AGENT_CONCURRENCY, AGENT_BANDWIDTH, AGENT_READ_RATE, AGENT_CHECKPOINT, AGENT_WAL_TIMEOUT, AGENT_TIMEOUT, AGENT_MAX_BACKLOG, AGENT_STANDBY_ON_OUTAGE, AGENT_MAX_INCREMENTALS, AGENT_FULL_EVERY, AGENT_KEEP_WINDOW, AGENT_KEEP_FULL, AGENT_KEEP_DAILY, AGENT_KEEP_WEEKLY, AGENT_KEEP_MONTHLY, AGENT_KEEP_YEARLY, AGENT_MIN_BACKUPS, AGENT_LABEL, AGENT_LOG_LEVEL, AGENT_LOG_FORMAT, AGENT_S3_ENDPOINT, AGENT_S3_REGION, AGENT_S3_PROFILE, AGENT_S3_PATH_STYLE, AGENT_S3_CHECKSUM, AGENT_STORAGE_CLASS, AGENT_SSE, AGENT_KMS_KEY, AGENT_GCS_ENDPOINT, AGENT_GCS_USER_PROJECT, AGENT_AZURE_ACCOUNT, AGENT_AZURE_ENDPOINT, AGENT_SFTP_KNOWN_HOSTS, AGENT_SFTP_IDENTITY_FILE, AGENT_CA_FILE, AGENT_INSECURE, AGENT_IMMUTABLE, AGENT_PRICE_STORAGE_GB_MONTH, AGENT_PRICE_PUT_1000, AGENT_PRICE_GET_1000, AGENT_PRICE_CURRENCY, AGENT_CONFIG."
	for _, test := range []struct{ variable, text, hint string }{
		{"AGENT_REPOSITRY=/b", `unknown variable AGENT_REPOSITRY with value "/b"`, "Did you mean AGENT_REPOSITORY? " + allowed},
		{"AGENT_PGDATA=/b", `unknown variable AGENT_PGDATA with value "/b"`, "Did you mean PGDATA? " + allowed},
		{"AGENT_DATA_DIRECTORY=/b", `unknown variable AGENT_DATA_DIRECTORY with value "/b"`, "Did you mean PGDATA? " + allowed},
		{"AGENT_CONFG=/b", `unknown variable AGENT_CONFG with value "/b"`, "Did you mean AGENT_CONFIG? " + allowed},
		{"AGENT_PATH_STYLE=true", `unknown variable AGENT_PATH_STYLE with value "true"`, "Did you mean AGENT_S3_PATH_STYLE? " + allowed},
		{"AGENT_UPLOAD_CONCURRENCY=4", `unknown variable AGENT_UPLOAD_CONCURRENCY with value "4"`, allowed},
		{"AGENT_IDENTIY=hunter2", `unknown variable AGENT_IDENTIY with value "********"`, "Did you mean AGENT_IDENTITY? " + allowed},
	} {
		wantError(t, input("", []string{"HOME=/h", test.variable}, nil), test.text, test.hint)
	}
	mustLoad(t, input("", []string{"AGENT_DEADLINE=", "AGENT_X= ", "AGENTX=1", "agent_x=1", "SSH_AGENT_PID=7"}, nil))
}

func TestUnknownFlags(t *testing.T) {
	const allowed = "Allowed are: --repository, --pgdata, --connection, --primary, --state-dir, --compression, --recipients, --recipients-wal, --recipients-meta, --identity-file, --identity-command, --concurrency, --bandwidth, --read-rate, --checkpoint, --wal-timeout, --timeout, --max-backlog, --standby-on-outage, --max-incrementals, --full-every, --keep-window, --keep-full, --keep-daily, --keep-weekly, --keep-monthly, --keep-yearly, --min-backups, --label, --log-level, --log-format, --s3-endpoint, --s3-region, --s3-profile, --s3-path-style, --s3-checksum, --storage-class, --sse, --kms-key, --gcs-endpoint, --gcs-user-project, --azure-account, --azure-endpoint, --sftp-known-hosts, --sftp-identity-file, --ca-file, --insecure, --immutable, --price-storage, --price-put-1000, --price-get-1000, --price-currency."
	wantError(t, input("", nil, map[string]string{"log_level": "info"}),
		`unknown flag --log_level with value "info"`, "Did you mean --log-level? "+allowed)
	wantError(t, input("", nil, map[string]string{"": "info"}), `unknown flag -- with value "info"`, allowed)
	wantError(t, input("", nil, map[string]string{"identity": "AGE-SECRET-KEY-1Q"}),
		"identity may not be a flag, since every user of the host can read the arguments of a process",
		"Set AGENT_IDENTITY in the environment, or use identity_file (--identity-file) or identity_command (--identity-command).")
	wantError(t, input("", nil, map[string]string{"recipients": ""}), `recipients: bad value "" (flag --recipients): it is empty; …`, "The setting recipients: …")
}

func TestAllProblemsAtOnce(t *testing.T) {
	wantError(t, input("checkpoint: slow\nfoo: bar\n", []string{"AGENT_CONCURRENCY=0"}, nil),
		`3 settings are wrong: unknown key foo with value "bar" (file /c/agent.yaml line 2); `+
			`concurrency: bad value "0" (env AGENT_CONCURRENCY): it is out of range; allowed: 1 to 64; `+
			`checkpoint: bad value "slow" (file /c/agent.yaml line 1): it is not one of the allowed values; allowed: fast, spread`,
		"Allowed are: repository, …")
}
