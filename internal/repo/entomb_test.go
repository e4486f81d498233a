package repo

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"agent/internal/compress"
	"agent/internal/errs"
)

// TestEntomb announces a delete beside one of another host.
func TestEntomb(t *testing.T) {
	for name, c := range map[string]struct {
		first, newest time.Duration // from now, when the other's objects were stored
		state         string
		locked        bool
		stays         bool // the other's tomb is left alone
	}{
		"running":                 {first: -time.Hour, newest: -time.Minute, state: "b", locked: true, stays: true},
		"just begun":              {first: -time.Second, newest: -time.Second, state: "b", locked: true, stays: true},
		"in the same second":      {state: "b", locked: true, stays: true},
		"begun after us":          {first: time.Second, newest: time.Second, state: "b", stays: true},
		"not yet expired":         {first: -claimTTL, newest: -claimTTL, state: "b", locked: true, stays: true},
		"expired":                 {first: -time.Hour, newest: -claimTTL - time.Second, state: "b"},
		"our own, which died":     {first: -time.Minute, newest: -time.Second, state: "a"},
		"our own, in this second": {state: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			r := testRepo(m, Keys{}, compress.Setting{})
			put := func(n int, at time.Duration) {
				body := fmt.Sprintf(`{"id":"ffff","command":"delete expire","host":"other","state_id":%q,"pid":7,"backups":[%q]}`, c.state, otherName)
				m.objects[testCluster.tombKey("ffff", n)] = memoryObject{[]byte(body), testTime.Add(at)}
			}
			put(0, c.first)
			put(1, c.newest)
			g, err := r.Entomb(t.Context(), testCluster, Tomb{Command: "delete retain", Host: "here", StateID: "a", Backups: []BackupName{testName}})
			if c.locked != (errs.KindOf(err) == errs.Locked) || c.locked != (g == nil) {
				t.Fatalf("got %v", err)
			}
			if c.locked && !strings.Contains(err.Error(), "host other deletes") {
				t.Errorf("got %v", err)
			}
			if _, there := m.objects[testCluster.tombKey("ffff", 1)]; there != c.stays {
				t.Errorf("the other's tomb is there: %v", there)
			}
			if g != nil {
				if err := g.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for key := range m.objects {
				if strings.Contains(key, "/tomb/") && !strings.Contains(key, "/ffff/") {
					t.Errorf("%s is left", key)
				}
			}
		})
	}
}
