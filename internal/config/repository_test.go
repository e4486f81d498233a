package config

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const twoRepositories = `s3_region: eu-central-1
ca_file: /etc/agent/ca.pem
repositories:
  - name: local
    url: file:///backup/main
  - name: offsite
    url: s3://pg-backup/main
    required: false
    s3_endpoint: https://minio.example.com
    s3_path_style: true
    sse: AES256
    s3_region: us-east-1
    immutable: {mode: compliance, for: 30d}
`

func localAndOffsite() []Repository {
	return []Repository{
		{Name: "local", URL: "file:///backup/main", Required: true},
		{
			Name: "offsite", URL: "s3://pg-backup/main", S3Endpoint: "https://minio.example.com", S3PathStyle: true, SSE: SSEAES256,
			S3Region: "us-east-1", CAFile: "/etc/agent/ca.pem", Immutable: &Immutable{Mode: "compliance", For: 30 * day},
		},
	}
}

func TestOneRepository(t *testing.T) {
	c := mustLoad(t, input("", []string{
		"AGENT_REPOSITORY=s3://b/p", "AGENT_S3_ENDPOINT=http://minio:9000", "AGENT_S3_PATH_STYLE=true", "AGENT_STORAGE_CLASS=STANDARD_IA",
		"AGENT_KMS_KEY=alias/backup", "AGENT_S3_PROFILE=p", "AGENT_S3_REGION=r", "AGENT_CA_FILE=/ca", "AGENT_IMMUTABLE=governance:36h",
	}, nil))
	want := []Repository{{
		Name: "main", URL: "s3://b/p", Required: true, S3Endpoint: "http://minio:9000", S3Region: "r", S3Profile: "p", S3PathStyle: true,
		StorageClass: "STANDARD_IA", SSE: SSEKMS, KMSKey: "alias/backup", CAFile: "/ca", Immutable: &Immutable{"governance", 36 * time.Hour},
	}}
	if diff := cmp.Diff(want, c.Repositories); diff != "" {
		t.Error(diff)
	}
	if c.Repository != "s3://b/p" || len(c.Warnings()) != 0 {
		t.Errorf("%s, %q", c.Repository, c.Warnings())
	}
	for url, want := range map[string]Repository{
		"gs://b":           {GCSEndpoint: "http://g", GCSUserProject: "gp", StorageClass: "C", KMSKey: "k", CAFile: "/ca", Insecure: true},
		"azblob://b":       {AzureAccount: "acc", AzureEndpoint: "http://a", StorageClass: "C", KMSKey: "k", CAFile: "/ca", Insecure: true},
		"sftp://u@h:22/p":  {SFTPKnownHosts: "/kh", SFTPIdentityFile: "/home/me/id"},
		"file:///backup/b": {},
	} {
		want.Name, want.URL, want.Required = "main", url, true
		c := mustLoad(t, input("repository: "+url+`
gcs_endpoint: http://g
gcs_user_project: gp
azure_account: acc
azure_endpoint: http://a
sftp_known_hosts: /kh
sftp_identity_file: ~/id
storage_class: C
kms_key: k
ca_file: /ca
insecure: true
sse: none
immutable: none
`, nil, nil))
		if diff := cmp.Diff([]Repository{want}, c.Repositories); diff != "" {
			t.Errorf("%s: %s", url, diff)
		}
	}
	if c := mustLoad(t, Input{}); c.Repositories != nil {
		t.Errorf("%v", c.Repositories)
	}
}

