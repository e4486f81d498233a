package docs_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
	"agent/testing/stores"
)

// examples are pairs: what a document calls by the name of an example, and what
// stands for it in the test.
type examples []string

// real is a text of the document with what there is in the test.
func (e examples) real(text string) string { return strings.NewReplacer(e...).Replace(text) }

// shown is the opposite, for what commands have printed.
func (e examples) shown(text string) string {
	back := slices.Clone(e)
	slices.Reverse(back)
	return strings.NewReplacer(back...).Replace(text)
}

// The bucket of all examples.
const exampleBucket = "example-pg-backup"

// startStores runs the servers that a document asks for, by the comment
// "store KIND".
func startStores(t *testing.T, dir string, d document) examples {
	t.Helper()
	kinds := map[string]func(*testing.T, string) examples{"s3": startS3, "gcs": startGCS, "azure": startAzure, "sftp": startSFTP}
	var all examples
	for _, kind := range d.stores {
		start, ok := kinds[kind]
		if !ok {
			t.Fatalf("%s: there is no store %s", d.name, kind)
		}
		all = append(all, start(t, dir)...)
	}
	return all
}

// startS3 gives the document a bucket that locks, and a user with the rights
// that it recommends.
func startS3(t *testing.T, _ string) examples {
	t.Helper()
	s := stores.StartVersityGW(t, stores.S3Options{TLS: true})
	in := &s3.CreateBucketInput{Bucket: aws.String(exampleBucket), ObjectLockEnabledForBucket: aws.Bool(true)}
	if _, err := s.Client(t, s.Key, s.Secret).CreateBucket(t.Context(), in); err != nil {
		t.Fatalf("make the bucket: %v", err)
	}
	key, secret := s.RestrictedUser(t, exampleBucket)
	return examples{
		"https://s3.example.com", s.URL, "/etc/agent/s3-ca.pem", s.CAFile,
		"SECRETEXAMPLE", secret, "AKIDEXAMPLE", key, // the first contains the second
	}
}

func startGCS(t *testing.T, _ string) examples {
	t.Helper()
	g := stores.StartGCS(t, stores.GCSOptions{})
	g.MakeBucket(t, exampleBucket)
	return examples{"http://gcs.example.com", g.Host}
}

// startAzure gives the document a token with the rights that it recommends.
func startAzure(t *testing.T, dir string) examples {
	t.Helper()
	a := stores.StartAzurite(t, stores.AzureOptions{})
	a.MakeContainer(t, exampleBucket)
	key, err := container.NewSharedKeyCredential(stores.AzuriteAccount, stores.AzuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	rights := sas.ContainerPermissions{Create: true, Read: true, List: true}
	token, err := sas.BlobSignatureValues{
		Version: "2024-11-04", ContainerName: exampleBucket, Permissions: rights.String(), ExpiryTime: time.Now().Add(time.Hour),
	}.SignWithSharedKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "azure.sas")
	if err := os.WriteFile(file, []byte(token.Encode()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Own(t, file)
	return examples{"https://examplepgbackup.blob.core.windows.net", a.Endpoint(), "/etc/agent/azure.sas", file}
}

func startSFTP(t *testing.T, _ string) examples {
	t.Helper()
	s := stores.StartSFTP(t, stores.SFTPOptions{})
	return examples{
		"sftp://backup@files.example.com/main", s.RepositoryURL("main"),
		"/etc/agent/known_hosts", s.KnownHostsFile, "/etc/agent/id_ed25519", s.IdentityFile,
	}
}

// TestLeastRights compares the policy that docs/providers.md prints with the
// rights under which the S3 backend and the document's commands are tested.
func TestLeastRights(t *testing.T) {
	text := read(t, filepath.Join(root, "docs", "providers.md"))
	found := regexp.MustCompile("(?s)<!-- least rights s3 -->\n\n```json\n(.*?)```").FindStringSubmatch(text)
	if found == nil {
		t.Fatal("there is no policy")
	}
	var policy struct {
		Statement []struct {
			Effect   string
			Action   []string
			Resource string
		}
	}
	if err := json.Unmarshal([]byte(found[1]), &policy); err != nil {
		t.Fatalf("the policy cannot be read: %v", err)
	}
	var actions []string
	for _, s := range policy.Statement {
		if s.Effect != "Allow" {
			t.Errorf("effect %q", s.Effect)
		}
		// Actions on a bucket and on its objects have resources of their own.
		onBucket := s.Resource == "arn:aws:s3:::"+exampleBucket
		for _, action := range s.Action {
			if about := regexp.MustCompile(`Bucket`).MatchString(action); about != onBucket {
				t.Errorf("%s is allowed for %s", action, s.Resource)
			}
		}
		actions = append(actions, s.Action...)
	}
	want := stores.ArchiverActions()
	slices.Sort(want)
	slices.Sort(actions)
	if diff := cmp.Diff(want, actions); diff != "" {
		t.Errorf("tested (-) and printed (+) rights differ:\n%s", diff)
	}
	for _, m := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(text, -1) {
		if !json.Valid([]byte(m[1])) {
			t.Errorf("this is no JSON:\n%s", m[1])
		}
	}
}
