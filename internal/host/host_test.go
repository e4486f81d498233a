package host

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	got, err := Read()
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
	if again, err := Read(); err != nil || again != got {
		t.Fatalf("a second time %+v, %v", again, err)
	}
}