func TestListOfRepositories(t *testing.T) {
	c := mustLoad(t, input(twoRepositories, nil, nil))
	if diff := cmp.Diff(localAndOffsite(), c.Repositories); diff != "" {
		t.Error(diff)
	}
	if c.Repository != "file:///backup/main" || len(c.Warnings()) != 0 {
		t.Errorf("%s, %q", c.Repository, c.Warnings())
	}
	at := func(line int) string { return fmt.Sprintf("file %s line %d", testFile, line) }
	want := []Setting{
		{"repository", "file:///backup/main", at(4)},
		{"repositories[0].name", "local", at(4)},
		{"repositories[0].url", "file:///backup/main", at(5)},
		{"repositories[0].required", "true", "default"},
		{"repositories[1].name", "offsite", at(6)},
		{"repositories[1].url", "s3://pg-backup/main", at(7)},
		{"repositories[1].required", "false", at(8)},
		{"repositories[1].s3_endpoint", "https://minio.example.com", at(9)},
		{"repositories[1].s3_region", "us-east-1", at(12)},
		{"repositories[1].s3_path_style", "true", at(10)},
		{"repositories[1].sse", "AES256", at(11)},
		{"repositories[1].ca_file", "/etc/agent/ca.pem", at(2)},
		{"repositories[1].immutable", "compliance:30d", at(13)},
		{"data_directory", "", "default"},
	}
	if diff := cmp.Diff(want, c.Effective()[:len(want)]); diff != "" {
		t.Error(diff)
	}
	if s := setting(t, c, "s3_region"); s.Value != "eu-central-1" || s.Source != at(1) {
		t.Errorf("%+v", s)
	}

	// The same in the environment, as YAML and as JSON; it replaces the file's.
	for _, text := range []string{
		`[{name: local, url: "file:///backup/main"}, {name: offsite, url: s3://pg-backup/main, required: false, s3_endpoint: "https://minio.example.com", s3_path_style: true, sse: AES256, s3_region: us-east-1, ca_file: /etc/agent/ca.pem, immutable: "compliance:30d"}]`,
		`[{"name":"local","url":"file:///backup/main"},{"name":"offsite","url":"s3://pg-backup/main","required":false,"s3_endpoint":"https://minio.example.com","s3_path_style":true,"sse":"AES256","s3_region":"us-east-1","ca_file":"/etc/agent/ca.pem","immutable":{"mode":"compliance","for":"720h"}}]`,
	} {
		c := mustLoad(t, input("repository: /other", []string{"AGENT_REPOSITORIES=" + text}, nil))
		if diff := cmp.Diff(localAndOffsite(), c.Repositories); diff != "" {
			t.Error(diff)
		}
		if s := setting(t, c, "repositories[1].sse"); s.Source != "env AGENT_REPOSITORIES" {
			t.Errorf("%+v", s)
		}
	}
	c = mustLoad(t, input("repositories: [{url: /a}, {url: /b, name: x, required: false}, {url: /c}]", nil, nil))
	if diff := cmp.Diff([]Repository{{Name: "repo1", URL: "/a", Required: true}, {Name: "x", URL: "/b"}, {Name: "repo3", URL: "/c", Required: true}}, c.Repositories); diff != "" {
		t.Error(diff)
	}
	c = mustLoad(t, input("data_directory: &p /a\nrepositories: [&i {url: *p, name: &n b}, {url: s3://c, s3_profile: *n}]", nil, nil))
	if len(c.Repositories) != 2 || c.Repositories[0].URL != "/a" || c.Repositories[1].S3Profile != "b" {
		t.Errorf("aliases were read as %+v", c.Repositories)
	}
}

// TestPickingOne: a repository of a higher layer replaces the list, or is one
// of its items with all that is set for it.
func TestPickingOne(t *testing.T) {
	list := localAndOffsite()
	list[1].Required = true
	env := func(s string) []string { return []string{s} }
	flag := func(s string) map[string]string { return map[string]string{"repository": s} }
	for _, test := range []struct {
		name   string
		in     Input
		want   []Repository
		source string
	}{
		{"flag by name", input(twoRepositories, nil, flag("offsite")), list[1:], "flag --repository"},
		{"flag by URL", input(twoRepositories, nil, flag("s3://pg-backup/main/")), list[1:], "flag --repository"},
		{"environment by name", input(twoRepositories, env("AGENT_REPOSITORY=offsite"), nil), list[1:], "env AGENT_REPOSITORY"},
		{"flag by path", input(twoRepositories, nil, flag("/backup/main")), list[:1], "flag --repository"},
		{"flag over environment", input(twoRepositories, env("AGENT_REPOSITORY=/x"), flag("local")), list[:1], "flag --repository"},
		{"from the environment's list", input("repository: /x", env("AGENT_REPOSITORIES=[{url: /a}, {url: /b, name: bb}]"), flag("bb")), []Repository{{Name: "bb", URL: "/b", Required: true}}, "flag --repository"},
		{"other", input(twoRepositories, nil, flag("s3://other")), []Repository{{Name: "main", URL: "s3://other", Required: true, S3Region: "eu-central-1", CAFile: "/etc/agent/ca.pem"}}, "flag --repository"},
		{"elsewhere", input(twoRepositories, env("AGENT_REPOSITORY=/copy"), nil), []Repository{{Name: "main", URL: "/copy", Required: true}}, "env AGENT_REPOSITORY"},
	} {
		c, err := Load(test.in)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if diff := cmp.Diff(test.want, c.Repositories); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
		if diff := cmp.Diff(Setting{"repository", test.want[0].URL, test.source}, setting(t, c, "repository")); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
		if len(c.Warnings()) != 0 {
			t.Errorf("%s: warnings %q", test.name, c.Warnings())
		}
	}
	c := mustLoad(t, input(twoRepositories, nil, flag("offsite")))
	if s := setting(t, c, "repositories[1].sse"); s.Value != "AES256" || s.Source != "file "+testFile+" line 11" {
		t.Errorf("%+v", s)
	}
	wantError(t, input(twoRepositories, nil, flag("ofsite")),
		`repository: bad value "ofsite" (flag --repository): it is neither a URL nor an absolute path, nor the name of a repository (local, offsite); allowed: …`,
		"Give a name of the list, an absolute path, or a URL such as s3://bucket/prefix.")
	wantError(t, input("repositories: [{url: s3://a, name: x, s3_endpoint: http://e}, {url: s3://a, name: y, s3_endpoint: http://f}]", nil, flag("s3://a")),
		"repository (flag --repository): the repositories x, y have this URL", "Give the name of the one that is meant.")
	// A name that may be in the part of the list that is wrong is no problem of its own.
	wantError(t, input("repositories: [{url: /a, nam: x}]", nil, flag("x")), `unknown key repositories[0].nam with value "x" (file /c/agent.yaml line 1)`, "Did you mean name? …")
}

