package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"agent/testing/harness"
	"agent/testing/stores"
)

// TestBackupRepair damages every kind of object in one of two repositories. It is
// told where, the backup is not lost, and --repair brings back what was there.
func TestBackupRepair(t *testing.T) {
	t.Parallel()
	for name, sealed := range map[string]bool{"plain": false, "sealed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, sealed)
			p.Exec(t, "CREATE TABLE a AS SELECT g AS i, md5(g::text) AS m FROM generate_series(1, 20000) g")
			b := p.push(t)
			p.switchWAL(t)
			p.Stop(t)
			await(t, "the end of what pushes have started", func() bool { return p.idle(t) })
			p.same(t)
			want := copies(t, p.repo)
			env := append(p.beyond(), "AGENT_STATE_DIR="+p.state)
			if v := verified(t, env, 0, "--deep"); len(v.Findings) != 0 {
				t.Fatalf("of two whole repositories is said: %+v", v)
			}
			p.repairEach(t, env, b)
			t.Run("a backup that has not arrived", func(t *testing.T) {
				pack := filepath.Join(p.backupDir(t, b.Name), "pack/00000000")
				harmed(t, filepath.Join(p.far, p.relative(t, b.Name), "backup.json"), harms()[0])
				harmed(t, pack, harms()[1])
				for _, args := range [][]string{{}, {"--deep"}} {
					v := verified(t, env, 6, args...)
					if f := v.found(p.key(t, pack)); f.Kind != "damaged" || f.Everywhere || len(v.Lost) != 0 {
						t.Errorf("%q: what far has of it does not count: %+v", args, v)
					}
				}
				if f := verified(t, env, 0, "--repair").found(p.key(t, pack)); f.Repaired != "far" {
					t.Errorf("it is not repaired: %+v", f)
				}
			})
			t.Run("a backup that has not arrived wholly", func(t *testing.T) {
				dir := p.backupDir(t, b.Name)
				doc := filepath.Join(dir, "backup.json")
				for _, more := range []string{"manifest", "pack/00000000"} {
					harmed(t, doc, harms()[0])
					harmed(t, filepath.Join(dir, more), harms()[0])
					v := verified(t, env, 6, "--repair", "--quick")
					if f := v.found(p.key(t, doc)); f.Kind != "missing" || f.Repaired != "" || exists(doc) {
						t.Errorf("without %s: %+v", more, v)
					}
					if more == "manifest" {
						verified(t, env, 6, "--repair")
					} else if v := verified(t, env, 0, "--repair"); v.Repaired == 0 || !exists(filepath.Join(dir, more)) {
						t.Errorf("with the pack of another repository: %+v", v)
					}
					if exists(doc) != exists(filepath.Join(dir, more)) {
						t.Errorf("the backup exists without its %s", more)
					}
					must(t, harness.Agent(t, env, "repo", "sync", "near"))
				}
			})
			t.Run("quick", func(t *testing.T) {
				pack := filepath.Join(p.backupDir(t, b.Name), "pack/00000000")
				other := filepath.Join(p.far, p.key(t, pack))
				harmed(t, pack, harms()[2])
				if f := verified(t, env, 6, "--quick").found(p.key(t, pack)); f.Kind != "damaged" || f.Everywhere {
					t.Errorf("%+v", f)
				}
				t.Run("both", func(t *testing.T) {
					harmed(t, other, harms()[0])
					if v := verified(t, env, 6, "--quick"); !v.found(p.key(t, pack)).Everywhere || !slices.Equal(v.lost(), []string{b.Name}) {
						t.Errorf("%+v", v)
					}
				})
				if f := verified(t, env, 0, "--quick", "--repair").found(p.key(t, pack)); f.Repaired != "far" {
					t.Errorf("%+v", f)
				}
			})
			for _, root := range []string{p.repo, p.far} {
				if now := copies(t, root); !sameObjects(want, now) {
					t.Errorf("%s does not hold what it held", root)
				}
			}
			p.restored(t, p.alone(p.repo), 20000)
		})
	}
}

