package check

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
)

func sample() Report {
	var l list
	l.ok(Config, "", nil, "fine")
	l.ok(RepositoryPut, "main", Facts{PutMS: 12.5}, "durable")
	l.warn(RepositoryClock, "main", Facts{SkewSeconds: -45.0}, "Set the clock.", "45s behind")
	l.bad(RepositorySpace, "main", errs.NoSpace, Facts{FreeBytes: int64(5)}, "Make room.", "only 5 B | are free")
	l.bad(StateSpace, "", errs.Server, Facts{FreeBytes: int64(6), LastFailed: time.Date(2026, 11, 20, 10, 0, 0, 123456789, time.FixedZone("x", 3600))}, "More room.", "x")
	l.skip(ServerVersion, "", "there is no server")
	return Report{Checks: l}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := sample().Text(&b); err != nil {
		t.Fatal(err)
	}
	const want = `ok       config                 fine
ok       repository.put main    durable
warning  repository.clock main  45s behind
                                hint: Set the clock.
failed   repository.space main  only 5 B | are free
                                hint: Make room.
failed   state.space            x
                                hint: More room.
skipped  server.version         there is no server
2 ok, 1 warning, 2 failed, 1 skipped
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := sample().JSON(&b); err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"status": "failed", "checks": []any{
		map[string]any{"name": "config", "status": "ok", "text": "fine"},
		map[string]any{"name": "repository.put", "repository": "main", "status": "ok", "text": "durable", "put_ms": 12.5},
		map[string]any{"name": "repository.clock", "repository": "main", "status": "warning", "text": "45s behind", "hint": "Set the clock.", "skew_seconds": -45.0},
		map[string]any{"name": "repository.space", "repository": "main", "status": "failed", "text": "only 5 B | are free", "hint": "Make room.", "free_bytes": 5.0},
		map[string]any{"name": "state.space", "status": "failed", "text": "x", "hint": "More room.", "free_bytes": 6.0, "last_failed": "2026-11-20T09:00:00.123Z"},
		map[string]any{"name": "server.version", "status": "skipped", "text": "there is no server"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	if err := (Report{}).JSON(&b); err != nil || !strings.Contains(b.String(), `"checks": []`) {
		t.Errorf("%s (%v)", b.String(), err)
	}
}

func TestNagios(t *testing.T) {
	line, status := sample().Nagios()
	const limits = ";1073741824:;104857600:"
	want := "AGENT CRITICAL - repository.space main: only 5 B / are free; 2 ok, 1 warning, 2 failed, 1 skipped|" +
		"'main_put'=12.5ms 'main_skew'=-45s;-30:30;-300:300 'main_free'=5B" + limits + " 'state_free'=6B" + limits
	if line != want || status != NagiosCritical {
		t.Errorf("%d %s", status, cmp.Diff(want, line))
	}
	all := sample().Checks
	for _, c := range []struct {
		checks []Check
		begin  string
		status int
	}{
		{all[:2], "AGENT OK - 2 ok|", NagiosOK},
		{nil, "AGENT OK - 0 ok|", NagiosOK},
		{all[:3], "AGENT WARNING - repository.clock main: 45s behind; 2 ok, 1 warning|", NagiosWarning},
		{Unconfigured(errs.New(errs.Config, "h", "bad | file\nline")).Checks, "AGENT UNKNOWN - config: bad / file; line; 0 ok, 1 failed, 5 skipped|", NagiosUnknown},
	} {
		if line, status := (Report{Checks: c.checks}).Nagios(); !strings.HasPrefix(line, c.begin) || status != c.status {
			t.Errorf("%d %s", status, line)
		}
	}
}

// TestErr: the first failure decides.
func TestErr(t *testing.T) {
	err := sample().Err()
	if errs.KindOf(err) != errs.NoSpace || errs.HintOf(err) != "Make room." || err.Error() != "repository.space main: only 5 B | are free; 2 checks failed in all" {
		t.Errorf("%v: %v (%s)", errs.KindOf(err), err, errs.HintOf(err))
	}
	if err := (Report{Checks: sample().Checks[:3]}).Err(); err != nil {
		t.Errorf("a warning: %v", err)
	}
}

// TestDocumented compares the names with the tables of the manual.
func TestDocumented(t *testing.T) {
	rows := func(file, heading string) []string {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", file))
		if err != nil {
			t.Fatal(err)
		}
		_, section, found := strings.Cut(string(text), "\n"+heading+"\n")
		if !found {
			t.Fatalf("%s has no %s", file, heading)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		var names []string
		for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
			names = append(names, m[1])
		}
		return names
	}
	var names, facts []string
	for _, n := range Names() {
		names = append(names, string(n))
	}
	for _, f := range FactNames() {
		facts = append(facts, string(f))
	}
	if diff := cmp.Diff(names, rows("check.md", "## The checks")); diff != "" {
		t.Errorf("names (-) and docs/check.md (+) differ:\n%s", diff)
	}
	fixed := []string{"checks", "status", "name", "repository", "status", "text", "hint"}
	if diff := cmp.Diff(slices.Concat(fixed, facts), rows("json.md", "## Checks")); diff != "" {
		t.Errorf("facts (-) and docs/json.md (+) differ:\n%s", diff)
	}
}
