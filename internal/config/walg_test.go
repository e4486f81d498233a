package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWALGVariablesAreUnderstood(t *testing.T) {
	for _, test := range []struct {
		environ            []string
		key, value, source string
	}{
		{[]string{"WALG_FILE_PREFIX=/backup"}, "repository", "file:///backup", "env WALG_FILE_PREFIX"},
		{[]string{"WALG_FILE_PREFIX=/my backup/100%"}, "repository", "file:///my%20backup/100%25", "env WALG_FILE_PREFIX"},
		{[]string{"WALG_FILE_PREFIX=file://localhost/backup"}, "repository", "file:///backup", "env WALG_FILE_PREFIX"},
		{[]string{"WALG_FILE_PREFIX=file:///backup"}, "repository", "file:///backup", "env WALG_FILE_PREFIX"},
		{[]string{"WALG_S3_PREFIX=s3://b/p"}, "repository", "s3://b/p", "env WALG_S3_PREFIX"},
		{[]string{"WALG_GS_PREFIX=gs://b/p"}, "repository", "gs://b/p", "env WALG_GS_PREFIX"},
		{[]string{"WALG_S3_PREFIX=", "WALG_GS_PREFIX=gs://b"}, "repository", "gs://b", "env WALG_GS_PREFIX"},
		{[]string{"WALG_COMPRESSION_METHOD=lz4"}, "compression", "lz4", "env WALG_COMPRESSION_METHOD"},
		{[]string{"WALG_COMPRESSION_METHOD=zstd"}, "compression", "zstd", "env WALG_COMPRESSION_METHOD"},
		{[]string{"WALG_COMPRESSION_METHOD=none"}, "compression", "none", "env WALG_COMPRESSION_METHOD"},
		{[]string{"WALG_UPLOAD_CONCURRENCY=16"}, "concurrency", "16", "env WALG_UPLOAD_CONCURRENCY"},
		{[]string{"WALG_DOWNLOAD_CONCURRENCY=10"}, "concurrency", "10", "env WALG_DOWNLOAD_CONCURRENCY"},
		{[]string{"WALG_UPLOAD_CONCURRENCY=16", "WALG_DOWNLOAD_CONCURRENCY=9"}, "concurrency", "16", "env WALG_UPLOAD_CONCURRENCY"},
		{[]string{"WALG_UPLOAD_CONCURRENCY=9", "WALG_DOWNLOAD_CONCURRENCY=16"}, "concurrency", "16", "env WALG_DOWNLOAD_CONCURRENCY"},
		{[]string{"WALG_DELTA_MAX_STEPS=6"}, "max_incrementals", "6", "env WALG_DELTA_MAX_STEPS"},
		{[]string{"WALG_DELTA_MAX_STEPS=0"}, "max_incrementals", "0", "env WALG_DELTA_MAX_STEPS"},
		{[]string{"WALG_SSH_PREFIX=ssh://host/folder"}, "repository", "sftp://host/folder", "env WALG_SSH_PREFIX"},
		{[]string{"WALG_SSH_PREFIX=ssh://host/folder", "SSH_USERNAME=backup", "SSH_PORT=2222"}, "repository", "sftp://backup@host:2222/folder", "env WALG_SSH_PREFIX"},
		{[]string{"WALG_SSH_PREFIX=ssh://u@[::1]:22/f", "SSH_USERNAME=backup", "SSH_PORT=2222"}, "repository", "sftp://u@[::1]:22/f", "env WALG_SSH_PREFIX"},
		{[]string{"WALG_SSH_PREFIX=ssh://host/f", "SSH_PRIVATE_KEY_PATH=/k"}, "sftp_identity_file", "/k", "env SSH_PRIVATE_KEY_PATH"},
		{[]string{"WALG_S3_PREFIX=s3://b", "SSH_PRIVATE_KEY_PATH=k"}, "sftp_identity_file", "", "default"},
		{[]string{"WALG_S3_PREFIX=s3://b", "AWS_ENDPOINT=http://minio:9000"}, "s3_endpoint", "http://minio:9000", "env AWS_ENDPOINT"},
		{[]string{"WALG_S3_PREFIX=s3://b", "AWS_ENDPOINT=minio:9000"}, "s3_endpoint", "https://minio:9000", "env AWS_ENDPOINT"},
		{[]string{"AGENT_REPOSITORY=s3://b", "AWS_S3_FORCE_PATH_STYLE=TRUE"}, "s3_path_style", "true", "env AWS_S3_FORCE_PATH_STYLE"},
		{[]string{"AGENT_REPOSITORY=/b", "AWS_S3_FORCE_PATH_STYLE=geheim", "AWS_ENDPOINT=?", "S3_RETENTION_PERIOD=x"}, "s3_path_style", "false", "default"},
		{[]string{"WALG_S3_PREFIX=s3://b", "WALG_S3_STORAGE_CLASS=STANDARD_IA"}, "storage_class", "STANDARD_IA", "env WALG_S3_STORAGE_CLASS"},
		{[]string{"WALG_S3_PREFIX=s3://b", "WALG_S3_SSE=aws:kms", "WALG_S3_SSE_KMS_ID=alias/x"}, "sse", "aws:kms", "env WALG_S3_SSE"},
		{[]string{"WALG_S3_PREFIX=s3://b", "WALG_S3_SSE=aws:kms", "WALG_S3_SSE_KMS_ID=alias/x"}, "kms_key", "alias/x", "env WALG_S3_SSE_KMS_ID"},
		{[]string{"WALG_S3_PREFIX=s3://b", "WALG_S3_CA_CERT_FILE=/ca.pem"}, "ca_file", "/ca.pem", "env WALG_S3_CA_CERT_FILE"},
		{[]string{"WALG_S3_PREFIX=s3://b", "S3_RETENTION_PERIOD=-1"}, "immutable", "none", "env S3_RETENTION_PERIOD"},
		{[]string{"WALG_S3_PREFIX=s3://b", "S3_RETENTION_PERIOD=2592000"}, "immutable", "governance:30d", "env S3_RETENTION_PERIOD"},
		{[]string{"WALG_S3_PREFIX=s3://b", "S3_RETENTION_PERIOD=86401", "S3_RETENTION_MODE=COMPLIANCE"}, "immutable", "compliance:1d1h", "env S3_RETENTION_PERIOD"},
		{[]string{"PGDATA=/pg"}, "data_directory", "/pg", "env PGDATA"},
		{[]string{"AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b", "AWS_SESSION_TOKEN=c", "AWS_REGION=d", "AWS_ENDPOINT=e"}, "repository", "", "default"},
	} {
		c, err := Load(input("", test.environ, nil))
		if err != nil {
			t.Errorf("%q: %v", test.environ, err)
			continue
		}
		if diff := cmp.Diff(Setting{test.key, test.value, test.source}, setting(t, c, test.key)); diff != "" {
			t.Errorf("%q: %s", test.environ, diff)
		}
		if len(c.Warnings()) != 0 {
			t.Errorf("%q: warnings %q", test.environ, c.Warnings())
		}
	}
}