func TestBadLists(t *testing.T) {
	const place = "file " + testFile + " line 1"
	const itemKeys = "Allowed are: name, url, required, s3_endpoint, s3_region, s3_profile, s3_path_style, s3_checksum, storage_class, sse, kms_key, gcs_endpoint, gcs_user_project, azure_account, azure_endpoint, sftp_known_hosts, sftp_identity_file, ca_file, insecure, immutable, price_storage_gb_month, price_put_1000, price_get_1000, price_currency."
	for _, test := range []struct{ list, text, hint string }{
		{"x", `repositories: bad value "********" (%s): it is not a list; …`, "The setting repositories: …"},
		{"{url: /a}", `repositories: bad value "********" (%s): it is not a list; …`, "The setting repositories: …"},
		{"[]", `repositories: bad value "********" (%s): it is empty; …`, "The setting repositories: …"},
		{"[/a]", `repositories[0]: bad value "/a" (%s): it is not a mapping`, "Write each repository as a mapping, …"},
		{"[{url: /a}, [b]]", `repositories[1]: bad value "(a list)" (%s): it is not a mapping`, "Write each repository as a mapping, …"},
		{"[{url: /a}, {name: b}]", `repositories[1].url is missing (%s)`, "Say where the repository is, …"},
		{"[{url: ftp://x}]", `repositories[0].url: bad value "ftp://x" (%s): repository URL has an unknown scheme ftp; …`, "Use one of: …"},
		{"[{url: 'sftp://u:geheim@h/x'}]", `repositories[0].url: bad value "sftp://u:********@h/x" (%s): repository URL with the scheme sftp holds a password; …`, "Take the password out of the URL; …"},
		{"[{url: /a, url: /b}]", "repositories[0].url is set twice (%s%t)", "Keep one of the two."},
		{"[{url: /a, name: 'a b'}]", `repositories[0].name: bad value "a b" (%s): it is not one of the allowed values; …`, "The setting repositories[0].name: …"},
		{"[{url: /a, name: -a}]", `repositories[0].name: bad value "-a" (%s): it is not one of the allowed values; …`, "The setting repositories[0].name: …"},
		{"[{url: /a, name: ''}]", `repositories[0].name: bad value "" (%s): it is empty; …`, "The setting repositories[0].name: …"},
		{"[{url: /a, name: x}, {url: /b, name: x}]", `repositories[0].name and repositories[1].name have the same name x (%s)`, "Give each repository a name of its own."},
		{"[{url: /a}, {url: /b, name: repo1}]", `repositories[0].name and repositories[1].name have the same name repo1 (%s)`, "Give each repository a name of its own."},
		{"[{url: /a, required: yes}]", `repositories[0].required: bad value "yes" (%s): it is not one of the allowed values; allowed: true, false`, "The setting repositories[0].required: …"},
		{
			"[{url: /a, required: false}, {url: /b, required: false}]",
			"no repository is required (%s): a WAL segment would be thrown away by PostgreSQL without being durable anywhere", "Set required: true for at least one of them.",
		},
		{"[{url: /a}, {url: s3://b, sse: AES}]", `repositories[1].sse: bad value "AES" (%s): it is not one of the allowed values; allowed: AES256, aws:kms, none`, "The setting repositories[1].sse: …"},
		{"[{url: s3://b, s3_endpoint: [a]}]", `repositories[0].s3_endpoint: bad value "(a list)" (%s): it is not a plain value; …`, "The setting repositories[0].s3_endpoint: …"},
		{"[{url: s3://b, s3_endpoint: }]", `repositories[0].s3_endpoint: bad value "" (%s): it is empty; …`, "The setting repositories[0].s3_endpoint: …"},
		{"[{url: s3://b, ca_file: ca.pem}]", `repositories[0].ca_file: bad value "ca.pem" (%s): it is not an absolute path; …`, "The setting repositories[0].ca_file: …"},
		{"[{url: s3://b, s3_endpont: 'http://x'}]", `unknown key repositories[0].s3_endpont with value "http://x" (%s)`, "Did you mean s3_endpoint? " + itemKeys},
		{"[{url: s3://b, region: eu}]", `unknown key repositories[0].region with value "eu" (%s)`, "Did you mean s3_region? " + itemKeys},
		{"[{url: s3://b, WALG_S3_SSE: AES256}]", `unknown key repositories[0].WALG_S3_SSE with value "AES256" (%s)`, "Did you mean sse? " + itemKeys},
		{"[{url: s3://b, AGENT_S3_REGION: eu}]", `unknown key repositories[0].AGENT_S3_REGION with value "eu" (%s)`, "Did you mean s3_region? " + itemKeys},
		{"[{url: s3://b, s3_secret: geheim}]", `unknown key repositories[0].s3_secret with value "********" (%s)`, itemKeys},
		{"[{url: s3://b, compression: lz4}]", `unknown key repositories[0].compression with value "lz4" (%s)`, itemKeys},
		{"[{url: s3://b, [x]: y}]", `unknown key repositories[0].(not a word) with value "y" (%s)`, itemKeys},
		{"[{url: /a, s3_region: eu}]", `repositories[0].s3_region (%s) has no meaning for a repository with the scheme file, only for: s3`, "Take it out of this item."},
		{"[{url: gs://b, sse: AES256}]", `repositories[0].sse (%s) has no meaning for a repository with the scheme gs, only for: s3`, "Take it out of this item."},
		{
			"[{url: sftp://h/x, immutable: governance:30d}]", `repositories[0].immutable (%s) has no meaning for a repository with the scheme sftp, only for: s3, gs, azblob`,
			"Take it out of this item, or set it to none: this kind of store cannot lock objects.",
		},
		{"[{url: s3://b, immutable: {mode: governance}}]", `repositories[0].immutable: bad value "(a mapping)" (%s): its for is missing; …`, "The setting repositories[0].immutable: …"},
		{"[{url: s3://b, immutable: {for: 30d}}]", `repositories[0].immutable: bad value "(a mapping)" (%s): its mode is missing; …`, "The setting repositories[0].immutable: …"},
		{"[{url: s3://b, immutable: {mode: governance, days: 30}}]", `repositories[0].immutable: bad value "(a mapping)" (%s): its key "days" is neither mode nor for; …`, "Write it as {mode: governance, for: 30d}."},
		{"[{url: s3://b, immutable: {mode: governance, for: [30d]}}]", `repositories[0].immutable: bad value "(a mapping)" (%s): its for is not a plain value; …`, "The setting repositories[0].immutable: …"},
		{"[{url: s3://b, immutable: {mode: governance, mode: compliance, for: 30d}}]", `repositories[0].immutable: bad value "(a mapping)" (%s): its mode is set twice; …`, "The setting repositories[0].immutable: …"},
		{"[{url: s3://b, immutable: {mode: none, for: 30d}}]", `repositories[0].immutable: bad value "(a mapping)" (%s): "none" stands alone, without a duration; …`, "The setting repositories[0].immutable: …"},
		{"[{url: s3://b, immutable: {mode: , for: 30d}}]", `repositories[0].immutable: bad value "(a mapping)" (%s): its mode: it is empty; …`, "The setting repositories[0].immutable: …"},
		{"[{url: s3://b, immutable: {mode: legal, for: 30d}}]", `repositories[0].immutable: bad value "legal:30d" (%s): it is not one of the allowed values; …`, "The setting repositories[0].immutable: …"},
		{"[{url: s3://b}, {url: s3://b/}]", "repositories[0].url and repositories[1].url (%s) are the same place", "Give each repository a bucket, prefix or folder of its own."},
		{"[{url: /a/b}, {url: 'file:///a//b/'}]", "repositories[0].url and repositories[1].url (%s) are the same place", "Give each repository a bucket, prefix or folder of its own."},
		{
			"[{url: s3://b, sse: AES256, kms_key: k}]", `repositories[0].kms_key (%s) needs sse aws:kms, but it is AES256 (%s)`,
			"Set sse to aws:kms, or take kms_key out.",
		},
		{"[{url: s3://b, sse: none, kms_key: k}]", `repositories[0].kms_key (%s) needs sse aws:kms, but it is none (%s)`, "Set sse to aws:kms, or take kms_key out."},
		{
			"[{url: s3://b, storage_class: GLACIER}]", `repositories[0].storage_class: bad value "GLACIER" (%s): objects of this class cannot be read for hours, so that neither WAL nor backups could be restored from repo1 (s3://b)`,
			"Use a class with instant access, …",
		},
		{"[{url: azblob://b, storage_class: Archive}]", `repositories[0].storage_class: bad value "Archive" (%s): objects …`, "Use a class with instant access, …"},
	} {
		want := func(source, twice string) string {
			return strings.ReplaceAll(strings.ReplaceAll(test.text, "%s", source), "%t", twice)
		}
		wantError(t, input("repositories: "+test.list, nil, nil), want(place, ", and line 1 before"), test.hint)
		wantError(t, input("", []string{"AGENT_REPOSITORIES=" + test.list}, nil), want("env AGENT_REPOSITORIES", ""), test.hint)
	}
	for _, text := range []string{"[{url: /a}", "[]\n---\n[]", "{a", "[*missing]"} {
		wantError(t, input("", []string{"AGENT_REPOSITORIES=" + text}, nil),
			`repositories: bad value "********" (env AGENT_REPOSITORIES): it is not valid YAML or JSON; …`, "The setting repositories: …")
	}
	for _, empty := range []string{"", "''", "null"} {
		wantError(t, input("repositories: "+empty, nil, nil), `repositories: bad value "" (`+place+`): it is empty; …`, "The setting repositories: …")
	}
	wantError(t, input("", []string{"AGENT_REPOSITORIES=null"}, nil), `repositories: bad value "********" (env AGENT_REPOSITORIES): it is empty; …`, "The setting …")
	wantError(t, input("repositories: &a [*a]", nil, nil), `repositories[0]: bad value "(a list)" (`+place+`): it is not a mapping`, "Write each …")
	wantError(t, input("repositories:\n- url: /a\n- url: gs://b\n  sse: aws:kms\n", nil, nil),
		`repositories[1].sse (file `+testFile+` line 4) has no meaning for a repository with the scheme gs, only for: s3`, "Take it out of this item.")
}

