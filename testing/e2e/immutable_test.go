package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"

	"agent/internal/compress"
	"agent/internal/storage/transport"
	"agent/testing/harness"
	"agent/testing/stores"
)

const (
	lockFor   = "1d"
	lockWhole = (1 + 7 + 2) * 24 * time.Hour // for, the default of full_every, and the reserve
)

// vault is a site whose objects are locked as they are written. It works with
// credentials that may create, read, list and lock, and nothing else.
type vault struct {
	*site
	bucket string
	mode   types.ObjectLockRetentionMode
	began  time.Time
	admin  *s3.Client // with all rights
	thief  *s3.Client // with those of the site
	first  backup     // on timeline 1
	second backup     // on timeline 2
	last   string     // a copy of the last segment
	want   ledger
}

// newVault makes a bucket and a site that archives into it.
func newVault(t *testing.T, server *stores.S3, mode string) *vault {
	t.Helper()
	v := &vault{bucket: server.NewBucket(t, stores.S3Bucket{Lockable: true}), mode: types.ObjectLockRetentionMode(strings.ToUpper(mode)), began: time.Now().Truncate(time.Second)}
	key, secret := server.RestrictedUser(t, v.bucket)
	tr, err := transport.New(transport.Options{CAFile: server.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.CloseIdleConnections)
	keep := func(o *s3.Options) { o.HTTPClient = &http.Client{Transport: tr} }
	v.admin = s3.New(server.Client(t, server.Key, server.Secret).Options(), keep)
	v.thief = s3.New(server.Client(t, key, secret).Options(), keep)
	v.site = newSite(t, plan{
		Options: harness.Options{WALSegSizeMB: 1}, compression: "lz4", sealed: true,
		url: server.RepositoryURL(v.bucket, "repo"), reach: append(server.EnvOf(key, secret), "AGENT_IMMUTABLE="+mode+":"+lockFor),
	})
	return v
}

// fill takes a backup of a server that is written to, goes on to a new timeline
// and takes another. Then the server is gone.
func (v *vault) fill(t *testing.T) {
	t.Helper()
	v.Exec(t, loadTables("pg_default"), "CREATE TABLE later (i int)")
	work := startLoad(t, v.Server)
	work.more(t, 50)
	v.first = v.push(t)
	work.more(t, 50)
	v.want = work.mark(t)
	work.stop(t)
	v.want = work.mark(t)
	v.switchWAL(t)
	v.Stop(t)

	v.AppendConf(t, map[string]string{"restore_command": "false"})
	writeFile(t, filepath.Join(v.DataDir, "recovery.signal"), nil)
	v.Restart(t)
	v.WaitRecovered(t)
	v.Exec(t, "INSERT INTO later VALUES (1)", "CHECKPOINT")
	// The claim of the first could not be deleted: it must not stand in the way.
	v.second = v.push(t)
	if v.second.Timeline != 2 {
		t.Fatalf("the second backup is on timeline %d", v.second.Timeline)
	}
	v.Exec(t, "INSERT INTO later VALUES (2)")
	name := v.switchWAL(t)
	v.last = copyTo(t, filepath.Join(v.DataDir, "pg_wal", name), name, nil)
	v.Stop(t)
}

// recovered restores with the site's own credentials and lets a server recover
// to the end of the WAL: everything must be there. It returns all messages of
// both.
func (v *vault) recovered(t *testing.T, env []string, args ...string) string {
	t.Helper()
	dir := fresh(t)
	env = append(v.elsewhere(), env...)
	res := must(t, harness.Agent(t, env, append([]string{"backup-fetch", dir}, args...)...))
	c := harness.StartExisting(t, dir, v.Major, nil, v.reach...)
	c.WaitRecovered(t)
	v.want.check(t, c)
	if got := c.QueryString(t, "SELECT string_agg(i::text, ' ' ORDER BY i) FROM later"); got != "1 2" {
		t.Errorf("on the second timeline are the rows %q", got)
	}
	messages := res.Stderr + c.Log()
	c.Stop(t)
	return messages
}

// version is one stored version of an object, or a marker of a deletion.
type version struct {
	ID    string
	Body  string
	Mode  types.ObjectLockRetentionMode
	Until time.Time
}

// versions reads all versions of all objects, by their names in the bucket, the
// newest first. Markers are left out.
func (v *vault) versions(t *testing.T) map[string][]version {
	t.Helper()
	all := make(map[string][]version)
	pages := s3.NewListObjectVersionsPaginator(v.admin, &s3.ListObjectVersionsInput{Bucket: &v.bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Versions {
			got, err := v.admin.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &v.bucket, Key: o.Key, VersionId: o.VersionId})
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(got.Body)
			if err = errors.Join(err, got.Body.Close()); err != nil {
				t.Fatal(err)
			}
			kept := version{ID: *o.VersionId, Body: string(body)}
			lock, err := v.admin.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &v.bucket, Key: o.Key, VersionId: o.VersionId})
			if err == nil {
				kept.Mode, kept.Until = lock.Retention.Mode, aws.ToTime(lock.Retention.RetainUntilDate)
			}
			all[*o.Key] = append(all[*o.Key], kept)
		}
	}
	return all
}

