package e2e_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"agent/internal/storage/transport"
	"agent/testing/harness"
	"agent/testing/stores"
)

// TestDeleteStores is the life of three backups on every kind of store: one is
// marked, the policy takes another whose packs are borrowed, and the rest goes
// when the mark does.
func TestDeleteStores(t *testing.T) {
	t.Parallel()
	for name, start := range remotes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			m := newMementos(t, plan{url: r.url, reach: r.reach, sealed: true})
			first, second := m.take(t), m.take(t)
			last := m.take(t, "--full")
			if second.Parent != first.Name {
				t.Fatalf("it is %q of %q", second.Type, second.Parent)
			}
			must(t, m.agent(t, "backup-mark", second.Name, "--keep"))
			told := parse[deleted](t, must(t, m.agent(t, "delete", "expire", "--keep-full", "1", "--json")).Stdout)
			if got := m.backups(t); !slices.Equal(got, names(first, second, last)) {
				t.Fatalf("without --confirm there are %q", got)
			}
			done := m.removes(t, "expire", "--keep-full", "1")
			if at, want := done.Repositories[0], told.Repositories[0]; at.Backups.Objects != want.Backups.Objects || at.Backups.Bytes != want.Backups.Bytes ||
				at.WAL.Objects != want.WAL.Objects || at.WAL.Bytes != want.WAL.Bytes || at.Backups.Objects < 3 || at.WAL.Objects == 0 {
				t.Errorf("told before was %+v, then %+v", want, at)
			}
			if got := m.backups(t); !slices.Equal(got, names(second, last)) {
				t.Fatalf("there are %q", got)
			}
			hinted(t, m.restore(t, fresh(t), first.Name), 7, first.Name)
			m.walVerify(t, 0)
			m.whole(t, second.Name)

			must(t, m.agent(t, "backup-mark", second.Name, "--release"))
			m.removes(t, "expire", "--keep-full", "1")
			if got := m.backups(t); !slices.Equal(got, names(last)) {
				t.Fatalf("there are %q", got)
			}
			again := m.removes(t, "garbage").Repositories[0]
			if again.Backups.Objects+again.Garbage.Objects+again.WAL.Objects+again.Unfinished.Objects != 0 {
				t.Errorf("something was left: %+v", again)
			}
			m.walVerify(t, 0)
			m.whole(t, last.Name)
		})
	}
}