func TestRepositoryAndRepositoriesInOneLayer(t *testing.T) {
	const hint = "Keep one of them; repositories may have one item."
	wantError(t, input("repository: /a\nrepositories: [{url: /b}]", nil, nil),
		"repository (file /c/agent.yaml line 1) and repositories (file /c/agent.yaml line 2) are both set", hint)
	wantError(t, input("", []string{"AGENT_REPOSITORY=/a", "AGENT_REPOSITORIES=[{url: /b}]"}, nil),
		"repository (env AGENT_REPOSITORY) and repositories (env AGENT_REPOSITORIES) are both set", hint)
}

func TestBadListIsAnErrorThoughItLoses(t *testing.T) {
	wantError(t, input("repositories: [{url: /a, x: y}]", []string{"AGENT_REPOSITORY=/b"}, nil), "unknown key repositories[0].x …", "Allowed are: …")
	wantError(t, input("repository: a", []string{"AGENT_REPOSITORIES=[{url: /b}]"}, nil), `repository: bad value "a" …`, "Give an absolute path …")
}

func TestRepositoryWarnings(t *testing.T) {
	for _, test := range []struct {
		in   Input
		want []string
	}{
		{
			input("repositories: [{url: /a}, {url: s3://b, name: off, insecure: true}]", nil, nil),
			[]string{"insecure is set (file /c/agent.yaml line 1): certificates of the repository off (s3://b) are not checked, so that anybody between here and there can read and change what is sent"},
		},
		{
			input("", []string{"AGENT_REPOSITORY=s3://b", "AGENT_INSECURE=true"}, nil),
			[]string{"insecure is set (env AGENT_INSECURE): certificates of the repository s3://b are not checked, so that anybody between here and there can read and change what is sent"},
		},
		{
			input("immutable: governance:30d\nrepositories: [{url: /a}, {url: s3://b}, {url: /c, immutable: none}]", nil, nil),
			[]string{"immutable is set for all repositories (file /c/agent.yaml line 1), but repo1 (/a) cannot lock objects and will refuse to store any: set immutable to none for this one"},
		},
		{
			input("repository: /a\ns3_region: x\ninsecure: true\ns3_path_style: false\nsse: none\n", nil, nil),
			[]string{
				"s3_region is set (file /c/agent.yaml line 2), but has a meaning only for repositories with the scheme s3",
				"insecure is set (file /c/agent.yaml line 3), but has a meaning only for repositories with the scheme s3, gs, azblob",
			},
		},
		{input("s3_region: x\ninsecure: true\n", []string{"AGENT_REPOSITORY=/a"}, nil), nil},
		{input("", []string{"AGENT_S3_REGION=x"}, nil), nil},
	} {
		c := mustLoad(t, test.in)
		if diff := cmp.Diff(test.want, c.Warnings()); diff != "" {
			t.Error(diff)
		}
	}
	// What is promised as immutable is never stored otherwise.
	c := mustLoad(t, input("immutable: governance:30d\nrepositories: [{url: /a}, {url: /c, immutable: none}]", nil, nil))
	if c.Repositories[0].Immutable == nil || c.Repositories[1].Immutable != nil {
		t.Errorf("%+v", c.Repositories)
	}
}