// repairEach damages one object after the other in each repository.
func (p *pair) repairEach(t *testing.T, env []string, b backup) {
	t.Helper()
	dir := p.backupDir(t, b.Name)
	var keys []string
	for key := range objects(t, dir) {
		keys = append(keys, p.key(t, filepath.Join(dir, key)))
	}
	keys = append(keys, p.key(t, p.walObject(t, b.StartWAL)))
	for where, root := range map[string]string{"near": p.repo, "far": p.far} {
		other := map[string]string{"near": "far", "far": "near"}[where]
		for _, key := range keys {
			for _, h := range harms()[:3] {
				path := filepath.Join(root, key)
				t.Run(where+"/"+filepath.Base(key)+"/"+h.name, func(t *testing.T) {
					harmed(t, path, h)
					kind, code := "damaged", 6
					switch {
					case h.do == nil && where == "far":
						kind, code = "behind", 0
					case h.do == nil && strings.Contains(key, "/wal/"):
						kind, code = "gap", 16
					case h.do == nil:
						kind = "missing"
					}
					v := verified(t, env, code, "--deep")
					if len(v.Findings) != 1 || v.Findings[0].Kind != kind || v.Findings[0].Repository != where || v.Findings[0].Everywhere || len(v.Lost) != 0 || len(v.Moments) != 0 {
						t.Errorf("%+v", v)
					}
					if !slices.Equal(v.Findings[0].Backups, []string{b.Name}) {
						t.Errorf("the backup that needs it is not named: %+v", v)
					}
					if where == "far" && h.do == nil && strings.HasSuffix(key, "/backup.json") {
						// It does not exist there: agent repo sync brings it, with all it needs.
						must(t, harness.Agent(t, env, "repo", "sync", "far"))
						return
					}
					v = verified(t, env, 0, "--deep", "--repair")
					if v.Repaired != 1 || v.Findings[0].Repaired != other {
						t.Errorf("it is not repaired: %+v", v)
					}
					if v := verified(t, env, 0, "--deep"); len(v.Findings) != 0 {
						t.Errorf("after the repair: %+v", v)
					}
				})
			}
		}
	}
}

// sameObjects compares what was there with what is, beside marks.
func sameObjects(want, have map[string]string) bool {
	for key, body := range want {
		if have[key] != body {
			return false
		}
	}
	return true
}

// TestBackupRepairDenied repairs where nothing may be deleted: what is damaged
// stays as it is, and is told as not repaired.
func TestBackupRepairDenied(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.Exec(t, "CREATE TABLE a (i int)")
	b := p.push(t)
	p.Stop(t)
	await(t, "the end of what pushes have started", func() bool { return p.idle(t) })
	env := append(p.beyond(), "AGENT_STATE_DIR="+p.state)
	path := filepath.Join(p.backupDir(t, b.Name), "packs")
	harmed(t, path, harms()[1])
	bad := string(readFile(t, path))
	dir := filepath.Dir(path)
	if err := os.Chown(dir, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	v := verified(t, env, 6, "--repair")
	if len(v.Findings) != 1 || v.Repaired != 0 || !strings.Contains(v.Findings[0].Not, "delete") {
		t.Errorf("%+v", v)
	}
	if string(readFile(t, path)) != bad {
		t.Error("it was changed")
	}
}

// TestKillBackupRepair kills a repair of many objects in the middle. The next one
// ends well, and everything is as it was.
func TestKillBackupRepair(t *testing.T) {
	t.Parallel()
	p := newPair(t, true)
	p.Exec(t, "CREATE TABLE a (i int, m text)", "INSERT INTO a SELECT g, md5(random()::text) FROM generate_series(1, 100000) g")
	b := p.push(t)
	p.switchWAL(t)
	p.Stop(t)
	await(t, "the end of what pushes have started", func() bool { return p.idle(t) })
	p.same(t)
	want := copies(t, p.repo)
	env := append(p.beyond(), "AGENT_STATE_DIR="+p.state)
	var damaged []string
	for key := range want {
		path := filepath.Join(p.repo, key)
		if name := filepath.Base(key); strings.Contains(key, "/wal/") && (len(name) != 24 || name < b.StartWAL) || !strings.Contains(key, "/wal/") && !strings.Contains(key, "/backup/") {
			continue
		}
		damaged = append(damaged, path)
	}
	slices.Sort(damaged)
	for round := range 3 {
		for n, path := range damaged {
			if body := readFile(t, path); n%2 == round%2 {
				body[len(body)/2] ^= 1
				if err := os.WriteFile(path, body, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		run := harness.StartAgent(t, env, "backup-verify", "--deep", "--to-latest", "--repair")
		awaitLine(t, run, "was repaired")
		run.Signal(syscall.SIGKILL)
		run.Wait()
		verified(t, env, 0, "--deep", "--to-latest", "--repair")
		if v := verified(t, env, 0, "--deep", "--to-latest"); len(v.Findings) != 0 {
			t.Errorf("after it: %+v", v.Findings)
		}
		if !sameObjects(want, copies(t, p.repo)) || !sameObjects(want, copies(t, p.far)) {
			t.Error("the repositories do not hold what they held")
		}
	}
}

// TestBackupVerifyS3 verifies in a bucket that keeps older versions: an object
// that was replaced or deleted is found, is not lost, and is repaired from its own
// older version.
func TestBackupVerifyS3(t *testing.T) {
	t.Parallel()
	gw := stores.StartMinIO(t, stores.S3Options{TLS: true})
	bucket := gw.NewBucket(t, stores.S3Bucket{Versioned: true})
	s := newSite(t, plan{sealed: true, url: gw.RepositoryURL(bucket, "some/prefix"), reach: append(gw.Env(), "AGENT_CA_FILE="+gw.CAFile)})
	b := s.push(t)
	s.Stop(t)
	if v := verified(t, s.elsewhere(), 0, "--deep"); len(v.Findings) != 0 || v.Objects == 0 {
		t.Fatalf("of a whole backup is said: %+v", v)
	}
	client := gw.Client(t, gw.Key, gw.Secret)
	list, err := client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: aws.String("some/prefix/cluster/")})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, o := range list.Contents {
		own := strings.Contains(*o.Key, "/wal/") && strings.HasSuffix(*o.Key, b.StartWAL)
		if !own && !strings.Contains(*o.Key, "/backup/"+b.Name+"/") {
			continue
		}
		n++
		for _, remove := range []bool{true, false} {
			if remove && strings.HasSuffix(*o.Key, "/backup.json") {
				continue // no backup any more
			}
			spoil(t, client, bucket, *o.Key, remove)
			if own && remove {
				verified(t, s.elsewhere(), 16, "--deep")
			} else if v := verified(t, s.elsewhere(), 6, "--deep"); len(v.Findings) != 1 || v.Findings[0].Everywhere || len(v.Lost) != 0 || !strings.HasSuffix(*o.Key, v.Findings[0].Key) {
				t.Errorf("%s: %+v", *o.Key, v)
			}
			if v := verified(t, s.elsewhere(), 0, "--deep", "--repair"); v.Repaired != 1 || !strings.Contains(v.Findings[0].Repaired, "version") {
				t.Errorf("%s: %+v", *o.Key, v)
			}
			if v := verified(t, s.elsewhere(), 0, "--deep"); len(v.Findings) != 0 {
				t.Errorf("%s after the repair: %+v", *o.Key, v)
			}
		}
	}
	if n < 5 {
		t.Errorf("%d objects were tried", n)
	}
}

// spoil deletes an object or writes other bytes over it.
func spoil(t *testing.T, client *s3.Client, bucket, key string, remove bool) {
	t.Helper()
	var err error
	if remove {
		_, err = client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &key})
	} else {
		_, err = client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("other bytes")})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestBackupVerifyAway verifies while a repository cannot be reached.