func TestWALGAzureBecomesOurScheme(t *testing.T) {
	a, _ := Load(input("", []string{"WALG_AZ_PREFIX=azure://container/path"}, nil))
	if a == nil || !strings.HasPrefix(a.Repository, "az") || !strings.HasSuffix(a.Repository, "://container/path") {
		t.Fatalf("%v", a)
	}
}

func TestWALGNumbersAreCut(t *testing.T) {
	c := mustLoad(t, input("", []string{"WALG_UPLOAD_CONCURRENCY=100", "WALG_DELTA_MAX_STEPS=99999999999999999999"}, nil))
	if c.Concurrency != 64 || c.MaxIncrementals != 1000 {
		t.Fatalf("concurrency %d, max_incrementals %d", c.Concurrency, c.MaxIncrementals)
	}
	want := []string{
		"WALG_UPLOAD_CONCURRENCY is cut to 64, the most that is allowed",
		"WALG_DELTA_MAX_STEPS is cut to 1000, the most that is allowed",
	}
	if diff := cmp.Diff(want, c.Warnings()); diff != "" {
		t.Fatal(diff)
	}
}

func TestWALGErrors(t *testing.T) {
	const repository = "The setting repository: The repository to which WAL and backups go and from which they are restored. …"
	for _, test := range []struct {
		environ    []string
		text, hint string
	}{
		{
			[]string{"WALG_COMPRESSION_METHOD=lzma"},
			`compression: bad value "lzma" (env WALG_COMPRESSION_METHOD): it is not one of the allowed values; allowed: lz4, zstd, none`,
			"The setting compression: …",
		},
		{
			[]string{"WALG_COMPRESSION_METHOD=brotli"},
			`compression: bad value "brotli" (env WALG_COMPRESSION_METHOD): it is not one of the allowed values; allowed: lz4, zstd, none`,
			"The setting compression: …",
		},
		{
			[]string{"WALG_FILE_PREFIX=backup"},
			`repository: bad value "backup" (env WALG_FILE_PREFIX): it is not an absolute path; allowed: an absolute path`, repository,
		},
		{
			[]string{"WALG_S3_PREFIX=gs://b"},
			`repository: bad value "gs://b" (env WALG_S3_PREFIX): it does not begin with s3://; allowed: s3://bucket/path`, repository,
		},
		{
			[]string{"WALG_UPLOAD_CONCURRENCY=0"},
			`concurrency: bad value "0" (env WALG_UPLOAD_CONCURRENCY): it is out of range; allowed: a whole number of at least 1`, "The setting concurrency: …",
		},
		{
			[]string{"WALG_DELTA_MAX_STEPS=-1"},
			`max_incrementals: bad value "-1" (env WALG_DELTA_MAX_STEPS): it is not a whole number; allowed: a whole number of at least 0`, "The setting max_incrementals: …",
		},
		{
			[]string{"WALG_SSH_PREFIX=sftp://h/x"},
			`repository: bad value "sftp://h/x" (env WALG_SSH_PREFIX): it does not begin with ssh:// and a host; allowed: ssh://host/path`, repository,
		},
		{
			[]string{"WALG_SSH_PREFIX=ssh://h/x", "SSH_PORT=0"},
			`repository: bad value "ssh://h/x" (env WALG_SSH_PREFIX): SSH_PORT is not the number of a port; allowed: ssh://host/path`, repository,
		},
		{
			[]string{"WALG_S3_PREFIX=s3://b", "AWS_S3_FORCE_PATH_STYLE=yes"},
			`s3_path_style: bad value "yes" (env AWS_S3_FORCE_PATH_STYLE): it is not one of the allowed values; allowed: true, false`, "The setting s3_path_style: …",
		},
		{
			[]string{"WALG_S3_PREFIX=s3://b", "WALG_S3_SSE=none2"},
			`sse: bad value "none2" (env WALG_S3_SSE): it is not one of the allowed values; allowed: AES256, aws:kms, none`, "The setting sse: …",
		},
		{
			[]string{"WALG_S3_PREFIX=s3://b", "WALG_S3_CA_CERT_FILE=ca.pem"},
			`ca_file: bad value "ca.pem" (env WALG_S3_CA_CERT_FILE): it is not an absolute path; …`, "The setting ca_file: …",
		},
		{
			[]string{"WALG_S3_PREFIX=s3://b", "S3_RETENTION_PERIOD=1d"},
			`immutable: bad value "1d" (env S3_RETENTION_PERIOD): it is not a whole number; allowed: a whole number of seconds, with S3_RETENTION_MODE governance or compliance`, "The setting immutable: …",
		},
		{
			[]string{"WALG_S3_PREFIX=s3://b", "S3_RETENTION_PERIOD=99999999999999999999"},
			`immutable: bad value "99999999999999999999" (env S3_RETENTION_PERIOD): that is too long; …`, "The setting immutable: …",
		},
		{
			[]string{"WALG_S3_PREFIX=s3://b", "S3_RETENTION_PERIOD=86400", "S3_RETENTION_MODE=x"},
			`immutable: bad value "86400" (env S3_RETENTION_PERIOD): S3_RETENTION_MODE is neither governance nor compliance; …`, "The setting immutable: …",
		},
		{
			[]string{"WALG_GS_PREFIX=gs://b", "WALG_FILE_PREFIX=/b"},
			"WALG_FILE_PREFIX and WALG_GS_PREFIX both name a repository", "Keep one of them, or set AGENT_REPOSITORY, which wins over both.",
		},
		{
			[]string{"WALG_AZ_PREFIX=azure://c", "WALG_S3_PREFIX=s3://b", "WALG_FILE_PREFIX=/b"},
			"2 settings are wrong: WALG_FILE_PREFIX and WALG_S3_PREFIX both name a repository; WALG_FILE_PREFIX and WALG_AZ_PREFIX both name a repository",
			"Keep one of them, or set AGENT_REPOSITORY, which wins over both.",
		},
	} {
		wantError(t, input("", test.environ, nil), test.text, test.hint)
	}
}