// TestNoSecretOfAListIsShown puts a secret into every place of a list.
func TestNoSecretOfAListIsShown(t *testing.T) {
	const secret = "hunter2hunter2"
	key := "AGE-SECRET-KEY-1" + secret
	for _, list := range []string{
		"[{url: 's3://id:%s@b/x'}]", "[{url: /a}, {url: 'sftp://u:%s@h/x'}]", "[{url: 's3://b?sig=%s'}]", "'s3://id:%s@b'", "['sftp://u:%s@h/x']",
		"[{url: s3://b, s3_endpoint: 'http://u:%s@h'}]", "[{url: s3://b, s3_endpoint: 'http://h/?sig=%s'}]", "[{url: s3://b, secret: %s}]",
		"[{url: s3://b, aws_secret_access_key: %s}]", "[{url: s3://b, password: %s}]", "[{url: /a}, {url: 'sftp://u:%s@h/x'}", "[{url: *%s}]",
		"[{url: s3://b, immutable: {'x:%s@': 1}}]", "{url: 'sftp://u:%s@h/x'}", "[{url: s3://b, s3_profile: " + key + "%s}]",
		"[{url: sftp://b/x, sftp_identity_file: '-----BEGIN OPENSSH PRIVATE KEY-----%s'}]", "[{'s3://u:%s@h': x}]",
	} {
		text := strings.ReplaceAll(list, "%s", secret)
		inputs := []Input{input("", []string{"AGENT_REPOSITORIES=" + text}, nil)}
		if !strings.Contains(text, "*") { // the parser of the file names the anchor
			inputs = append(inputs, input("repositories: "+text, nil, nil))
		}
		for _, in := range inputs {
			c, err := Load(in)
			if err == nil {
				data, jsonErr := json.Marshal(c)
				t.Errorf("%s is taken: %s, %v", list, data, jsonErr)
				continue
			}
			wantNoLeak(t, list, fmt.Sprintf("%v %+v", err, err), secret)
		}
	}
}