// kinds gives every object its kind, by its key. What no backup needs, the
// claims, are left out.
func (v *vault) kinds(t *testing.T, all map[string][]version) map[string]string {
	t.Helper()
	kinds := make(map[string]string)
	for key, versions := range all {
		parts := strings.Split(strings.TrimPrefix(key, "repo/"), "/")
		switch {
		case len(parts) == 1, len(parts) == 3:
			kinds[key] = path.Base(key)
		case parts[2] == "wal", parts[2] == "history", parts[2] == "summary":
			kinds[key] = parts[2]
		case parts[2] == "backup" && len(parts) == 5:
			kinds[key] = parts[4]
		}
		if path.Base(key) != "packs" {
			continue
		}
		list := json.NewDecoder(compress.NewReader(strings.NewReader(versions[0].Body)))
		for list.More() {
			var p struct {
				Number uint32 `json:"pack"`
				Kind   string `json:"kind"`
			}
			if err := list.Decode(&p); err != nil {
				t.Fatal(err)
			}
			kinds[fmt.Sprintf("%s/pack/%08x", path.Dir(key), p.Number)] = p.Kind + " pack"
		}
	}
	return kinds
}

// locked checks that all that a backup needs is locked for long enough, and
// nothing else.
func (v *vault) locked(t *testing.T) {
	t.Helper()
	all := v.versions(t)
	kinds := v.kinds(t, all)
	count := make(map[string]int)
	for key, versions := range all {
		kind := kinds[key]
		if kind == "" {
			kind = "claim"
		}
		count[kind]++
		got := versions[0]
		switch {
		case len(versions) != 1:
			t.Errorf("%s has %d versions", key, len(versions))
		case kind == "claim" && (!strings.Contains(key, "/claim/") || got.Mode != "" || !got.Until.IsZero()):
			t.Errorf("%s is locked (%s) until %s", key, got.Mode, got.Until)
		case kind == "claim":
		case got.Mode != v.mode || got.Until.Before(v.began.Add(lockWhole)) || got.Until.After(time.Now().Add(lockWhole+time.Second)):
			t.Errorf("%s is locked (%s) until %s", key, got.Mode, got.Until)
		}
	}
	want := []string{"backup.json", "claim", "cluster.json", "data pack", "history", "manifest", "meta pack", "packs", "repository.json", "summary", "wal"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(count))); diff != "" {
		t.Errorf("kinds of objects:\n%s", diff)
	}
	t.Logf("locked objects: %v", count)
}