func TestOursWinOverWALG(t *testing.T) {
	environ := []string{"WALG_FILE_PREFIX=/w", "WALG_S3_PREFIX=bad", "WALG_COMPRESSION_METHOD=lzma", "WALG_UPLOAD_CONCURRENCY=x", "AGENT_COMPRESSION=lz4"}
	c := mustLoad(t, input("repository: /ours\n", environ, map[string]string{"concurrency": "3"}))
	if c.Repository != "/ours" || c.Compression != "lz4" || c.Concurrency != 3 {
		t.Fatalf("%v", c)
	}
	want := []string{
		"WALG_FILE_PREFIX is ignored, because repository is set (file /c/agent.yaml line 1)",
		"WALG_S3_PREFIX is ignored, because repository is set (file /c/agent.yaml line 1)",
		"WALG_COMPRESSION_METHOD is ignored, because compression is set (env AGENT_COMPRESSION)",
		"WALG_UPLOAD_CONCURRENCY is ignored, because concurrency is set (flag --concurrency)",
	}
	if diff := cmp.Diff(want, c.Warnings()); diff != "" {
		t.Fatal(diff)
	}
}

func TestWALGEncryptionIsNeverIgnored(t *testing.T) {
	for _, name := range []string{
		"WALG_PGP_KEY", "WALG_PGP_KEY_PATH", "WALG_PGP_KEY_PASSPHRASE", "WALG_GPG_KEY_ID", "WALE_GPG_KEY_ID",
		"WALG_ENVELOPE_PGP_KEY", "WALG_ENVELOPE_PGP_KEY_PATH", "WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID", "WALG_ENVELOPE_CACHE_EXPIRATION",
		"WALG_LIBSODIUM_KEY", "WALG_LIBSODIUM_KEY_PATH", "WALG_LIBSODIUM_KEY_TRANSFORM",
		"WALG_CSE_KMS_ID", "WALG_CSE_KMS_REGION", "YC_CSE_KMS_KEY_ID",
	} {
		wantError(t, input("", []string{"AGENT_REPOSITORY=/r", name + "=geheim"}, nil),
			name+" asks for WAL-G's encryption, which the agent does not have, and no recipients are set",
			"Set AGENT_RECIPIENTS to the age public keys for which objects shall be encrypted, or unset …")
		c := mustLoad(t, input("", []string{"AGENT_RECIPIENTS=age1a", name + "=geheim"}, nil))
		want := []string{name + " is ignored: objects are encrypted for the age recipients"}
		if diff := cmp.Diff(want, c.Warnings()); diff != "" {
			t.Error(diff)
		}
		mustLoad(t, input("", []string{name + "="}, nil))
	}
	wantError(t, input("recipients_wal: age1a\n", []string{"WALG_PGP_KEY=x", "WALG_LIBSODIUM_KEY=y"}, nil),
		"WALG_LIBSODIUM_KEY, WALG_PGP_KEY ask for WAL-G's encryption, which the agent does not have, and no recipients are set",
		"Set AGENT_RECIPIENTS …")
}

