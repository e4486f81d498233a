package gcs

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
	"agent/internal/storage"
)

// The emulator locks nothing: what it would have to understand is the request.
func TestExtendLockOnTheWire(t *testing.T) {
	until := time.Date(2031, 2, 3, 4, 5, 6, 1, time.FixedZone("", 3600))
	const (
		unlockedNear = `,"retention":{"mode":"Unlocked","retainUntilTime":"2030-01-01T00:00:00Z"}`
		lockedNear   = `,"retention":{"mode":"Locked","retainUntilTime":"2030-01-01T00:00:00Z"}`
		policyFar    = `,"retentionExpirationTime":"2032-01-01T00:00:00Z"`
		policyNear   = `,"retentionExpirationTime":"2030-06-01T00:00:00Z"`
	)
	for _, tt := range []struct {
		name, has string
		mode      storage.LockMode
		want      string // mode that is sent; "": nothing is
	}{
		{"none", "", storage.Governance, unlocked},
		{"none", "", storage.Compliance, locked},
		{"governance", unlockedNear, storage.Governance, unlocked},
		{"governance stays", unlockedNear, storage.Compliance, unlocked},
		{"compliance", lockedNear, storage.Compliance, locked},
		{"compliance stays", lockedNear, storage.Governance, locked},
		{"and a policy", unlockedNear + policyNear, storage.Governance, unlocked},
		{"a policy alone", policyNear, storage.Governance, unlocked},
		{"long enough", strings.ReplaceAll(lockedNear, "2030", "2033"), storage.Governance, ""},
		{"long enough by a policy", unlockedNear + policyFar, storage.Governance, ""},
	} {
		w := newWire(t, func(rw http.ResponseWriter, _ call) bool {
			fmt.Fprintf(rw, `{"name":"p/a/k","generation":"17","metageneration":"3"%s}`, tt.has)
			return true
		})
		b := w.open(t, Options{Prefix: "p", UserProject: "payer"})
		if err := b.ExtendLock(t.Context(), "a/k", storage.Lock{Mode: tt.mode, Until: until}); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		calls := w.taken()
		if tt.want == "" {
			if len(calls) != 1 || calls[0].Method != http.MethodGet {
				t.Errorf("%s: %d requests", tt.name, len(calls))
			}
			continue
		}
		if len(calls) != 2 || calls[1].Method != http.MethodPatch || calls[1].Path != "/storage/v1/b/bucket/o/p/a/k" {
			t.Fatalf("%s: requests %+v", tt.name, calls)
		}
		query := map[string]string{}
		for _, k := range []string{"ifGenerationMatch", "ifMetagenerationMatch", "userProject", "overrideUnlockedRetention"} {
			query[k] = calls[1].Query.Get(k)
		}
		if diff := cmp.Diff(map[string]string{
			"ifGenerationMatch": "17", "ifMetagenerationMatch": "3", "userProject": "payer", "overrideUnlockedRetention": "",
		}, query); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
		var sent map[string]any
		if err := json.Unmarshal(calls[1].Body, &sent); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]any{"mode": tt.want, "retainUntilTime": "2031-02-03T03:05:07Z"}, sent["retention"]); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestExtendLockRefused(t *testing.T) {
	const held = `{"name":"k","generation":"17","metageneration":"3","retention":{"mode":"Locked","retainUntilTime":"2030-01-01T00:00:00Z"}}`
	for _, tt := range []struct {
		name, has string
		status    int
		code      string
		text      string
		want      error
	}{
		{"no locks", `{"name":"k","generation":"17","metageneration":"3"}`, 400, "invalid", "Object retention is not enabled for this bucket.", storage.ErrUnsupported},
		{"no right", held, 403, "forbidden", "archiver does not have storage.objects.update access", storage.ErrPermission},
		{"changed meanwhile", held, 412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.", storage.ErrUnavailable},
		{"gone", held, 404, "notFound", "No such object: bucket/k", storage.ErrNotExist},
		{"no bucket", held, 404, "notFound", "The specified bucket does not exist.", storage.ErrNoBucket},
		{"passing", held, 503, "backendError", "later", storage.ErrUnavailable},
		{"odd", held, 400, "invalid", "Object has a locked retention policy and cannot be modified", nil},
	} {
		w := newWire(t, func(rw http.ResponseWriter, c call) bool {
			if c.Method == http.MethodPatch {
				return says(tt.status, tt.code, tt.text)(rw, c)
			}
			fmt.Fprint(rw, tt.has)
			return true
		})
		err := w.open(t, Options{}).ExtendLock(t.Context(), "k", storage.Lock{Mode: storage.Governance, Until: time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)})
		var named *storage.Error
		if !errors.As(err, &named) || named.Op != "lock" || named.Key != "k" {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.want != nil && !errors.Is(err, tt.want) || errors.Is(err, storage.ErrUnsupported) != (errs.HintOf(err) != "") {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}
