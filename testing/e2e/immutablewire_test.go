package e2e_test

import (
	"encoding/json"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/testing/harness"
	"agent/testing/stores"
)

// creation is a request that creates an object, and the lock it asks for.
type creation struct{ key, mode, until string }

// gcsCreation reads an upload of Cloud Storage's JSON API.
func gcsCreation(t *testing.T, r *request) (c creation, ok bool) {
	t.Helper()
	if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, "/upload/storage/v1/b/") {
		return c, false
	}
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	part, err := multipart.NewReader(&r.head, params["boundary"]).NextPart()
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Name      string `json:"name"`
		Retention struct {
			Mode            string `json:"mode"`
			RetainUntilTime string `json:"retainUntilTime"`
		} `json:"retention"`
	}
	if err := json.NewDecoder(part).Decode(&object); err != nil {
		t.Fatal(err)
	}
	return creation{object.Name, object.Retention.Mode, object.Retention.RetainUntilTime}, true
}

// azureCreation reads a Put Blob or a Put Block List of Azure's REST API.
func azureCreation(t *testing.T, r *request) (c creation, ok bool) {
	t.Helper()
	comp := r.URL.Query().Get("comp")
	if r.Method != http.MethodPut || comp != "" && comp != "blocklist" {
		return c, false
	}
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"+stores.AzuriteAccount+"/"), "/")
	until := r.Header.Get("X-Ms-Immutability-Policy-Until-Date")
	if at, err := http.ParseTime(until); err == nil {
		until = at.UTC().Format(time.RFC3339)
	}
	return creation{key, r.Header.Get("X-Ms-Immutability-Policy-Mode"), until}, true
}

// TestImmutableOnTheWire is for the services whose emulators lock nothing:
// every object of a backup and its WAL asks for its lock as it is created, but
// claims, which are to go.
func TestImmutableOnTheWire(t *testing.T) {
	t.Parallel()
	const lock = (2 + 3 + 2) * 24 * time.Hour // for, full_every, and the reserve
	settings := []string{"AGENT_FULL_EVERY=3d"}
	for name, start := range map[string]func(*testing.T) (*tap, string, []string){
		"gcs": func(t *testing.T) (*tap, string, []string) {
			address := stores.FreeAddress(t)
			p := newTap(t, "http://"+address, nil)
			g := stores.StartGCS(t, stores.GCSOptions{Address: address, Behind: p.Address})
			g.MakeBucket(t, "backups")
			return p, g.RepositoryURL("backups", "repo"), append(g.Env(), "AGENT_IMMUTABLE=governance:2d")
		},
		"azure": func(t *testing.T) (*tap, string, []string) {
			a := stores.StartAzurite(t, stores.AzureOptions{})
			a.MakeContainer(t, "backups")
			p := newTap(t, "http://"+a.Address, nil)
			return p, a.RepositoryURL("backups", "repo"), append(a.EnvAt(p.Address), "AGENT_IMMUTABLE=compliance:2d")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, url, env := start(t)
			began := time.Now().Truncate(time.Second)
			s := newSite(t, plan{Options: harness.Options{WALSegSizeMB: 1}, compression: "lz4", url: url, reach: append(env, settings...)})
			b := s.push(t)
			s.switchWAL(t)
			s.Stop(t)

			read, mode := gcsCreation, "Unlocked"
			if name == "azure" {
				read, mode = azureCreation, "Locked"
			}
			kinds := make(map[string]int)
			for _, r := range p.taken() {
				c, ok := read(t, r)
				if !ok {
					continue
				}
				if strings.Contains(c.key, "/claim/") {
					kinds["claim"]++
					if c.mode != "" || c.until != "" {
						t.Errorf("a claim asks for a lock: %+v", c)
					}
					continue
				}
				kind := path.Base(c.key)
				for _, folder := range []string{"/pack/", "/wal/", "/summary/"} {
					if strings.Contains(c.key, folder) {
						kind = strings.Trim(folder, "/")
					}
				}
				kinds[kind]++
				until, err := time.Parse(time.RFC3339, c.until)
				if err != nil || c.mode != mode || until.Before(began.Add(lock)) || until.After(time.Now().Add(lock+time.Second)) {
					t.Errorf("the lock asked for is %+v (%v)", c, err)
				}
			}
			want := []string{"backup.json", "claim", "cluster.json", "manifest", "pack", "packs", "repository.json", "summary", "wal"}
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(kinds))); diff != "" {
				t.Errorf("kinds of objects:\n%s", diff)
			}
			if kinds["pack"] != b.Packs {
				t.Errorf("%d packs were sent, the backup has %d", kinds["pack"], b.Packs)
			}
			t.Logf("objects with a lock: %v", kinds)
		})
	}
}
