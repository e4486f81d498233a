package s3

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"agent/internal/storage"
	"agent/testing/stores"
)

// testArchiver wants that a host with the least rights can do its work, and
// that whoever steals its credentials can neither delete nor hide for good.
func testArchiver(t *testing.T, server *stores.S3) {
	bucket := server.NewBucket(t, stores.S3Bucket{Lockable: true})
	key, secret := server.RestrictedUser(t, bucket)
	login(t, key, secret)
	o := in(server, bucket)
	o.Prefix = "repo"
	b := open(t, o)
	b.singleMax, b.minPart = 1<<20, 5<<20
	lock := &storage.Lock{Mode: storage.Governance, Until: time.Now().Add(48 * time.Hour)}
	big := bytes.Repeat([]byte("part"), 3<<19)
	for name, body := range map[string][]byte{"wal/one": []byte("body"), "pack/parts": big} {
		if _, err := b.Put(t.Context(), name, storage.Bytes(body), storage.PutOptions{Lock: lock}); err != nil {
			t.Fatalf("put: %v", err)
		}
		if _, err := b.Put(t.Context(), name, storage.Bytes(body), storage.PutOptions{Lock: lock}); !errors.Is(err, storage.ErrExists) {
			t.Fatalf("put again: %v, want ErrExists", err)
		}
		info, err := b.Stat(t.Context(), name)
		if err != nil || info.Lock == nil {
			t.Fatalf("stat: %+v, %v", info, err)
		}
	}
	facts, err := b.Probe(t.Context())
	if err != nil || !facts.Versioned || !facts.Lockable {
		t.Fatalf("probe: %+v, %v", facts, err)
	}
	var listed []string
	for info, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		listed = append(listed, info.Key)
	}
	if !slices.Equal(listed, []string{"pack/parts", "wal/one"}) {
		t.Fatalf("listed: %q", listed)
	}
	if _, err := b.Stat(t.Context(), "wal/absent"); !errors.Is(err, storage.ErrNotExist) {
		t.Fatalf("stat of an absent object: %v", err)
	}
	before := versionsOf(t, b, "wal/one")
	if len(before) != 1 {
		t.Fatalf("versions: %+v", before)
	}

	// The attacks, by our code and by the protocol.
	for _, keys := range [][]string{{"wal/one"}, {"wal/one", "pack/parts"}} {
		if err := b.Delete(t.Context(), keys...); !errors.Is(err, storage.ErrPermission) || !strings.Contains(err.Error(), "is kept until") {
			t.Errorf("delete of %q: %v, want ErrPermission that says until when", keys, err)
		}
	}
	thief := server.Client(t, key, secret)
	name := aws.String("repo/wal/one")
	version := &before[0].Version
	attacks := map[string]func() error{
		"delete": func() error {
			_, err := thief.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: name})
			return err
		},
		"delete version": func() error {
			_, err := thief.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: name, VersionId: version})
			return err
		},
		"delete version with bypass": func() error {
			_, err := thief.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: name, VersionId: version, BypassGovernanceRetention: aws.Bool(true)})
			return err
		},
		"shorten": func() error {
			_, err := thief.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{
				Bucket: &bucket, Key: name, VersionId: version,
				Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeGovernance, RetainUntilDate: aws.Time(time.Now().Add(time.Minute))},
			})
			return err
		},
		"shorten with bypass": func() error {
			_, err := thief.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{
				Bucket: &bucket, Key: name, VersionId: version, BypassGovernanceRetention: aws.Bool(true),
				Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeGovernance, RetainUntilDate: aws.Time(time.Now().Add(time.Minute))},
			})
			return err
		},
		"suspend versions": func() error {
			_, err := thief.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
				Bucket: &bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusSuspended},
			})
			return err
		},
		"policy": func() error {
			_, err := thief.DeleteBucketPolicy(t.Context(), &s3.DeleteBucketPolicyInput{Bucket: &bucket})
			return err
		},
	}
	for what, attack := range attacks {
		if err := attack(); err == nil {
			t.Errorf("%s is allowed", what)
		}
	}
	// An overwrite is allowed by any right to write; it loses nothing.
	if _, err := thief.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: name, Body: strings.NewReader("evil")}); err != nil {
		t.Logf("overwrite is refused: %v", err)
	}
	after := versionsOf(t, b, "wal/one")
	i := slices.IndexFunc(after, func(v storage.Info) bool { return v.Version == before[0].Version })
	if i < 0 || readVersion(t, b, after[i]) != "body" {
		t.Fatalf("after an overwrite the first version is lost: %+v", after)
	}
}
