package config

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the generated tables into docs/configuration.md")

const documentPath = "../../docs/configuration.md"

// between replaces what stands between two markers.
func between(t *testing.T, text, name, table string) string {
	t.Helper()
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->\n"
	before, rest, ok := strings.Cut(text, begin)
	if !ok {
		t.Fatalf("%s has no line %q", documentPath, begin)
	}
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		t.Fatalf("%s has no line %q", documentPath, end)
	}
	return before + begin + table + end + after
}

func TestDocumentIsCurrent(t *testing.T) {
	data, err := os.ReadFile(documentPath)
	if err != nil {
		t.Fatal(err)
	}
	want := between(t, string(data), "options", OptionsTable())
	want = between(t, want, "wal-g", WALGTable())
	if *update {
		if err := os.WriteFile(documentPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Fatalf("docs/configuration.md is stale; run go test ./internal/config -update\n%s", diff)
	}
	for env := range replacements() {
		if !strings.Contains(want, "`"+env+"`") && env != "WALG_SSH_PREFIX" {
			t.Errorf("docs/configuration.md does not name %s", env)
		}
	}
}

func TestDocumentedExampleLoads(t *testing.T) {
	data, err := os.ReadFile(documentPath)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "```yaml\n")
	example, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("docs/configuration.md has no YAML example")
	}
	c, err := Load(input(example, nil, nil))
	if err != nil {
		t.Fatalf("the example in docs/configuration.md is refused: %v", err)
	}
	if len(c.Recipients) != 2 || c.Bandwidth != 50_000_000 {
		t.Fatalf("the example was read as %v", c)
	}
}

func TestHelpTextNamesEverythingInNarrowLines(t *testing.T) {
	help := HelpText()
	for _, o := range Options() {
		if !strings.Contains(help, "\n"+o.Key+"  "+o.Env) {
			t.Errorf("help does not describe %s", o.Key)
		}
	}
	for line := range strings.Lines(help) {
		if len(line) > 81 {
			t.Errorf("line is wider than 80 columns: %q", line)
		}
	}
}