func TestOtherWALGVariablesWarnByName(t *testing.T) {
	others := []string{
		"WALE_S3_PREFIX", "WALG_UPLOAD_DISK_CONCURRENCY", "WALG_UPLOAD_QUEUE", "WALG_DOWNLOAD_FILE_RETRIES",
		"WALG_PREVENT_WAL_OVERWRITE", "WALG_UPLOAD_WAL_METADATA", "WALG_PREFETCH_DIR", "WALG_PG_WAL_SIZE", "WALG_PG_BLOCK_SIZE",
		"WALG_SLOTNAME", "WALG_DAEMON_WAL_UPLOAD_TIMEOUT", "WALG_DELTA_ORIGIN", "WALG_USE_WAL_DELTA", "WALG_FORCE_WAL_DELTA",
		"WALG_SENTINEL_USER_DATA", "WALG_TAR_SIZE_THRESHOLD", "WALG_VERIFY_PAGE_CHECKSUMS", "WALG_STORE_ALL_CORRUPT_BLOCKS",
		"WALG_USE_RATING_COMPOSER", "WALG_DIRECT_IO", "WALG_STOP_BACKUP_TIMEOUT", "WALG_USE_REVERSE_UNPACK", "WALG_TAR_DISABLE_FSYNC",
		"WALG_ZSTD_LEVEL", "WALG_DISK_RATE_LIMIT", "WALG_NETWORK_RATE_LIMIT", "WALG_S3_STORAGE_CLASS", "WALG_S3_SSE", "WALG_S3_SSE_C",
		"WALG_S3_MAX_PART_SIZE", "WALG_S3_CA_CERT_FILE", "WALG_FAILOVER_STORAGES", "WALG_FAILOVER_STORAGES_CHECK", "WALG_LOG_LEVEL",
		"WALG_STATSD_ADDRESS", "WALG_CONFIG_PATH", "WALG_SWIFT_PREFIX", "WALG_OSS_PREFIX", "WALG_NEW_IN_NEXT_RELEASE",
	}
	environ := []string{"AGENT_REPOSITORY=/r", "WALG_EMPTY=", "WALGX=1", "PATH=/bin"}
	for _, name := range others {
		environ = append(environ, name+"=geheim")
	}
	c := mustLoad(t, input("", environ, nil))
	if len(c.Warnings()) != len(others) {
		t.Errorf("%d warnings for %d variables: %q", len(c.Warnings()), len(others), c.Warnings())
	}
	for _, name := range others {
		found := false
		for _, w := range c.Warnings() {
			found = found || strings.HasPrefix(w, name+" is ignored: ")
		}
		if !found {
			t.Errorf("no warning names %s", name)
		}
	}
}