// attack tries all that the stolen credentials might: each attempt must fail.
func (v *vault) attack(t *testing.T) {
	t.Helper()
	all := v.versions(t)
	ctx, bucket := t.Context(), &v.bucket
	soon, later := time.Now().Add(time.Minute), time.Now().Add(2*lockWhole)
	other := types.ObjectLockRetentionModeGovernance
	if v.mode == other {
		other = types.ObjectLockRetentionModeCompliance
	}
	retain := func(key, id *string, mode types.ObjectLockRetentionMode, until time.Time, bypass bool) error {
		_, err := v.thief.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
			Bucket: bucket, Key: key, VersionId: id, BypassGovernanceRetention: &bypass,
			Retention: &types.ObjectLockRetention{Mode: mode, RetainUntilDate: &until},
		})
		return err
	}
	batch := func(c *s3.Client, key, id *string, bypass bool) error {
		out, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{
			Bucket: bucket, Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: key, VersionId: id}}}, BypassGovernanceRetention: &bypass,
		})
		if err == nil && len(out.Errors) == 1 {
			err = errors.New(aws.ToString(out.Errors[0].Code))
		}
		return err
	}
	remove := func(c *s3.Client, key, id *string, bypass bool) error {
		_, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key, VersionId: id, BypassGovernanceRetention: &bypass})
		return err
	}
	type attempt struct {
		what string
		do   func(key, id *string) error
	}
	attempts := []attempt{
		{"delete", func(key, _ *string) error { return remove(v.thief, key, nil, false) }},
		{"delete a version", func(key, id *string) error { return remove(v.thief, key, id, false) }},
		{"delete a version with bypass", func(key, id *string) error { return remove(v.thief, key, id, true) }},
		{"delete many", func(key, _ *string) error { return batch(v.thief, key, nil, false) }},
		{"delete many versions with bypass", func(key, id *string) error { return batch(v.thief, key, id, true) }},
	}
	locks := []attempt{
		{"shorten", func(key, id *string) error { return retain(key, id, v.mode, soon, false) }},
		{"shorten with bypass", func(key, id *string) error { return retain(key, id, v.mode, soon, true) }},
		{"change the mode and shorten", func(key, id *string) error { return retain(key, id, other, soon, true) }},
		{"take the lock away", func(key, id *string) error {
			_, err := v.thief.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
				Bucket: bucket, Key: key, VersionId: id, BypassGovernanceRetention: aws.Bool(true), Retention: &types.ObjectLockRetention{},
			})
			return err
		}},
	}
	if v.mode == types.ObjectLockRetentionModeCompliance {
		// Nobody's rights help.
		locks = append(locks, attempt{"change the mode", func(key, id *string) error { return retain(key, id, other, later, true) }},
			attempt{"delete a version as administrator", func(key, id *string) error { return remove(v.admin, key, id, true) }})
	}
	kinds := v.kinds(t, all)
	for key, versions := range all {
		todo := attempts
		if kinds[key] != "" {
			todo = slices.Concat(attempts, locks)
		}
		for _, a := range todo {
			if err := a.do(&key, &versions[0].ID); err == nil {
				t.Errorf("%s of %s is allowed", a.what, key)
			}
		}
	}
	v.attackBucket(t)
	if diff := cmp.Diff(all, v.versions(t)); diff != "" {
		t.Errorf("something was lost or changed:\n%.4000s", diff)
	}
}

// attackBucket tries what would open the bucket for all the rest.
func (v *vault) attackBucket(t *testing.T) {
	t.Helper()
	bucket := &v.bucket
	for what, do := range map[string]func(context.Context) error{
		"suspend versions": func(ctx context.Context) error {
			_, err := v.thief.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
				Bucket: bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusSuspended},
			})
			return err
		},
		"another policy": func(ctx context.Context) error {
			_, err := v.thief.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: bucket, Policy: aws.String(
				`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::` + v.bucket + `/*"]}]}`)})
			return err
		},
		"no policy": func(ctx context.Context) error {
			_, err := v.thief.DeleteBucketPolicy(ctx, &s3.DeleteBucketPolicyInput{Bucket: bucket})
			return err
		},
		"another default lock": func(ctx context.Context) error {
			_, err := v.thief.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{
				Bucket: bucket, ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled},
			})
			return err
		},
		"expiry": func(ctx context.Context) error {
			_, err := v.thief.PutBucketLifecycleConfiguration(ctx, &s3.PutBucketLifecycleConfigurationInput{
				Bucket: bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: []types.LifecycleRule{{
					Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("")},
					NoncurrentVersionExpiration: &types.NoncurrentVersionExpiration{NoncurrentDays: aws.Int32(1)},
				}}},
			})
			return err
		},
		"delete the bucket": func(ctx context.Context) error {
			_, err := v.thief.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: bucket})
			return err
		},
	} {
		if err := do(t.Context()); err == nil {
			t.Errorf("%s is allowed", what)
		}
	}
}

// overwrite writes over every object that a backup needs, which the right to
// create includes on a versioned bucket: rubbish, nothing, a part, or the bytes
// of another object of the kind.
func (v *vault) overwrite(t *testing.T) {
	t.Helper()
	all := v.versions(t)
	kinds := v.kinds(t, all)
	sample := make(map[string]string)
	for i, key := range slices.Sorted(maps.Keys(kinds)) {
		good := all[key][0].Body
		body := []string{"rubbish", "", good[:len(good)-1], sample[kinds[key]]}[i%4]
		switch path.Base(key) {
		case "repository.json", // whose id is all that counts
			filepath.Base(v.last): // which is pushed again: another segment's bytes would be a conflict
			body = "rubbish"
		}
		sample[kinds[key]] = good
		_, err := v.thief.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &v.bucket, Key: &key, Body: bytes.NewReader([]byte(body))})
		if err != nil {
			t.Fatalf("write over %s: %v", key, err)
		}
	}
	after := v.versions(t)
	for key := range kinds {
		got := after[key]
		if len(got) != 2 || got[0].Body == got[1].Body {
			t.Fatalf("%s was not written over: %d versions", key, len(got))
		}
		if diff := cmp.Diff(all[key][0], got[1]); diff != "" {
			t.Fatalf("the good version of %s has changed:\n%.4000s", key, diff)
		}
	}
}