func TestBadRepositorySettings(t *testing.T) {
	for _, test := range []struct{ key, bad, want string }{
		{"s3_endpoint", "minio:9000", "it does not begin with https:// or http://"},
		{"s3_endpoint", "https://", "it has no host"},
		{"s3_endpoint", "https://:9000", "it has no host"},
		{"gcs_endpoint", "http://u@h", "it holds a user or a password"},
		{"azure_endpoint", "http://h?sv=x", "it has a query or a fragment"},
		{"azure_endpoint", "http://h:x", "it is not a URL"},
		{"s3_path_style", "yes", "it is not one of the allowed values"},
		{"s3_region", "eu central", "it is not one of the allowed values"},
		{"s3_region", strings.Repeat("x", 65), "it is too long"},
		{"storage_class", "ü", "it is not one of the allowed values"},
		{"sse", "aes256", "it is not one of the allowed values"},
		{"kms_key", "a b", "it is not one of the allowed values"},
		{"azure_account", "ab", "it is not one of the allowed values"},
		{"azure_account", "Account", "it is not one of the allowed values"},
		{"azure_account", strings.Repeat("x", 25), "it is too long"},
		{"price_put_1000", "-1", "it is not a decimal number"},
		{"price_put_1000", "0,05", "it is not a decimal number"},
		{"price_put_1000", "1e3", "it is not a decimal number"},
		{"price_put_1000", "Inf", "it is not a decimal number"},
		{"price_put_1000", "1000001", "it is out of range"},
		{"price_currency", "€", "it is not one of the allowed values"},
		{"price_currency", "dollars and cents", "it is not one of the allowed values"},
		{"price_currency", "ninechars", "it is too long"},
		{"immutable", "30d", "it is not one of the allowed values"},
		{"immutable", "governance", "a duration is a number and a unit"},
		{"immutable", "governance:30", "the unit is missing (did you mean 30s?)"},
		{"immutable", "governance:23h", "that is too short"},
		{"immutable", "governance:36501d", "that is too long"},
		{"immutable", "governance:1d30m", "it is not a number of whole hours or days"},
		{"immutable", "Governance:30d", "it is not one of the allowed values"},
		{"timeout", "0s", "that is too short"},
		{"timeout", "forever", "this is not a duration"},
		{"full_every", "59m", "that is too short"},
		{"full_every", "3651d", "that is too long"},
		{"keep_window", "59m", "that is too short"},
		{"keep_window", "36501d", "that is too long"},
		{"keep_window", "7", "the unit is missing (did you mean 7s?)"},
	} {
		o, _ := find(table(), func(o option) bool { return o.Key == test.key })
		want := fmt.Sprintf("%s: bad value %q (flag --%s): %s; allowed: %s", test.key, shorten(maskAny(test.bad)), o.Flag, test.want, o.Allowed)
		wantError(t, input("", nil, map[string]string{o.Flag: test.bad}), want, "The setting "+test.key+": …")
	}
	wantError(t, input("sftp_identity_file: '-----BEGIN OPENSSH PRIVATE KEY-----'", nil, nil),
		`sftp_identity_file: bad value "********" (file /c/agent.yaml line 1): it is a private key: keep that in a file for the agent's user alone, and give its path; …`, "The setting …")
}