func TestBackupVerifyAway(t *testing.T) {
	t.Parallel()
	p := newPair(t, false)
	p.Exec(t, "CREATE TABLE a (i int)")
	b := p.push(t)
	p.Stop(t)
	await(t, "the end of what pushes have started", func() bool { return p.idle(t) })
	env := append(p.beyond(), "AGENT_STATE_DIR="+p.state)
	t.Run("one object", func(t *testing.T) {
		pack := filepath.Join(p.backupDir(t, b.Name), "pack/00000000")
		harmed(t, pack, harm{do: func(body []byte) []byte { return body }})
		if err := os.Chmod(pack, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Chmod(pack, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		v := verified(t, env, 5)
		if f := v.found(p.key(t, pack)); len(v.Findings) != 1 || f.Kind != "unreachable" || !slices.Equal(f.Backups, []string{b.Name}) || v.Backups[0].Status != "unknown" || v.Objects < 6 {
			t.Errorf("with a pack that cannot be read: %+v", v)
		}
	})
	back := gone(t, p.far)
	v := verified(t, env, 0)
	if len(v.Findings) != 1 || v.Findings[0].Kind != "unreachable" || v.Findings[0].Repository != "far" || v.Backups[0].Status != "ok" {
		t.Errorf("without the best-effort one: %+v", v)
	}
	back()
	defer gone(t, p.repo)()
	v = verified(t, env, 5)
	if v.Status != "unreachable" || v.Backups[0].Status != "unknown" || v.Backups[0].Marked || len(v.Lost) != 0 {
		t.Errorf("without the required one: %+v", v)
	}
	// What is damaged in the one that is left may be whole in the other.
	harmed(t, filepath.Join(p.far, p.relative(t, b.Name), "manifest"), harms()[1])
	v = verified(t, env, 6)
	if f := v.Findings[0]; f.Kind != "damaged" || f.Everywhere || len(v.Lost) != 0 {
		t.Errorf("damage beside it: %+v", v)
	}
}

// relative is the folder of a backup below far.
func (p *pair) relative(t *testing.T, name string) string {
	t.Helper()
	found := filesBelow(t, p.far, "cluster/*/backup/"+name)
	if len(found) != 1 {
		t.Fatalf("%q", found)
	}
	rel, err := filepath.Rel(p.far, found[0])
	if err != nil {
		t.Fatal(err)
	}
	return rel
}