// hide is an administrator's "rm --recursive": markers of deletion on
// everything but one pack of each backup.
func (v *vault) hide(t *testing.T) {
	t.Helper()
	for key := range v.kinds(t, v.versions(t)) {
		if strings.HasSuffix(key, "/pack/00000000") {
			continue
		}
		if _, err := v.admin.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &v.bucket, Key: &key}); err != nil {
			t.Fatal(err)
		}
	}
}

// told fails the test unless the messages name, for each kind, an object and
// the version that was read instead, which is its oldest.
func (v *vault) told(t *testing.T, messages string, want ...string) {
	t.Helper()
	all := v.versions(t)
	kinds := v.kinds(t, v.oldest(all))
	told := make(map[string]int)
	for line := range strings.Lines(messages) {
		if !strings.Contains(line, "another copy was read") {
			continue
		}
		for key, kind := range kinds {
			if strings.Contains(line, "key="+strings.TrimPrefix(key, "repo/")+" ") {
				told[kind]++
				if id := all[key][len(all[key])-1].ID; !strings.Contains(line, "(version "+id+")") {
					t.Errorf("it is not told that version %s was read: %s", id, line)
				}
			}
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(told))); diff != "" {
		t.Errorf("kinds of objects that are told:\n%s", diff)
	}
}

func (v *vault) oldest(all map[string][]version) map[string][]version {
	oldest := make(map[string][]version)
	for key, versions := range all {
		oldest[key] = versions[len(versions)-1:]
	}
	return oldest
}

// unleased is a copy of a state directory that has seen the repository, but not
// in the last minutes.
func unleased(t *testing.T, state string) (env []string) {
	t.Helper()
	dir := filepath.Join(harness.TempDir(t), "state")
	if err := os.CopyFS(dir, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	harness.Own(t, dir)
	expire(t, dir)
	return []string{"AGENT_STATE_DIR=" + dir}
}

// expire ends the lease for which a state directory need not look at its
// repository again.
func expire(t *testing.T, state string) {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(state, "pins", "*.json"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("pins: %q, %v", pins, err)
	}
	pin := parse[map[string]string](t, string(readFile(t, pins[0])))
	pin["checked"] = "2020-01-01T00:00:00Z"
	body, err := json.Marshal(pin)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, pins[0], body)
}

// TestImmutable is the theft of a database host's credentials: what they have
// archived can neither be deleted nor hidden.
func TestImmutable(t *testing.T) {
	t.Parallel()
	server := stores.StartVersityGW(t, stores.S3Options{TLS: true})
	t.Run("governance", func(t *testing.T) {
		t.Parallel()
		v := newVault(t, server, "governance")
		v.fill(t)
		v.locked(t)
		if got := v.recovered(t, nil); strings.Contains(got, "another copy") {
			t.Errorf("something is wrong with what nobody touched:\n%s", got)
		}
		v.attack(t)
		restored := []string{"backup.json", "data pack", "history", "manifest", "meta pack", "packs", "wal"}
		for _, harm := range []struct {
			name string
			do   func(*testing.T)
		}{{"written over", v.overwrite}, {"hidden", v.hide}} {
			t.Run(harm.name, func(t *testing.T) {
				harm.do(t)
				// On this host, on one that knows the repository, on one that does not.
				for _, env := range [][]string{v.env(), append(v.env(), unleased(t, v.state)...), append(v.elsewhere(), "AGENT_STATE_DIR="+fresh(t))} {
					res := must(t, harness.Agent(t, env, "backup-list", "--json"))
					if got := parse[[]backup](t, res.Stdout); len(got) != 2 || got[0].Name != v.first.Name || got[1].Name != v.second.Name {
						t.Errorf("the backups are %+v", got)
					}
				}
				unseen := []string{"AGENT_STATE_DIR=" + fresh(t)}
				v.told(t, v.recovered(t, unseen), append([]string{"repository.json"}, restored...)...)
				v.told(t, v.recovered(t, nil, v.first.Name), restored...)
				// What is archived again is compared with the good version.
				must(t, v.agent(t, "wal-push", v.last))
			})
		}
	})
	t.Run("compliance", func(t *testing.T) {
		t.Parallel()
		v := newVault(t, server, "compliance")
		v.fill(t)
		v.locked(t)
		v.attack(t)
		v.recovered(t, nil, v.first.Name)
	})
}