// TestDeleteVersioned deletes in a bucket that keeps versions, where readers look
// for older ones of what is missing: what was deleted does not come back, and what
// is borrowed of it is there.
func TestDeleteVersioned(t *testing.T) {
	t.Parallel()
	c := newCloudy(t, stores.S3Bucket{Versioned: true})
	first, second, last := c.take(t), c.take(t), c.take(t)
	c.removes(t, "target", first.Name, last.Name)
	if got := c.backups(t); !slices.Equal(got, names(second)) {
		t.Fatalf("there are %q", got)
	}
	for _, b := range []incremental{first, last} {
		hinted(t, c.agent(t, "backup-show", b.Name), 7, b.Name)
		hinted(t, c.agent(t, "backup-mark", b.Name, "--keep"), 7, b.Name)
		hinted(t, c.agent(t, "backup-push", "--parent", b.Name), 7, b.Name)
		hinted(t, c.deletes(t, "target", b.Name), 7, b.Name)
	}
	all := c.all(t, "repo")
	if diff := slices.Compare(remains(all), needed(t, all, names(second))); diff != 0 {
		t.Errorf("there are %q", remains(all))
	}
	// As long as its versions are there, it is restored by its name.
	if r := must(t, c.restore(t, fresh(t), last.Name)); !strings.Contains(r.Stderr, "another copy was read") {
		t.Errorf("it is not told that it was deleted:\n%s", r.Stderr)
	}
	next := c.take(t)
	if next.Parent != second.Name {
		t.Errorf("the next one is %q of %q: %q", next.Type, next.Parent, next.Reasons)
	}
	c.removes(t, "retain", "1")
	if got := c.backups(t); !slices.Equal(got, names(next)) {
		t.Fatalf("there are %q", got)
	}
	c.whole(t, next.Name)
	// An administrator brings back what was deleted last: its bytes are still there.
	pages := s3.NewListObjectVersionsPaginator(c.client, &s3.ListObjectVersionsInput{Bucket: &c.bucket, Prefix: aws.String("repo/cluster/")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page.DeleteMarkers {
			if !strings.Contains(*d.Key, "/tomb/") && !strings.Contains(*d.Key, "/claim/") {
				if _, err := c.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &c.bucket, Key: d.Key, VersionId: d.VersionId}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if got := c.backups(t); !slices.Equal(got, names(first, second, last, next)) {
		t.Errorf("brought back are %q", got)
	}
	c.whole(t, last.Name)
}

// TestDeleteLocked asks for what is locked: it stays, with the time until which
// it does, and no marker hides any of it.
func TestDeleteLocked(t *testing.T) {
	t.Parallel()
	server := stores.StartVersityGW(t, stores.S3Options{})
	bucket := server.NewBucket(t, stores.S3Bucket{Lockable: true})
	tr, err := transport.New(transport.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.CloseIdleConnections)
	v := &vault{bucket: bucket, admin: s3.New(server.Client(t, server.Key, server.Secret).Options(), func(o *s3.Options) { o.HTTPClient = &http.Client{Transport: tr} })}
	m := newMementos(t, plan{url: server.RepositoryURL(bucket, "repo"), reach: append(server.Env(), "AGENT_IMMUTABLE=governance:"+lockFor)})
	v.site = m.site
	first, second, last := m.take(t, "--full"), m.take(t), m.take(t, "--full")
	bodies := v.versions(t)
	until := time.Now().Add(lockWhole).UTC().Format("2006-01-02")
	hinted(t, m.deletes(t, "target", first.Name), 8, first.Name, "locked until", until)
	d := m.removes(t, "expire", "--keep-full", "1")
	for _, b := range []incremental{first, second} {
		if why := d.why(b.Name); !strings.Contains(why, "locked until "+until) {
			t.Errorf("%s stays for %q", b.Name, why)
		}
	}
	if at := d.Repositories[0]; at.Backups.Objects+at.WAL.Objects+at.Garbage.Objects != 0 || at.WAL.Locked == 0 || at.Backups.Failed+at.WAL.Failed != 0 {
		t.Errorf("told is %+v", at)
	}
	shown := must(t, m.agent(t, "delete", "expire", "--keep-full", "1", "--confirm")).Stdout
	if !strings.Contains(shown, "locked until "+until) || !strings.Contains(shown, "are locked and stay") {
		t.Errorf("shown is\n%s", shown)
	}
	// Later only a few hours are left. The lock of what a mark keeps is made longer,
	// but not that of what nothing else keeps: it would never go.
	must(t, m.agent(t, "backup-mark", second.Name, "--keep"))
	soon := time.Now().Add(6 * time.Hour).UTC().Truncate(time.Second)
	ends := func(b incremental) (key string, at time.Time) {
		for key, versions := range v.versions(t) {
			if strings.HasSuffix(key, b.Name+"/backup.json") {
				return key, versions[0].Until.UTC()
			}
		}
		t.Fatalf("%s is not there", b.Name)
		return "", at
	}
	for _, b := range []incremental{first, second} {
		key, _ := ends(b)
		_, err := v.admin.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{
			Bucket: &bucket, Key: &key, BypassGovernanceRetention: aws.Bool(true),
			Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeGovernance, RetainUntilDate: &soon},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	must(t, m.agent(t, "delete", "expire", "--keep-full", "1", "--confirm"))
	if _, at := ends(first); !at.Equal(soon) {
		t.Errorf("what nothing else keeps is locked until %s", at)
	}
	if _, at := ends(second); at.Before(soon.Add(12 * time.Hour)) {
		t.Errorf("what is marked is locked until %s", at)
	}
	must(t, m.agent(t, "backup-mark", second.Name, "--release"))
	must(t, m.agent(t, "delete", "everything", "FORCE", "--confirm"))
	// Who forgets the setting hides nothing that a backup needs either.
	must(t, harness.Agent(t, append(m.env(), "AGENT_IMMUTABLE=none"), "delete", "retain", "1", "--confirm"))
	if got := m.backups(t); !slices.Equal(got, names(first, second, last)) {
		t.Fatalf("there are %q", got)
	}
	for key, versions := range bodies {
		if strings.Contains(key, "/claim/") || strings.Contains(key, "/tomb/") {
			continue
		}
		after := v.versions(t)[key]
		if len(after) != len(versions) || after[0].Body != versions[0].Body {
			t.Fatalf("%s has changed", key)
		}
	}
	for _, b := range m.made {
		m.whole(t, b.Name)
	}
}