// TestKeep reads a policy, and one rule that is taken back.
func TestKeep(t *testing.T) {
	file := "keep_window: 7d\nkeep_full: 2\nkeep_daily: 7\nkeep_weekly: 4\nkeep_monthly: 12\nkeep_yearly: 10\nmin_backups: 3\n"
	want := Keep{Window: 7 * 24 * time.Hour, Full: 2, Daily: 7, Weekly: 4, Monthly: 12, Yearly: 10, Least: 3}
	if got := mustLoad(t, input(file, nil, nil)).Keep; got != want {
		t.Errorf("%+v", got)
	}
	for _, none := range []string{"0", "0s"} {
		want.Window = 0
		if got := mustLoad(t, input(file, []string{"AGENT_KEEP_WINDOW=" + none}, nil)).Keep; got != want {
			t.Errorf("with %s: %+v", none, got)
		}
	}
}

func TestTimeouts(t *testing.T) {
	c := mustLoad(t, input("timeout: 5m\nfull_every: 1d12h", nil, nil))
	if c.Timeout != 5*time.Minute || c.FullEvery != 36*time.Hour {
		t.Errorf("%v %v", c.Timeout, c.FullEvery)
	}
	if c := mustLoad(t, input("timeout: 5m", []string{"AGENT_TIMEOUT=auto"}, nil)); c.Timeout != 0 {
		t.Errorf("%v", c.Timeout)
	}
}