// TestWALGStoreVariablesStayWithTheirStore: what WAL-G says of S3 does not
// reach a repository of another kind, nor one that says otherwise.
func TestWALGStoreVariablesStayWithTheirStore(t *testing.T) {
	c := mustLoad(t, input(`
repositories:
  - {url: s3://a}
  - {url: gs://b}
  - {url: s3://c, storage_class: ONEZONE_IA, s3_endpoint: "http://c"}
`, []string{"WALG_S3_STORAGE_CLASS=STANDARD_IA", "AWS_ENDPOINT=http://e", "WALG_S3_CA_CERT_FILE=/ca", "WALG_S3_PREFIX=s3://w"}, nil))
	want := []Repository{
		{Name: "repo1", URL: "s3://a", Required: true, StorageClass: "STANDARD_IA", S3Endpoint: "http://e", CAFile: "/ca"},
		{Name: "repo2", URL: "gs://b", Required: true},
		{Name: "repo3", URL: "s3://c", Required: true, StorageClass: "ONEZONE_IA", S3Endpoint: "http://c", CAFile: "/ca"},
	}
	if diff := cmp.Diff(want, c.Repositories); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"WALG_S3_PREFIX is ignored, because repositories is set (file /c/agent.yaml line 2)"}, c.Warnings()); diff != "" {
		t.Error(diff)
	}
	c = mustLoad(t, input("", []string{"AGENT_REPOSITORY=s3://a", "AGENT_STORAGE_CLASS=X", "WALG_S3_STORAGE_CLASS=Y", "AWS_ENDPOINT=http://e", "AWS_ENDPOINT_URL=http://f", "S3_RETENTION_PERIOD=60"}, nil))
	if r := c.Repositories[0]; r.StorageClass != "X" || r.S3Endpoint != "" || r.Immutable == nil || r.Immutable.String() != "governance:1d" {
		t.Errorf("%+v", r)
	}
	wantWarnings := []string{
		"AWS_ENDPOINT is ignored, because AWS_ENDPOINT_URL is set",
		"WALG_S3_STORAGE_CLASS is ignored, because storage_class is set (env AGENT_STORAGE_CLASS)",
		"S3_RETENTION_PERIOD is raised to 1d, the least that is allowed",
	}
	if diff := cmp.Diff(wantWarnings, c.Warnings()); diff != "" {
		t.Error(diff)
	}
}
