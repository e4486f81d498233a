package host

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"agent/internal/errs"
)

func TestRead(t *testing.T) {
	state := t.TempDir() + "/state"
	got, err := Read(state)
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil || got.Name != name {
		t.Fatalf("name %q, not %q (%v)", got.Name, name, err)
	}
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	s := strings.TrimSpace(string(id))
	if (got.Machine == "") != (s == "") || s != "" && (strings.Contains(s, got.Machine) || !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(got.Machine)) {
		t.Fatalf("machine %q", got.Machine)
	}
	if again, err := Read(state); err != nil || again != got {
		t.Fatalf("a second time %+v, %v", again, err)
	}
}

func TestStateID(t *testing.T) {
	one, err := Read(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	other, err := Read(t.TempDir())
	if err != nil || one.State == "" || one.State == other.State {
		t.Fatalf("%q and %q (%v)", one.State, other.State, err)
	}
	if _, err := Read("/dev/null/x"); !strings.Contains(errs.HintOf(err), "AGENT_STATE_DIR") {
		t.Fatalf("got %v", err)
	}
}

func TestSame(t *testing.T) {
	for name, test := range map[string]struct {
		a, b Identity
		want bool
	}{
		"machine":                    {Identity{"db", "m", "s"}, Identity{"db", "m", "t"}, true},
		"a copied disk":              {Identity{"db", "m", "s"}, Identity{"db", "n", "s"}, false},
		"another name":               {Identity{"db", "m", "s"}, Identity{"db2", "m", "s"}, false},
		"containers, the same state": {Identity{"db", "", "s"}, Identity{"db", "", "s"}, true},
		"containers, another state":  {Identity{"db", "", "s"}, Identity{"db", "", "t"}, false},
		"nothing is known":           {Identity{"db", "", ""}, Identity{"db", "", ""}, false},
		"one without machine id":     {Identity{"db", "m", "s"}, Identity{"db", "", "s"}, true},
	} {
		if got := test.a.Same(test.b); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
