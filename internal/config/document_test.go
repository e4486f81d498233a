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
	want = between(t, want, "repository options", RepositoryTable())
	want = between(t, want, "item options", ItemTable())
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
		if !strings.Contains(want, "`"+env+"`") {
			t.Errorf("docs/configuration.md does not name %s", env)
		}
	}
}

// TestDocumentedExamplesLoad reads every YAML file and the list for the
// environment that the document shows.
func TestDocumentedExamplesLoad(t *testing.T) {
	data, err := os.ReadFile(documentPath)
	if err != nil {
		t.Fatal(err)
	}
	var loaded []*Config
	for rest := string(data); ; {
		_, after, found := strings.Cut(rest, "```yaml\n")
		if !found {
			break
		}
		example, behind, _ := strings.Cut(after, "```")
		loaded = append(loaded, mustLoad(t, input(example, nil, nil)))
		rest = behind
	}
	_, list, _ := strings.Cut(string(data), "AGENT_REPOSITORIES='")
	list, _, _ = strings.Cut(list, "'")
	loaded = append(loaded, mustLoad(t, input("", []string{"AGENT_REPOSITORIES=" + list}, nil)))
	if len(loaded) != 3 {
		t.Fatalf("docs/configuration.md has %d examples", len(loaded))
	}
	two := loaded[0].Repositories
	if len(two) != 2 || two[1].Immutable == nil || two[1].SSE != SSEKMS || len(loaded[0].Recipients) != 1 {
		t.Errorf("the example of two repositories was read as %v", loaded[0])
	}
	if c := loaded[1]; len(c.Repositories) != 1 || len(c.Recipients) != 2 || c.Bandwidth != 50_000_000 {
		t.Errorf("the example of one repository was read as %v", c)
	}
	if env := loaded[2].Repositories; len(env) != 2 || env[0] != two[0] || env[1].Name != two[1].Name || env[1].Required {
		t.Errorf("the list for the environment was read as %v", loaded[2])
	}
	for _, c := range loaded {
		if len(c.Warnings()) != 0 {
			t.Errorf("warnings %q", c.Warnings())
		}
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
